"""Poisson: -log p(x | m) = m - x log m + log x!, m the mean, in the form in which no terms cancel (Loader 2000):

x >= 1: x L(m/x - 1) + 1/2 log(2 pi x) + S(x)        x = 0: m        0 < x < 1: from x + 1        x < 0: NaN

with L(v) = v - log1p(v) and Stirling's remainder S; d/dm = (m - x)/m, d/dlog m = m - x.
"""

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, as_it_is, sum_of_one
from vae_fast.kernels.fastmath import LN_2, PI, exp, lg2, log1p_minus, rcp
from vae_fast.kernels.gamma import stirling_from_one

NEUTRAL = tl.constexpr(-1e30)


@triton.jit
def counted(x):
    """x, if it is a count at all"""
    return tl.where(x < 0, float("nan"), x)


@triton.jit
def above_one(x):
    """x, but x + 1 for fractions below 1, where Stirling's series ends, and for 0"""
    return x + tl.where(x < 1.0, 1.0, 0.0)


@triton.jit
def poisson(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """OPTIONS: log_rate, whether the parameter is log m."""
    rate = parameters[0]
    if OPTIONS[0] != 0:
        m = exp(rate)
    else:
        m = tl.where(rate == NEUTRAL, 0.0, rate)
    x = counted(x)
    y = above_one(x)
    inverse = rcp(y)
    share = m * inverse
    shift = tl.where(x < 1.0, share * share, 1.0)  # p(x) = p(x + 1) (x + 1)/m
    spread = lg2(y * (2 * PI) * shift) * (0.5 * LN_2)
    some = y * log1p_minus((m - y) * inverse, share) + (spread + stirling_from_one(inverse)[0])
    zero = x == 0
    if OPTIONS[0] != 0:
        gradient = m - x
    else:
        gradient = tl.where(zero, 1.0, (m - x) * rcp(m))
    return (state[0] + tl.where(zero, m, some),), (gradient * factor,)


POISSON = Accumulator(poisson, sum_of_one, as_it_is, states=1, neutral=(NEUTRAL.value,), counts=True)
