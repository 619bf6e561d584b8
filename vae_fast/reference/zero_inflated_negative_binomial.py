"""Zero-inflated negative binomial: the negative log-likelihood of each observation, in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.reference.negative_binomial import (
    negative_binomial,
    negative_binomial_mean,
    negative_binomial_sample,
)


def zero_inflated_negative_binomial(
    mu: Tensor, theta: Tensor, pi: Tensor, library: Tensor, x: Tensor, *, log_mu: float = 0.0, log_theta: float = 0.0
) -> Tensor:
    """-log of sigmoid(l) [x = 0] + sigmoid(-l) NB(x | mu, theta, library), l = pi the logit of dropout.

    At x = 0 softplus(l) - log(e^l + e^-n), n = -log NB(0), which is -log1p(-a) with a = sigmoid(-l) (1 - e^-n); else
    softplus(l) - log NB(x).
    """
    n = negative_binomial(mu, theta, library, x, log_mu=log_mu, log_theta=log_theta)
    a = torch.sigmoid(-pi) * -torch.expm1(-n)
    small = (a < 0.5) & (x == 0)
    far = -F.logsigmoid(-pi) + torch.where(x == 0, -torch.logaddexp(pi, -n), n)
    return torch.where(small, -torch.log1p(-torch.where(small, a, 0)), far)


def zero_inflated_negative_binomial_mean(
    mu: Tensor, theta: Tensor, pi: Tensor, library: Tensor, **options: float
) -> Tensor:
    """sigmoid(-l) mu library"""
    return torch.sigmoid(-pi) * negative_binomial_mean(mu, theta, library, **options)


def zero_inflated_negative_binomial_sample(
    mu: Tensor,
    theta: Tensor,
    pi: Tensor,
    library: Tensor,
    generator: torch.Generator | None = None,
    **options: float,
) -> Tensor:
    """A draw of the negative binomial, then of its dropout."""
    x = negative_binomial_sample(mu, theta, library, generator, **options)
    return x * torch.bernoulli(torch.sigmoid(-pi).expand(x.shape), generator=generator)
