"""The instructions, by family; importing a family registers its builders."""

from . import (
    arithmetic,
    async_copy,
    atomics,
    bits,
    comparison,
    control,
    conversions,
    functions,
    matrix,
    memory_access,
    moves,
    warp,
)
from .building import BUILDERS, Modifiers

__all__ = [
    "BUILDERS",
    "Modifiers",
    "arithmetic",
    "async_copy",
    "atomics",
    "bits",
    "comparison",
    "control",
    "conversions",
    "functions",
    "matrix",
    "memory_access",
    "moves",
    "warp",
]
