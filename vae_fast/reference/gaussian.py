"""Gaussian: the negative log-likelihood of each observation, in nats."""

import math

from torch import Tensor

from vae_fast.reference.elementary import exp_finite


def gaussian(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    """-log p(x | m, v) = 1/2 [log 2 pi + v + ((x - m) e^(-v/2))^2], m the mean, v the log-variance."""
    h = (x - mean) * exp_finite(-logvar / 2)
    return 0.5 * (h**2 + (logvar + math.log(2 * math.pi)))
