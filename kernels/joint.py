"""What the loop over planes needs of a likelihood in which many parameters belong to one observation:

    step(parameters, x, component, OPTIONS) -> (nll, gradients)

on tiles [PIXELS, COMPONENTS]: parameters, a tile of each kind (a plane is kind M + component of M); x, a column of each
channel; component, a row of their numbers. Where there are fewer components than the tile has, these are -1, the first
kind's parameters -inf and the others' 0. nll is [PIXELS, 1], in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Joint:
    """step: the function. kinds: of parameters of a component, by x's number of channels.
    elements: of a tile for each thread, so that what a step holds fits the registers; threads: of a program, if few
    components don't need more."""

    step: Any
    kinds: Mapping[int, int]
    elements: int = 8
    threads: int = 128
