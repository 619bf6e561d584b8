"""Categorical: the negative log-likelihood of each observation, in nats, from logits over a dimension of classes."""

import math

import torch
from torch import Tensor


def categorical(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x | l) = log sum_k e^l_k - l_x. logits [B, C, N], x [B, N] the classes; NaN, the gradient too, where x is
    none of the C."""
    index = x.long()
    valid = (index >= 0) & (index < logits.shape[1]) & (index == x)
    picked = torch.log_softmax(logits, 1).gather(1, torch.where(valid, index, 0).unsqueeze(1)).squeeze(1)
    return torch.where(valid, -1.0, math.nan) * picked


def categorical_mean(logits: Tensor) -> Tensor:
    """The most probable class of each observation, [B, N], int64: classes are names, which have no mean."""
    return logits.argmax(1)


def categorical_sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A class of each observation, [B, N], int64: argmax of l + Gumbel noise."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    noise = torch.empty_like(logits, dtype=dtype).exponential_(generator=generator)
    return (logits - torch.log(noise)).argmax(1)
