"""Bernoulli, x in [0, 1]: the negative log-likelihood of each observation, in nats."""

import torch
from torch import Tensor


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x | l) = -x log sigmoid(l) - (1 - x) log sigmoid(-l) = |l| d + log1p(e^-|l|).

    d = 1 - x where l >= 0, x elsewhere: no term is negative, nothing cancels.
    """
    negative = logits < 0
    magnitude = torch.where(negative, -logits, logits)
    return magnitude * torch.where(negative, x, 1 - x) + torch.log1p(torch.exp(-magnitude))


def bernoulli_probs(probs: Tensor, x: Tensor) -> Tensor:
    """-x log p - (1 - x) log1p(-p), p clamped to [2^-126, 1 - 2^-24] (float32; the same ends of float64).

    The gradient is the formula's at the clamped p, (p - x) / (p (1 - p)), passed straight through the clamp.
    """
    limits = torch.finfo(probs.dtype)
    p = probs + (probs.clamp(limits.tiny, 1 - limits.eps / 2) - probs).detach()
    return -(x * torch.log(p) + (1 - x) * torch.log1p(-p))
