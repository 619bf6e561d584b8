"""Exponentials, logarithms, roots and the like, and the error that the hardware's approximations may have."""

from __future__ import annotations

import functools

import numpy as np

from ..ptx_types import F32, F64, U64
from .building import builds, elementwise, lift

# (relative, absolute), from the PTX manual as remembered: a level of stress, not a model of the hardware
APPROX_ERROR = {
    "ex2": (2.0**-22, 0),
    "lg2": (2.0**-22, 2.0**-22),
    "sin": (0, 2.0**-20.5),
    "cos": (0, 2.0**-20.5),
    "tanh": (2.0**-11, 0),
    "sqrt": (2.0**-23, 0),
    "rsqrt": (2.0**-22.9, 0),
    "rcp": (2.0**-23, 0),
    "div": (2.0**-22, 0),
}
UNARY = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "rcp": lambda x: 1.0 / x,
}


def with_noise(m, name, exact):
    """`exact`, or under approx_noise off by its bound, with a sign that depends on the operands' bits only."""
    if m.noise is None:
        return exact
    relative, absolute = APPROX_ERROR[name]

    def noisy(*xs):
        v = exact(*xs)
        bits = functools.reduce(lambda h, x: (h ^ x.view(U64)) * U64(0x9E3779B97F4A7C15), xs, U64(m.noise))
        floor = np.where((xs[0] > 0.5) & (xs[0] < 2), absolute, 0) if name == "lg2" else absolute
        error = np.abs(v) * relative + floor
        r = np.where((bits >> U64(62)) & U64(1), v + error, v - error)
        r = np.where(~np.isfinite(v) | (v == 0) | (xs[0] == 0), v, r)
        return np.clip(r, -1, 1) if name in ("tanh", "sin", "cos") else r

    return noisy


@builds(*UNARY)
def build_unary(m, ins, mods):
    t, accuracy, exact = mods.type(), mods.need("approx", "rn"), UNARY[ins.parts[0]]
    flushed = t.name == "f32" or (ins.parts[0] == "ex2" and t.kind == "bf") or (t.raw is F64 and accuracy == "approx")
    ftz = mods.take("ftz") if flushed and ins.parts[0] != "tanh" else None
    mods.done()
    if t.raw is F64:
        return elementwise(m, ins, t, lift(t, _upper_word_of(exact) if accuracy == "approx" else exact, ftz))
    if accuracy == "approx":
        exact = with_noise(m, ins.parts[0], exact)
    return elementwise(m, ins, t, lift(t, lambda x: exact(x.astype(F64)).astype(F32), ftz))


def _upper_word_of(exact):
    """The approximate float64 functions leave the lower 32 bits zero."""
    upper = U64(0xFFFFFFFF) << U64(32)
    return lambda x: (exact(x).view(U64) & upper).view(F64)
