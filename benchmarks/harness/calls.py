"""What is timed: a call that takes its memory fresh, in rotation over cold buffers, or replayed from a CUDA graph."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .agreement import as_tuple, cotangents
from .cases import on_gpu

Call = Callable[[], None]
MOST_SETS = 512  # of tiny operands, which the caches then hold all the same


def caller(direction: str, function: Callable[..., Any], leaves: list[Tensor], data: list[Tensor]) -> Call:
    """A call to time. It first drops the gradients that the one before has left, as a training step does; the first
    makes the incoming ones."""
    incoming: list[Tensor | None] = []

    def forward() -> None:
        with torch.no_grad():
            function(*leaves, *data)

    def recorded() -> None:
        function(*leaves, *data)

    def both_ways() -> None:
        for t in leaves:
            t.grad = None
        outputs = as_tuple(function(*leaves, *data))
        if not incoming:
            incoming.extend(cotangents(outputs))
        torch.autograd.backward(outputs, incoming)

    return {"forward": forward, "forward, recorded": recorded, "forward + backward": both_ways}[direction]


def last_cache() -> int:
    """Bytes of the cache before memory: a GPU's L2, a CPU's largest."""
    if on_gpu():
        return int(torch.cuda.get_device_properties().L2_cache_size)
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = [re.fullmatch(r"(\d+)([KM])\s*", path.read_text()) for path in sizes]
    return max((int(m[1]) * {"K": 2**10, "M": 2**20}[m[2]] for m in found if m), default=2**26)


def sets_beyond(cache: int, size: int) -> int:
    """How many sets of buffers of that size to use in turn, so that none is in the cache when it is used again."""
    return min(1 + math.ceil(2 * cache / max(size, 1)), MOST_SETS)


def rotated(calls: Sequence[Call]) -> Call:
    """Another of the calls each time."""
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)

    def turn() -> None:
        next(turns)()

    return turn


def graphed(call: Call, cuda: Any = torch.cuda) -> Call:
    """The call's launches as one CUDA graph: what it costs without Python and launch latency."""
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(3):
            call()
    cuda.current_stream().wait_stream(side)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        call()
    replay: Call = graph.replay
    return replay
