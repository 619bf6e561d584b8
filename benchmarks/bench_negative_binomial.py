"""Negative binomial, one inverse dispersion a gene: `vae_fast.negative_binomial_nll` against scvi-tools' formula."""

from dataclasses import replace

import torch
from harness import Case, Inputs, Opponent, both, each
from torch import Tensor
from torch.distributions import NegativeBinomial

import vae_fast
from vae_fast import reference

EPS = 1e-8  # scvi-tools', which keeps its logarithms finite


def cells(mean: Tensor, genes: int) -> tuple[Tensor, Tensor, Tensor]:
    """mu [B, G], near the true mean, theta [G], and counts x [B, G]."""
    theta = torch.exp(0.5 * torch.randn(genes))
    x = torch.poisson(mean * torch._standard_gamma(theta.expand(mean.shape)) / theta)
    return mean * torch.exp(0.2 * torch.randn(mean.shape)), theta, x


def sparse_means(rows: int, genes: int) -> Tensor:
    """Of single cells: genes' levels differ by powers of ten, cells' sizes little; about 90% of the counts are 0."""
    return torch.exp(1.2 * torch.randn(genes) - 2.8) * torch.exp(0.3 * torch.randn(rows, 1))


def dense_means(rows: int, genes: int) -> Tensor:
    """About 15% of the counts are 0."""
    return (2 + 10 * torch.rand(genes)).expand(rows, genes)


def sparse(rows: int, genes: int) -> tuple[list[Tensor], list[Tensor]]:
    mu, theta, x = cells(sparse_means(rows, genes), genes)
    return [mu, theta], [x]


def dense(rows: int, genes: int) -> tuple[list[Tensor], list[Tensor]]:
    mu, theta, x = cells(dense_means(rows, genes), genes)
    return [mu, theta], [x]


def eager(mu: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    log_theta_mu = torch.log(theta + mu + EPS)
    log_p = theta * (torch.log(theta + EPS) - log_theta_mu) + x * (torch.log(mu + EPS) - log_theta_mu)
    return -(log_p + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)).sum()


def of_torch(mu: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    logits = torch.log(mu) - torch.log(theta)
    total: Tensor = -NegativeBinomial(theta, logits=logits, validate_args=False).log_prob(x).sum()
    return total


def ours(mu: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    return vae_fast.negative_binomial_nll(mu, theta, x).sum()


def truth(_: object, mu: Tensor, theta: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.negative_binomial, [mu, theta, theta.new_ones(1, 1)], x, counts=True).sum()


CASE = Case(
    "negative_binomial_nll(mu, theta, x).sum(), 90% zeros",
    "float32",
    (512, 2000),
    sparse,
    eager,
    ours,
    truth,
    usual_error=1e-3,  # dlog Gamma(x + theta) less dlog Gamma(theta), at large theta
    peers={"torch.distributions": Opponent(of_torch)},
)


def kinds(case: Case, inputs: Inputs) -> list[Case]:
    """The case with sparse counts and with dense ones."""
    return [case, replace(case, operator=case.operator.replace("90% zeros", "15% zeros"), inputs=inputs)]


@each(both(kinds(CASE, dense), [CASE.shape]))
def test_negative_binomial(case, opponent, compared):
    compared(case, opponent)
