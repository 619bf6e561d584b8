"""Negative binomial of mean m = mu * library and inverse dispersion t = theta, variance m + m^2/t, in the form in which
no terms cancel (Loader 2000), with r = (x - m)/(t + m), v = t (m - x)/(x (t + m)), L(v) = v - log1p(v) and Stirling's
remainder S:

x >= 1: t L(r) + x L(v) + 1/2 log(2 pi x (x + t)/t) + S(t) + S(x) - S(x + t)        x = 0: t [L(r) - r]
d/dm = t (m - x)/(m (m + t))        d/dt = L(r) - x/(2 t (x + t)) + S'(t) - S'(x + t); at x = 0 L(r)

For 0 < x < 1 p(x) is had from p(x + 1); for x < 0 all are NaN.
"""

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, as_it_is, sum_of_one
from vae_fast.kernels.fastmath import LN_2, PI, exp, lg2, log1p_minus, rcp
from vae_fast.kernels.gamma import stirling_and_slope, stirling_from_one
from vae_fast.kernels.likelihoods.poisson import counted

SMALLEST = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def mean_and_dispersion(mu, theta, library, OPTIONS: tl.constexpr):
    """(mu, theta, m). OPTIONS: log_mu, log_theta, whether the parameters are logarithms"""
    if OPTIONS[0] != 0:
        mu = exp(mu)
    if OPTIONS[1] != 0:
        theta = exp(theta)
    return mu, theta, mu * library


@triton.jit
def of_zero(m, theta, x):
    """(nll, d/dm, d/dtheta) of x = 0; 1/(t + m), L(r) and r of any x"""
    inverse = rcp(tl.maximum(theta + m, SMALLEST, propagate_nan=tl.PropagateNan.ALL))
    y = x + tl.where((x > 0) & (x < 1), 1.0, 0.0)
    r = (y - m) * inverse
    deviance = log1p_minus(r, (y + theta) * inverse)
    return (theta * (deviance - r), theta * inverse, deviance), inverse, deviance, r


@triton.jit
def of_others(m, theta, x, inverse, deviance, r):
    """(nll, d/dm, d/dtheta) of x > 0"""
    fraction = x < 1.0  # p(x) = p(x + 1) (x + 1)(t + m) / ((x + t) m)
    y = x + tl.where(fraction, 1.0, 0.0)
    total = y + theta
    inverse_y, inverse_theta, inverse_total = rcp(y), rcp(theta), rcp(total)
    share = m * inverse_y
    shift = tl.where(fraction, (x + theta) * share * inverse, 1.0)
    spread = lg2(y * (2 * PI) * (total * inverse_theta) * (shift * shift)) * (0.5 * LN_2)
    of_theta, theta_slope = stirling_and_slope(theta, inverse_theta)
    of_total, total_slope = stirling_from_one(inverse_total)
    by_count = y * log1p_minus(-r * theta * inverse_y, share * (total * inverse))
    nll = theta * deviance + by_count + (spread + (of_theta - of_total) + stirling_from_one(inverse_y)[0])
    scaled = (m - x) * inverse
    slope = deviance + tl.where(fraction, scaled * rcp(x + theta), 0.0)
    slope -= 0.5 * y * inverse_theta * inverse_total + (theta_slope - total_slope)
    return nll, scaled * (theta * rcp(m)), slope


@triton.jit
def by_parameters(mu, theta, library, by_m, by_theta, OPTIONS: tl.constexpr):
    """The gradients by mu, theta and library"""
    by_library = by_m * mu
    by_mu = by_m * library
    if OPTIONS[0] != 0:
        by_mu *= mu
    if OPTIONS[1] != 0:
        by_theta *= theta
    return by_mu, by_theta, by_library


@triton.jit
def negative_binomial(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    library = parameters[2]
    mu, theta, m = mean_and_dispersion(parameters[0], parameters[1], library, OPTIONS)
    x = counted(x)
    zero, inverse, deviance, r = of_zero(m, theta, x)
    some = of_others(m, theta, x, inverse, deviance, r)
    at_zero = x == 0
    nll = tl.where(at_zero, zero[0], some[0])
    by_m = factor * tl.where(at_zero, zero[1], some[1])
    by_theta = factor * tl.where(at_zero, zero[2], some[2])
    return (state[0] + nll,), by_parameters(mu, theta, library, by_m, by_theta, OPTIONS)


NEGATIVE_BINOMIAL = Accumulator(
    negative_binomial, sum_of_one, as_it_is, states=1, neutral=(0.0, 1.0, 0.0), counts=True, heavy=True
)
