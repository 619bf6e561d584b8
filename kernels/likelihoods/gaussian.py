"""Gaussian: -log p(x | m, v) = 1/2 [log 2 pi + v + (x - m)^2 e^-v], m the mean, v the log-variance, with gradients
d/dm = (m - x) e^-v and d/dv = 1/2 [1 - (x - m)^2 e^-v].
"""

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, sum_of_one
from vae_fast.kernels.fastmath import LOG_2_PI, inverse_root


@triton.jit
def gaussian(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """e^-v is applied as two factors e^(-v/2): finite wherever the result is, 0 where x = m."""
    mean, v = parameters
    root = inverse_root(v)
    h = (mean - x * (1.0 / ONE)) * root
    scaled = h * factor
    return (state[0] + v + h * h,), (scaled * root, 0.5 * factor - 0.5 * h * scaled)


@triton.jit
def gaussian_finish(total, count, parameters):
    return 0.5 * (total + count * LOG_2_PI)


@triton.jit
def gaussian_shared(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """The same for one v in the whole row: no exponential per observation, and v is added at the end."""
    mean, v = parameters
    root = inverse_root(v)
    h = (mean - x * (1.0 / ONE)) * root
    return (state[0] + h * h,), (h * (root * factor), 0.5 * factor - h * h * (0.5 * factor))


@triton.jit
def gaussian_shared_finish(total, count, parameters):
    return 0.5 * (total + count * (LOG_2_PI + parameters[1]))


GAUSSIAN = Accumulator(gaussian, sum_of_one, gaussian_finish, states=1, neutral=(0.0, 0.0))
GAUSSIAN_SHARED = Accumulator(gaussian_shared, sum_of_one, gaussian_shared_finish, states=1, neutral=(0.0, 0.0))
