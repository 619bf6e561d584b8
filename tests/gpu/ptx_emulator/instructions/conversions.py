"""Conversions between integers and floating-point formats."""

from __future__ import annotations

import numpy as np

from ..numerics import FMAX_NAN, f32_to_bf16, f32_to_tf32, f64_to_bf16, float_to_int, flush, round_f32, saturate
from ..ptx_types import F32, F64, UNSIGNED
from .building import builds, decode, elementwise, encode

TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@builds("cvt")
def build_cvt(m, ins, mods):
    whole, mode = mods.take(*TO_WHOLE), mods.take("rn", "rz", "rm", "rp", "rna")
    to, source = mods.types()
    ftz = mods.take("ftz") if F32 in (to.raw, source.raw) and to.lanes == 1 else None
    sat = mods.take("sat") if to.integer or (to.kind == "f" and to.name != "tf32" and to.lanes == 1) else None
    relu = mods.relu(to) if to.lanes == 2 else None
    mods.done()
    if to.lanes == 2 and not whole:
        return elementwise(m, ins, to, _packed(to, source, mode or "rn", relu), [source, source])
    if source.lanes == 2 or to.lanes == 2:
        raise NotImplementedError("packed source")
    if whole and (mode or not source.floating or (to.floating and to is not source)):
        raise NotImplementedError(f"{to.name}.{source.name} .{whole}")
    if source.floating:
        fn = _of_float(to, source, mode, whole, ftz, sat)
    elif to.floating:
        fn = _int_to_float(to, source, mode or "rn", sat)
    elif mode:
        raise NotImplementedError(f"{to.name}.{source.name} .{mode}")
    else:
        fn = _int_to_int(to, source, sat)
    return elementwise(m, ins, to, fn, [source])


def _packed(to, source, mode, relu):
    """d = {high: a, low: b}"""
    _check_rounding(to, source, mode)
    values = decode(source) or (lambda x: x)

    def one(x):
        v = FMAX_NAN(values(x), F32(0)) if relu else values(x)
        return _round_float(v, to, mode)

    return lambda a, b: np.stack([one(b), one(a)], -1)


def _int_to_int(to, source, sat):
    if not sat:
        return lambda x: x.astype(to.raw)
    i, j = np.iinfo(to.raw), np.iinfo(source.raw)
    low, high = source.raw(max(i.min, j.min)), source.raw(min(i.max, j.max))
    return lambda x: np.clip(x, low, high).astype(to.raw)


def _int_to_float(to, source, mode, sat):
    if mode != "rn" and (source.bits == 64 or to.raw is not F32):
        raise NotImplementedError(f"int to float .{mode}")
    lanes = encode(to, sat=sat)
    if to.raw is not F32:
        return lambda x: lanes(x.astype(F64))
    rounded = (lambda x: x.astype(F32)) if mode == "rn" else (lambda x: round_f32(x.astype(F64), mode))
    return lambda x: lanes(rounded(x))


def _of_float(to, source, mode, whole, ftz, sat):
    values = decode(source, ftz if source.raw is F32 else None) or (lambda x: x)
    if not to.floating:
        if mode or not whole:
            raise NotImplementedError(f"{to.name}.{source.name} .{mode}")
        return _float_to_int(to, source, values, TO_WHOLE[whole])
    mode = mode or "rn"
    _check_rounding(to, source, mode)

    def convert(x):
        v = values(x)
        v = TO_WHOLE[whole](v) if whole else v
        v = saturate(v) if sat else v
        r = _round_float(v, to, mode)
        return flush(r) if ftz and to.raw is F32 else r

    return convert


def _float_to_int(to, source, values, whole):
    """Clamped; NaN gives 0, or the top bit where either side has 64 bits."""
    nan = np.array(1 << (to.bits - 1), UNSIGNED[to.bits]).view(to.raw)
    nan_is_zero = to.bits < 64 and source.bits < 64

    def convert(x):
        v = values(x).astype(F64)
        r = float_to_int(v, to, whole)
        return r if nan_is_zero else np.where(np.isnan(v), nan, r)

    return convert


def _check_rounding(to, source, mode):
    """Refuses the directed roundings that `_round_float` doesn't know."""
    known = {"rn"}
    if to.name == "tf32":
        known = {"rn", "rna"}
    elif to.kind == "bf" and source.bits < 64:
        known = {"rn", "rz"}
    elif (to.raw is F32 and source.bits == 64) or (to.kind == "f" and to.bits // to.lanes >= source.bits):
        known = {"rn", "rz", "rm", "rp"}
    if mode not in known:
        raise NotImplementedError(f"{to.name}.{source.name} .{mode}")


def _round_float(x, to, mode):
    """Values (float32 or float64) to stored lanes, rounded by `mode`."""
    if to.name == "tf32":
        return f32_to_tf32(x, mode)
    if to.kind == "bf":
        return f32_to_bf16(x, mode) if x.dtype == F32 else f64_to_bf16(x)
    if to.raw is F32 and x.dtype == F64:
        return round_f32(x, mode)
    return x.astype(to.raw, copy=False)
