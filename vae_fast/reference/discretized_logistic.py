"""Discretised logistic: the negative log-likelihood of each observation, in nats, its mean, and draws.

A logistic variable of mean m and scale e^s, in units where x's levels lie evenly on [-1, 1], is rounded to the nearest
level: the outer bins reach to infinity (Salimans et al., "PixelCNN++", ICLR 2017).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vae_fast.reference.elementary import exp_finite

_LARGEST_EXPONENT = 69.0  # e^-s is e^69 at most: products with it stay finite
# What trained models were trained with: smallest log-scale, where the upper bin begins, least difference's logarithm
COMPATIBLE = {"pixelcnn++": (-7.0, 0.999, 1e-12), "nvae": (-8.0, 0.99, 1e-10)}


def discretized_logistic(
    mean: Tensor,
    log_scale: Tensor,
    x: Tensor,
    *,
    levels: float = 256.0,
    x_low: float = -1.0,
    x_high: float = 1.0,
    compat: str | None = None,
) -> Tensor:
    """log [sigmoid(b) - sigmoid(a)] = log sigmoid(b) + log sigmoid(-a) + log(1 - e^(a - b)), a and b the bin's edges.

    a, b = (c -+ w - m) e^-s, w = 1 / (levels - 1), c the centre of x's level. log sigmoid(b) alone for the lowest
    level, log sigmoid(-a) for the highest. compat: another's formula, see `discretized_logistic_nll`.
    """
    if compat is not None:
        value = (x - x_low) * (2 / (x_high - x_low)) - 1
        return _approximate(mean, log_scale, value, levels, *COMPATIBLE[compat])
    steps = levels - 1
    level = nearest_level(x, levels, x_low, x_high)
    inverse = exp_finite(-log_scale, _LARGEST_EXPONENT) / steps
    difference = 2 * level - steps - steps * mean  # of the bin's centre and the mean, in units of w
    a, b = (difference - 1) * inverse, (difference + 1) * inverse
    below, above = F.logsigmoid(b), F.logsigmoid(-a)
    between = below + above + _log1m_exp(2 * inverse)
    return -torch.where(level == 0, below, torch.where(level == steps, above, between))


def nearest_level(x: Tensor, levels: float, x_low: float, x_high: float) -> Tensor:
    """The number of the level, 0 to levels - 1 from x_low to x_high, that is nearest to x."""
    steps = levels - 1
    return ((x - x_low) * (steps / (x_high - x_low))).round().clamp(0, steps)


def _log1m_exp(v: Tensor) -> Tensor:
    """log(1 - e^-v) for v > 0"""
    near = v < math.log(2)
    small, large = torch.where(near, v, 0.5), torch.where(near, 1, v)
    return torch.where(near, torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-large)))


def _approximate(
    mean: Tensor, log_scale: Tensor, x: Tensor, levels: float, lowest: float, top: float, least: float
) -> Tensor:
    """By the difference of sigmoids; where that is below 1e-5, by the density in the middle. x in [-1, 1]."""
    log_scale = log_scale.clamp(min=lowest)
    inverse, half = torch.exp(-log_scale), 1 / (levels - 1)
    a, b, middle = ((x + shift - mean) * inverse for shift in (-half, half, 0.0))
    difference = torch.sigmoid(b) - torch.sigmoid(a)
    density = F.logsigmoid(middle) + F.logsigmoid(-middle) - log_scale + math.log(2 * half)
    between = torch.where(difference > 1e-5, torch.log(difference.clamp(min=least)), density)
    return -torch.where(x < -0.999, F.logsigmoid(b), torch.where(x > top, F.logsigmoid(-a), between))


def discretized_logistic_mean(
    mean: Tensor,
    log_scale: Tensor,
    *,
    levels: float = 256.0,
    x_low: float = -1.0,
    x_high: float = 1.0,
    compat: str | None = None,
) -> Tensor:
    """E[x] = x_low + (x_high - x_low) / (levels - 1) * sum of P(level >= k), k = 1 to levels - 1."""
    steps = int(levels) - 1
    inverse = exp_finite(-log_scale, _LARGEST_EXPONENT)
    level = checkpoint(_expected_level, mean, inverse, steps, use_reentrant=False, preserve_rng_state=False)
    return x_low + level * ((x_high - x_low) / steps)


def _expected_level(mean: Tensor, inverse: Tensor, steps: int) -> Tensor:
    """The sum of P(level >= k), k = 1 to steps; its terms are not kept for a gradient, which computes them again."""
    total = torch.zeros_like(mean * inverse)
    for k in range(1, steps + 1):
        total = total + torch.sigmoid((mean - ((2 * k - 1) / steps - 1)) * inverse)
    return total


def discretized_logistic_sample(
    mean: Tensor,
    log_scale: Tensor,
    *,
    generator: torch.Generator | None = None,
    levels: float = 256.0,
    x_low: float = -1.0,
    x_high: float = 1.0,
    compat: str | None = None,
) -> Tensor:
    """The level nearest to m + e^s (log u - log(1 - u)), u uniform."""
    mean, log_scale = torch.broadcast_tensors(mean, log_scale)
    steps = levels - 1
    u = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    value = mean + torch.exp(log_scale) * torch.logit(u)
    level = ((value + 1) * (steps / 2)).round().clamp(0, steps)
    return x_low + level * ((x_high - x_low) / steps)
