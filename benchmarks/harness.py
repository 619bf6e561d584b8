"""What every benchmark shares: opponents, the gate, the interleaved measurement, peak memory, the tables.

A benchmark is a `Case`. Its opponents run in one process and in turn, so that a slow moment of the machine
meets them all, and no figure is shown before outputs and gradients agree with the float64 reference.
`conftest.py` hands the recorded times to pytest-benchmark.
"""

import gc
import itertools
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Outputs = tuple[Tensor, ...]
Call = Callable[[], None]
Row = dict[str, str]

DIRECTIONS = ("forward", "forward + backward")
LIMITS = ("torch.add", "torch.add, out=")
SECONDS = 2.5  # of measuring, a case
ROUNDS = 15, 400  # fewest and most, whatever they take
ON_GPU = torch.get_default_device().type == "cuda"  # see --device
SAMPLE = 5e-3 if ON_GPU else 5e-4  # seconds: shorter calls are repeated until a sample lasts this long
GATED = 2**23  # elements that the gate looks at: of larger shapes, the first rows
VALUE_TOLERANCE = 1e-5  # relative: float32 sums of millions of terms, as the opponents take them
GRADIENT_TOLERANCE = 2e-6  # of the largest gradient, beside half a unit in the last place of its dtype


def batch(rows: int, columns: int) -> tuple[int, int]:
    """A shape to compare at: on a GPU of so many rows that its caches don't hold them and launches don't decide."""
    return (16 * rows if ON_GPU else rows, columns)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def speed_row(case: "Case", seconds: dict[str, float]) -> Row:
    fresh, used = (seconds[name] for name in LIMITS)
    return {
        "operator": f"`{case.operator}`",
        "shape": "{} × {}".format(*case.shape),
        "dtype": case.dtype,
        "pass": case.direction,
        **{f"{name}, ms": milliseconds(seconds[name]) for name in ("eager", "compile", "ours")},
        "torch.add, ms": milliseconds(fresh),
        "with out=, ms": milliseconds(used),
        "compile / ours": f"{seconds['compile'] / seconds['ours']:.2f}",
        "ours / torch.add": f"{seconds['ours'] / fresh:.2f}",
    }


@dataclass(frozen=True, eq=False)
class Case:
    """One operator on tensors of one shape and dtype.

    inputs: (rows, columns) -> (leaves that require grad, data).
    eager, ours: (*leaves, *data) -> a tensor or a tuple of tensors.
    truth: (outputs, *leaves, *data), all in float64 -> what the outputs should be, differentiable.
    row: (case, median seconds of each opponent) -> a row of the table `table`.
    """

    operator: str
    dtype: str
    shape: tuple[int, int]
    inputs: Callable[[int, int], tuple[list[Tensor], list[Tensor]]]
    eager: Callable[..., Any]
    ours: Callable[..., Any]
    truth: Callable[..., Any]
    direction: str = "forward + backward"
    opponents: tuple[str, ...] = ("eager", "compile", "ours", *LIMITS)
    table: str = "Speed"
    row: Callable[["Case", dict[str, float]], Row] = speed_row

    def __str__(self) -> str:
        rows, columns = self.shape
        return f"{self.operator} {self.dtype} {rows}x{columns} {self.direction}"

    def smallest(self) -> "Case":
        return replace(self, shape=(3, self.shape[1]))


@dataclass
class Measurement:
    """By opponent: seconds of each round, calls a round, peak bytes beyond the inputs. The gradients' bytes."""

    seconds: dict[str, list[float]]
    iterations: dict[str, int]
    peaks: dict[str, int]
    gradients: int

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name]) / self.iterations[name]


# name -> (case, quick) -> the function to call. A further opponent is an entry here and its name in a case.
OPPONENTS: dict[str, Callable[[Case, bool], Callable[..., Any]]] = {
    "eager": lambda case, quick: case.eager,
    "compile": lambda case, quick: compiled(case.eager, "eager" if quick else "inductor"),
    "ours": lambda case, quick: case.ours,
}


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """torch.compile for the shapes it meets; compiling happens in the gate and is not timed."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def both(*cases: Case) -> list[Case]:
    """Each case forward alone (under no_grad, as in evaluation) and forward + backward."""
    return [replace(case, direction=direction) for case in cases for direction in DIRECTIONS]


def each(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Parametrises a benchmark by (case, opponent)."""
    pairs = [pytest.param(case, name, id=f"{case} {name}") for case in cases for name in case.opponents]
    return pytest.mark.parametrize(("case", "opponent"), pairs)


def as_tuple(outputs: Any) -> Outputs:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def cotangents(outputs: Outputs) -> list[Tensor | None]:
    """Incoming gradients: none for a scalar; ones for a value [B]; fixed noise for a sample [B, Z]."""
    device = outputs[0].device
    noise = torch.Generator(device).manual_seed(1)

    def sample(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=noise, device=device).to(t.dtype)

    makers = (lambda t: None, torch.ones_like, sample)
    return [makers[t.dim()](t) for t in outputs]


def gate(case: Case, function: Callable[..., Any], leaves: list[Tensor], data: list[Tensor]) -> None:
    """Raises AssertionError unless the function's outputs and gradients agree with the float64 reference."""
    outputs = as_tuple(function(*leaves, *data))
    incoming = cotangents(outputs)
    found = torch.autograd.grad(outputs, leaves, incoming)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    wide_data = [x.double() if x.is_floating_point() else x for x in data]
    expected = as_tuple(case.truth(tuple(t.detach().double() for t in outputs), *wide, *wide_data))
    truth = torch.autograd.grad(expected, wide, [None if t is None else t.double() for t in incoming])
    for got, want in zip(outputs, expected, strict=True):
        close(case, "output", got, want.detach(), VALUE_TOLERANCE * want.detach().abs())
    for got, want in zip(found, truth, strict=True):
        rounding = torch.finfo(got.dtype).eps / 2 * want.abs()
        close(case, "gradient", got, want, GRADIENT_TOLERANCE * want.abs().amax() + rounding)


def close(case: Case, what: str, got: Tensor, want: Tensor, tolerance: Tensor) -> None:
    worst = ((got.double() - want).abs() / (tolerance + 1e-30)).max().item()
    assert worst <= 1, f"{case}: {what} off by {worst:.3g} times the tolerance"


def caller(direction: str, function: Callable[..., Any], leaves: list[Tensor], data: list[Tensor]) -> Call:
    """A call to time. It first drops the gradients that the last one left: all write to fresh memory."""
    incoming = cotangents(as_tuple(function(*leaves, *data)))

    def forward() -> None:
        with torch.no_grad():
            function(*leaves, *data)

    def recorded() -> None:
        function(*leaves, *data)

    def both_ways() -> None:
        for t in leaves:
            t.grad = None
        torch.autograd.backward(as_tuple(function(*leaves, *data)), incoming)

    return {"forward": forward, "forward, recorded": recorded, "forward + backward": both_ways}[direction]


def limits(rows: int, columns: int) -> dict[str, Call]:
    """torch.add over three float32 arrays: what memory allows. Its result is fresh, as gradients are, or not."""
    a, b, out = (torch.randn(rows, columns) for _ in range(3))
    kept: list[Tensor] = []

    def fresh() -> None:
        kept.clear()
        kept.append(torch.add(a, b))

    def used() -> None:
        torch.add(a, b, out=out)

    return dict(zip(LIMITS, (fresh, used), strict=True))


def sample(call: Call, iterations: int) -> float:
    """Seconds of so many calls; on a GPU by its own clock, from when it is idle to when it has done them all."""
    if not ON_GPU:
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


def interleave(calls: dict[str, Call], quick: bool) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each round and calls a round, by name. A round runs all of them, in an order drawn anew."""
    once = {name: min(sample(call, 1) for _ in range(1 if quick else 4)) for name, call in calls.items()}
    iterations = {name: 1 if quick else max(1, math.ceil(SAMPLE / seconds)) for name, seconds in once.items()}
    a_round = sum(once[name] * iterations[name] for name in calls)
    rounds = 1 if quick else min(max(int(SECONDS / a_round), ROUNDS[0]), ROUNDS[1])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order, rng = list(calls), random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            rng.shuffle(order)
            for name in order:
                seconds[name].append(sample(calls[name], iterations[name]))
    finally:
        gc.enable()
    return seconds, iterations


def peak_memory(call: Call) -> int:
    """The most bytes that a call holds at once beyond what was there before, as the allocator counts them."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        call()
        return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes), default=0)


def operands(case: Case, most: int | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """(leaves, data) of the case's shape, or of so many rows that there are at most `most` elements."""
    rows, columns = case.shape
    torch.manual_seed(0)
    leaves, data = case.inputs(min(rows, most // columns) if most else rows, columns)
    return [t.requires_grad_() for t in leaves], data


def measure(case: Case, quick: bool) -> Measurement:
    """Gates, then times all of a case's opponents."""
    leaves, data = operands(case)
    at_limit = limits(*case.shape)
    calls, peaks = {}, {}
    for name in case.opponents:
        if name in at_limit:
            calls[name] = at_limit[name]
            continue
        function = OPPONENTS[name](case, quick)
        gate(case, function, *operands(case, GATED))
        calls[name] = caller(case.direction, function, leaves, data)
        if case.direction == "forward + backward":
            calls[name]()
            for t in leaves:
                t.grad = None
            peaks[name] = peak_memory(calls[name])
    seconds, iterations = interleave(calls, quick)
    torch.compiler.reset()
    return Measurement(seconds, iterations, peaks, sum(t.nbytes for t in leaves))


def replay(seconds: Sequence[float]) -> Callable[[], float]:
    """A timer whose readings lie as far apart, two by two, as what was measured before."""
    readings = itertools.chain.from_iterable((0.0, s) for s in seconds)

    def recorded() -> float:
        return next(readings)

    return recorded


def memory_row(case: Case, measurement: Measurement) -> Row:
    """Peak memory in units of the gradients."""
    size = f"{measurement.gradients / 2**20:.1f}"
    peaks = {name: f"{peak / measurement.gradients:.3f}" for name, peak in measurement.peaks.items()}
    return {"operator": f"`{case.operator}`", "dtype": case.dtype, "gradients, MiB": size, **peaks}


def processor() -> str:
    """What the measurement ran on, as the system names it."""
    if ON_GPU:
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


METHOD = "Medians of {} to {} rounds in one process, in each of which every opponent runs.".format(*ROUNDS)
if ON_GPU:
    METHOD += " Times are the GPU's own (CUDA events) over calls from Python; where these are slower, theirs."
CAPTIONS = {
    "Speed": "Forward: under no_grad; forward + backward: as in training, gradients in fresh memory. "
    "torch.add: two float32 arrays of that shape into a third, fresh as gradients are; with out=, a used one.",
    "Memory": "The most that forward + backward holds beyond its inputs, outputs and gradients included, "
    "in units of the gradients.",
    "Scaling": "Forward + backward, an element.",
    "Overhead": "One call on tensors of a few elements, on one thread. Recorded: forward with the graph for backward.",
    "Import": "In a fresh process, the files in the page cache.",
}


class Tables:
    """The results as markdown, a table a title, in the order in which rows come."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.rows: dict[str, list[Row]] = {}

    def add(self, title: str, row: Row) -> None:
        self.rows.setdefault(title, []).append(row)

    def markdown(self) -> str:
        setting = f"torch {torch.__version__}, {processor()}, {torch.get_num_threads()} threads. "
        setting += "Run once, at the smallest size: NOT a measurement." if self.quick else METHOD
        parts = [self._table(title, rows) for title, rows in self.rows.items()]
        return "\n\n".join([setting, *parts]) + "\n"

    @staticmethod
    def _table(title: str, rows: list[Row]) -> str:
        heads = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        body = [[row.get(head, "") for head in heads] for row in rows]
        widths = [max(len(line[i]) for line in [heads, *body]) for i in range(len(heads))]
        lines = [heads, ["-" * width for width in widths], *body]
        cells = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
        return f"**{title}.** {CAPTIONS[title]}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells)
