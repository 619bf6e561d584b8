"""Bernoulli: -log p(x | l) = -x log sigmoid(l) - (1 - x) log sigmoid(-l) = |l| d + log1p(e^-|l|), x in [0, 1], where
d is x's distance from the side that l is on: 1 - x for l >= 0, x for l < 0. No term is negative, so nothing cancels.
"""

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, as_it_is, neighbours, sum_of_one
from vae_fast.kernels.fastmath import LOG2_E, ex2, log, log1p, rcp

SMALLEST = tl.constexpr(1.1754943508222875e-38)
BELOW_ONE = tl.constexpr(1 - 2.0**-24)


@triton.jit
def bernoulli(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """From logits l. One exponential e = e^-|l| serves the value and the gradient sigmoid(l) - x = +-(d - e / (1 + e)).

    The logarithm is shared: with Q <- Q + e + Q e, log1p(Q) is the sum of the log1p(e); Q at most doubles a step.
    """
    linear, q = state
    logit = parameters[0]
    positive = logit >= 0
    d = tl.where(positive, ONE, 0.0) - x  # has the logit's sign
    e = ex2(tl.abs(logit) * -LOG2_E)
    inverse = 1.0 / tl.where(tl.abs(factor) < SMALLEST, SMALLEST, factor)
    u = e * rcp(e * inverse + inverse)
    return (linear + logit * d, q * e + (q + e)), (d * (factor / ONE) + tl.where(positive, -u, u),)


@triton.jit
def bernoulli_fold(state, ONE: tl.constexpr, VECTOR: tl.constexpr):
    q = tl.reduce(neighbours(state[1], VECTOR), 2, _join)
    return tl.sum(neighbours(state[0], VECTOR), 2) * (1.0 / ONE) + log1p(q)


@triton.jit
def _join(q, r):
    return q * r + (q + r)


@triton.jit
def bernoulli_probs(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """From probabilities p: -x log p - (1 - x) log1p(-p), with gradient (p - x) / (p (1 - p)).

    p is clamped to [2^-126, 1 - 2^-24]: p = 0 and p = 1 give a finite value and a gradient that points the right way.
    """
    low = tl.where(parameters[0] < SMALLEST, SMALLEST, parameters[0])
    p = tl.where(low > BELOW_ONE, BELOW_ONE, low)
    x = x * (1.0 / ONE)
    total = state[0] - (x * log(p) + (1.0 - x) * log1p(-p))
    return (total,), ((p - x) * rcp(p * (1.0 - p)) * factor,)


BERNOULLI = Accumulator(bernoulli, bernoulli_fold, as_it_is, states=2, neutral=(-1e30,), steps=120)
BERNOULLI_PROBS = Accumulator(bernoulli_probs, sum_of_one, as_it_is, states=1, neutral=(0.0,))
