"""negative_binomial_nll against mpmath over its whole range, and against the float64 reference in every form."""

import counts
import pytest
import torch
from counts import COUNTS, assert_within, elementwise, log_uniform, wide_counts, wide_means
from operands import LAYOUTS, SHAPES, assert_gradients, assert_values, leaf, wide

import vae_fast
from vae_fast import reference
from vae_fast.likelihoods import LIKELIHOODS

N = 600
SHARED = {
    "one": lambda b, d: (1, 1),
    "feature": lambda b, d: (d,),
    "row": lambda b, d: (b, 1),
    "element": lambda b, d: (b, d),
}
FORMS = [{}, {"log_mu": True}, {"log_theta": True}, {"log_mu": True, "log_theta": True}]


def drawn(shape):
    """mu, and x of that mean."""
    mu = torch.rand(shape) * 4 + 0.05
    return leaf(mu), torch.poisson(mu.detach())


def expected(mu, theta, x, library=1.0, incoming=None, **options):
    """(nll, gradients of mu and theta, and of the library) in float64."""
    library = torch.as_tensor(library)
    leaves = [wide(mu), wide(theta), wide(library)]
    rows = leaves[2].reshape(-1, 1)
    nll = reference.negative_binomial(leaves[0], leaves[1], rows, x.double(), **options).sum(1)
    incoming = torch.ones_like(nll) if incoming is None else incoming.double()
    return nll.detach(), torch.autograd.grad(nll, leaves, incoming)


def on_their_own(mu, theta, x, **options):
    """nll and gradients of single observations, as rows."""
    leaves = [leaf(mu[:, None]), leaf(theta[:, None])]
    nll = vae_fast.negative_binomial_nll(*leaves, x[:, None], **options)
    nll.sum().backward()
    return nll, *(p.grad[:, 0] for p in leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_whole_range(dtype):
    """theta from 1e-4 to 1e8, mu from 1e-8 to 1e6, x up to 1e6: the value relative 1e-6, d/dmu too; d/dtheta within
    1e-6 of the magnitude of its terms, whose difference it is: it has a zero, where float32's theta limits it."""
    x, theta = wide_counts(N), log_uniform(1e-4, 1e8, N)
    mu = wide_means(x)
    nll, by_mu, by_theta = on_their_own(mu.to(dtype), theta.to(dtype), x)
    value, dmu, dtheta, terms = elementwise(counts.negative_binomial, mu, theta, x)
    bound = 1e-6 if dtype == torch.float32 else 1e-13
    assert_within(nll, value, bound)
    assert_within(by_mu, dmu, bound)
    assert_within(by_theta, dtheta, bound, terms)


def test_logarithms_over_the_whole_range():
    """e^v in float32 is within 2e-7 of e^v, which the value passes on times its derivative by the logarithm."""
    x, log_theta = wide_counts(N), torch.empty(N).uniform_(-9, 18)
    log_mu = wide_means(x).log()
    nll, by_mu, by_theta = on_their_own(log_mu, log_theta, x, log_mu=True, log_theta=True)
    mu, theta = log_mu.double().exp(), log_theta.double().exp()
    value, dmu, dtheta, terms = elementwise(counts.negative_binomial, mu, theta, x)
    passed_on = 0.2 * ((mu * dmu).abs() + (theta * dtheta).abs())
    assert_within(nll, value, 1e-6, value + passed_on)
    of_mu = theta / (theta + mu) * (mu + x)  # the terms of mu dmu
    assert_within(by_mu, mu * dmu, 1e-6, of_mu)
    assert_within(by_theta, theta * dtheta, 1e-6, theta * terms + of_mu)


def test_the_reference_over_the_whole_range():
    x, theta = wide_counts(N).double(), log_uniform(1e-4, 1e8, N).double()
    mu = wide_means(x.float()).double()
    leaves = [mu.requires_grad_(), theta.requires_grad_()]
    nll = reference.negative_binomial(*leaves, torch.ones(()), x)
    value, dmu, dtheta, terms = elementwise(counts.negative_binomial, *(t.detach() for t in leaves), x)
    nll.sum().backward()
    assert_within(nll, value, 1e-13)
    assert_within(leaves[0].grad, dmu, 1e-12, dmu.abs() + 1e-3)
    assert_within(leaves[1].grad, dtheta, 1e-9, terms + 1e-6 * (mu / (mu + theta) + 1 / theta))  # which autograd sums


def test_fractions():
    """Counts below 1 that are no integers: by p(x + 1), whose nll may be larger by |log m| and more."""
    x, theta = torch.rand(N), log_uniform(1e-2, 1e6, N)
    mu = log_uniform(1e-4, 1e4, N)
    nll, by_mu, by_theta = on_their_own(mu, theta, x)
    value, dmu, dtheta, _ = elementwise(counts.negative_binomial, mu, theta, x)
    assert_within(nll, value, 1e-6, value.abs() + mu.log().abs() + 1)
    assert_within(by_mu, dmu, 1e-6)
    terms = elementwise(counts.negative_binomial, mu, theta, x + 1)[3] + 1 / (x + theta)
    assert_within(by_theta, dtheta, 1e-5, terms)


def test_poisson_limit():
    x = wide_counts(N)
    mu = wide_means(x).clamp(max=1e3)
    nll, by_mu, _ = on_their_own(mu, torch.full((N,), 1e12), x)
    value, dmu = elementwise(counts.poisson, mu, x)
    assert_within(nll, value, 2e-6)
    assert_within(by_mu, dmu, 2e-6)


@pytest.mark.parametrize("theta", [1e-4, 0.1, 1.0, 30.0, 1e8])
def test_probabilities_sum_to_one(theta):
    x = torch.arange(20_000.0)[:, None]
    nll = vae_fast.negative_binomial_nll(torch.full_like(x, 4), theta, x)
    beyond = 1e-4 if theta < 1 else 0  # what lies behind the last of these
    assert torch.exp(-nll.double()).sum().item() == pytest.approx(1, abs=1e-6 + beyond)


def test_theta_and_mu_of_zero_at_zero():
    zero, one = torch.zeros(1), torch.ones(1)
    for mu, theta in ((one, zero), (zero, one), (zero, zero)):
        nll, by_mu, by_theta = on_their_own(mu, theta, zero)
        assert nll.item() == 0 and torch.isfinite(by_mu).all() and torch.isfinite(by_theta).all()
    tiny = torch.full((1,), 1e-4)
    assert on_their_own(tiny, tiny, zero)[0].item() == pytest.approx(1e-4 * 0.6931472, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_totals_may_be_whole_numbers(dtype):
    mu, x = drawn((4, 7))
    totals = torch.tensor([3, 0, 1, 200], dtype=dtype)
    whole, real = (vae_fast.negative_binomial_nll(mu, 2.0, x, library=t) for t in (totals, totals.float()))
    assert torch.equal(whole, real)


def test_totals_keep_their_digits_beside_float64():
    mu, x = torch.rand(1, 7, dtype=torch.float64), torch.ones(1, 7)
    totals = torch.tensor([2**24 + 1])
    whole, real = (vae_fast.negative_binomial_nll(mu, 2.0, x, library=t) for t in (totals, totals.double()))
    assert torch.equal(whole, real)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", SHARED)
def test_shared_theta(shape, shared, poisoned):
    mu, x = drawn(shape)
    theta = leaf(torch.rand(SHARED[shared](*shape)) * 5 + 0.1)
    library, incoming = leaf(torch.rand(shape[0]) + 0.5), torch.randn(shape[0])
    nll = vae_fast.negative_binomial_nll(mu, theta, x, library=library)
    nll.backward(incoming)
    value, gradients = expected(mu, theta, x, library, incoming)
    assert_values(nll, value)
    assert_gradients([mu.grad], gradients[:1])
    assert_gradients([theta.grad], gradients[1:2], mu.numel() / theta.numel())
    assert_gradients([library.grad], gradients[2:], 4 * shape[1])


@pytest.mark.parametrize("reduction", [torch.sum, torch.mean, lambda nll: (nll * nll.detach()).sum()])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_one_theta_a_feature_and_every_incoming_gradient(reduction, options):
    """Rows with one incoming gradient take what the forward pass summed; others sum again."""
    mu, x = drawn((37, 20))
    theta = leaf(torch.rand(20) + 0.1)
    nll = vae_fast.negative_binomial_nll(mu, theta, x, **options)
    reduction(nll).backward()
    incoming = torch.autograd.grad(reduction(seen := nll.detach().requires_grad_()), seen)[0]
    value, gradients = expected(mu, theta, x, incoming=incoming, **options)
    assert_values(nll, value)
    assert_gradients([mu.grad, theta.grad], gradients[:2], float(37 * incoming.abs().max()), 1e-6)


def test_backward_twice_with_other_incoming_gradients():
    mu, x = drawn((5, 37))
    theta = leaf(torch.rand(37) + 0.1)
    nll = vae_fast.negative_binomial_nll(mu, theta, x)
    once = torch.autograd.grad(nll.sum(), [mu, theta], retain_graph=True)
    twice = torch.autograd.grad(nll.sum(), [mu, theta], 2 * torch.ones(()), retain_graph=True)
    rows = torch.autograd.grad(nll, [mu, theta], torch.randn(5))
    again = torch.autograd.grad(vae_fast.negative_binomial_nll(mu, theta, x).sum(), [mu, theta])
    for a, b, c, d in zip(once, twice, again, rows, strict=True):
        assert torch.equal(a, c) and torch.equal(2 * a, b) and not torch.equal(a, d)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    mu, theta = (leaf(LAYOUTS[layout](torch.rand(5, 1025) + 0.1)) for _ in range(2))
    x = LAYOUTS[layout](torch.poisson(2 * torch.rand(5, 1025)))
    nll = vae_fast.negative_binomial_nll(mu, theta, x)
    nll.sum().backward()
    value, gradients = expected(mu, theta, x)
    assert_values(nll, value)
    assert_gradients([mu.grad, theta.grad], gradients[:2], relative=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("counted", COUNTS, ids=str)
def test_dtypes(dtype, counted):
    mu, x = drawn((5, 37))
    mu, theta = leaf(mu.to(dtype)), leaf((torch.rand(37) + 0.1).to(dtype))
    nll = vae_fast.negative_binomial_nll(mu, theta, x.to(counted))
    nll.sum().backward()
    value, gradients = expected(mu, theta, x)
    assert_values(nll, value)
    assert_gradients([mu.grad, theta.grad], gradients[:2], 5, 1e-6)


def test_masks_and_weights_select():
    mu, x = drawn((5, 37))
    theta = leaf(torch.rand(37) + 0.1)
    mask, weight = torch.rand(5, 37) > 0.3, torch.tensor([1.0, 0, 2, 0.5, 1])
    dirty = torch.where(mask, x, torch.nan)
    dirty[1] = torch.nan
    nll = vae_fast.negative_binomial_nll(mu, theta, dirty, mask=mask, weight=weight)
    nll.sum().backward()
    leaves = wide(mu), wide(theta)
    terms = reference.negative_binomial(*leaves, torch.ones(()), x.double()) * mask
    value = terms.sum(1) * weight
    value.sum().backward()
    assert_values(nll, value.detach())
    assert_gradients([mu.grad, theta.grad], [p.grad for p in leaves], 5)


def test_nan_stays_in_its_row():
    mu, x = drawn((3, 20))
    x[1, 7] = torch.nan
    nll = vae_fast.negative_binomial_nll(mu, 1.0, x)
    assert nll.isnan().tolist() == [False, True, False]


def test_errors():
    mu, x = drawn((3, 20))
    with pytest.raises(TypeError, match="negative_binomial_nll: x must be a count: floating point, int32"):
        vae_fast.negative_binomial_nll(mu, 1.0, x.to(torch.int16))
    with pytest.raises(ValueError, match="negative_binomial_nll: library must be one number a row"):
        vae_fast.negative_binomial_nll(mu, 1.0, x, library=torch.ones(3, 20))
    with pytest.raises(ValueError, match="negative_binomial_nll: theta must broadcast"):
        vae_fast.negative_binomial_nll(mu, torch.ones(7), x)


def test_the_loss_takes_it():
    mu, x = drawn((5, 37))
    posterior = torch.randn(5, 4), torch.randn(5, 4)
    theta, library = torch.rand(37), torch.rand(5) + 1
    loss = vae_fast.ELBOLoss("negative_binomial", log_theta=True)
    for recon in ((mu, theta), (mu, theta, library)):
        got = loss.terms(recon, x, *posterior)
        nll = vae_fast.negative_binomial_nll(*recon[:2], x, log_theta=True, library=None if len(recon) < 3 else library)
        assert torch.allclose(got.nll, nll.detach())


def test_mean_and_sample():
    entry, generator = LIKELIHOODS["negative_binomial"], torch.Generator().manual_seed(1)
    mu, theta, library = torch.full((200_000, 1), 2.0), torch.full((1, 1), 0.5), torch.full((1, 1), 1.5)
    x = entry.sample(mu, theta, library, generator)
    assert x.mean().item() == pytest.approx(entry.mean(mu, theta, library).mean().item(), rel=0.02)
    assert x.var().item() == pytest.approx(3 + 9 / 0.5, rel=0.05)
    zeros = torch.exp(-vae_fast.negative_binomial_nll(mu[:1], theta, torch.zeros(1, 1), library=1.5))
    assert (x == 0).float().mean().item() == pytest.approx(zeros.item(), abs=0.005)
    logs = entry.sample(mu.log(), theta.log(), library, torch.Generator().manual_seed(1), log_mu=1.0, log_theta=1.0)
    assert torch.allclose(logs.mean(), x.mean(), rtol=0.01)


@pytest.mark.parametrize(
    ("log_theta", "x"), [(-60, 1e6), (-70, 1e5), (-80, 100.0), (89, 0.0), (89, 3.0)], ids=lambda v: f"{v:g}"
)
def test_what_float32_does_not_hold_is_no_finite_number(log_theta, x):
    """Far out of the documented range of theta: an error that shows."""
    one, theta, x = torch.ones(1, 1), torch.full((1, 1), float(log_theta)), torch.full((1, 1), x)
    assert not vae_fast.negative_binomial_nll(1.5 * one, theta, x, log_theta=True).isfinite()
    assert not vae_fast.zero_inflated_negative_binomial_nll(1.5 * one, theta, -one, x, log_theta=True).isfinite()
