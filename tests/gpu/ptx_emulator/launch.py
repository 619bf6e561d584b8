"""Launches a kernel on the host's arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import EmulatorError
from .machine import Machine
from .memory import GlobalMemory, is_array
from .options import Launch
from .parsing import Variable, parse
from .program import flat_program
from .ptx_types import F16, F32, F64, TYPES
from .scheduling import Scheduler
from .stats import Stats

PADDING = bytes(16)  # so that a vector load of a parameter reads no further than its bytes


def _three(extent: int | Sequence[int]) -> tuple[int, int, int]:
    extent = tuple(int(n) for n in extent) if isinstance(extent, (tuple, list)) else (int(extent),)
    return extent + (1,) * (3 - len(extent))


def encode_param(v: Variable, value: Any, memory: GlobalMemory) -> bytes:
    """A kernel's argument as the bytes of its parameter; None is zero."""
    if isinstance(value, (bytes, bytearray)):
        raw = bytes(value)
    elif value is None:
        raw = bytes(v.size)
    elif is_array(value):
        if v.size != 8:
            raise EmulatorError(f"array given for the {v.size}-byte parameter {v.name}")
        raw = memory.address(value).to_bytes(8, "little")
    elif isinstance(value, (float, np.floating)) or TYPES[v.type].kind == "f":
        raw = np.array(value, {2: F16, 4: F32, 8: F64}[v.size]).tobytes()
    else:
        raw = (int(value) & ((1 << 8 * v.size) - 1)).to_bytes(v.size, "little")
    if len(raw) != v.size:
        raise EmulatorError(f"parameter {v.name} has {v.size} bytes, got {len(raw)}")
    return raw + PADDING


def run(
    ptx: str,
    kernel: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Any],
    dynamic_shared: int = 0,
    batch_threads: int = 16384,
    max_steps: int = 20_000_000,
    approx_noise: int | None = None,
    racecheck: bool = False,
    placed: Mapping[int, Any] | None = None,
) -> Stats:
    """Runs one launch; the arrays and CPU tensors in `args` and `placed` change in place.

    args: one for each parameter: an array, a number, or the parameter's bytes, such as those of a struct.
    batch_threads: about how many threads run in lock-step.
    max_steps: instructions that a batch may run before it counts as an endless loop.
    approx_noise: a seed that makes each .approx instruction wrong by its bound, with signs that depend on the operands.
    racecheck: finds barriers that are missing between a CTA's warps, which lock-step hides otherwise.
    placed: more arrays, by the addresses at which the kernel finds them: for pointers inside structs.
    """
    module = parse(ptx)
    required, largest = module.entry(kernel).required_block, module.entry(kernel).largest_block
    launch = Launch(_three(grid), _three(block), dynamic_shared, max_steps, approx_noise, racecheck)
    if required and np.prod(required) != launch.block_threads:
        raise EmulatorError(f"{kernel} requires {required} threads, launched with {launch.block}")
    if largest and np.prod(largest) < launch.block_threads:
        raise EmulatorError(f"{kernel} takes at most {np.prod(largest)} threads, launched with {launch.block}")
    program = flat_program(module, kernel)
    if len(args) != len(program.params):
        raise EmulatorError(f"{kernel} has {len(program.params)} parameters, got {len(args)} arguments")
    memory = GlobalMemory(module, {position: a for position, a in enumerate(args) if is_array(a)}, placed)
    params = {v.name: encode_param(v, a, memory) for v, a in zip(program.params, args, strict=True)}
    stats = Stats(kernel)
    if launch.blocks:
        ctas = max(1, min(launch.blocks, batch_threads // launch.padded_threads))
        with np.errstate(all="ignore"):
            _run_batches(Machine(program, module, memory, params, launch, ctas, stats))
        memory.copy_back()
    stats.traffic = memory.traffic()
    return stats


def _run_batches(m: Machine) -> None:
    scheduler = Scheduler(m)
    for first_cta in range(0, m.launch.blocks, m.ctas):
        scheduler.run(m.start(first_cta))
    for ins, count in zip(m.program.code, scheduler.counts, strict=True):
        if count:
            m.stats.opcodes[ins.op] += count
    m.steps, m.races = [], None  # which refer to the machine: its memory can go now
