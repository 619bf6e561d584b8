"""Element functions: one instruction where NVIDIA has one, Triton's portable functions elsewhere.

The approximate instructions (ex2, lg2, rcp, sqrt, sin, cos) are within 2 to 4 units in the last place of what is needed
here, or within 2^-21 absolutely (lg2 near 1, sin, cos); `log` and `log1p` are polynomials where that isn't enough.
"""

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

LOG2_E = tl.constexpr(1.4426950408889634)
LOG2_E_LOW = tl.constexpr(1.92596303e-8)  # what float32 drops of it
LN_2 = tl.constexpr(0.6931471805599453)
LOG_2_PI = tl.constexpr(1.8378770664093453)
PI = tl.constexpr(3.141592653589793)
LARGEST_EXPONENT = tl.constexpr(127.99999)  # 2^it is the largest float32


@triton.jit
def ex2(v):
    """2^v"""
    if is_cuda():
        return _unary("ex2.approx.ftz.f32 $0, $1;", v)
    else:
        return tl.exp2(v)


@triton.jit
def lg2(v):
    """log2 v; its error is absolute, 2^-22, where v is near 1"""
    if is_cuda():
        return _unary("lg2.approx.ftz.f32 $0, $1;", v)
    else:
        return tl.log2(v)


@triton.jit
def rcp(v):
    """1 / v"""
    if is_cuda():
        return _unary("rcp.approx.ftz.f32 $0, $1;", v)
    else:
        return 1.0 / v


@triton.jit
def sqrt(v):
    if is_cuda():
        return _unary("sqrt.approx.ftz.f32 $0, $1;", v)
    else:
        return tl.sqrt(v)


@triton.jit
def sin(v):
    """sin v for |v| <= pi, within 2^-20.9"""
    if is_cuda():
        return _unary("sin.approx.ftz.f32 $0, $1;", v)
    else:
        return tl.sin(v)


@triton.jit
def cos(v):
    """cos v for |v| <= pi, within 2^-20.9"""
    if is_cuda():
        return _unary("cos.approx.ftz.f32 $0, $1;", v)
    else:
        return tl.cos(v)


@triton.jit
def _unary(ASSEMBLY: tl.constexpr, v):
    return tl.inline_asm_elementwise(ASSEMBLY, "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def widen(v, FOURS: tl.constexpr):
    """v as float32: bfloat16, float16 and float32 by value, bytes as the integers they are.

    FOURS: each thread holds a multiple of four elements, so that those which share a register are taken together.
    """
    if not FOURS or not is_cuda():
        return v.to(tl.float32)
    elif v.dtype == tl.bfloat16:  # two ALU instructions a pair
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [v], dtype=tl.float32, is_pure=True, pack=2
        )
    elif v.dtype == tl.uint8:  # the byte in the mantissa of 2^15; a conversion would take the slow unit
        magic = tl.inline_asm_elementwise(
            "prmt.b32 $0, $4, 0x47000000, 0x7505; prmt.b32 $1, $4, 0x47000000, 0x7515;"
            "prmt.b32 $2, $4, 0x47000000, 0x7525; prmt.b32 $3, $4, 0x47000000, 0x7535;",
            "=r,=r,=r,=r,r",
            [v],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
        return magic - 32768.0
    else:
        return v.to(tl.float32)


@triton.jit
def wide_product(a, b):
    """The high and the low word of a 32 x 32 -> 64 bit product."""
    if is_cuda():  # written out, or LLVM takes (a + 1) b apart into a b + b
        return tl.inline_asm_elementwise(
            "{ .reg .b64 w; mul.wide.u32 w, $2, $3; mov.b64 {$1, $0}, w; }",
            "=r,=r,r,r",
            [a, b],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
    else:
        product = a.to(tl.uint64) * b
        return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def one_to_two(word):
    """A number in [1, 2) whose mantissa is the word's upper 23 bits."""
    if is_cuda():  # a funnel shift is one instruction where a shift and an OR are two
        return tl.inline_asm_elementwise(
            "shf.r.wrap.b32 $0, $1, 0x7f, 9;", "=r,r", [word], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return ((word >> 9) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def exp(v):
    """e^v: what rounding v log2(e) lost is put back, which matters from |v| = 4 on"""
    exponent = v * LOG2_E
    lost = tl.fma(v, LOG2_E, -exponent) + v * LOG2_E_LOW
    power = ex2(exponent)
    return tl.where(tl.abs(exponent) < 128.0, tl.fma(power, lost * LN_2, power), power)


@triton.jit
def inverse_root(v):
    """e^(-v/2), 1 / sigma of the log-variance v, at most the largest float32"""
    return ex2(tl.minimum(v * (-0.5 * LOG2_E), LARGEST_EXPONENT, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def log(v):
    """ln v for normal v > 0; at v = 0 about -88 instead of -inf"""
    offset = v.to(tl.int32, bitcast=True) - 0x3F3504F3  # the mantissa runs from sqrt(1/2) to sqrt(2)
    n = (offset >> 23).to(tl.float32)
    f = ((offset & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = log1p_beyond(f) + n * 1.42860677e-6
    return tl.where(v < float("inf"), n * 0.693145752 + (p + f), v)


@triton.jit
def log1p_beyond(f):
    """ln(1 + f) - f for 1 + f from sqrt(1/2) to sqrt(2)"""
    p = -7.8595989158e-2 * f + 1.2881640924e-1
    p = p * f - 1.3128756635e-1
    p = p * f + 1.4181193285e-1
    p = p * f - 1.6624554062e-1
    p = p * f + 2.0002286198e-1
    p = p * f - 2.5000810398e-1
    p = p * f + 3.3333316727e-1
    return p * (f * f * f) - 0.5 * (f * f)


@triton.jit
def log1p(v):
    """ln(1 + v) for v > -1: what rounding 1 + v lost is put back to first order"""
    u = 1.0 + v
    lost = v - (u - 1.0)
    return log(u) + tl.where(u < float("inf"), lost * rcp(u), 0.0)


@triton.jit
def expm1_minus(v, exp_v):
    """e^v - 1 - v, given e^v: by its series where |v| < 1 would cancel"""
    p = 2.496072193e-05 * v + 0.0002032547782
    p = p * v + 0.001389133628
    p = p * v + 0.008330930956
    p = p * v + 0.04166651517
    p = p * v + 0.1666669548
    p = p * v + 0.5
    return tl.where(tl.abs(v) < 1.0, p * (v * v), (exp_v - 1.0) - v)


@triton.jit
def decay_deficit(a):
    """1 - (1 - e^-a) / a for 0 <= a <= 1/2, what the mean of e^-v, v from 0 to a, lacks of 1"""
    p = 4.10579251e-2 - 6.823575794e-3 * a
    p = p * a - 1.665681191e-1
    p = p * a + 4.999950082e-1
    return a * p


@triton.jit
def nearest(v):
    """The nearest integer, of two the even one, for |v| < 2^22"""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def exp_finite(v):
    """e^v, at most the largest float32; its error grows as 6e-8 |v|"""
    return ex2(tl.minimum(v * LOG2_E, LARGEST_EXPONENT, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def log_decay_ratio(a, b, exp_minus_b):
    """log((1 - e^-a) / a) for a >= 0, given b = max(a, 1) and e^-b: by its series where a < 1"""
    square = a * a
    p = (5.33532848e-6 * square - 3.471350022e-4) * square + 4.166665583e-2
    rest = 1.0 - exp_minus_b
    ratio = rest * rest * rcp(b * rest)  # at most 0.63
    return tl.where(a < 1.0, a * (a * p - 0.5), lg2(ratio) * LN_2)


@triton.jit
def decay_mean(a, b, exp_minus_b):
    """1/a - 1 / (e^a - 1) for a >= 0, given b = max(a, 1) and e^-b: by its series where a < 1; from 1/2 at 0 to 0"""
    square = a * a
    p = (3.166888848e-5 * square - 1.388197354e-3) * square + 8.333324755e-2
    rest = 1.0 - exp_minus_b
    both = rcp(b * rest)
    return tl.where(a < 1.0, 0.5 - a * p, rest * both - exp_minus_b * (b * both))


@triton.jit
def turned(v, of):
    """v, or -v where `of` is negative"""
    return (v.to(tl.int32, bitcast=True) ^ (of.to(tl.int32, bitcast=True) & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def times_sign(v, of):
    """v sign(of): 0 where `of` is 0, NaN where it is NaN"""
    return tl.where(tl.abs(of) > 0, turned(v, of), of)


@triton.jit
def log1p_minus(v, u):
    """v - ln(1 + v) >= 0 for finite v > -1, relative error 6e-7; u = 1 + v, which v alone says too roughly near -1"""
    total = 1.0 + v
    whole = v > -0.5
    lost = tl.where(whole, v - (total - 1.0), 0.0)
    bits = tl.where(whole, total, u).to(tl.int32, bitcast=True)
    power = (bits - 0x3F3504F3) & -0x800000  # n 2^23, where 1 + v = 2^n (1 + f)
    f = (bits - power).to(tl.float32, bitcast=True) - 1.0
    f += lost * (0x3F800000 - power).to(tl.float32, bitcast=True)
    p = log1p_beyond(f)
    n = power.to(tl.float32)
    far = (v - n * (0.693145752 * 2.0**-23)) - (n * (1.42860677e-6 * 2.0**-23) + (p + f))
    return tl.where(power == 0, -p, far)
