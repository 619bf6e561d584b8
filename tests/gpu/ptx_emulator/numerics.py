"""Floating point as PTX rounds it: bfloat16, fused multiply-add, rounding modes, minima with signed zeros."""

from __future__ import annotations

import numpy as np

from .ptx_types import F32, F64, I64, U16, U32, U64, UNSIGNED


def bf16_to_f32(u):
    return (u.astype(U32) << U32(16)).view(F32)


def f32_to_bf16(x, mode="rn"):
    bits = np.ascontiguousarray(x, F32).view(U32)
    if mode == "rn":
        rounded = (bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)
    elif mode == "rz":
        rounded = bits >> U32(16)
    else:
        raise NotImplementedError(f"bf16 rounding .{mode}")
    rounded, nan = rounded.astype(U16), np.isnan(x)
    return np.where(nan, U16(0x7FFF), rounded) if nan.any() else rounded


def f64_to_bf16(x):
    """One rounding from float64 in the normal range; subnormal results go through float32."""
    bits, half = x.view(U64), U64(1) << U64(44)
    rounded = ((bits + (half - U64(1)) + ((bits >> U64(45)) & U64(1))) >> U64(45) << U64(45)).view(F64)
    rounded = np.where(np.isfinite(x) & (np.abs(x) >= 2.0**-126), rounded, x)
    return f32_to_bf16(rounded.astype(F32))


def f32_to_tf32(x, mode):
    """float32 with 10 bits of mantissa; .rna rounds halves away from zero."""
    bits = x.view(U32)
    up = U32(0x1000) if mode == "rna" else U32(0xFFF) + ((bits >> U32(13)) & U32(1))
    return np.where(np.isfinite(x), (bits + up) & U32(0xFFFFE000), bits).view(F32)


MANTISSA = {"float16": 10, "uint16": 7, "float32": 23, "float64": 52}  # bits; uint16 is how bfloat16 is stored


def flush(x):
    """Flushes subnormals, of stored lanes, to a zero of the same sign."""
    unsigned = UNSIGNED[8 * x.dtype.itemsize]
    bits, least = x.view(unsigned), unsigned(1 << MANTISSA[x.dtype.name])
    sign = unsigned(1 << (8 * x.dtype.itemsize - 1))
    magnitude = bits & ~sign
    if (magnitude - unsigned(1)).min() >= least - unsigned(1):  # zero wraps around: nothing is subnormal
        return x
    return np.where(magnitude < least, bits & sign, bits).view(x.dtype)


def saturate(x):
    """Clips to [0, 1], with 0 for NaN."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1)).astype(x.dtype)


def round_to_odd_sum(p, c):
    """p + c in float64 rounded to odd, so that a later, shorter rounding is a correct single rounding."""
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)
    fix = (error != 0) & np.isfinite(s) & ((s.view(U64) & U64(1)) == 0)
    if fix.any():
        away = (error > 0) == (s > 0)
        s = np.where(fix, np.where(away, s.view(I64) + 1, s.view(I64) - 1).view(F64), s)
    return s


def round_f32(x, mode):
    """float64, exact or rounded to odd, to float32 in any of PTX's rounding modes."""
    r = x.astype(F32)
    if mode == "rn":
        return r
    back = r.astype(F64)
    too_low, too_high = {
        "rz": ((x < 0) & (back < x), (x > 0) & (back > x)),
        "rm": (False, back > x),
        "rp": (back < x, False),
    }[mode]
    r = np.where(too_high, np.nextafter(r, F32(-np.inf)), r)
    return np.where(too_low, np.nextafter(r, F32(np.inf)), r)


def fma_f32(a, b, c, mode="rn"):
    """a b + c, rounded once."""
    p = np.multiply(a, b, dtype=F64)  # exact: 24 + 24 bits
    if mode != "rn":
        return round_f32(round_to_odd_sum(p, c.astype(F64)), mode)
    s = p + c
    r = s.astype(F32)
    # a second rounding can only hurt at an exact float32 midpoint, or where the result is subnormal
    hard = (s.view(U64) & U64(0x1FFFFFFF)) == U64(0x10000000)
    hard |= ((r.view(U32) & U32(0x7FFFFFFF)) - U32(1)) < U32(0x7FFFFF)
    if hard.any():
        i = np.nonzero(hard)
        r[i] = round_to_odd_sum(p[i], c[i].astype(F64)).astype(F32)
    return r


def _split_in_halves(x):
    """Dekker's split of a float64 into two of 26 bits."""
    t = x * 134217729.0
    high = t - (t - x)
    return high, x - high


def fma_f64(a, b, c):
    """Rounded once except near overflow and underflow: Boldo and Melquiond's error-free terms and odd rounding."""
    ah, al = _split_in_halves(a)
    bh, bl = _split_in_halves(b)
    uh = a * b
    ul = ((ah * bh - uh) + ah * bl + al * bh) + al * bl
    th = c + ul
    t = th - c
    tl = (c - (th - t)) + (ul - t)
    vh = uh + th
    t = vh - uh
    vl = (uh - (vh - t)) + (th - t)
    z = vh + round_to_odd_sum(tl, vl)
    return np.where(np.isfinite(z), z, a * b + c)


def _with_signed_zeros(op, zero_is_negative):
    """A minimum or maximum for which -0 < +0, as in PTX."""

    def pick(a, b):
        r = op(a, b)
        zero = (a == 0) & (b == 0)
        if zero.any():
            signed = np.where(zero_is_negative(np.signbit(a), np.signbit(b)), -0.0, 0.0)
            r = np.where(zero, signed, r).astype(r.dtype)
        return r

    return pick


FMIN = _with_signed_zeros(np.fmin, np.logical_or)
FMAX = _with_signed_zeros(np.fmax, np.logical_and)
FMIN_NAN = _with_signed_zeros(np.minimum, np.logical_or)
FMAX_NAN = _with_signed_zeros(np.maximum, np.logical_and)


def float_to_int(x, t, whole):
    """Rounds by the function `whole` and clamps to the range of the integer type `t`; NaN gives 0."""
    r, info = whole(x), np.iinfo(t.raw)
    top, low = r >= float(info.max), r <= float(info.min)  # for 64 bits float(max) is a power of two above it
    out = np.where(top | low | np.isnan(r), 0, r).astype(t.raw)
    return np.where(top, t.raw(info.max), np.where(low, t.raw(info.min), out))
