"""What one call holds and starts, as PyTorch's own profiler and allocator count it."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import vae_fast

from .cases import on_gpu

Call = Callable[[], None]
DISPATCHED = ("aten::", "vae_fast::")


def events_of(call: Call) -> list[Any]:
    """The profiler's events of a call, in time. What `vae_fast` has kept of earlier results is no help to it."""
    vae_fast.empty_cache()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu() else [])]
    with profile(activities=activities, profile_memory=not on_gpu()) as recorded:
        call()
        if on_gpu():
            torch.cuda.synchronize()
    return sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns())


def peak_memory(call: Call, events: Sequence[Any] | None = None) -> int:
    """The most bytes that a call holds at once beyond what was there before, as the allocator counts them."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        call()
        return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    found = events_of(call) if events is None else events
    return max(itertools.accumulate(e.nbytes() for e in found if e.name() == "[memory]"), default=0)


def operations(events: Iterable[Any], kernels: bool) -> int:
    """Kernels launched on a GPU; on a CPU, operators that are dispatched and not called by another operator."""
    if kernels:
        return sum(e.activity_type() == "kernel" for e in events)
    count, until = 0, dict[int, int]()
    for e in events:
        if e.name().startswith(DISPATCHED) and e.start_ns() >= until.get(e.start_thread_id(), 0):
            count += 1
            until[e.start_thread_id()] = e.end_ns()
    return count
