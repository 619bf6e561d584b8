"""Categorical: `vae_fast.categorical_nll` against F.cross_entropy, which keeps log-probabilities for its gradient."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from harness import Case, both, each
from torch import Tensor

import vae_fast
from vae_fast import reference

CLASSES = 32  # of each of a row's columns


def inputs(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, CLASSES, columns)], [torch.randint(CLASSES, (rows, columns))]


def last(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    """The classes of an observation are neighbours."""
    return [torch.randn(rows, columns, CLASSES)], [torch.randint(CLASSES, (rows, columns))]


def single(rows: int, classes: int) -> tuple[list[Tensor], list[Tensor]]:
    """One observation a row."""
    return [torch.randn(rows, classes)], [torch.randint(classes, (rows,))]


def eager(logits: Tensor, x: Tensor) -> Tensor:
    return F.cross_entropy(logits, x, reduction="sum")


def ours(logits: Tensor, x: Tensor) -> Tensor:
    return vae_fast.categorical_nll(logits, x).sum()


def eager_last(logits: Tensor, x: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="sum")


def ours_last(logits: Tensor, x: Tensor) -> Tensor:
    return vae_fast.categorical_nll(logits, x, class_dim=-1).sum()


def truth(_: object, logits: Tensor, x: Tensor) -> Tensor:
    return reference.categorical(logits, x).sum()


def truth_last(_: object, logits: Tensor, x: Tensor) -> Tensor:
    return reference.categorical(logits.transpose(1, 2), x).sum()


def truth_single(_: object, logits: Tensor, x: Tensor) -> Tensor:
    return reference.categorical(logits.unsqueeze(2), x.unsqueeze(1)).sum()


PLANES = Case("categorical_nll(logits, x).sum(), 32 classes", "float32", (256, 784), inputs, eager, ours, truth)
LAST = replace(
    PLANES,
    operator="categorical_nll(logits, x, class_dim=-1).sum(), 32 classes",
    inputs=last,
    eager=eager_last,
    ours=ours_last,
    truth=truth_last,
)
SINGLE = replace(
    PLANES, operator="categorical_nll(logits, x).sum(), [B, C]", shape=(4096, 1000), inputs=single, truth=truth_single
)


@each(both([PLANES, LAST, SINGLE]))
def test_categorical(case, opponent, compared):
    compared(case, opponent)
