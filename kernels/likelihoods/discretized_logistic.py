"""Discretised logistic: the probability that a logistic variable of mean m and scale e^s falls into x's bin. The levels
lie evenly on [-1, 1], 2 w apart, w = 1 / (levels - 1); the outer bins reach to infinity.

A bin's edges lie at n = t - h and f = t + h from the mean, in units of the scale: h = w e^-s, t = |c - m| e^-s, c the
bin's centre. P = sigmoid(-n) - sigmoid(-f), and with E = e^-|n|, F = e^-f, V = e^-2h, T = e^-2t, S = sigmoid:
    -log P  = max(n, 0) + log((1 + E) (1 + F) / (1 - V))
    d/dm    = -+ e^-s (1 - T) S(n) S(f), up where m > c
    d/ds    = -n S(n) + f S(-f) + 2h / (e^2h - 1)
Nothing cancels: V and T are EF and e^(-2 min(t, h)), and 1 - V, 1 - T are series where they would. For an outer bin
n is its one edge's distance, t's sign is the side's, and the factors of F, V and T fall away.
"""

import math

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, as_it_is
from vae_fast.kernels.fastmath import LOG2_E, decay_deficit, ex2, nearest, rcp, turned
from vae_fast.kernels.likelihoods.bernoulli import bernoulli_fold


@triton.jit
def level_centre(x, LEVELS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Of the level nearest to x: its centre in units of w, an integer from 1 - levels to levels - 1"""
    FACTOR: tl.constexpr = (LEVELS - 1) / (HIGH - LOW)
    level = nearest(x * FACTOR - LOW * FACTOR)
    return 2.0 * tl.clamp(level, 0.0, LEVELS - 1.0, propagate_nan=tl.PropagateNan.ALL) - (LEVELS - 1.0)


@triton.jit
def logistic_bin(centre, difference, log_scale, LEVELS: tl.constexpr):
    """Of difference = centre - (levels - 1) m: -log P as (linear, q), -log P = linear + log1p(q), both >= 0 (so
    P = e^-linear / (1 + q)), and its derivatives with respect to mean and log_scale."""
    STEPS: tl.constexpr = LEVELS - 1.0
    HALF: tl.constexpr = 1.0 / STEPS
    exponent = tl.minimum(log_scale * -LOG2_E, 69.0 * LOG2_E, propagate_nan=tl.PropagateNan.ALL)
    inverse = ex2(exponent)  # at most e^69: products with it stay finite
    h, width = inverse * HALF, inverse * (2.0 * HALF)
    outer = tl.abs(centre) >= STEPS
    narrow = tl.where(outer, 1.0, width) < 0.5
    side = tl.where(outer, centre, difference)
    place = turned(difference, side)  # t / h
    n, f = tl.fma(place, h, -h), tl.fma(place, h, h)

    linear = tl.maximum(n, 0.0) + tl.where(narrow, log_scale + _log_half(STEPS), 0.0)

    e = ex2(tl.abs(n) * -LOG2_E)
    g = tl.where(outer, 0.0, ex2(tl.minimum(tl.abs(difference), 1.0) * (width * -LOG2_E)))
    far = e * g
    product = e * far
    beyond = n >= 0
    v, t = tl.where(beyond, g, product), tl.where(beyond, product, g)

    lost = tl.where(narrow, decay_deficit(width), v)
    below_v = 1.0 - lost  # 1 - V, of 2h where that is small
    twice = tl.where(outer, 1.0, place * width)
    below_t = tl.where(twice < 0.5, twice - twice * decay_deficit(twice), 1.0 - t)
    one_e, one_far = 1.0 + e, 1.0 + far
    both = one_e * one_far
    inverse_all = rcp(both * below_v)
    inverse_v, inverse_both = both * inverse_all, below_v * inverse_all
    s_n, s_f = tl.where(beyond, 1.0, e) * (one_far * inverse_both), one_e * inverse_both

    q = (e + far + product + lost) * inverse_v
    by_mean = turned(inverse * s_n * (below_t * s_f), -side)
    by_log_scale = f * (far * s_f) - n * s_n + tl.where(narrow, v, width * v) * inverse_v
    return linear, q, by_mean, by_log_scale


@triton.constexpr_function
def _log_half(v):
    return math.log(0.5 * v)


@triton.jit
def discretized_logistic(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """The logarithm is shared as Bernoulli's is: 1 + q is at most 8.2."""
    linear, q = state
    mean, log_scale = parameters
    centre = level_centre(x, OPTIONS[0], OPTIONS[1], OPTIONS[2])
    difference = tl.fma(mean, 1.0 - OPTIONS[0], centre)
    line, r, by_mean, by_log_scale = logistic_bin(centre, difference, log_scale, OPTIONS[0])
    return (linear + line, q * r + (q + r)), (by_mean * factor, by_log_scale * factor)


DISCRETIZED_LOGISTIC = Accumulator(
    discretized_logistic,
    bernoulli_fold,
    as_it_is,
    states=2,
    neutral=(-1e30, 0.0),
    steps=40,
    counts=True,
    neutral_x=-1e30,
    together=4,
)
