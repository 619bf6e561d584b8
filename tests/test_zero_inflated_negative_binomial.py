"""zero_inflated_negative_binomial_nll against mpmath over its whole range, and against the float64 reference."""

import counts
import pytest
import torch
import torch.nn.functional as F
from counts import COUNTS, assert_within, elementwise, log_uniform, wide_counts, wide_means
from operands import LAYOUTS, SHAPES, assert_gradients, assert_values, leaf, wide

import vae_fast
from vae_fast import reference
from vae_fast.likelihoods import LIKELIHOODS

N = 600
FORMS = [{}, {"log_mu": True}, {"log_theta": True}, {"log_mu": True, "log_theta": True}]


def drawn(shape):
    """mu, pi, and x of that mean, half of it dropped."""
    mu = torch.rand(shape) * 4 + 0.05
    return leaf(mu), leaf(2 * torch.randn(shape)), torch.poisson(mu.detach()) * (torch.rand(shape) < 0.5)


def expected(mu, theta, pi, x, library=None, incoming=None, **options):
    """(nll, gradients of mu, theta, pi and the library) in float64."""
    leaves = [wide(p) for p in (mu, theta, pi, torch.ones(1) if library is None else library)]
    nll = reference.zero_inflated_negative_binomial(
        *leaves[:3], leaves[3].reshape(-1, 1), x.double(), **options
    ).sum(1)  # fmt: skip
    incoming = torch.ones_like(nll) if incoming is None else incoming.double()
    return nll.detach(), torch.autograd.grad(nll, leaves, incoming)


def on_their_own(mu, theta, pi, x, **options):
    leaves = [leaf(p[:, None]) for p in (mu, theta, pi)]
    nll = vae_fast.zero_inflated_negative_binomial_nll(*leaves, x[:, None], **options)
    nll.sum().backward()
    return nll, *(p.grad[:, 0] for p in leaves)


def wide_logits(n):
    """Half of them moderate, the others up to +-80"""
    pi = 3 * torch.randn(n)
    pi[::2] = torch.empty(n).uniform_(-80, 80)[::2]
    return pi


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_whole_range(dtype):
    """As negative_binomial_nll. Gradients at x = 0 are its own times a probability: within 1e-12 of those, too."""
    x, theta, pi = wide_counts(N), log_uniform(1e-4, 1e8, N), wide_logits(N)
    mu = wide_means(x)
    nll, *gradients = on_their_own(mu.to(dtype), theta.to(dtype), pi.to(dtype), x)
    value, dmu, dtheta, dpi, terms = elementwise(counts.inflated, mu, theta, pi, x)
    _, whole_dmu, _, whole_terms = elementwise(counts.negative_binomial, mu, theta, x)
    bound = 1e-6 if dtype == torch.float32 else 1e-12
    assert_within(nll, value, bound)
    assert_within(gradients[0], dmu, bound, dmu.abs() + 1e-6 * whole_dmu.abs())
    assert_within(gradients[1], dtheta, bound, terms + 1e-6 * whole_terms)
    assert_within(gradients[2], dpi, bound)


@pytest.mark.parametrize("n", [1e-8, 1e-3, 0.5, 1.5, 40.0, 90.0, 300.0])
def test_zeros_of_every_probability(n):
    """A zero whose own probability is e^-n, under every dropout."""
    pi = torch.linspace(-200, 80, 281)
    mu, theta, x = torch.full_like(pi, n), torch.full_like(pi, 1e8), torch.zeros_like(pi)
    nll, *gradients = on_their_own(mu, theta, pi, x)
    value, dmu, _, dpi, _ = elementwise(counts.inflated, mu, theta, pi, x)
    assert_within(nll, value, 1e-6)
    assert_within(gradients[0], dmu, 1e-6 * (1 + n), dmu.abs() + 1e-20)  # e^-n: n eps
    assert_within(gradients[2], dpi, 1e-6 * (1 + n), dpi.abs() + 1e-20)


def test_the_reference_over_the_whole_range():
    x, theta, pi = wide_counts(N).double(), log_uniform(1e-4, 1e8, N).double(), wide_logits(N).double()
    mu = wide_means(x.float()).double()
    leaves = [p.requires_grad_() for p in (mu, theta, pi)]
    nll = reference.zero_inflated_negative_binomial(*leaves, torch.ones(()), x)
    value, dmu, dtheta, dpi, terms = elementwise(counts.inflated, *(p.detach() for p in leaves), x)
    nll.sum().backward()
    assert_within(nll, value, 1e-12)
    assert_within(leaves[0].grad, dmu, 1e-11, dmu.abs() + 1e-3)
    assert_within(leaves[1].grad, dtheta, 1e-9, terms + 1e-6 * (mu / (mu + theta) + 1 / theta))
    assert_within(leaves[2].grad, dpi, 1e-11, dpi.abs() + 1e-3)


def test_no_dropout_is_negative_binomial():
    x, theta = wide_counts(N), log_uniform(1e-4, 1e8, N)
    mu = wide_means(x).clamp(max=50)
    nll, *gradients = on_their_own(mu, theta, torch.full((N,), -300.0), x)
    value, dmu, dtheta, terms = elementwise(counts.negative_binomial, mu, theta, x)
    assert_within(nll, value, 1e-6)
    assert_within(gradients[0], dmu, 1e-6)
    assert_within(gradients[1], dtheta, 1e-6, terms)


@pytest.mark.parametrize("pi", [-3.0, 0.0, 4.0])
def test_probabilities_sum_to_one(pi):
    x = torch.arange(4000.0)[:, None]
    nll = vae_fast.zero_inflated_negative_binomial_nll(torch.full_like(x, 4), 0.7, pi, x)
    assert torch.exp(-nll.double()).sum().item() == pytest.approx(1, abs=1e-6)


def test_theta_of_zero_at_zero():
    zero, one = torch.zeros(1), torch.ones(1)
    nll, *gradients = on_their_own(one, zero, one, zero)
    assert nll.item() == 0 and all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_one_theta_a_feature(shape, options, poisoned):
    mu, pi, x = drawn(shape)
    theta = leaf(torch.rand(shape[1]) * 3 + 0.1)
    library, incoming = leaf(torch.rand(shape[0]) + 0.5), torch.randn(shape[0])
    nll = vae_fast.zero_inflated_negative_binomial_nll(mu, theta, pi, x, library=library, **options)
    nll.backward(incoming)
    value, gradients = expected(mu, theta, pi, x, library, incoming, **options)
    assert_values(nll, value)
    assert_gradients([mu.grad, pi.grad], [gradients[0], gradients[2]], 4)
    assert_gradients([theta.grad, library.grad], [gradients[1], gradients[3]], max(20 * shape[0], 4 * shape[1]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    mu, theta, pi = (leaf(LAYOUTS[layout](torch.rand(5, 1025) + 0.1)) for _ in range(3))
    x = LAYOUTS[layout](torch.poisson(2 * torch.rand(5, 1025)))
    nll = vae_fast.zero_inflated_negative_binomial_nll(mu, theta, pi, x)
    nll.sum().backward()
    value, gradients = expected(mu, theta, pi, x)
    assert_values(nll, value)
    assert_gradients([mu.grad, theta.grad, pi.grad], gradients[:3], relative=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("counted", COUNTS, ids=str)
def test_dtypes(dtype, counted):
    mu, pi, x = drawn((5, 37))
    mu, theta, pi = leaf(mu.to(dtype)), leaf((torch.rand(37) + 0.1).to(dtype)), leaf(pi.to(dtype))
    nll = vae_fast.zero_inflated_negative_binomial_nll(mu, theta, pi, x.to(counted))
    nll.sum().backward()
    value, gradients = expected(mu, theta, pi, x)
    assert_values(nll, value)
    assert_gradients([mu.grad, theta.grad, pi.grad], gradients[:3], 5, 1e-6)


def test_scvi_tools_formula():
    """log_zinb_positive's, as its users have it, where float32 is good enough for it."""
    mu, pi, x = drawn((5, 37))
    theta = torch.rand(37) + 0.1
    log_ratio = torch.log(theta) - torch.log(theta + mu)
    zero = F.softplus(-pi + theta * log_ratio) - F.softplus(-pi)
    binomial = theta * log_ratio + x * (torch.log(mu) - torch.log(theta + mu))
    binomial = binomial + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    log_p = torch.where(x == 0, zero, binomial - pi - F.softplus(-pi))
    nll = vae_fast.zero_inflated_negative_binomial_nll(mu, theta, pi, x)
    assert torch.allclose(nll, -log_p.sum(1), rtol=1e-5)


def test_masks_and_weights_select():
    mu, pi, x = drawn((5, 37))
    mask, weight = torch.rand(5, 37) > 0.3, torch.tensor([1.0, 0, 2, 0.5, 1])
    dirty = torch.where(mask, x, torch.nan)
    dirty[1] = torch.nan
    nll = vae_fast.zero_inflated_negative_binomial_nll(mu, 2.0, pi, dirty, mask=mask, weight=weight)
    nll.sum().backward()
    leaves = wide(mu), torch.tensor(2.0), wide(pi)
    terms = reference.zero_inflated_negative_binomial(*leaves, torch.ones(()), x.double()) * mask
    value = terms.sum(1) * weight
    value.sum().backward()
    assert_values(nll, value.detach())
    assert_gradients([mu.grad, pi.grad], [leaves[0].grad, leaves[2].grad], 2)


def test_nan_shows_in_its_row():
    mu, pi, x = drawn((4, 20))
    mu, pi, x = mu.detach(), pi.detach(), x * 0
    x[0, 7], pi[1, 3], mu[2, 5] = torch.nan, torch.nan, torch.nan
    nll = vae_fast.zero_inflated_negative_binomial_nll(mu, 1.0, pi, x)
    assert nll.isnan().tolist() == [True, True, True, False]


def test_mean_and_sample():
    entry, generator = LIKELIHOODS["zero_inflated_negative_binomial"], torch.Generator().manual_seed(1)
    mu, theta, pi, library = (
        torch.full(s, v) for s, v in (((200_000, 1), 2.0), ((1, 1), 0.5), ((1, 1), -1.0), ((1, 1), 1.5))
    )
    x = entry.sample(mu, theta, pi, library, generator)
    assert x.mean().item() == pytest.approx(entry.mean(mu, theta, pi, library).mean().item(), rel=0.02)
    zeros = torch.exp(-vae_fast.zero_inflated_negative_binomial_nll(mu[:1], theta, pi, torch.zeros(1, 1), library=1.5))
    assert (x == 0).float().mean().item() == pytest.approx(zeros.item(), abs=0.005)
