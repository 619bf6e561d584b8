"""Moves, packing and unpacking, and the windows of generic addresses."""

from __future__ import annotations

import numpy as np

from ..memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
from ..operands import Sink, Vector
from ..ptx_types import TYPES
from ..steps import in_turn
from .building import builds, elementwise


@builds("mov")
def build_mov(m, ins, mods):
    t, (d, s) = mods.type(), ins.args
    mods.done()
    if t.kind == "p":
        source = m.source(s, t)
        return m.assign(d, t, np.logical_or, [source, source])
    bits = TYPES[f"b{t.bits}"]
    if isinstance(d, Vector):
        return _unpack(m, d.items, s, bits)
    if isinstance(s, Vector):
        return _pack(m, d, s.items, bits)
    return elementwise(m, ins, bits, np.positive)


def _unpack(m, items, s, t):
    part = TYPES[f"b{t.bits // len(items)}"]
    words = m.source(s, t).view(part.raw).reshape(-1, len(items))
    moves = [(d, words[:, k]) for k, d in enumerate(items) if not isinstance(d, Sink)]
    return in_turn([m.assign(d, part, np.positive, [word]) for d, word in moves])


def _pack(m, d, items, t):
    part = TYPES[f"b{t.bits // len(items)}"]
    return m.assign(d, t, lambda *v: np.stack(v, -1).view(t.raw)[:, 0], [m.source(x, part) for x in items])


@builds("cvta")
def build_cvta(m, ins, mods):
    to, space, t = mods.take("to"), mods.take("global", "shared", "local", "const", "param"), mods.type()
    mods.done()
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": PARAM_WINDOW}.get(space, 0)
    return m.assign(ins.args[0], t, np.subtract if to else np.add, [m.source(ins.args[1], t), m.constant(window, t)])


@builds("createpolicy")
def build_createpolicy(m, ins, mods):
    """A cache policy, which changes nothing here."""
    mods.need("fractional", "range", "cvt")
    mods.take("global")
    t = mods.type()
    mods.done_but_for_memory()
    return m.assign(ins.args[0], t, np.positive, [m.constant(0, t)])
