"""What an instruction becomes: the kinds of steps that the scheduler tells apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .threads import Active

Action = Callable[[Active], object]


class Step:
    """A guard (register, negated) leaves only the threads where it holds."""

    guard: tuple[str, bool] | None = None


@dataclass
class Compute(Step):
    """Runs at once on whoever is there."""

    run: Action


@dataclass
class Branch(Step):
    """Gives the ways on: (next instruction, mask), with the mask None for all who came."""

    choose: Callable[[Active], list[tuple[int, np.ndarray | None]]]


@dataclass
class Exit(Step):
    """Ends the threads."""


@dataclass
class WarpSync(Step):
    """Waits for the lanes named by `members`, a mask for each thread."""

    members: np.ndarray
    run: Action


@dataclass
class Barrier(Step):
    """Waits for the CTA, or for `count` of its threads."""

    ident: np.ndarray
    count: np.ndarray | None = None
    run: Action | None = None


def in_turn(steps: list[Compute]) -> Compute:
    """Several steps as one."""

    def run(act):
        for step in steps:
            step.run(act)

    return Compute(run)
