"""What the row loop needs of a likelihood or a divergence: an accumulator over the observations of a row.

    step(state, parameters, x, factor, ONE, OPTIONS) -> (state, gradients)    adds one observation
    fold(state, ONE, VECTOR) -> terms                                         turns the state into terms that add up
    finish(total, count, parameters) -> value                                 closes a row of `count` observations

step works on tiles [ROWS, COLS]; a parameter that is one number a row arrives as [ROWS, 1], and as [ROWS] in finish.
x is in units of 1 / ONE: bytes come as 0 to 255, with ONE = 255 unless they are counts. The gradients are times factor.
OPTIONS are the numbers, the same for all observations, that choose a likelihood's form.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl


@dataclass(frozen=True)
class Accumulator:
    """step, fold, finish: the functions. states: how many tensors the state has; they start at 0.
    neutral, neutral_x: parameters and an x that leave the state as it is, for places that don't count.
    steps: after how many steps of a single tensor element the state must be folded, None for never.
    counts: x is a count, and bytes are the numbers that they are.
    together: how many elements a thread has the registers to take at once, None for any number.
    heavy: a step takes so much that there is no room for several at once."""

    step: Any
    fold: Any
    finish: Any
    states: int
    neutral: tuple[float, ...]
    steps: int | None = None
    counts: bool = False
    neutral_x: float = 0.0
    together: int | None = None
    heavy: bool = False


@triton.jit
def neighbours(tile, VECTOR: tl.constexpr):
    """[ROWS, COLS] as [ROWS, COLS / VECTOR, VECTOR]: what one thread holds, together."""
    return tl.reshape(tile, [tile.shape[0], tile.shape[1] // VECTOR, VECTOR])


@triton.jit
def sum_of_one(state, ONE: tl.constexpr, VECTOR: tl.constexpr):
    """fold of a state that is one sum already"""
    return tl.sum(neighbours(state[0], VECTOR), 2)


@triton.jit
def as_it_is(total, count, parameters):
    """finish where nothing is left to do"""
    return total


@triton.jit
def halved(total, count, parameters):
    """finish of terms that were summed without their factor 1/2"""
    return 0.5 * total
