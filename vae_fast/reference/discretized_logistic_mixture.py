"""A mixture of discretised logistics (PixelCNN++): the negative log-likelihood of each pixel, in nats.

Source: Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017; the probabilities of its bins are exact here.
"""

import torch
from torch import Tensor

from vae_fast.reference.discretized_logistic import (
    discretized_logistic,
    discretized_logistic_mean,
    nearest_level,
)

Parts = tuple[Tensor, Tensor, Tensor, Tensor | None]
_SMALLEST = -7.0  # log-scale of mixtures, with compat


def split_mixture(parameters: Tensor, channels: int) -> Parts:
    """Logits [B, M, N], means and log-scales [B, channels, M, N], and of three channels the coefficients, the same.

    parameters [B, C, N], C = 10 M for three channels: M logits, then for each channel M means, M log-scales and M
    coefficients before their tanh; C = 3 M for one: logits, means, log-scales.
    """
    kinds = 3 if channels == 3 else 2
    mixtures = parameters.shape[1] // (1 + kinds * channels)
    logits, rest = parameters[:, :mixtures], parameters[:, mixtures:]
    each = rest.unflatten(1, (channels, kinds, mixtures))
    return logits, each[:, :, 0], each[:, :, 1], torch.tanh(each[:, :, 2]) if kinds == 3 else None


def conditional_means(means: Tensor, coefficients: Tensor | None, x: Tensor) -> Tensor:
    """Means [B, channels, M, N] given the channels before: green's + c0 red, blue's + c1 red + c2 green.

    x [B, channels, 1 or M, N] in [-1, 1].
    """
    if coefficients is None:
        return means
    red, green = x[:, 0], x[:, 1]
    c0, c1, c2 = coefficients.unbind(1)
    return torch.stack((means[:, 0], means[:, 1] + c0 * red, means[:, 2] + c1 * red + c2 * green), 1)


def discretized_logistic_mixture(
    parameters: Tensor,
    x: Tensor,
    *,
    channels: float = 3.0,
    levels: float = 256.0,
    x_low: float = -1.0,
    x_high: float = 1.0,
    compat: str | None = None,
) -> Tensor:
    """-log sum_m pi_m prod_c P(x_c | mean_mc, log_scale_mc). parameters [B, C, N], x [B, channels, N] -> [B, N].

    P is `discretized_logistic`'s. compat: another's formula, see `discretized_logistic_mixture_nll`.
    """
    logits, means, log_scales, coefficients = split_mixture(parameters, int(channels))
    value = (x - x_low) * (2 / (x_high - x_low)) - 1
    if compat is None:
        steps = levels - 1
        value = (2 * nearest_level(x, levels, x_low, x_high) - steps) / steps
    else:
        log_scales = log_scales.clamp(min=_SMALLEST)
    value = value.unsqueeze(2)
    means = conditional_means(means, coefficients, value)
    terms = discretized_logistic(means, log_scales, value, levels=levels, compat=compat).sum(1)
    return torch.logsumexp(logits, 1) - torch.logsumexp(logits - terms, 1)


def discretized_logistic_mixture_mean(
    parameters: Tensor,
    *,
    channels: float = 3.0,
    levels: float = 256.0,
    x_low: float = -1.0,
    x_high: float = 1.0,
    compat: str | None = None,
) -> Tensor:
    """E[x], [B, channels, N], from x_low to x_high: the components' `discretized_logistic_mean`s, weighted.

    Exact for one channel, and for red. Green's and blue's are approximate: a component's location is taken at its
    expected values of the channels before, where the mean over their values would be E[x]. compat changes nothing.
    """
    logits, means, log_scales, coefficients = split_mixture(parameters, int(channels))
    expected = [torch.zeros_like(logits)] * int(channels)
    for c in range(int(channels)):
        location = conditional_means(means, coefficients, torch.stack(expected, 1))[:, c]
        expected[c] = discretized_logistic_mean(location, log_scales[:, c], levels=levels)
    weights = torch.softmax(logits, 1).unsqueeze(1)
    return _from_centre((weights * torch.stack(expected, 1)).sum(2), x_low, x_high)


def discretized_logistic_mixture_sample(
    parameters: Tensor,
    *,
    generator: torch.Generator | None = None,
    channels: float = 3.0,
    levels: float = 256.0,
    x_low: float = -1.0,
    x_high: float = 1.0,
    compat: str | None = None,
) -> Tensor:
    """x, [B, channels, N]: a component by Gumbel's trick, then channel by channel mean + e^s (log u - log(1 - u)).

    u in [1e-5, 1 - 1e-5] as in PixelCNN++; clamped to [-1, 1], rounded to a level.
    """
    logits, means, log_scales, coefficients = split_mixture(parameters, int(channels))
    dtype = torch.promote_types(parameters.dtype, torch.float32)
    gumbel = -torch.log(torch.empty_like(logits, dtype=dtype).exponential_(generator=generator))
    index = (logits + gumbel).argmax(1, keepdim=True).unsqueeze(1).expand(-1, int(channels), -1, -1)
    means, log_scales = means.gather(2, index), log_scales.gather(2, index)
    coefficients = None if coefficients is None else coefficients.gather(2, index)
    u = torch.empty_like(means, dtype=dtype).uniform_(1e-5, 1 - 1e-5, generator=generator)
    noise = torch.exp(log_scales) * (torch.log(u) - torch.log1p(-u))
    steps = levels - 1
    x = torch.zeros_like(noise)
    for c in range(int(channels)):
        draw = (conditional_means(means, coefficients, x) + noise)[:, c].clamp(-1, 1)
        x[:, c] = torch.round((draw + 1) * (steps / 2)) * (2 / steps) - 1
    return _from_centre(x[:, :, 0], x_low, x_high)


def _from_centre(centre: Tensor, x_low: float, x_high: float) -> Tensor:
    return x_low + (centre + 1) * ((x_high - x_low) / 2)
