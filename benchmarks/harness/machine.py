"""What the measurement ran on, in words."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from .cases import on_gpu

PACKAGES = ("torch", "vae_fast", "triton", "pythae", "pyro-ppl", "diffusers", "nvidia-ml-py")


def processor() -> str:
    if on_gpu():
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def free_memory() -> float:
    """Bytes that can still be taken, as far as one can know."""
    if on_gpu():
        return float(torch.cuda.mem_get_info()[0])
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), float("inf"))


def versions() -> dict[str, str]:
    """Of the packages that are there."""
    found = {"torch": torch.__version__}
    for name in PACKAGES[1:]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def about(quick: bool, command: str) -> dict[str, object]:
    """What stands beside every table and plot."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions(),
        "command": command,
        "gpu": on_gpu(),
        "quick": quick,
        "load": os.getloadavg()[0],
    }
