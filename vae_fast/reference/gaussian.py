"""Gaussian: the negative log-likelihood of each observation, in nats."""

import math

import torch
from torch import Tensor


def gaussian(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    """-log p(x | m, v) = 1/2 [log 2 pi + v + ((x - m) e^(-v/2))^2], m the mean, v the log-variance."""
    limit = math.log(torch.finfo(logvar.dtype).max)
    h = (x - mean) * torch.exp((-logvar / 2).clamp(max=limit))
    return 0.5 * (h**2 + (logvar + math.log(2 * math.pi)))
