"""Comparisons, selections and tests of a number's class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..operands import Negated, Pair
from ..ptx_types import TYPES, U16
from ..steps import in_turn
from .building import builds, decode, elementwise

COMPARE = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _is_ordinary(a):
    return np.abs(a) >= np.finfo(a.dtype).tiny


CLASSES = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda a: a == a,
    "notanumber": np.isnan,
    "normal": lambda a: np.isfinite(a) & _is_ordinary(a),
    "subnormal": lambda a: (a != 0) & ~_is_ordinary(a) & ~np.isnan(a),
}


@dataclass
class Comparison:
    """(a holds b) combined with c, where there is a predicate c."""

    holds: Callable
    operands: list[np.ndarray]
    combine: Callable | None = None

    def result(self, inverse: bool = False) -> Callable:
        """The function of the operands; the inverse compares the other way and combines alike."""
        holds = (lambda a, b: ~self.holds(a, b)) if inverse else self.holds
        if self.combine is None:
            return holds
        return lambda a, b, c: self.combine(holds(a, b), c)


def _comparison(m, ins, mods, t) -> Comparison:
    name, combine, ftz = mods.need("ne", *COMPARE), mods.take(*COMBINE), mods.ftz(t)
    mods.done()
    if name in ("lo", "ls", "hi", "hs") and t.kind != "u":
        raise NotImplementedError(f"{name} on {t.name}")
    if name == "ne":
        compare = np.not_equal if t.integer else lambda a, b: (a < b) | (a > b)
    else:
        compare = COMPARE[name]
    values = decode(t, ftz)
    holds = compare if values is None else (lambda a, b: compare(values(a), values(b)))
    operands = [m.source(a, t) for a in ins.args[1:3]]
    if combine is None:
        return Comparison(holds, operands)
    if t.lanes == 2:
        raise NotImplementedError("packed comparison with a boolean operator")
    negated = isinstance(ins.args[3], Negated)
    operands.append(m.source(ins.args[3].operand if negated else ins.args[3], TYPES["pred"]))
    op = COMBINE[combine]
    return Comparison(holds, operands, (lambda r, c: op(r, ~c)) if negated else op)


@builds("setp")
def build_setp(m, ins, mods):
    t, pred = mods.type(), TYPES["pred"]
    c = _comparison(m, ins, mods, t)
    if not isinstance(ins.args[0], Pair):
        return m.assign(ins.args[0], pred, c.result(), c.operands)
    one, two = ins.args[0].first, ins.args[0].second
    if t.lanes == 2:
        return in_turn([m.assign(d, pred, c.holds, [s[:, k] for s in c.operands]) for k, d in enumerate((one, two))])
    if one in ins.args[3:] or Negated(one) in ins.args[3:]:
        raise NotImplementedError("setp with two results, one of them also an operand")
    return in_turn([m.assign(one, pred, c.result(), c.operands), m.assign(two, pred, c.result(True), c.operands)])


@builds("set")
def build_set(m, ins, mods):
    result_type, t = mods.types()
    if result_type.lanes != t.lanes:
        raise NotImplementedError(ins.op)
    c = _comparison(m, ins, mods, t)
    if result_type.kind == "bf":
        yes = U16(0x3F80)
    else:
        yes = result_type.raw(1) if result_type.kind == "f" else ~result_type.raw(0)
    compare, no = c.result(), type(yes)(0)
    return m.assign(ins.args[0], result_type, lambda *a: np.where(compare(*a), yes, no), c.operands)


@builds("selp")
def build_selp(m, ins, mods):
    t = mods.type()
    mods.done()
    return elementwise(m, ins, t, lambda a, b, c: np.where(c, a, b), [t, t, TYPES["pred"]])


@builds("slct")
def build_slct(m, ins, mods):
    t, condition = mods.types()
    values = decode(condition, mods.ftz(condition)) or (lambda c: c)
    mods.done()
    return elementwise(m, ins, t, lambda a, b, c: np.where(values(c) >= 0, a, b), [t, t, condition])


@builds("testp")
def build_testp(m, ins, mods):
    t, fn = mods.type(), CLASSES[mods.need(*CLASSES)]
    mods.done()
    return m.assign(ins.args[0], TYPES["pred"], fn, [m.source(ins.args[1], t)])
