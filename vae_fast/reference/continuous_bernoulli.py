"""Continuous Bernoulli, x in [0, 1]: the negative log-likelihood of each observation, in nats, its mean, and draws.

Source: Loaiza-Ganem & Cunningham, "The continuous Bernoulli: fixing a pervasive error in VAEs", NeurIPS 2019.
"""

import math

import torch
from torch import Tensor

# B_2n / (2n (2n)!), of log((1 - e^-a) / a) = -a/2 + sum of them times a^2n; B_2n Bernoulli's numbers
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
_SERIES = tuple(b / (2 * n * math.factorial(2 * n)) for n, b in enumerate(_BERNOULLI, 1))


def continuous_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x | l) = log((e^l - 1) / l) - x l = |l| d + log((1 - e^-|l|) / |l|).

    d = 1 - x where l >= 0, x elsewhere. The density is Bernoulli's likelihood times C(l) = l / tanh(l/2); it may be
    above 1, and -log p negative.
    """
    negative = logits < 0
    magnitude = torch.where(negative, -logits, logits)
    return magnitude * torch.where(negative, x, 1 - x) + _log_decay_ratio(magnitude)


def _log_decay_ratio(a: Tensor) -> Tensor:
    """log((1 - e^-a) / a) for a >= 0, by its series where a < 1."""
    near = a < 1
    small, large = torch.where(near, a, 0), torch.where(near, 1, a)
    series = torch.zeros_like(a)
    for coefficient in reversed(_SERIES):
        series = series * small**2 + coefficient
    return torch.where(near, series * small**2 - small / 2, torch.log(-torch.expm1(-large) / large))


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """E[x] = 1 / (1 - e^-l) - 1 / l, 1/2 at l = 0."""
    a = logits.abs()
    near = a < 1
    small, large = torch.where(near, a, 0), torch.where(near, 1, a)
    series = torch.zeros_like(a)
    for n in range(len(_SERIES), 0, -1):
        series = series * small**2 + 2 * n * _SERIES[n - 1]
    from_side = torch.where(near, 0.5 - small * series, 1 / large - 1 / torch.expm1(large))
    return torch.where(logits < 0, from_side, 1 - from_side)


def continuous_bernoulli_sample(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """The inverse of the distribution function, from the logit's side: log1p(u (e^-|l| - 1)) / -|l|, u uniform."""
    a = logits.abs().clamp(min=torch.finfo(logits.dtype).tiny)
    u = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    from_side = torch.log1p(u * torch.expm1(-a)) / -a
    return torch.where(logits < 0, from_side, 1 - from_side)
