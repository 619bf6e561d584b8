"""Continuous Bernoulli: -log p(x | l) = |l| d + log((1 - e^-|l|) / |l|), x in [0, 1], where d is x's distance from the
side that l is on: 1 - x for l >= 0, x for l < 0. Its gradient is the difference of E[x] and x, and E[x]'s distance from
that side is 1/|l| - 1 / (e^|l| - 1).
"""

import triton
import triton.language as tl

from vae_fast.kernels.accumulator import Accumulator, as_it_is, sum_of_one
from vae_fast.kernels.fastmath import LOG2_E, decay_mean, ex2, log_decay_ratio


@triton.jit
def continuous_bernoulli(state, parameters, x, factor, ONE: tl.constexpr, OPTIONS: tl.constexpr):
    logit = parameters[0]
    positive = logit >= 0
    a = tl.abs(logit)
    b = tl.maximum(a, 1.0, propagate_nan=tl.PropagateNan.ALL)
    e = ex2(b * -LOG2_E)
    d = tl.where(positive, 1.0, 0.0) - x * (1.0 / ONE)  # has the logit's sign
    mean = decay_mean(a, b, e)
    gradient = (d + tl.where(positive, -mean, mean)) * factor
    return (state[0] + logit * d + log_decay_ratio(a, b, e),), (gradient,)


CONTINUOUS_BERNOULLI = Accumulator(continuous_bernoulli, sum_of_one, as_it_is, states=1, neutral=(0.0,), together=8)
