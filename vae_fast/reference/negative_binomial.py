"""Negative binomial, x = 0, 1, 2, ...: the negative log-likelihood of each observation, in nats."""

import math

import torch
from torch import Tensor

from vae_fast.reference.gamma import log1p_minus, stirling
from vae_fast.reference.poisson import counted, poisson_drawn


def negative_binomial(
    mu: Tensor, theta: Tensor, library: Tensor, x: Tensor, *, log_mu: float = 0.0, log_theta: float = 0.0
) -> Tensor:
    """-log p(x | m, t) = log Gamma(t) + log x! - log Gamma(x + t) + t log(1 + m/t) + x log(1 + t/m)

    of mean m = mu library and variance m + m^2/t; mu and t = theta are e^mu and e^theta if log_mu and log_theta.
    In the form of Loader (2000), in which nothing cancels, with r = (x - m)/(t + m), v = t (m - x)/(x (t + m)):
    t L(r) + x L(v) + 1/2 log(2 pi x (x + t)/t) + S(t) + S(x) - S(x + t), and t log1p(m/t) at x = 0.
    """
    m = negative_binomial_mean(mu, theta, library, log_mu=log_mu)
    t = torch.exp(theta) if log_theta else theta
    x = counted(x)
    zero = x == 0
    return torch.where(zero, zero_nll(m, t), _positive(*(torch.where(zero, 1, p) for p in (m, t, x))))


def zero_nll(m: Tensor, t: Tensor) -> Tensor:
    """t log1p(m/t), 0 at t = 0"""
    t = t.clamp(min=torch.finfo(t.dtype).tiny)
    return t * torch.log1p(m / t)


def _positive(m: Tensor, t: Tensor, x: Tensor) -> Tensor:
    d = m - x
    by_size = t * log1p_minus(-d / (t + m), (x + t) / (t + m))
    by_count = x * log1p_minus(t * d / (x * (t + m)), m / x * ((x + t) / (t + m)))
    spread = 0.5 * (torch.log(2 * math.pi * x) + torch.log1p(x / t))
    return by_size + by_count + spread + stirling(t) + stirling(x) - stirling(x + t)


def negative_binomial_mean(mu: Tensor, theta: Tensor, library: Tensor, *, log_mu: float = 0.0, **_: float) -> Tensor:
    """m = mu library"""
    return (torch.exp(mu) if log_mu else mu) * library


def negative_binomial_sample(
    mu: Tensor,
    theta: Tensor,
    library: Tensor,
    generator: torch.Generator | None = None,
    *,
    log_mu: float = 0.0,
    log_theta: float = 0.0,
) -> Tensor:
    """A Poisson variable whose rate is a Gamma variable of mean m and shape theta."""
    m = negative_binomial_mean(mu, theta, library, log_mu=log_mu)
    t = (torch.exp(theta) if log_theta else theta).expand(m.shape)
    return poisson_drawn(m * torch._standard_gamma(t, generator=generator) / t, generator)
