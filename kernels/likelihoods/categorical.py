"""Categorical: -log p(x | l) = log sum_k e^l_k - l_x, l the logits of C classes; gradients softmax(l)_k - [k = x]."""

import triton
import triton.language as tl

from vae_fast.kernels.fastmath import LOG2_E, ex2, log1p, rcp
from vae_fast.kernels.joint import Joint


@triton.jit
def categorical(parameters, x, component, OPTIONS: tl.constexpr):
    """others = sum of e^(l_k - top) over the classes but x: a value near 0 and l_x's gradient don't cancel. A class
    that isn't there gives NaN."""
    logits = parameters[0]
    here = (component == x[0]) & (component >= 0)
    top = tl.max(logits, 1)[:, None]
    e = ex2((logits - top) * LOG2_E)
    others = tl.sum(tl.where(here, 0.0, e), 1)[:, None]
    found = tl.sum(here.to(tl.int32), 1)[:, None] > 0
    behind = tl.where(found, top - tl.sum(tl.where(here, logits, 0.0), 1)[:, None], float("nan"))
    of_x = ex2(behind * -LOG2_E)
    gradient = tl.where(here, -others, e) * rcp(others + of_x)
    return behind + log1p(others + (of_x - 1.0)), (gradient,)


CATEGORICAL = Joint(categorical, kinds={1: 1})
