"""The gamma function's family, for v > 0, by the remainders of Stirling's formula; see csrc/gamma.h.

stirling(v) = S(v) = ln Gamma(v + 1) - [(v + 1/2) ln v - v + 1/2 ln 2 pi], digamma_remainder(v) = -S'(v).
"""

import triton
import triton.language as tl

from vae_fast.kernels.fastmath import LN_2, LOG_2_PI, lg2, log, rcp


@triton.jit
def stirling_from_one(u):
    """(S(v), -S'(v)) for v >= 1, u = 1/v; absolute errors 2e-8 and 4e-8"""
    s = -1.5871604159e-4 * u + 4.1255050943e-4
    s = s * u + 3.6644283515e-4
    s = s * u - 2.9122367118e-3
    s = s * u + 2.1158793293e-5
    s = s * u + 8.3332250149e-2
    d = 8.5992572165e-4 * u - 3.4979590643e-3
    d = d * u + 4.9285248549e-3
    d = d * u - 5.8861043466e-5
    d = d * u - 8.3516494681e-3
    d = d * u + 2.4253997927e-6
    d = d * u + 8.3333294492e-2
    return s * u, d * (u * u)


@triton.jit
def stirling_and_slope(v, inverse):
    """(S(v), -S'(v)), inverse = 1/v: S(v) = S(v + 1) + (v + 1/2) ln((v + 1)/v) - 1, by which v < 1 is shifted"""
    shift = tl.where(v < 1.0, 1.0, 0.0)
    u = rcp(v + shift)
    step = shift * (lg2(1.0 + inverse) * LN_2)
    value, slope = stirling_from_one(u)
    return value + ((v + 0.5) * step - shift), slope + (shift * (0.5 * (inverse + u)) - step)


@triton.jit
def stirling(v):
    return stirling_and_slope(v, rcp(v))[0]


@triton.jit
def digamma_remainder(v):
    return stirling_and_slope(v, rcp(v))[1]


@triton.jit
def lgamma(v):
    """ln Gamma(v): relative error 1e-6, absolute near 1 and 2"""
    shift = tl.where(v < 1.0, 1.0, 0.0)
    w = v + shift
    return (w - 0.5) * (log(w) - 1.0) + (stirling_from_one(rcp(w))[0] + (0.5 * LOG_2_PI - 0.5)) - shift * log(v)


@triton.jit
def digamma(v):
    """psi(v): relative error 1e-6, absolute near 1.46"""
    shift = tl.where(v < 1.0, 1.0, 0.0)
    w = v + shift
    inverse = rcp(w)
    return log(w) - (0.5 * inverse + stirling_from_one(inverse)[1]) - shift * rcp(v)
