"""NVIDIA's own readings of its GPU, through nvidia-ml-py, where both are there: clocks, power, temperature, energy, and
whether it was throttled. Where either is missing, `watch()` is None and the columns are absent."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

THROTTLED = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")


class Watch:
    """Of one GPU. `read` takes a reading, `readings` sums up those since it was last asked."""

    def __init__(self, library: Any, handle: Any) -> None:
        self.library, self.handle = library, handle
        self.taken: list[tuple[float, float, float, float]] = []
        self.reasons = 0

    def read(self) -> None:
        n, gpu = self.library, self.handle
        clocks = [float(n.nvmlDeviceGetClockInfo(gpu, kind)) for kind in (n.NVML_CLOCK_SM, n.NVML_CLOCK_MEM)]
        celsius = float(n.nvmlDeviceGetTemperature(gpu, n.NVML_TEMPERATURE_GPU))
        self.taken.append((*clocks, n.nvmlDeviceGetPowerUsage(gpu) / 1e3, celsius))
        self.reasons |= n.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)

    def readings(self) -> dict[str, Any]:
        """Means since the last time, the highest temperature, and the names of what throttled the clocks."""
        if not self.taken:
            self.read()
        sm, memory, watts, celsius = zip(*self.taken, strict=True)
        known = {name: getattr(self.library, f"nvmlClocksThrottleReason{name}") for name in THROTTLED}
        found = {
            "sm_mhz": statistics.mean(sm),
            "memory_mhz": statistics.mean(memory),
            "watts": statistics.mean(watts),
            "celsius": max(celsius),
            "throttled": [name for name, bit in known.items() if self.reasons & bit],
        }
        self.taken, self.reasons = [], 0
        return found

    def energy(
        self, call: Callable[[], None], seconds: float, synchronize: Callable[[], None]
    ) -> tuple[float | None, int]:
        """(joules, calls) of calling for so long, by the GPU's own counter; None where it has none."""
        synchronize()
        count, start, before = 0, time.perf_counter(), self._joules()
        while count == 0 or time.perf_counter() - start < seconds:
            call()
            count += 1
        synchronize()
        after = self._joules()
        return (None if before is None or after is None else after - before), count

    def _joules(self) -> float | None:
        try:
            return float(self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3
        except self.library.NVMLError:
            return None


def watch(library: Any = None, uuid: str | None = None) -> Watch | None:
    """A watch of the GPU that torch uses, or None."""
    try:
        if library is None:
            import pynvml as library
        if uuid is None:
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    except (ImportError, RuntimeError, AssertionError):
        return None
    try:
        library.nvmlInit()
        found = Watch(library, library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))
        found.read()
    except library.NVMLError:
        return None
    found.readings()
    return found
