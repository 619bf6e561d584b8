"""Divergences between diagonal Gaussians, as accumulators over the latent dimensions; the target x is unused."""

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, halved, sum_of_one
from vae_fast.kernels.fastmath import exp, expm1_minus, inverse_root


@triton.jit
def standard_kl(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """KL(N(m, e^v) || N(0, 1)) = 1/2 [m^2 + e^v - 1 - v], with d/dm = m, d/dv = 1/2 (e^v - 1)."""
    m, v = parameters
    excess = expm1_minus(v, exp(v))
    return (state[0] + (m * m + excess),), (m * factor, (excess + v) * (0.5 * factor))


@triton.jit
def gaussian_kl(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """KL(N(m, e^v) || N(m', e^v')) = 1/2 [e^r - 1 - r + h^2], r = v - v', h = (m - m') e^(-v'/2), with
    d/dm = -d/dm' = (m - m') e^-v', d/dv = 1/2 (e^r - 1), d/dv' = -1/2 (e^r - 1 + h^2)."""
    m, v, prior_m, prior_v = parameters
    r = v - prior_v
    root = inverse_root(prior_v)
    h = (m - prior_m) * root
    excess = expm1_minus(r, exp(r))
    dm = h * root * factor
    return (state[0] + (excess + h * h),), (
        dm,
        (excess + r) * (0.5 * factor),
        -dm,
        (excess + r + h * h) * (-0.5 * factor),
    )


@triton.jit
def log_ratio(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """log q(z) - log p(z) = 1/2 [v' - v + h'^2 - h^2], h = (z - m) e^(-v/2), h' = (z - m') e^(-v'/2): the Monte-Carlo
    form of the KL, for one sample z ~ q."""
    z, m, v, prior_m, prior_v = parameters
    root, prior_root = inverse_root(v), inverse_root(prior_v)
    h, prior_h = (z - m) * root, (z - prior_m) * prior_root
    dm, dprior_m = h * root * factor, -prior_h * prior_root * factor
    return (state[0] + ((prior_v - v) + (prior_h - h) * (prior_h + h)),), (
        -dm - dprior_m,
        dm,
        (h * h - 1.0) * (0.5 * factor),
        dprior_m,
        (1.0 - prior_h * prior_h) * (0.5 * factor),
    )


STANDARD_KL = Accumulator(standard_kl, sum_of_one, halved, states=1, neutral=(0.0,) * 2)
GAUSSIAN_KL = Accumulator(gaussian_kl, sum_of_one, halved, states=1, neutral=(0.0,) * 4)
LOG_RATIO = Accumulator(log_ratio, sum_of_one, halved, states=1, neutral=(0.0,) * 5)
