"""Count likelihoods as compiled for GPUs, over their whole range, against mpmath: test_negative_binomial.py's bars
twice over, for the errors of approximate instructions beside those of rounding."""

import counts
import cuda_launches
import launches
import pytest
import torch
from counts import assert_within, elementwise, log_uniform, wide_counts, wide_means

N = 768
BACKENDS = [
    "triton",
    pytest.param("cuda", marks=pytest.mark.skipif(cuda_launches.unavailable() is not None, reason="not built")),
]


def alone(backend, name, asked, *operands):
    """nll and gradients of single observations, as rows; operands: parameters, x and options."""
    rows = [t[:, None] if isinstance(t, torch.Tensor) and t.dim() else t for t in operands]
    emulated = {"triton": launches.emulated, "cuda": cuda_launches.emulated}[backend]
    operators = {"triton": launches.OPERATORS, "cuda": torch.ops.vae_fast}[backend]
    with emulated(90):
        nll, *gradients = getattr(operators, f"{name}_nll")(*rows, None, None, asked)
    return [nll, *(g[:, 0] for g in gradients if g.numel())]


@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_binomial(backend):
    x, theta = wide_counts(N), log_uniform(1e-4, 1e8, N)
    mu = wide_means(x)
    got = alone(backend, "negative_binomial", 3, mu, theta, torch.ones(N), x, 0.0, 0.0)
    value, dmu, dtheta, terms = elementwise(counts.negative_binomial, mu, theta, x)
    assert_within(got[0], value, 2e-6)
    assert_within(got[1], dmu, 2e-6)
    assert_within(got[2], dtheta, 2e-6, terms)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_inflated_negative_binomial(backend):
    x, theta, pi = wide_counts(N), log_uniform(1e-4, 1e8, N), 5 * torch.randn(N)
    mu = wide_means(x)
    got = alone(backend, "zero_inflated_negative_binomial", 7, mu, theta, pi, torch.ones(N), x, 0.0, 0.0)
    value, dmu, dtheta, dpi, terms = elementwise(counts.inflated, mu, theta, pi, x)
    _, whole_dmu, _, whole_terms = elementwise(counts.negative_binomial, mu, theta, x)
    assert_within(got[0], value, 2e-6)
    assert_within(got[1], dmu, 2e-6, dmu.abs() + 1e-6 * whole_dmu.abs())
    assert_within(got[2], dtheta, 2e-6, terms + 1e-6 * whole_terms)
    assert_within(got[3], dpi, 2e-6)


@pytest.mark.parametrize("n", [10.0, 40.0, 300.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_of_rare_causes(backend, n):
    """A zero of probability e^-n under every dropout; powers err by 6e-8 of their exponents on a GPU."""
    pi = torch.linspace(-300, 80, N)
    mu, theta, x = torch.full((N,), n), torch.full((N,), 1e8), torch.zeros(N)
    got = alone(backend, "zero_inflated_negative_binomial", 7, mu, theta, pi, torch.ones(N), x, 0.0, 0.0)
    value, dmu, _, dpi, _ = elementwise(counts.inflated, mu, theta, pi, x)
    far = 1 + n + pi.abs() / 30
    assert_within(got[0], value, 2e-6, far * value.abs())
    assert_within(got[1], dmu, 2e-6, far * dmu.abs() + 1e-20)
    assert_within(got[3], dpi, 2e-6, far * dpi.abs() + 1e-20)


@pytest.mark.parametrize("backend", BACKENDS)
def test_poisson(backend):
    x = wide_counts(N)
    m = wide_means(x)
    got = alone(backend, "poisson", 1, m, x, 0.0)
    value, dm = elementwise(counts.poisson, m, x)
    assert_within(got[0], value, 2e-6)
    assert_within(got[1], dm, 2e-6)
