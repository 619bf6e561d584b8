"""Continuous Bernoulli: `vae_fast.continuous_bernoulli_nll` against the cross-entropy less log C, from logits.

The formula from probabilities that is in use (Loaiza-Ganem & Cunningham 2019, torch.distributions) is too far from the
true gradients to be compared with: near 1/2 it divides by 1 - 2 p.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from harness import Case, both, each, over
from torch import Tensor

import vae_fast
from vae_fast import reference


def floats(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [3 * torch.randn(rows, columns)], [torch.rand(rows, columns)]


def halves(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    """bfloat16 logits, as autocast leaves them, and images as they are stored."""
    return [(3 * torch.randn(rows, columns)).bfloat16()], [torch.randint(256, (rows, columns), dtype=torch.uint8)]


def eager(logits: Tensor, x: Tensor) -> Tensor:
    """log C = log(l / tanh(l/2)), by its series near 0."""
    half = 0.5 * logits
    far, square = half.abs() > 0.25, half * half
    safe = torch.where(far, half, 1)
    series = ((62 / 2835 * square - 7 / 90) * square + 1 / 3) * square
    log_c = math.log(2) + torch.where(far, torch.log(safe / torch.tanh(safe)), series)
    return (F.binary_cross_entropy_with_logits(logits, x, reduction="none") - log_c).sum()


def eager_halves(logits: Tensor, x: Tensor) -> Tensor:
    return eager(logits.float(), x.float() / 255)


def ours(logits: Tensor, x: Tensor) -> Tensor:
    return vae_fast.continuous_bernoulli_nll(logits, x).sum()


def truth(_: object, logits: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.continuous_bernoulli, [logits], x).sum()


SHAPES = ((1024, 784), (4096, 784))
FLOAT = Case("continuous_bernoulli_nll(logits, x).sum()", "float32", (1024, 784), floats, eager, ours, truth)
HALF = replace(FLOAT, dtype="bfloat16, x uint8", inputs=halves, eager=eager_halves)


@each(both([case for kind in (FLOAT, HALF) for case in over(kind, SHAPES)]))
def test_continuous_bernoulli(case, opponent, compared):
    compared(case, opponent)
