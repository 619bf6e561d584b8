"""Sums, products, quotients, minima and signs, of integers and of floating point."""

from __future__ import annotations

import functools

import numpy as np

from ..numerics import FMAX, FMAX_NAN, FMIN, FMIN_NAN, fma_f32, fma_f64, round_f32, round_to_odd_sum
from ..ptx_types import F32, F64, I32, I64, TYPES, U16, U32, U64, PtxType
from ..steps import Compute
from .building import builds, elementwise, lift, widened
from .functions import with_noise


def _only_f32(t: PtxType, mode: str) -> None:
    if mode != "rn" and t.raw is not F32:
        raise NotImplementedError(f".{mode} for {t.name}")


def _double_width(t: PtxType) -> PtxType:
    return TYPES[f"{t.name[0]}{2 * t.bits}"]


@builds("add", "sub", "addc", "subc")
def build_add(m, ins, mods):
    narrow = mods.narrow()
    t, base = mods.type(), ins.parts[0]
    op = np.add if base.startswith("add") else np.subtract
    if t.integer:
        return _integer_sum(m, ins, mods, t, op)
    mode, ftz, sat = mods.rounding(), None if narrow else mods.ftz(t), mods.sat(t)
    mods.done()
    _only_f32(t, mode)

    def directed(a, b):
        return round_f32(round_to_odd_sum(a.astype(F64), op(F64(0), b.astype(F64))), mode)

    fn = lift(t, op if mode == "rn" else directed, ftz, sat)
    return elementwise(m, ins, t, widened(narrow, fn, 1), [narrow, t]) if narrow else elementwise(m, ins, t, fn)


def _integer_sum(m, ins, mods, t, op):
    carry_in = ins.parts[0].endswith("c")
    carry_out = t.bits >= 32 and t.lanes == 1 and mods.take("cc") is not None
    saturated = t.name == "s32" and not (carry_in or carry_out) and mods.take("sat")
    mods.done()
    if carry_in or carry_out:
        return _with_carry(m, ins, t, lambda a: a, op is np.add, carry_in, carry_out)
    if saturated:
        low, high = np.iinfo(I32).min, np.iinfo(I32).max
        return elementwise(m, ins, t, lambda a, b: np.clip(op(a, b, dtype=I64), low, high).astype(I32))
    return elementwise(m, ins, t, op)


def _with_carry(m, ins, t, first, adds, carry_in, carry_out):
    """d = first(...) +- the last operand (+- the carry), with the condition code's carry."""
    u = TYPES[f"u{t.bits}"]
    out, _ = m.destination(ins.args[0], u)
    *terms, last = [m.source(a, t) for a in ins.args[1:]]

    def run(act):
        x, y = first(*terms).view(u.raw), last.view(u.raw)
        carry = m.carry.astype(u.raw) if carry_in else u.raw(0)
        s = x + y if adds else x - y
        r = s + carry if adds else s - carry
        overflow = (s < x) | (r < s) if adds else (x < y) | (s < carry)
        np.copyto(out, r, where=act.where)
        if carry_out:
            np.copyto(m.carry, overflow, where=act.where)

    return Compute(run)


@builds("mul")
def build_mul(m, ins, mods):
    t = mods.type()
    if t.integer:
        part = mods.need("lo", "hi", "wide")
        mods.done()
        if part == "wide":
            wide = _double_width(t)
            return elementwise(m, ins, wide, lambda a, b: np.multiply(a, b, dtype=wide.raw), [t, t])
        return elementwise(m, ins, t, _integer_product(t, part))
    mode, ftz, sat = mods.rounding(), mods.ftz(t), mods.sat(t)
    mods.done()
    _only_f32(t, mode)
    if mode == "rn":
        return elementwise(m, ins, t, lift(t, np.multiply, ftz, sat))
    return elementwise(m, ins, t, lift(t, lambda a, b: round_f32(np.multiply(a, b, dtype=F64), mode), ftz, sat))


def _integer_product(t, part):
    return np.multiply if part == "lo" else functools.partial(_upper_half, t)


def _upper_half(t, a, b):
    """The upper half of a product."""
    if t.bits < 64:
        wide = {16: (I32, U32), 32: (I64, U64)}[t.bits][t.kind == "u"]
        return (np.multiply(a, b, dtype=wide) >> wide(t.bits)).astype(t.raw)
    low, s = U64(0xFFFFFFFF), U64(32)
    x, y = a.view(U64), b.view(U64)
    x0, x1, y0, y1 = x & low, x >> s, y & low, y >> s
    middle = x1 * y0 + (x0 * y0 >> s)
    high = x1 * y1 + (middle >> s) + (((middle & low) + x0 * y1) >> s)
    if t.kind == "s":
        high = high - np.where(a < 0, y, U64(0)) - np.where(b < 0, x, U64(0))
    return high.view(t.raw)


@builds("mad", "madc", "fma")
def build_mad(m, ins, mods):
    narrow = mods.narrow() if ins.parts[0] == "fma" else None
    t = mods.type()
    if t.integer:
        return _integer_mad(m, ins, mods, t)
    mode, ftz, sat, relu = mods.rounding(), None if narrow else mods.ftz(t), mods.sat(t), mods.relu(t)
    mods.done()
    _only_f32(t, mode)
    if t.raw is F64:
        fn = fma_f64
    elif t.raw is F32:
        fn = functools.partial(fma_f32, mode=mode)
    else:
        fn = _fma_of_halves
    if narrow:
        return elementwise(m, ins, t, widened(narrow, lift(t, fn, ftz, sat), 2), [narrow, narrow, t])
    if relu:
        return elementwise(m, ins, t, lift(t, lambda a, b, c: FMAX_NAN(fn(a, b, c), a.dtype.type(0)), ftz, sat))
    return elementwise(m, ins, t, lift(t, fn, ftz, sat))


def _fma_of_halves(a, b, c):
    """For the 16-bit formats: rounded to odd in float64."""
    return round_to_odd_sum(np.multiply(a, b, dtype=F64), c.astype(F64))


def _integer_mad(m, ins, mods, t):
    part, carry_out, carry_in = mods.need("lo", "hi", "wide"), mods.take("cc"), ins.parts[0] == "madc"
    mods.done()
    if part == "wide" and (carry_out or carry_in):
        raise NotImplementedError(ins.op)
    product = _integer_product(t, part)
    if carry_out or carry_in:
        return _with_carry(m, ins, t, product, True, carry_in, carry_out is not None)
    if part == "wide":
        wide = _double_width(t)
        return elementwise(m, ins, wide, lambda a, b, c: np.multiply(a, b, dtype=wide.raw) + c, [t, t, wide])
    return elementwise(m, ins, t, lambda a, b, c: product(a, b) + c)


@builds("min", "max")
def build_min_max(m, ins, mods):
    t, smallest = mods.type(), ins.parts[0] == "min"
    if t.integer:
        relu = mods.relu(t)
        mods.done()
        pick = np.minimum if smallest else np.maximum
        return elementwise(m, ins, t, (lambda a, b: np.maximum(pick(a, b), 0)) if relu else pick)
    ftz = mods.ftz(t)
    nan, xorsign = (None, None) if t.raw is F64 else (mods.take("NaN"), mods.take("xorsign"))
    if xorsign:
        mods.need("abs")
    mods.done()
    op = (FMIN_NAN if nan else FMIN) if smallest else (FMAX_NAN if nan else FMAX)
    if not xorsign:
        return elementwise(m, ins, t, lift(t, lambda *a: functools.reduce(op, a), ftz))

    def signed_by_both(a, b):
        sign = np.where(np.signbit(a) ^ np.signbit(b), -1, 1)
        return np.copysign(op(np.abs(a), np.abs(b)), sign).astype(a.dtype)

    return elementwise(m, ins, t, lift(t, signed_by_both, ftz))


@builds("abs", "neg")
def build_sign(m, ins, mods):
    t = mods.type()
    ftz = mods.ftz(t)
    mods.done()
    negative = ins.parts[0] == "neg"
    if t.kind == "bf":
        return elementwise(m, ins, t, (lambda a: a ^ U16(0x8000)) if negative else (lambda a: a & U16(0x7FFF)))
    op = np.negative if negative else np.abs
    return elementwise(m, ins, t, lift(t, op, ftz) if ftz else op)


@builds("copysign")
def build_copysign(m, ins, mods):
    """The sign of a, the magnitude of b."""
    t = mods.type()
    mods.done()
    return elementwise(m, ins, t, lambda a, b: np.copysign(b, a))


@builds("div", "rem")
def build_div(m, ins, mods):
    t = mods.type()
    if t.integer:
        mods.done()
        return elementwise(m, ins, t, functools.partial(_integer_division, t, ins.parts[0] == "div"))
    approx, ftz = mods.need("approx", "full", "rn"), mods.ftz(t)
    mods.done()
    if m.noise is None or approx not in ("approx", "full") or t.raw is F64:
        return elementwise(m, ins, t, lift(t, np.divide, ftz))
    noisy = with_noise(m, "div", np.divide)
    return elementwise(m, ins, t, lift(t, lambda a, b: noisy(a.astype(F64), b.astype(F64)).astype(F32), ftz))


def _integer_division(t, quotient, a, b):
    """Truncating quotient or remainder; by zero, all ones and the dividend."""
    zero = b == 0
    divisor = np.where(zero, t.raw(1), b)
    q = a // divisor
    if t.kind == "s":  # from floor to truncation
        q = q + ((a - q * divisor != 0) & ((a < 0) != (divisor < 0))).astype(t.raw)
    if quotient:
        return np.where(zero, t.raw(-1) if t.kind == "s" else ~t.raw(0), q)
    return np.where(zero, a, a - q * divisor)
