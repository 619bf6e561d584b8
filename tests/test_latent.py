"""Sampling, the KL, its Monte-Carlo form and the noise, against the float64 reference."""

import math

import pytest
import scipy.stats
import torch
from operands import DEVICE, FLOATING, LAYOUTS, ON_GPU, assert_gradients, assert_values, leaf, wide

import vae_fast
from vae_fast import reference

SHAPES = [(1, 1), (5, 2), (1025, 3), (7, 37), (64, 64), (3, 1500), (1, 5000)]
PRIORS = {
    "standard": lambda b, z: None,
    "numbers": lambda b, z: (torch.randn(()), torch.randn(())),
    "one a dimension": lambda b, z: (torch.randn(z), torch.randn(z)),
    "row": lambda b, z: (torch.randn(b, 1), torch.randn(b, 1)),
    "full": lambda b, z: (torch.randn(b, z), torch.randn(b, z)),
}


@pytest.fixture(autouse=True)
def same_noise(monkeypatch):
    """On a GPU the reference takes the noise that the kernels make, which has tests of its own."""
    if ON_GPU:

        def normals(shape, seed, dtype):
            return vae_fast.reparameterize(torch.zeros(shape), torch.zeros(shape), seed=seed).to(dtype)

        monkeypatch.setattr("vae_fast.reference.latent.normals", normals)


def leaves(shape, prior, dtype=torch.float32):
    """[mu, logvar] or [mu, logvar, prior mu, prior logvar]."""
    tensors = [torch.randn(shape), torch.randn(shape), *(PRIORS[prior](*shape) or ())]
    return [leaf(t.to(dtype)) for t in tensors]


def split(tensors):
    return tensors[0], tensors[1], (tensors[2], tensors[3]) if len(tensors) > 2 else None


def as_rows(tensors):
    """A prior's numbers and vectors as the reference broadcasts them."""
    return [t.reshape(1, -1) if t.dim() < 2 else t for t in tensors]


def repeats(tensors):
    return max(1, tensors[0].numel() // min(max(1, t.numel()) for t in tensors))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("prior", PRIORS)
def test_sample_kl(shape, prior, poisoned):
    ours, seed = leaves(shape, prior), torch.tensor(2**40 + 7)
    dz, dkl = torch.randn(shape), torch.randn(shape[0])
    z, kl = vae_fast.sample_kl(*split(ours), seed=seed)
    torch.autograd.backward((z, kl), (dz, dkl))

    theirs = [wide(t) for t in ours]
    mu, logvar, p = split(as_rows(theirs))
    z64, kl64 = reference.sample_kl(mu, logvar, seed, p)
    gradients = torch.autograd.grad((z64, kl64), theirs, (dz.double(), dkl.double()))
    assert (z - z64).abs().max() <= 2e-6 * (1 + z64.abs()).max()
    assert_values(kl, kl64)
    scale = repeats(ours) * float(max(g.abs().max() for g in gradients))
    assert_gradients([t.grad for t in ours], gradients, sums=max(1, scale))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("prior", ["standard", "one a dimension"])
def test_dtypes(dtype, prior):
    ours = leaves((5, 37), prior, dtype)
    z, kl = vae_fast.sample_kl(*split(ours), seed=3)
    (z.double().square().sum() + kl.sum()).backward()
    theirs = [wide(t) for t in ours]
    mu, logvar, p = split(as_rows(theirs))
    z64, kl64 = reference.sample_kl(mu, logvar, torch.tensor(3), p)
    assert z.dtype == dtype and kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_gradients([z], [z64.detach()], sums=8)
    assert_values(kl, kl64)
    dz = (2 * z.double()).to(dtype).double()
    gradients = torch.autograd.grad((z64, kl64), theirs, (dz, torch.ones(5, dtype=torch.float64)))
    assert_gradients([t.grad for t in ours], gradients, sums=64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    mu, logvar = (leaf(LAYOUTS[layout](torch.randn(65, 37))) for _ in range(2))
    dz, dkl = LAYOUTS[layout](torch.randn(65, 37)), torch.randn(65, 2)[:, 1]
    z, kl = vae_fast.sample_kl(mu, logvar, seed=3)
    torch.autograd.backward((z, kl), (dz, dkl))
    mu64, logvar64 = wide(mu), wide(logvar)
    z64, kl64 = reference.sample_kl(mu64, logvar64, torch.tensor(3))
    gradients = torch.autograd.grad((z64, kl64), (mu64, logvar64), (dz.double(), dkl.double()))
    assert_values(kl, kl64)
    assert_gradients([mu.grad, logvar.grad], gradients, sums=16)


@pytest.mark.parametrize("used", ["z", "kl"])
def test_one_output_alone(used):
    ours = leaves((7, 5), "one a dimension")
    z, kl = vae_fast.sample_kl(*split(ours), seed=3)
    (z if used == "z" else kl).sum().backward()
    theirs = [wide(t) for t in ours]
    mu, logvar, p = split(as_rows(theirs))
    z64, kl64 = reference.sample_kl(mu, logvar, torch.tensor(3), p)
    gradients = torch.autograd.grad((z64 if used == "z" else kl64).sum(), theirs, allow_unused=True)
    wanted = 2 if used == "z" else 4
    assert_gradients([t.grad for t in ours[:wanted]], gradients[:wanted], sums=64)
    assert all(t.grad is None for t in ours[wanted:])


@pytest.mark.parametrize("shape", [*SHAPES, (4, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("prior", ["standard", "numbers", "one a dimension"])
@pytest.mark.parametrize("function", ["gaussian_kl", "monte_carlo_kl"])
def test_divergences(shape, prior, function):
    features = shape[1:] if prior == "one a dimension" else ()
    tensors = [torch.randn(shape), torch.randn(shape)]
    if prior != "standard":
        tensors += [torch.randn(features), torch.randn(features)]
    ours = [leaf(t) for t in tensors]
    if function == "monte_carlo_kl":
        ours.insert(0, leaf(torch.randn(shape)))
    incoming = torch.randn(shape[0])
    first = ours[:1] if function == "monte_carlo_kl" else []
    value = getattr(vae_fast, function)(*first, *split(ours[len(first) :]))
    value.backward(incoming)

    theirs = [wide(t) for t in ours]
    rest = [t.reshape(1, *t.shape) if t.dim() < len(shape) else t for t in theirs[len(first) :]]
    expected = getattr(reference, function)(*theirs[: len(first)], *split(rest))
    gradients = torch.autograd.grad(expected, theirs, incoming.double())
    magnitude = expected.detach()
    if first:  # differences of squares: the size of what is subtracted counts
        h, prior_h = (theirs[0] - theirs[1]) / (theirs[2] / 2).exp(), theirs[0]
        if prior != "standard":
            prior_h = (theirs[0] - theirs[3]) / (theirs[4] / 2).exp()
        magnitude = (h**2 + prior_h**2 + 1).flatten(1).sum(1).detach()
    assert_values(value, expected.detach(), magnitude)
    scale = repeats(ours) * float(max(g.abs().max() for g in gradients))
    assert_gradients([t.grad for t in ours], gradients, sums=max(1, scale))


def test_kl_near_the_prior_keeps_its_digits():
    """The usual formula gives 0 at logvar = 1e-4, where the KL is 2.5e-9."""
    logvar = torch.tensor([[1e-4], [-1e-4], [1e-2], [-0.5], [0.999], [1.001], [-1.001]])
    exact = 0.5 * (torch.expm1(logvar.double()) - logvar.double()).squeeze(1)
    assert_values(vae_fast.gaussian_kl(torch.zeros(7, 1), logvar), exact, relative=1e-6)
    usual = -0.5 * (1 + logvar - logvar.exp()).squeeze(1)
    assert usual[0] == 0 and exact[0] == pytest.approx(2.5e-9, rel=1e-3)


def test_kl_between_narrow_gaussians_is_finite():
    """A peer's formula is NaN at log sigma = -60 and at +50."""
    for log_sigma in (-60.0, 40.0):
        mu, logvar = torch.full((1, 3), 1e-27), torch.full((1, 3), 2 * log_sigma)
        prior = (torch.zeros(3), torch.full((3,), 2 * log_sigma - 1))
        exact = reference.gaussian_kl(mu.double(), logvar.double(), tuple(p.double().reshape(1, 3) for p in prior))
        assert_values(vae_fast.gaussian_kl(mu, logvar, prior), exact, relative=1e-6)


def test_large_logvar_in_half_precision():
    """e^12 overflows float16; the KL doesn't."""
    logvar = torch.full((2, 4), 12.0, dtype=torch.float16)
    kl = vae_fast.gaussian_kl(torch.zeros_like(logvar), logvar)
    assert_values(kl, torch.full((2,), 4 * 0.5 * (math.expm1(12) - 12), dtype=torch.float64))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 2, 2)], ids=str)
def test_empty(shape):
    mu, logvar = torch.zeros(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)
    z, kl = vae_fast.sample_kl(mu, logvar)
    (z.sum() + kl.sum()).backward()
    assert z.shape == shape and torch.equal(kl, torch.zeros(shape[0])) and mu.grad.shape == shape


def test_noise_is_the_same_for_any_number_of_threads_and_any_rows(threads):
    mu, logvar, seed = torch.zeros(4099, 37), torch.zeros(4099, 37), torch.tensor(-5)
    noise = {}
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        noise[count] = vae_fast.reparameterize(mu, logvar, seed=seed)
    assert torch.equal(noise[1], noise[2]) and torch.equal(noise[1], noise[7])
    for shape in ((1, 4099 * 37), (4099 * 37, 1), (37, 4099)):
        split = vae_fast.reparameterize(torch.zeros(shape), torch.zeros(shape), seed=seed)
        assert torch.equal(split.flatten(), noise[1].flatten())
    prefix = vae_fast.reparameterize(mu[:100], logvar[:100], seed=seed)
    assert torch.equal(prefix, noise[1][:100])


def test_noise_equals_the_reference_to_a_few_ulp():
    zeros = torch.zeros(1000, 257)
    ours = vae_fast.reparameterize(zeros, zeros, seed=99)
    exact = reference.normals((1000, 257), torch.tensor(99), torch.float64)
    error = (ours - exact).abs()
    if ON_GPU:  # lg2.approx may be 2^-22 off next to 1, where the radius is its square root
        assert (error > 6e-6).double().mean() < 2e-3 and error.max() < 6e-4
    else:
        assert error.max() <= 4 * 2**-23 * exact.abs().max()
        assert (error <= 4 * 2**-23 * exact.abs().clamp(min=0.1)).all()


def test_noise_is_normal():
    zeros = torch.zeros(1000, 1000)
    eps = vae_fast.reparameterize(zeros, zeros, seed=1).flatten().double()
    n = eps.numel()
    assert abs(eps.mean()) < 4 / math.sqrt(n)
    assert abs(eps.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((eps**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((eps**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert abs((eps[1:] * eps[:-1]).mean()) < 4 / math.sqrt(n)
    assert scipy.stats.kstest(eps.cpu().numpy(), "norm").pvalue > 1e-3
    assert 4.5 < eps.abs().max() < 6.7


def test_seed_and_generator():
    mu = logvar = torch.zeros(5, 7)
    torch.manual_seed(1)
    first, second = vae_fast.reparameterize(mu, logvar), vae_fast.reparameterize(mu, logvar)
    torch.manual_seed(1)
    assert torch.equal(vae_fast.reparameterize(mu, logvar), first) and not torch.equal(first, second)
    drawn = [vae_fast.sample_kl(mu, logvar, generator=torch.Generator(DEVICE).manual_seed(4))[0] for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(
        vae_fast.reparameterize(mu, logvar, seed=-1), vae_fast.reparameterize(mu, logvar, seed=2**64 - 1)
    )
    low, high = (vae_fast.reparameterize(mu, logvar, seed=s) for s in (1, 1 + 2**32))
    assert not torch.equal(low, high)


def test_log_evidence():
    log_px, log_pz, log_q = torch.randn(3, 20, 5).double().unbind()
    bound = vae_fast.log_evidence(log_px, log_pz, log_q)
    assert torch.allclose(bound, torch.logsumexp(log_px + log_pz - log_q, 0) - math.log(20))
    one = vae_fast.log_evidence(log_px[:1], log_pz[:1], log_q[:1])
    assert torch.allclose(one, (log_px + log_pz - log_q)[0])


def test_log_evidence_of_impossible_data_has_no_nan_gradient():
    log_px = torch.tensor([[-math.inf, -1.0], [-math.inf, -math.inf]], requires_grad=True)
    bound = vae_fast.log_evidence(log_px, torch.zeros(2, 2), torch.zeros(2, 2))
    bound.sum().backward()
    assert bound.tolist() == [-math.inf, pytest.approx(-1 - math.log(2))]
    assert log_px.grad.tolist() == [[0, 1], [0, 0]]
    assert vae_fast.log_evidence(-log_px, torch.zeros(2, 2), torch.zeros(2, 2)).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("prior", ["standard", "full"])
def test_a_seed_gives_the_same_sample_with_the_kl_and_without(prior, dtype):
    mu, logvar, prior = split([t.detach() for t in leaves((64, 100), prior, dtype)])
    z, _ = vae_fast.sample_kl(mu, logvar, prior, seed=5)
    assert z.equal(vae_fast.reparameterize(mu, logvar, seed=5))
