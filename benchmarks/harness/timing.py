"""The interleaved measurement: a round runs every opponent, in an order drawn anew, for as long as it is worth."""

import gc
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nvml
import pytest
import torch
from torch import Tensor

from .agreement import GATED, Gate, arranged, as_tuple, cotangents
from .calls import Call, caller, graphed, last_cache, rotated, sets_beyond
from .cases import Case, on_gpu
from .machine import free_memory
from .opponents import LIMITS, limit_for, limits, opponent_of, opponents_of
from .profiled import events_of, operations, peak_memory

ROUNDS = 7, 400  # fewest and most, whatever they take
LONG = 0.05  # seconds of a call that is run once before it is measured, not four times
SAMPLE = 5e-4, 5e-3  # seconds, on a CPU and on a GPU: shorter calls are repeated until a sample lasts this long
NEEDED = 80  # bytes an element, of the hungriest opponent and of what all have as gradients


@dataclass(frozen=True)
class Settings:
    """How to measure. quick: once, to see that it works. seconds: of rounds, a case. cold: buffers that no cache holds.
    graphs: calls replayed from CUDA graphs. watch: of the GPU's clocks and power."""

    quick: bool = False
    seconds: float = 2.0
    cold: bool = False
    graphs: bool = False
    watch: nvml.Watch | None = None


@dataclass
class Measurement:
    """By opponent: seconds of each round, calls a round, the largest error of a gradient over the largest gradient,
    peak bytes beyond the inputs, operators or launches, what the GPU did. Bytes that must be read and written, and the
    operation of PyTorch's that moved as many."""

    read: int
    written: int
    gradients: int
    limit: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    iterations: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)
    gpu: dict[str, dict[str, Any]] = field(default_factory=dict)

    def a_call(self, name: str) -> list[float]:
        """Seconds of a call, by round."""
        return [s / self.iterations[name] for s in self.seconds[name]]


def sample(call: Call, iterations: int) -> float:
    """Seconds of so many calls; on a GPU by its own clock, from when it is idle to when it has done them all."""
    if not on_gpu():
        start = time.perf_counter()
        for _ in range(iterations):
            call()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    for _ in range(iterations):
        call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def shortest(call: Call, quick: bool) -> float:
    """Seconds of a call that has been made before."""
    first = sample(call, 1)
    return min(first, *(sample(call, 1) for _ in range(3))) if first < LONG and not quick else first


def interleave(
    calls: dict[str, Call], settings: Settings, after_round: Callable[[], None] = lambda: None
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each round and calls a round, by name. A round runs all of them, in an order drawn anew."""
    quick = settings.quick
    once = {name: shortest(call, quick) for name, call in calls.items()}
    iterations = {name: 1 if quick else max(1, math.ceil(SAMPLE[on_gpu()] / seconds)) for name, seconds in once.items()}
    a_round = sum(once[name] * iterations[name] for name in calls)
    rounds = 1 if quick else min(max(int(settings.seconds / a_round), ROUNDS[0]), ROUNDS[1])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order, rng = list(calls), random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            rng.shuffle(order)
            for name in order:
                seconds[name].append(sample(calls[name], iterations[name]))
            after_round()
    finally:
        gc.enable()
    return seconds, iterations


def operands(case: Case, most: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """(leaves, data) of the case's shape, or of so many rows that there are at most `most` elements."""
    rows, columns = case.shape
    torch.manual_seed(0)
    leaves, data = case.inputs(min(rows, most // columns) if most else rows, columns)
    return [t.requires_grad_() for t in leaves], data


def ideal(case: Case, leaves: list[Tensor], data: list[Tensor]) -> tuple[int, int]:
    """Bytes that must be read and written: inputs, incoming gradients among them, once; outputs and gradients once."""
    with torch.no_grad():
        outputs = as_tuple(case.ours(*leaves, *data))
    read, written = (sum(t.nbytes for t in some) for some in ([*leaves, *data], outputs))
    if case.direction != "forward + backward":
        return read, written
    incoming = sum(t.nbytes for t in cotangents(outputs) if t is not None)
    return read + incoming, written + sum(t.nbytes for t in leaves)


def measure(case: Case, settings: Settings) -> Measurement:
    """Gates, then times all of a case's opponents."""
    needed = NEEDED * math.prod(case.shape)
    if needed > 0.8 * free_memory():
        pytest.skip(f"may need {needed / 2**30:.0f} GiB of memory")
    first = operands(case)
    read, written = ideal(case, *first)
    m = Measurement(read, written, sum(t.nbytes for t in first[0]), limit_for(read, written))
    copies = sets_beyond(last_cache(), read + written) if settings.cold else 1
    sets = [first, *(operands(case) for _ in range(copies - 1))]
    at_limit = [limits(m.limit, read + written) for _ in sets]
    calls: dict[str, Call] = {}
    gate = Gate(case, *operands(case, GATED))
    for name in opponents_of(case):
        alone = [some[name] for some in at_limit] if name in LIMITS else prepared(gate, name, settings, sets, m)
        calls[name] = rotated([graphed(call) for call in alone] if settings.graphs else alone)
    del gate
    watch = settings.watch
    m.seconds, m.iterations = interleave(calls, settings, watch.read if watch else lambda: None)
    if watch:
        watched(watch, calls, settings, m)
    torch.compiler.reset()
    return m


def prepared(gate: Gate, name: str, settings: Settings, sets: list[Any], m: Measurement) -> list[Call]:
    """An opponent's calls, one a set of operands, after the gate; memory and operators are counted with the first. Each
    has been made before it is timed."""
    from torch._inductor import metrics  # counts loops that Inductor wrote, which the profiler doesn't see

    case, opponent = gate.case, opponent_of(gate.case, name, settings.quick, settings.graphs)
    metrics.reset()
    m.errors[name] = gate(name, opponent)
    theirs = [(arranged(opponent, leaves), data) for leaves, data in sets]
    calls = [caller(case.direction, opponent.function, *some) for some in theirs]
    if case.direction != "forward + backward" or math.prod(case.shape) > GATED:  # it is compiled once more
        metrics.reset()
    for call in calls:
        call()
    events = events_of(without_gradients(calls[0], theirs[0][0]))
    m.operations[name] = operations(events, on_gpu()) + (0 if on_gpu() else metrics.generated_kernel_count)
    m.peaks[name] = peak_memory(without_gradients(calls[0], theirs[0][0]), events)
    return calls


def without_gradients(call: Call, leaves: list[Tensor]) -> Call:
    """The call, with the gradients of the one before dropped already."""
    for t in leaves:
        t.grad = None
    return call


def watched(watch: nvml.Watch, calls: dict[str, Call], settings: Settings, m: Measurement) -> None:
    """What the GPU did in the rounds; and energy, for which an opponent runs for a while without the others."""
    in_rounds = watch.readings()
    for name, call in calls.items():
        seconds = 0.0 if settings.quick else 0.5
        joules, count = watch.energy(call, seconds, torch.cuda.synchronize)
        m.gpu[name] = {**in_rounds, "joules_a_call": joules / count if joules is not None else None}
