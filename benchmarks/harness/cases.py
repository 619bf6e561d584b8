"""What is compared: one operator on tensors of one shape and dtype, and the grid of shapes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

Row = dict[str, str]
Shape = tuple[int, int]
Inputs = Callable[[int, int], tuple[list[Tensor], list[Tensor]]]

DIRECTIONS = ("forward", "forward + backward")
BATCHES = (64, 1024, 16384, 131072)
PIXELS = (784, 3072, 12288)
LATENTS = (16, 64, 512)


def on_gpu() -> bool:
    """Whether tensors are made on a GPU: see --device, which pytest reads after it has imported this."""
    return torch.get_default_device().type == "cuda"


@dataclass(frozen=True)
class Opponent:
    """Somebody's code for what a case computes.

    function: (*leaves, *data) -> a tensor or a tuple of tensors.
    arrange: the leaves, or their gradients, in the form that the function takes them in.
    shift: (shape) -> what its output lacks of ours by definition, such as a constant.
    """

    function: Callable[..., Any]
    arrange: Callable[[list[Tensor]], list[Tensor]] = list
    shift: Callable[[Shape], float] = lambda shape: 0.0


@dataclass(frozen=True, eq=False)
class Case:
    """One operator on tensors of one shape and dtype.

    inputs: (rows, columns) -> (leaves that require grad, data).
    eager, ours: (*leaves, *data) -> a tensor or a tuple of tensors.
    truth: (outputs, *leaves, *data), all in float64 -> what the outputs should be, differentiable.
    slack: (outputs, incoming gradients) -> for each leaf, what truth can't know of its gradient: see `bench_latent`.
        A case whose truth reads the outputs, as that of a sample must, has one.
    usual_error: what the gradients of the usual formula may be off by, of the largest, where its float32 loses digits.
    peers: other libraries' code, by name; those that aren't installed are not there.
    opponents: who runs it; all, if empty.
    full: whether it belongs to `--grid full` alone.
    row: (case, median seconds of each opponent) -> a row of the table `table`, in place of the usual columns.
    """

    operator: str
    dtype: str
    shape: Shape
    inputs: Inputs
    eager: Callable[..., Any]
    ours: Callable[..., Any]
    truth: Callable[..., Any]
    direction: str = "forward + backward"
    latent: int = 0
    slack: Callable[..., list[Tensor]] | None = None
    usual_error: float = 0.0
    peers: Mapping[str, Opponent] = field(default_factory=dict)
    opponents: tuple[str, ...] = ()
    full: bool = False
    table: str = "Speed"
    row: Callable[["Case", dict[str, float]], Row] | None = None

    def __str__(self) -> str:
        return f"{self.operator} {self.dtype} {self.size.replace(' ', '')} {self.direction}"

    @property
    def size(self) -> str:
        rows, columns = self.shape
        return f"{rows} x {columns}" + (f", Z {self.latent}" if self.latent else "")

    def smallest(self) -> "Case":
        return replace(self, shape=(3, self.shape[1]))


def over(case: Case, selection: Iterable[Shape], columns: Sequence[int] = PIXELS) -> list[Case]:
    """The case at every shape of the grid; those outside the selection wait for `--grid full`. A GPU, whose time at
    small shapes is its launches', gets the largest batch as well."""
    chosen = [*selection]
    if chosen and on_gpu():
        chosen.append((BATCHES[-1], columns[0]))
    shapes = dict.fromkeys([*chosen, *((b, d) for b in BATCHES for d in columns)])
    return [replace(case, shape=shape, full=case.full or shape not in chosen) for shape in shapes]


def both(cases: Iterable[Case], forward_at: Iterable[Shape] = ()) -> list[Case]:
    """Each case forward + backward, and forward alone (under no_grad, as in evaluation): at other shapes in full."""
    chosen = set(forward_at)
    return [
        replace(case, direction=way, full=case.full or (way == "forward" and case.shape not in chosen))
        for case in cases
        for way in DIRECTIONS
    ]


def each(cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Runs a benchmark with every (case, opponent) that the grid selects; `conftest.py` does the choosing."""
    return pytest.mark.cases(tuple(cases))


def selected(cases: Iterable[Case], full: bool, quick: bool) -> list[Case]:
    """The cases to run: of the full grid, of the short one, or, to see that they work, one of each kind."""
    chosen = [case for case in cases if full or not case.full]
    if not quick:
        return chosen
    kinds = {(case.operator, case.dtype, case.direction, case.table): case for case in reversed(chosen)}
    return list(reversed(kinds.values()))
