"""Bernoulli from logits: `vae_fast.bernoulli_nll` against F.binary_cross_entropy_with_logits and distributions."""

from dataclasses import replace

import peers
import torch
import torch.nn.functional as F
from harness import Case, Row, both, each, over
from torch import Tensor

import vae_fast
from vae_fast import reference

# --grid short: a launch's worth, in the cache, just beyond it, far beyond, and long rows
SHAPES = ((64, 784), (1024, 784), (4096, 784), (16384, 784), (1024, 12288))
SIZES = (64, 256, 1024, 4096, 16384, 65536)


def floats(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns)], [torch.rand(rows, columns)]


def halves(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    """bfloat16 logits, as autocast leaves them, and images as they are stored."""
    return [torch.randn(rows, columns).bfloat16()], [torch.randint(256, (rows, columns), dtype=torch.uint8)]


def eager(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def eager_halves(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), x.float() / 255, reduction="sum")


def ours(logits: Tensor, x: Tensor) -> Tensor:
    return vae_fast.bernoulli_nll(logits, x).sum()


def truth(_: object, logits: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.bernoulli, [logits], x).sum()


def scaling_row(case: Case, seconds: dict[str, float]) -> Row:
    rows, columns = case.shape
    times = {f"{name}, ns": f"{s / (rows * columns) * 1e9:.3f}" for name, s in seconds.items()}
    return {"operator": f"`{case.operator}`", "rows": str(rows), "columns": str(columns), **times}


FLOAT = Case(
    "bernoulli_nll(logits, x).sum()",
    "float32",
    (1024, 784),
    floats,
    eager,
    ours,
    truth,
    peers=peers.nll("Bernoulli"),
)
HALF = replace(FLOAT, dtype="bfloat16, x uint8", inputs=halves, eager=eager_halves)
LINEAR = replace(FLOAT, opponents=("ours", "limit"), table="Scaling", row=scaling_row)
SCALING = [replace(LINEAR, shape=(rows, 784)) for rows in SIZES]


@each(both([*over(FLOAT, SHAPES), *over(HALF, SHAPES)], forward_at=[(16384, 784)]))
def test_bernoulli(case, opponent, compared):
    compared(case, opponent)


@each(SCALING)
def test_scaling(case, opponent, compared):
    compared(case, opponent)
