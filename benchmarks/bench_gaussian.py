"""Gaussian: `vae_fast.gaussian_nll` against F.mse_loss (unit variance), the formula (learned) and distributions."""

import math
from dataclasses import replace

import peers
import torch
import torch.nn.functional as F
from harness import Case, Inputs, both, each, over
from torch import Tensor

import vae_fast
from vae_fast import reference

LOG_TWO_PI = math.log(2 * math.pi)


def fixed(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns)], [torch.rand(rows, columns)]


def learned(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns), torch.randn(rows, columns)], [torch.rand(rows, columns)]


def halves(inputs: Inputs) -> Inputs:
    """Parameters in bfloat16, as autocast leaves them, and images as they are stored."""

    def half(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
        leaves, _ = inputs(rows, columns)
        return [t.bfloat16() for t in leaves], [torch.randint(256, (rows, columns), dtype=torch.uint8)]

    return half


def eager_fixed(mean: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (F.mse_loss(mean, x, reduction="sum") + x.numel() * LOG_TWO_PI)


def eager_fixed_half(mean: Tensor, x: Tensor) -> Tensor:
    return eager_fixed(mean.float(), x.float() / 255)


def eager_learned(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    return 0.5 * (LOG_TWO_PI + logvar + (x - mean) ** 2 * torch.exp(-logvar)).sum()


def eager_learned_half(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    return eager_learned(mean.float(), logvar.float(), x.float() / 255)


def ours_fixed(mean: Tensor, x: Tensor) -> Tensor:
    return vae_fast.gaussian_nll(mean, x).sum()


def ours_learned(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    return vae_fast.gaussian_nll(mean, x, logvar=logvar).sum()


def truth_fixed(_: object, mean: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.gaussian, [mean, mean.new_zeros(1, 1)], x).sum()


def truth_learned(_: object, mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.gaussian, [mean, logvar], x).sum()


SHAPES = ((1024, 784), (4096, 784), (16384, 784))
FIXED = Case(
    "gaussian_nll(mean, x).sum()",
    "float32",
    (1024, 784),
    fixed,
    eager_fixed,
    ours_fixed,
    truth_fixed,
    peers=peers.nll("Normal"),
)
LEARNED = replace(
    FIXED,
    operator="gaussian_nll(mean, x, logvar=logvar).sum()",
    inputs=learned,
    eager=eager_learned,
    ours=ours_learned,
    truth=truth_learned,
)
FIXED_HALF = replace(FIXED, dtype="bfloat16, x uint8", inputs=halves(fixed), eager=eager_fixed_half)
LEARNED_HALF = replace(LEARNED, dtype="bfloat16, x uint8", inputs=halves(learned), eager=eager_learned_half)


@each(both([case for kind in (FIXED, FIXED_HALF, LEARNED, LEARNED_HALF) for case in over(kind, SHAPES)]))
def test_gaussian(case, opponent, compared):
    compared(case, opponent)
