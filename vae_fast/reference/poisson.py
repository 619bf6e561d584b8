"""Poisson, x = 0, 1, 2, ...: the negative log-likelihood of each observation, in nats."""

import math

import torch
from torch import Tensor

from vae_fast.reference.gamma import log1p_minus, stirling


def counted(x: Tensor) -> Tensor:
    """x, if it is a count at all, else NaN, which the gradients have too."""
    return torch.where(x < 0, math.nan, x)


def poisson(rate: Tensor, x: Tensor, *, log_rate: float = 1.0) -> Tensor:
    """-log p(x | m) = m - x log m + log x!, m the mean, e^rate if log_rate.

    In the form of Loader (2000), in which nothing cancels: x L(m/x - 1) + 1/2 log(2 pi x) + S(x), and m at x = 0.
    """
    m = poisson_mean(rate, log_rate=log_rate)
    x = counted(x)
    zero = x == 0
    at, some = torch.where(zero, 1, m), torch.where(zero, 1, x)
    positive = some * log1p_minus((at - some) / some, at / some)
    positive = positive + 0.5 * torch.log(2 * math.pi * some) + stirling(some)
    return torch.where(zero, m, positive)


def poisson_mean(rate: Tensor, *, log_rate: float = 1.0) -> Tensor:
    return torch.exp(rate) if log_rate else rate


def poisson_sample(rate: Tensor, generator: torch.Generator | None = None, *, log_rate: float = 1.0) -> Tensor:
    return poisson_drawn(poisson_mean(rate, log_rate=log_rate), generator)


def poisson_drawn(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    """Counts of that mean; beyond what int64, in which torch counts on a CPU, holds, the mean: the spread is 5e-10 of
    it."""
    large = mean.float() > 2.0**62  # which half precision doesn't hold
    return torch.where(large, mean, torch.poisson(torch.where(large, 0, mean), generator=generator))
