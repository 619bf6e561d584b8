"""Mixture of discretised logistics on RGB: `vae_fast.discretized_logistic_mixture_nll` against PixelCNN++'s formula.

The formula is the one with which models are trained: where a bin's probability is below 1e-5 it takes a density. The
operands keep bins above that, so that both compute the same.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from harness import Case, both, each
from torch import Tensor

import vae_fast
from vae_fast import reference

MIXTURES, SIDE = 10, 32


def pixels_last(rows: int, _: int) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters [B, H, W, 100] as VDVAE's, and x in [-1, 1], inside the outer levels."""
    parameters = torch.randn(rows, SIDE, SIDE, 10 * MIXTURES)
    each_channel = parameters[..., MIXTURES:].unflatten(-1, (3, 3, MIXTURES))
    each_channel[..., 0, :] *= 0.3
    each_channel[..., 1, :] = -1 + 0.3 * each_channel[..., 1, :]
    return [parameters], [torch.randint(1, 255, (rows, SIDE, SIDE, 3)) / 127.5 - 1]


def planes(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    leaves, data = pixels_last(rows, columns)
    return [leaves[0].movedim(-1, 1).contiguous()], [data[0].movedim(-1, 1).contiguous()]


def eager_last(parameters: Tensor, x: Tensor) -> Tensor:
    logits, rest = parameters[..., :MIXTURES], parameters[..., MIXTURES:].unflatten(-1, (3, 3 * MIXTURES))
    means, log_scales = rest[..., :MIXTURES], rest[..., MIXTURES : 2 * MIXTURES].clamp(min=-7)
    c = torch.tanh(rest[..., 2 * MIXTURES :])
    red, green = x[..., 0, None], x[..., 1, None]
    green_mean = means[..., 1, :] + c[..., 0, :] * red
    blue_mean = means[..., 2, :] + c[..., 1, :] * red + c[..., 2, :] * green
    centred = x[..., None] - torch.stack((means[..., 0, :], green_mean, blue_mean), -2)
    inverse = torch.exp(-log_scales)
    plus, minus, middle = inverse * (centred + 1 / 255), inverse * (centred - 1 / 255), inverse * centred
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(delta > 1e-5, torch.log(delta.clamp(min=1e-12)), density)
    upper = torch.where(x[..., None] > 0.999, -F.softplus(minus), inside)
    terms = torch.where(x[..., None] < -0.999, plus - F.softplus(plus), upper).sum(-2)
    return -torch.logsumexp(terms + F.log_softmax(logits, -1), -1).sum()


def eager(parameters: Tensor, x: Tensor) -> Tensor:
    return eager_last(parameters.movedim(1, -1), x.movedim(1, -1))


def ours_last(parameters: Tensor, x: Tensor) -> Tensor:
    return vae_fast.discretized_logistic_mixture_nll(parameters, x, channels_last=True).sum()


def ours(parameters: Tensor, x: Tensor) -> Tensor:
    return vae_fast.discretized_logistic_mixture_nll(parameters, x).sum()


def truth(_: object, parameters: Tensor, x: Tensor) -> Tensor:
    return reference.discretized_logistic_mixture(parameters.flatten(2), x.flatten(2)).sum()


def truth_last(_: object, parameters: Tensor, x: Tensor) -> Tensor:
    return truth(None, parameters.movedim(-1, 1), x.movedim(-1, 1))


LAST = Case(
    "discretized_logistic_mixture_nll(parameters, x, channels_last=True).sum(), M = 10",
    "float32",
    (16, 3 * SIDE * SIDE),
    pixels_last,
    eager_last,
    ours_last,
    truth_last,
    usual_error=2e-3,  # where sigmoids are subtracted
)
PLANES = replace(
    LAST,
    operator="discretized_logistic_mixture_nll(parameters, x).sum(), M = 10",
    inputs=planes,
    eager=eager,
    ours=ours,
    truth=truth,
)


@each(both([LAST, PLANES]))
def test_mixture(case, opponent, compared):
    compared(case, opponent)
