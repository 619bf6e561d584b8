"""The one way in which kernels are launched: on their tensors' device and its current stream; an empty grid launches
nothing. `executor` is replaced in tests, which run the same launches in an emulator.
"""

from collections.abc import Callable
from typing import Any

import torch

Executor = Callable[..., Any]
# Fused multiply-adds are counted on: 15.6 instructions per pixel of a Bernoulli kernel are 20.6 without. ptxas, left to
# itself, spills on sm_100 for the sake of an occupancy that a kernel bound by memory has no use for.
REGISTERS, MANY_REGISTERS, MOST_REGISTERS = 96, 128, 144  # of a thread; where few elements at once, or one, fill them
FUSION = {"enable_fp_fusion": True}


def nvidia_options(registers: int) -> dict[str, Any]:
    return FUSION | {"maxnreg": registers}


def run(
    kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, num_warps: int, registers: int
) -> None:
    """Compiles where needed, and starts the kernel."""
    if device.type != "cuda":
        kernel[grid](*arguments, num_warps=num_warps)
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, num_warps=num_warps, **(FUSION if torch.version.hip else nvidia_options(registers)))


executor: Executor = run


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    *arguments: Any,
    num_warps: int,
    registers: int = REGISTERS,
) -> None:
    """kernel[grid](*arguments): the kernel's parameters in order, constants included; and a thread's registers."""
    if max(grid[1:], default=1) > 65_535:
        raise RuntimeError(f"rows are too long for a GPU: they would take {grid[1]} programs, 65535 is the most")
    if 0 not in grid:
        executor(kernel, grid, device, *arguments, num_warps=num_warps, registers=registers)
