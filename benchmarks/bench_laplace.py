"""Laplace: `vae_fast.laplace_nll` against F.l1_loss (unit scale) and the formula (learned)."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from harness import Case, both, each, over
from torch import Tensor

import vae_fast
from vae_fast import reference

LOG_TWO = math.log(2)


def fixed(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns)], [torch.rand(rows, columns)]


def learned(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns), torch.randn(rows, columns)], [torch.rand(rows, columns)]


def eager_fixed(mean: Tensor, x: Tensor) -> Tensor:
    return F.l1_loss(mean, x, reduction="sum") + x.numel() * LOG_TWO


def eager_learned(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    return ((x - mean).abs() * torch.exp(-log_scale) + log_scale + LOG_TWO).sum()


def ours_fixed(mean: Tensor, x: Tensor) -> Tensor:
    return vae_fast.laplace_nll(mean, x).sum()


def ours_learned(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    return vae_fast.laplace_nll(mean, x, log_scale=log_scale).sum()


def truth_fixed(_: object, mean: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.laplace, [mean, mean.new_zeros(1, 1)], x).sum()


def truth_learned(_: object, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.laplace, [mean, log_scale], x).sum()


SHAPES = ((1024, 784), (4096, 784))
FIXED = Case("laplace_nll(mean, x).sum()", "float32", (1024, 784), fixed, eager_fixed, ours_fixed, truth_fixed)
LEARNED = replace(
    FIXED,
    operator="laplace_nll(mean, x, log_scale=log_scale).sum()",
    inputs=learned,
    eager=eager_learned,
    ours=ours_learned,
    truth=truth_learned,
)


@each(both([case for kind in (FIXED, LEARNED) for case in over(kind, SHAPES)]))
def test_laplace(case, opponent, compared):
    compared(case, opponent)
