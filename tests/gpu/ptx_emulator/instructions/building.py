"""What the families share: the table of builders, modifiers, and how values are read from stored lanes.

A builder takes the machine `m`, the instruction `ins` and its modifiers, and gives the step that runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..numerics import bf16_to_f32, f32_to_bf16, f64_to_bf16, flush, saturate
from ..ptx_types import F16, F32, F64, TYPES, PtxType
from ..steps import Compute, Step

if TYPE_CHECKING:
    from ..machine import Machine
    from ..program import Instruction

ORDERING = {"weak", "relaxed", "acquire", "release", "acq_rel", "sc", "volatile", "cta", "gpu", "sys"}
CACHING = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "unified"}
IGNORED = ORDERING | CACHING

BUILDERS: dict[str, Callable[[Machine, Instruction, Modifiers], Step]] = {}


def builds(*names: str):
    """Registers a builder for the instructions of these names."""

    def register(builder):
        BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return register


class Modifiers:
    """An opcode's modifiers; those that a builder doesn't take are an error."""

    def __init__(self, ins: Instruction):
        self.base, self.left = ins.parts[0], list(ins.parts[1:])

    def take(self, *names: str) -> str | None:
        """Removes and gives the first of these modifiers that is there."""
        for name in names:
            if name in self.left:
                self.left.remove(name)
                return name
        return None

    def need(self, *names: str) -> str:
        """Takes one of these modifiers, without which an instruction means nothing."""
        found = self.take(*names)
        if found is None:
            raise NotImplementedError(f"{self.base} with none of .{', .'.join(names)}")
        return found

    def types(self) -> list[PtxType]:
        found = [TYPES[x] for x in self.left if x in TYPES]
        self.left = [x for x in self.left if x not in TYPES]
        return found

    def type(self) -> PtxType:
        """The one type of result and operands."""
        t, *more = self.types()
        if more:
            raise NotImplementedError(f"{self.base} of mixed types")
        if t.name in ("s16x2", "u16x2") and self.base not in ("add", "sub", "min", "max"):
            raise NotImplementedError(t.name)
        return t

    def narrow(self) -> PtxType | None:
        """The 16-bit type of the first operands where the result is float32 (sm_100), None elsewhere."""
        mixed = [x for x in self.left if x in ("f16", "bf16")] if "f32" in self.left else []
        return TYPES[self.take(*mixed)] if mixed else None

    def rounding(self) -> str:
        return self.take("rn", "rz", "rm", "rp") or "rn"

    def ftz(self, t: PtxType) -> str | None:
        return self._only_for(t, t.raw in (F16, F32), "ftz")

    def sat(self, t: PtxType) -> str | None:
        return self._only_for(t, t.raw is F16 or t.name == "f32", "sat")

    def relu(self, t: PtxType) -> str | None:
        return self._only_for(t, t.kind == "s" or t.raw is F16 or t.kind == "bf", "relu")

    def _only_for(self, t: PtxType, fits: bool, name: str) -> str | None:
        if name in self.left and not fits:
            raise NotImplementedError(f"{self.base}.{name}.{t.name}")
        return self.take(name)

    def done(self) -> None:
        if self.left:
            raise NotImplementedError(f"modifier .{self.left[0]}")

    def done_but_for_memory(self) -> None:
        """Ignores the modifiers of ordering and caching, which change no result here."""
        self.left = [x for x in self.left if x not in IGNORED and not x.startswith(("L1::", "L2::"))]
        self.done()


def elementwise(m: Machine, ins: Instruction, t: PtxType, fn: Callable, types: list[PtxType] | None = None) -> Compute:
    """The step d = fn(a, b, ...) with a result of type `t` and operands of `types` (None: all of type t)."""
    operands = ins.args[1:]
    types = types or [t] * len(operands)
    sources = [m.source(a, s) for a, s in zip(operands, types, strict=True)]
    return m.assign(ins.args[0], t, fn, sources)


def decode(t: PtxType, ftz: str | None = None) -> Callable | None:
    """Stored lanes to the values to compute with, float32 for the 16-bit formats; None where they are the same."""
    values = bf16_to_f32 if t.kind == "bf" else (lambda x: x.astype(F32)) if t.raw is F16 else None
    if not ftz:
        return values
    return flush if values is None else (lambda x: values(flush(x)))


def encode(t: PtxType, ftz: str | None = None, sat: str | None = None) -> Callable:
    """Computed values (float32 or float64, rounded at most to odd) to stored lanes."""

    def to_lanes(v):
        if sat:
            v = saturate(v)
        if t.kind == "bf":
            v = f32_to_bf16(v) if v.dtype == F32 else f64_to_bf16(v)
        v = v.astype(t.raw, copy=False)
        return flush(v) if ftz else v

    return to_lanes


def widened(narrow: PtxType, fn: Callable, count: int) -> Callable:
    """Makes a function of float32 take its first `count` operands as stored lanes of a 16-bit type."""
    values = decode(narrow)
    return lambda *a: fn(*[values(x) for x in a[:count]], *a[count:])


def lift(t: PtxType, fn: Callable, ftz: str | None = None, sat: str | None = None) -> Callable:
    """Makes a function of floating-point values work on stored lanes of type `t`."""
    if t.raw in (F32, F64) and not ftz and not sat:
        return fn
    values, lanes = decode(t, ftz), encode(t, ftz, sat)
    if values is None:
        return lambda *a: lanes(fn(*a))
    return lambda *a: lanes(fn(*[values(x) for x in a]))
