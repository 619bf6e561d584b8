"""Laplace: the negative log-likelihood of each observation, in nats."""

import math

import torch
from torch import Tensor


def laplace(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """-log p(x | m, s) = |x - m| e^-s + s + log 2, e^s the scale. The gradient at x = m is 0, as of torch's sign."""
    limit = math.log(torch.finfo(log_scale.dtype).max)
    return (x - mean).abs() * torch.exp((-log_scale).clamp(max=limit)) + (log_scale + math.log(2))
