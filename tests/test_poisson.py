"""poisson_nll against mpmath over its whole range, and against the float64 reference in every form."""

import counts
import pytest
import torch
from counts import COUNTS, assert_within, elementwise, log_uniform, wide_counts, wide_means
from operands import LAYOUTS, SHAPES, assert_gradients, assert_values, leaf, wide

import vae_fast
from vae_fast import reference
from vae_fast.likelihoods import LIKELIHOODS

N = 600


def drawn(shape, log_rate=True):
    m = torch.rand(shape) * 4 + 0.05
    return leaf(m.log() if log_rate else m), torch.poisson(m)


def expected(rate, x, log_rate=True, incoming=None):
    rate = wide(rate)
    nll = reference.poisson(rate, x.double(), log_rate=log_rate).sum(1)
    incoming = torch.ones_like(nll) if incoming is None else incoming.double()
    return nll.detach(), torch.autograd.grad(nll, rate, incoming)


def on_their_own(rate, x, **options):
    rate = leaf(rate[:, None])
    nll = vae_fast.poisson_nll(rate, x[:, None], **options)
    nll.sum().backward()
    return nll, rate.grad[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_whole_range(dtype):
    x = wide_counts(N)
    m = wide_means(x)
    nll, by_m = on_their_own(m.to(dtype), x, log_rate=False)
    value, dm = elementwise(counts.poisson, m, x)
    assert_within(nll, value, 1e-6 if dtype == torch.float32 else 1e-13)
    assert_within(by_m, dm, 1e-6 if dtype == torch.float32 else 1e-13)


def test_logarithms_over_the_whole_range():
    """e^v in float32 is within 2e-7 of e^v, which the value passes on times its derivative, |m - x|."""
    x = wide_counts(N)
    rate = wide_means(x).log()
    nll, by_rate = on_their_own(rate, x)
    m = rate.double().exp()
    value, dm = elementwise(counts.poisson, m, x)
    assert_within(nll, value, 1e-6, value + 0.2 * (m * dm).abs())
    assert_within(by_rate, m * dm, 1e-6, m + x)


def test_the_reference_over_the_whole_range():
    x = wide_counts(N).double()
    m = wide_means(x.float()).double().requires_grad_()
    nll = reference.poisson(m, x, log_rate=0.0)
    nll.sum().backward()
    value, dm = elementwise(counts.poisson, m.detach(), x)
    assert_within(nll, value, 1e-13)
    assert_within(m.grad, dm, 1e-12, dm.abs() + 1e-3)


def test_fractions():
    """Counts below 1 that are no integers: by p(x + 1), whose nll may be larger by |log m|."""
    x, m = torch.rand(N), log_uniform(1e-4, 1e4, N)
    nll, by_m = on_their_own(m, x, log_rate=False)
    value, dm = elementwise(counts.poisson, m, x)
    assert_within(nll, value, 1e-6, value.abs() + m.log().abs() + 1)
    assert_within(by_m, dm, 1e-6)


@pytest.mark.parametrize("m", [1e-6, 0.3, 7.0, 1000.0])
def test_probabilities_sum_to_one(m):
    x = torch.arange(4000.0)[:, None]
    nll = vae_fast.poisson_nll(torch.full_like(x, m), x, log_rate=False)
    assert torch.exp(-nll.double()).sum().item() == pytest.approx(1, abs=1e-6)


def test_rate_of_zero_at_zero():
    nll, by_m = on_their_own(torch.zeros(1), torch.zeros(1), log_rate=False)
    assert nll.item() == 0 and by_m.item() == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("log_rate", [True, False])
def test_shapes(shape, log_rate, poisoned):
    rate, x = drawn(shape, log_rate)
    incoming = torch.randn(shape[0])
    nll = vae_fast.poisson_nll(rate, x, log_rate=log_rate)
    nll.backward(incoming)
    value, gradients = expected(rate, x, log_rate, incoming)
    assert_values(nll, value)
    assert_gradients([rate.grad], gradients, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    rate, x = leaf(LAYOUTS[layout](torch.randn(5, 1025))), LAYOUTS[layout](torch.poisson(2 * torch.rand(5, 1025)))
    nll = vae_fast.poisson_nll(rate, x)
    nll.sum().backward()
    value, gradients = expected(rate, x)
    assert_values(nll, value)
    assert_gradients([rate.grad], gradients, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("counted", COUNTS, ids=str)
def test_dtypes(dtype, counted):
    rate, x = drawn((5, 37))
    rate = leaf(rate.to(dtype))
    nll = vae_fast.poisson_nll(rate, x.to(counted))
    nll.sum().backward()
    value, gradients = expected(rate, x)
    assert_values(nll, value)
    assert_gradients([rate.grad], gradients, 4)


def test_bytes_are_counts_not_intensities():
    x = torch.full((1, 3), 200, dtype=torch.uint8)
    rate = torch.full((1, 3), 5.0)
    assert torch.equal(vae_fast.poisson_nll(rate, x), vae_fast.poisson_nll(rate, x.float()))


def test_masks_select():
    rate, x = drawn((5, 37))
    mask = torch.rand(5, 37) > 0.3
    nll = vae_fast.poisson_nll(rate, torch.where(mask, x, torch.nan), mask=mask)
    terms = reference.poisson(rate.detach().double(), x.double()) * mask
    assert_values(nll, terms.sum(1))


def test_mean_and_sample():
    entry = LIKELIHOODS["poisson"]
    rate = torch.full((100_000, 1), 2.0)
    for log_rate, mean in ((1.0, 7.389056), (0.0, 2.0)):
        x = entry.sample(rate, torch.Generator().manual_seed(1), log_rate=log_rate)
        assert entry.mean(rate, log_rate=log_rate)[0].item() == pytest.approx(mean)
        assert x.mean().item() == pytest.approx(mean, rel=0.01) and x.var().item() == pytest.approx(mean, rel=0.03)


def test_draws_of_means_that_int64_does_not_hold():
    entry, rate = LIKELIHOODS["poisson"], torch.tensor([[40.0, 43.6, 44.0, 60.0, 88.0, 100.0]])
    assert entry.sample(rate.half()).isinf().all()  # as the means are
    for rates in (rate, rate.double()):
        torch.testing.assert_close(
            entry.sample(rates, torch.Generator().manual_seed(1)), entry.mean(rates), rtol=1e-6, atol=0
        )
    assert entry.mean(rate)[0, -1] == torch.inf
    with pytest.raises(RuntimeError, match="rate"):
        entry.sample(torch.full((1, 1), torch.nan))
