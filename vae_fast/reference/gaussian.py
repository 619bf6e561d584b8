"""Gaussian: the negative log-likelihood of each observation, in nats."""

import math

import torch
from torch import Tensor


def gaussian(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    """-log p(x | m, v) = 1/2 [log 2 pi + v + ((x - m) e^(-v/2))^2], m the mean, v the log-variance."""
    factor = torch.exp(-logvar / 4)
    return 0.5 * (((x - mean) * factor * factor) ** 2 + (logvar + math.log(2 * math.pi)))
