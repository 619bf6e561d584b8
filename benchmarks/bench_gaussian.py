"""Gaussian: `vae_fast.gaussian_nll` against F.mse_loss (unit variance) or the formula (learned variance)."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from harness import Case, batch, both, each
from torch import Tensor

import vae_fast
from vae_fast import reference

LOG_TWO_PI = math.log(2 * math.pi)


def fixed(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns)], [torch.rand(rows, columns)]


def learned(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns), torch.randn(rows, columns)], [torch.rand(rows, columns)]


def eager_fixed(mean: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (F.mse_loss(mean, x, reduction="sum") + x.numel() * LOG_TWO_PI)


def eager_learned(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (LOG_TWO_PI + logvar + (x - mean) ** 2 * torch.exp(-logvar)).sum()


def ours_fixed(mean: Tensor, x: Tensor) -> Tensor:
    return vae_fast.gaussian_nll(mean, x).sum()


def ours_learned(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    return vae_fast.gaussian_nll(mean, x, logvar=logvar).sum()


def truth_fixed(_: object, mean: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.gaussian, [mean, mean.new_zeros(1, 1)], x).sum()


def truth_learned(_: object, mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.gaussian, [mean, logvar], x).sum()


BATCH = batch(4096, 784)
FIXED = Case("gaussian_nll(mean, x).sum()", "float32", BATCH, fixed, eager_fixed, ours_fixed, truth_fixed)
LEARNED = replace(
    FIXED,
    operator="gaussian_nll(mean, x, logvar=logvar).sum()",
    inputs=learned,
    eager=eager_learned,
    ours=ours_learned,
    truth=truth_learned,
)


@each(both(FIXED, LEARNED))
def test_gaussian(case, opponent, compared):
    compared(case, opponent)
