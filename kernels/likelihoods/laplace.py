"""Laplace: -log p(x | m, s) = |x - m| e^-s + s + log 2, m the mean, e^s the scale, with gradients
d/dm = sign(m - x) e^-s, 0 where x = m, and d/ds = 1 - |x - m| e^-s.
"""

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, sum_of_one
from vae_fast.kernels.fastmath import LN_2, exp_finite, times_sign


@triton.jit
def laplace(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    mean, s = parameters
    inverse = exp_finite(-s)
    difference = mean - x * (1.0 / ONE)
    h = tl.abs(difference) * inverse
    return (state[0] + s + h,), (times_sign(inverse * factor, difference), factor - h * factor)


@triton.jit
def laplace_finish(total, count, parameters):
    return total + count * LN_2


@triton.jit
def laplace_shared(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    """The same for one s in the whole row: no exponential per observation, and s is added at the end."""
    mean, s = parameters
    inverse = exp_finite(-s)
    difference = mean - x * (1.0 / ONE)
    h = tl.abs(difference) * inverse
    return (state[0] + h,), (times_sign(inverse * factor, difference), factor - h * factor)


@triton.jit
def laplace_shared_finish(total, count, parameters):
    return total + count * (LN_2 + parameters[1])


LAPLACE = Accumulator(laplace, sum_of_one, laplace_finish, states=1, neutral=(0.0, 0.0))
LAPLACE_SHARED = Accumulator(laplace_shared, sum_of_one, laplace_shared_finish, states=1, neutral=(0.0, 0.0))
