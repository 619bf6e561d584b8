"""Zero-inflated negative binomial: x is 0 with probability sigmoid(l), l = pi the logit of dropout, else negative
binomial, whose own zeros have probability e^-n:

x >= 1: softplus(l) + NB(x)        x = 0: -log(1 - a) = log1p(e), a = sigmoid(-l)(1 - e^-n), e = a/(1 - a)

At x = 0, with 1 - rho the probability that the zero is the negative binomial's: d/dl = -sigmoid(l) e, and NB's
gradients times 1 - rho.
"""

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, as_it_is
from vae_fast.kernels.fastmath import LN_2, LOG2_E, ex2, expm1_minus, rcp
from vae_fast.kernels.likelihoods.bernoulli import bernoulli_fold
from vae_fast.kernels.likelihoods.negative_binomial import by_parameters, mean_and_dispersion, of_others, of_zero
from vae_fast.kernels.likelihoods.poisson import counted

DEEP = tl.constexpr(20.0)


@triton.jit
def below_two(e):
    """(f, k ln 2) with 1 + e = 2^k (1 + f) for 0 <= e, 0 <= f < 1"""
    u = 1.0 + e
    power = (u.to(tl.int32, bitcast=True) & 0x7F800000) - 0x3F800000
    f = tl.where(power == 0, e, u * (0x3F800000 - power).to(tl.float32, bitcast=True) - 1.0)
    return f, power.to(tl.float32) * (LN_2 * 2.0**-23)


@triton.jit
def inflated_zero(logit, n, lift, side):
    """(e, d/dl, 1 - rho) of x = 0; side = e^(lift - |l|)"""
    power = ex2((lift - n) * LOG2_E)
    some = tl.where(n < 1.0, n - expm1_minus(-n, 0.0), 1.0 - power)  # 1 - e^-n
    dropped, kept = tl.where(logit < 0, side, 1.0), tl.where(logit < 0, 1.0, side)  # the sigmoids times 1 + side
    inverse_mixed = rcp(dropped + kept * power)
    odds = kept * some * inverse_mixed
    return odds, -dropped * rcp(1.0 + side) * odds, kept * power * inverse_mixed


@triton.jit
def zero_inflated_negative_binomial(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """The logarithm is shared: with Q <- Q + e + Q e, log1p(Q) is the sum of the log1p(e); Q at most doubles a step."""
    total, q = state
    logit, library = parameters[2], parameters[3]
    mu, theta, m = mean_and_dispersion(parameters[0], parameters[1], library, OPTIONS)
    x = counted(x)
    zero, inverse, deviance, r = of_zero(m, theta, x)
    some = of_others(m, theta, x, inverse, deviance, r)
    at_zero = x == 0
    # e^lift brings causes of a zero that are both rarer than e^-20 there; what they are beside 1 vanishes either way
    lift = tl.where(at_zero, tl.maximum(tl.minimum(-logit, zero[0]) - DEEP, 0.0), 0.0)
    side = ex2((lift - tl.abs(logit)) * LOG2_E)
    odds, zero_by_logit, not_dropped = inflated_zero(logit, zero[0], lift, side)

    e, more = below_two(tl.where(at_zero, odds, side))
    nll = tl.where(at_zero, lift, some[0] + tl.maximum(logit, 0.0)) + more
    by_m = factor * tl.where(at_zero, not_dropped * zero[1], some[1])
    by_theta = factor * tl.where(at_zero, not_dropped * zero[2], some[2])
    by_logit = factor * tl.where(at_zero, zero_by_logit, tl.where(logit < 0, side, 1.0) * rcp(1.0 + side))
    by_mu, by_theta, by_library = by_parameters(mu, theta, library, by_m, by_theta, OPTIONS)
    return (total + nll, q * e + (q + e)), (by_mu, by_theta, by_logit, by_library)


ZERO_INFLATED_NEGATIVE_BINOMIAL = Accumulator(
    zero_inflated_negative_binomial,
    bernoulli_fold,
    as_it_is,
    states=2,
    neutral=(0.0, 1.0, 0.0, 0.0),
    steps=120,
    counts=True,
    heavy=True,
)
