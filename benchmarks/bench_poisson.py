"""Poisson from log rates: `vae_fast.poisson_nll` against the formula and torch.distributions."""

import torch
from bench_negative_binomial import dense_means, kinds, sparse_means
from harness import Case, Opponent, both, each
from torch import Tensor
from torch.distributions import Poisson

import vae_fast
from vae_fast import reference


def counted(means: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.log(means) + 0.2 * torch.randn(means.shape)], [torch.poisson(means)]


def sparse(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return counted(sparse_means(rows, columns))


def dense(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return counted(dense_means(rows, columns) / 3)


def eager(rate: Tensor, x: Tensor) -> Tensor:
    return (torch.exp(rate) - x * rate + torch.lgamma(x + 1)).sum()


def of_torch(rate: Tensor, x: Tensor) -> Tensor:
    total: Tensor = -Poisson(torch.exp(rate), validate_args=False).log_prob(x).sum()
    return total


def ours(rate: Tensor, x: Tensor) -> Tensor:
    return vae_fast.poisson_nll(rate, x).sum()


def truth(_: object, rate: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.poisson, [rate], x, counts=True).sum()


CASE = Case(
    "poisson_nll(log_rate, x).sum(), 90% zeros",
    "float32",
    (512, 2000),
    sparse,
    eager,
    ours,
    truth,
    peers={"torch.distributions": Opponent(of_torch)},
)


@each(both(kinds(CASE, dense), [CASE.shape]))
def test_poisson(case, opponent, compared):
    compared(case, opponent)
