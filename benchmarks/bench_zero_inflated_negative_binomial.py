"""Zero-inflated negative binomial, one inverse dispersion a gene: ours against scvi-tools' formula."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from bench_negative_binomial import CASE as BINOMIAL
from bench_negative_binomial import EPS, cells, dense_means, kinds, sparse_means
from harness import both, each
from torch import Tensor

import vae_fast
from vae_fast import reference


def inflated(means: Tensor, rows: int, genes: int) -> tuple[list[Tensor], list[Tensor]]:
    """Every tenth count dropped."""
    mu, theta, x = cells(means, genes)
    return [mu, theta, torch.randn(rows, genes) - 2], [x * (torch.rand(rows, genes) > 0.1)]


def sparse(rows: int, genes: int) -> tuple[list[Tensor], list[Tensor]]:
    return inflated(sparse_means(rows, genes), rows, genes)


def dense(rows: int, genes: int) -> tuple[list[Tensor], list[Tensor]]:
    return inflated(dense_means(rows, genes), rows, genes)


def eager(mu: Tensor, theta: Tensor, pi: Tensor, x: Tensor) -> Tensor:
    softplus = F.softplus(-pi)
    log_theta_mu = torch.log(theta + mu + EPS)
    zeros = -pi + theta * (torch.log(theta + EPS) - log_theta_mu)
    others = -softplus + zeros + x * (torch.log(mu + EPS) - log_theta_mu)
    others = others + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return -((x < EPS).float() * (F.softplus(zeros) - softplus) + (x > EPS).float() * others).sum()


def ours(mu: Tensor, theta: Tensor, pi: Tensor, x: Tensor) -> Tensor:
    return vae_fast.zero_inflated_negative_binomial_nll(mu, theta, pi, x).sum()


def truth(_: object, mu: Tensor, theta: Tensor, pi: Tensor, x: Tensor) -> Tensor:
    parameters = [mu, theta, pi, theta.new_ones(1, 1)]
    return reference.nll(reference.zero_inflated_negative_binomial, parameters, x, counts=True).sum()


CASE = replace(
    BINOMIAL,
    operator="zero_inflated_negative_binomial_nll(mu, theta, pi, x).sum(), 90% zeros",
    inputs=sparse,
    eager=eager,
    ours=ours,
    truth=truth,
    peers={},
)


@each(both(kinds(CASE, dense), [CASE.shape]))
def test_zero_inflated_negative_binomial(case, opponent, compared):
    compared(case, opponent)
