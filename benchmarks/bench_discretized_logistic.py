"""Discretised logistic: `vae_fast.discretized_logistic_nll` against the formula from logarithms of sigmoids.

PixelCNN++'s, a difference of sigmoids, is too far from the true values to be compared with.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from harness import Case, both, each, over
from torch import Tensor

import vae_fast
from vae_fast import reference


def operands(rows: int, columns: int) -> tuple[list[Tensor], Tensor]:
    """Parameters as of a decoder, and bytes near the means."""
    mean, log_scale = 0.5 * torch.randn(rows, columns), 0.5 * torch.randn(rows, columns) - 1.5
    noise = torch.exp(log_scale) * torch.logit(torch.rand(rows, columns).clamp(1e-6, 1 - 1e-6))
    return [mean, log_scale], ((mean + noise + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def floats(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    parameters, level = operands(rows, columns)
    return parameters, [level.float() / 127.5 - 1]


def halves(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    """bfloat16 parameters, as autocast leaves them, and images as they are stored."""
    parameters, level = operands(rows, columns)
    return [t.bfloat16() for t in parameters], [level]


def eager(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    middle, half = (x - mean) * torch.exp(-log_scale), torch.exp(-log_scale) / 255
    below, above = F.logsigmoid(middle + half), F.logsigmoid(half - middle)
    between = below + above + torch.log(-torch.expm1(-2 * half))
    return -torch.where(x < -0.999, below, torch.where(x > 0.999, above, between)).sum()


def eager_halves(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    return eager(mean.float(), log_scale.float(), x.float() / 127.5 - 1)


def ours(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    return vae_fast.discretized_logistic_nll(mean, log_scale, x).sum()


def truth(_: object, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    ends = {} if x.is_floating_point() else {"x_low": 0.0, "x_high": 255.0}
    return reference.nll(reference.discretized_logistic, [mean, log_scale], x, options=ends, counts=True).sum()


SHAPES = ((1024, 784), (4096, 784))
FLOAT = Case("discretized_logistic_nll(mean, log_scale, x).sum()", "float32", (1024, 784), floats, eager, ours, truth)
HALF = replace(FLOAT, dtype="bfloat16, x uint8", inputs=halves, eager=eager_halves)


@each(both([case for kind in (FLOAT, HALF) for case in over(kind, SHAPES)]))
def test_discretized_logistic(case, opponent, compared):
    compared(case, opponent)
