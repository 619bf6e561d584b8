"""Laplace: the negative log-likelihood of each observation, in nats."""

import math

from torch import Tensor

from vae_fast.reference.elementary import exp_finite


def laplace(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """-log p(x | m, s) = |x - m| e^-s + s + log 2, e^s the scale. The gradient at x = m is 0, as of torch's sign."""
    return (x - mean).abs() * exp_finite(-log_scale) + (log_scale + math.log(2))
