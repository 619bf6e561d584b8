"""Runs the PTX that Triton and nvcc emit on NumPy arrays and CPU tensors, without a GPU.

    stats = run(ptx, "kernel", grid, block, args, dynamic_shared=0)
    stats = run_triton(jit_function, grid, args, constexprs, num_warps=4, cc=90)
    unsupported(ptx, "kernel")      # the instructions that would be refused
    never_written(ptx, "kernel")    # the registers that nothing writes: the mark of poison

A batch of CTAs runs in lock-step as one long axis of threads, and a register is an array over it. Threads that part
are grouped by their next instruction and the group that lags behind runs first, so that they meet again at the next
common instruction. Barriers and warp-synchronous instructions wait for all the threads that they name. Each access is
checked for bounds, alignment and, in shared memory, for bytes that nobody wrote. What isn't known raises
NotImplementedError; nothing is skipped silently.

Not modelled: wgmma and tcgen05, TMA and mbarrier, clusters, fp8, timing, the order of memory between blocks and races
between them. CTAs of later batches start after earlier ones ended, so a kernel that waits for a later CTA hits the
limit of steps. The `.approx` instructions are computed in float64 and rounded once, so they are more exact than a GPU's
unless `approx_noise` is given; a matrix product is rounded once, where a GPU rounds several times.
"""

from .errors import EmulatorError, MemoryFault
from .inspection import never_written, unsupported
from .launch import run
from .stats import Stats, Traffic
from .triton_driver import compile_triton, run_triton

__all__ = [
    "EmulatorError",
    "MemoryFault",
    "Stats",
    "Traffic",
    "compile_triton",
    "never_written",
    "run",
    "run_triton",
    "unsupported",
]
