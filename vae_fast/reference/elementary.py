"""Element functions that several references share."""

import math

import torch
from torch import Tensor


def exp_finite(v: Tensor, most: float | None = None) -> Tensor:
    """e^v, and e^most beyond, by default the largest number. No clamp, which would lose a NaN on its way to the
    gradient."""
    limit = math.log(torch.finfo(v.dtype).max) if most is None else most
    return torch.exp(torch.where(v > limit, limit, v))
