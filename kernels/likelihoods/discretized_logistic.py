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

from vae_fast.kernels.fastmath import LOG2_E, decay_ratio, ex2, nearest, rcp


@triton.jit
def level_centre(x, LEVELS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Of the level nearest to x: its centre in units of w, an integer from 1 - levels to levels - 1"""
    FACTOR: tl.constexpr = (LEVELS - 1) / (HIGH - LOW)
    level = nearest(x * FACTOR - LOW * FACTOR)
    return 2.0 * tl.clamp(level, 0.0, LEVELS - 1.0, propagate_nan=tl.PropagateNan.ALL) - (LEVELS - 1.0)


@triton.jit
def logistic_bin(centre, mean, log_scale, LEVELS: tl.constexpr):
    """-log P as (linear, q), -log P = linear + log1p(q), both >= 0 (so P = e^-linear / (1 + q)), and its derivatives
    with respect to mean and log_scale."""
    STEPS: tl.constexpr = LEVELS - 1.0
    HALF: tl.constexpr = 1.0 / STEPS
    exponent = tl.minimum(log_scale * -LOG2_E, 69.0 * LOG2_E, propagate_nan=tl.PropagateNan.ALL)
    inverse = ex2(exponent)  # at most e^69: products with it stay finite
    h = inverse * HALF
    difference = tl.fma(mean, -STEPS, centre)
    outer = tl.abs(centre) >= STEPS
    side = tl.where(outer, centre, difference)
    place = tl.where(side < 0, -difference, difference)  # t / h
    n, f = (place - 1.0) * h, (place + 1.0) * h

    e = ex2(tl.abs(n) * -LOG2_E)
    g = ex2(tl.minimum(tl.abs(difference), 1.0) * h * (-2.0 * LOG2_E))
    far = tl.where(outer, 0.0, e * g)
    beyond = n >= 0
    v = tl.where(outer, 0.0, tl.where(beyond, g, e * far))
    t = tl.where(beyond, e * far, g)

    narrow = (h < 0.25) & (tl.abs(centre) < STEPS)
    small = 2.0 * place * h
    below_v = tl.where(narrow, decay_ratio(2.0 * h), 1.0 - v)  # (1 - V) / 2h, where 2h is small
    below_t = tl.where(small < 0.5, small * decay_ratio(small), 1.0 - t)
    one_e, one_far = 1.0 + e, 1.0 + far
    both = one_e * one_far
    inverse_all = rcp(both * below_v)
    inverse_v = both * inverse_all
    s_n = tl.where(beyond, 1.0, e) * (one_far * below_v) * inverse_all
    s_f = (one_e * below_v) * inverse_all

    linear = tl.where(beyond, n, 0.0) + tl.where(narrow, log_scale + _log_half(STEPS), 0.0)
    q = (e + far + e * far + tl.where(narrow, 1.0 - below_v, v)) * inverse_v
    slope = inverse * s_n * tl.where(outer, 1.0, below_t * s_f)
    by_mean = tl.where(side < 0, slope, -slope)
    by_log_scale = f * (far * s_f) - n * s_n + tl.where(narrow, v, 2.0 * h * v) * inverse_v
    return linear, q, by_mean, by_log_scale


@triton.constexpr_function
def _log_half(v):
    return math.log(0.5 * v)
