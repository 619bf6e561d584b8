"""Element functions that several references share."""

import math

import torch
from torch import Tensor


def exp_finite(v: Tensor, most: float | None = None) -> Tensor:
    """e^min(v, most), `most` by default such that this is nearly the largest number. No clamp, which would lose a NaN
    on its way to the gradient."""
    kind = torch.finfo(v.dtype)
    limit = math.log(kind.max) * (1 - kind.eps) if most is None else most  # rounded up, e^limit would be infinite
    return torch.exp(torch.where(v > limit, limit, v))
