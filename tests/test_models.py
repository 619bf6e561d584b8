"""VAE: shapes, dtypes, the bound, training."""

import pickle

import pytest
import torch
from operands import DEVICE
from torch import nn

from vae_fast import VAE, ELBOLoss, functional
from vae_fast.likelihoods import LIKELIHOODS

B, D, Z = 6, 12, 3


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.mu, self.logvar = nn.Linear(D, Z), nn.Linear(D, Z)

    def forward(self, x):
        return self.mu(x.flatten(1)), self.logvar(x.flatten(1))


class InATuple(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        return (self.decoder(z),)


class MeanAndLogvar(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.logvar = nn.Linear(Z, D), nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return self.layer(z), self.logvar


def bernoulli(encoder=None):
    return VAE(encoder or nn.Sequential(nn.Flatten(), nn.Linear(D, 2 * Z)), nn.Linear(Z, D))


@pytest.mark.parametrize("shape", [(B, D), (B, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("encoder", [None, TwoHeads], ids=["one tensor", "two heads"])
def test_output(shape, dtype, encoder):
    model = bernoulli(encoder and encoder())
    x = (torch.rand(shape) * 255).to(torch.uint8) if dtype == torch.uint8 else (torch.rand(shape) > 0.5).to(dtype)
    out = model(x)
    assert out.nll.shape == out.kl.shape == (B,) and out.recon.shape == (B, D) and out.z.shape == (B, Z)
    assert out.loss.item() == pytest.approx((out.nll + out.kl).mean().item(), rel=1e-6)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.reconstruct(x).shape == model.sample(B).shape == (B, D)
    assert ((model.sample(5) > 0) & (model.sample(5) < 1)).all()


def test_gaussian_with_a_learned_variance():
    model = VAE(TwoHeads(), MeanAndLogvar(), likelihood="gaussian", beta=0.5)
    x = torch.randn(B, D)
    out = model(x)
    assert out.loss.item() == pytest.approx((out.nll + 0.5 * out.kl).mean().item(), rel=1e-6)
    out.loss.backward()
    assert model.decoder.logvar.grad.shape == ()
    assert torch.equal(model.decode(out.z), model.decoder.layer(out.z))


def test_weight_and_mask():
    model, x = bernoulli(), torch.rand(B, 1, 3, 4)
    mask = torch.rand(x.shape) > 0.5
    torch.manual_seed(0)
    half = model.loss(x, mask=mask)
    torch.manual_seed(0)
    all_of_it = model.loss(x)
    assert half < all_of_it
    assert model.loss(x, weight=torch.zeros(B)).item() == 0


def test_a_shared_mask_broadcasts_to_images_not_to_rows():
    model, x = bernoulli(), torch.rand(D, 4, 3)
    mask = torch.rand(4, 3) > 0.5
    torch.manual_seed(0)
    shared = model.loss(x, mask=mask)
    torch.manual_seed(0)
    assert torch.equal(shared, model.loss(x, mask=mask.expand(D, 4, 3).clone()))
    with pytest.raises(ValueError, match="mask must broadcast to the shape of x"):
        model.loss(x, mask=mask[:3, :2])


def test_samples_follow_the_generator():
    model = VAE(TwoHeads(), nn.Linear(Z, D), latent_dim=Z)
    first, second = (model.sample(4, generator=torch.Generator(DEVICE).manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


class Proportions(nn.Module):
    """log proportions, log theta and the logits of dropout, which is next to none."""

    def __init__(self):
        super().__init__()
        self.layer, self.log_theta = nn.Linear(Z, D), nn.Parameter(torch.full((D,), 3.0))

    def forward(self, z):
        log_share = torch.log_softmax(self.layer(z), 1)
        return log_share, self.log_theta, torch.full_like(log_share, -40)


def counted(library=100.0):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(D, 2 * Z))
    likelihood, options = "zero_inflated_negative_binomial", {"log_mu": 1.0, "log_theta": 1.0}
    return VAE(encoder, Proportions(), likelihood=likelihood, latent_dim=Z, library=library, **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64, torch.float32], ids=str)
def test_each_row_of_counts_has_its_total(dtype):
    torch.manual_seed(0)
    model, x = counted(), torch.randint(0, 4, (B, D)).to(dtype)
    out, totals = model(x), x.sum(1, dtype=torch.float32)
    assert torch.equal(out.recon[-1], totals.unsqueeze(1))
    log_mu = out.recon[0] + totals.log().unsqueeze(1)
    options = {"log_mu": True, "log_theta": True}
    expected = functional.zero_inflated_negative_binomial_nll(log_mu, *out.recon[1:3], x, **options)
    torch.testing.assert_close(out.nll, expected.detach(), rtol=1e-5, atol=1e-5)
    out.loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())
    torch.testing.assert_close(model.reconstruct(x).sum(1), totals)
    assert model.log_evidence(x, 3).shape == (B,)


def test_samples_of_counts_have_the_usual_total_or_the_one_given():
    model = counted(library=50.0)
    totals = torch.tensor([10.0, 20.0, 30.0])
    torch.testing.assert_close(model.sample(3).sum(1), torch.full((3,), 50.0))
    torch.testing.assert_close(model.sample(3, library=7).sum(1), torch.full((3,), 7.0))
    torch.testing.assert_close(model.sample(3, library=totals).sum(1), totals)
    drawn = model.sample(2000, library=300.0, mean=False)
    assert torch.equal(drawn, drawn.round()) and drawn.min() >= 0
    assert drawn.sum(1).mean().item() == pytest.approx(300, rel=0.05)


def test_rows_without_counts_and_masked_counts():
    model, x = counted(), torch.zeros(B, D)
    x[1:, 0] = 9
    out = model(x)
    assert out.nll[0].item() == 0 and out.nll[1:].isfinite().all()
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    mask = torch.ones(B, D, dtype=torch.bool)
    mask[:, 0] = False
    assert torch.equal(model(x, mask=mask).recon[-1], torch.zeros(B, 1))


@pytest.mark.parametrize("log_rate", [True, False])
def test_a_poisson_model_of_proportions(log_rate):
    model = VAE(TwoHeads(), nn.Linear(Z, D), likelihood="poisson", library=20.0, latent_dim=Z, log_rate=log_rate)
    model.decoder = nn.Sequential(model.decoder, nn.LogSoftmax(1) if log_rate else nn.Softmax(1))
    x = torch.randint(0, 9, (B, D))
    torch.testing.assert_close(model.reconstruct(x).sum(1), x.sum(1).float())
    torch.testing.assert_close(model.sample(4).sum(1), torch.full((4,), 20.0))
    assert model.loss(x).isfinite()


@pytest.mark.parametrize("log_rate", [True, False])
def test_a_poisson_model_of_images_of_proportions(log_rate):
    """Each row has its own total, also where there are as many rows as lines of an image; alone or in a tuple."""
    shape = (4, 1, 4, 5)
    x, z = torch.randint(0, 9, shape), torch.randn(4, Z)
    proportions = nn.LogSoftmax(1) if log_rate else nn.Softmax(1)
    share = nn.Sequential(nn.Linear(Z, 20), proportions, nn.Unflatten(1, shape[1:]))
    model = VAE(TwoHeads(), share, likelihood="poisson", library=20.0, latent_dim=Z, log_rate=log_rate)
    library = x.sum((1, 2, 3)).float()
    torch.testing.assert_close(model.decode(z, library=library).sum((1, 2, 3)), library)
    model.decoder = InATuple(share)
    torch.testing.assert_close(model.decode(z, library=library).sum((1, 2, 3)), library)


def test_a_library_is_for_counts():
    with pytest.raises(ValueError, match="VAE: library is for likelihoods of counts, got 'bernoulli'"):
        VAE(TwoHeads(), nn.Linear(Z, D), library=1.0)
    with pytest.raises(ValueError, match="VAE: library must be positive, got 0"):
        counted(library=0.0)
    with pytest.raises(TypeError, match="VAE: library must be a number, got str"):
        counted(library="a")
    with pytest.raises(ValueError, match=r"made with VAE\(\.\.\., library=\)"):
        bernoulli().decode(torch.zeros(1, Z), library=3.0)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian", "laplace"])
def test_draws_of_x_have_the_mean_of_x(likelihood):
    torch.manual_seed(0)
    model = VAE(TwoHeads(), nn.Linear(Z, D), likelihood=likelihood, latent_dim=Z)
    z = torch.randn(1, Z).expand(20_000, Z)
    with torch.no_grad():
        mean, draws = model.decode(z)[0], model.decode(z, mean=False)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=5 * 1.5 / 20_000**0.5)


@pytest.mark.parametrize("shape", [(), (3, 4)], ids=str)
def test_joint_likelihoods_give_x_its_shape(shape):
    features = torch.Size(shape).numel()
    encoder = nn.Sequential(nn.Flatten() if shape else nn.Unflatten(0, (-1, 1)), nn.Linear(features, 2 * Z))
    decoder = nn.Sequential(nn.Linear(Z, 5 * features), nn.Unflatten(1, (5, *shape)))
    model = VAE(encoder, decoder, likelihood="categorical", latent_dim=Z)
    x = torch.randint(0, 5, (B, *shape))
    assert model.reconstruct(x).shape == model.sample(B, mean=False).shape == (B, *shape)
    assert model(x).nll.shape == (B,)


def test_mixtures_of_logistics_give_x_its_shape():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * D, 2 * Z))
    decoder = nn.Sequential(nn.Linear(Z, 20 * D), nn.Unflatten(1, (20, 3, 4)))
    model = VAE(encoder, decoder, likelihood="discretized_logistic_mixture", latent_dim=Z)
    x = torch.randint(0, 256, (B, 3, 3, 4)).to(torch.uint8)
    assert model.reconstruct(x).shape == model.sample(B, mean=False).shape == x.shape
    assert model(x).nll.shape == (B,)


def test_log_evidence_is_above_the_elbo_and_grows():
    model, x = bernoulli(), (torch.rand(B, D) > 0.5).float()
    with torch.no_grad():
        elbo = -torch.stack([model(x).loss for _ in range(300)]).mean()
    bounds = [
        torch.stack([model.log_evidence(x, k, chunk=7).mean() for _ in range(20)]).mean().item() for k in (1, 10, 100)
    ]
    assert bounds[0] == pytest.approx(elbo.item(), abs=0.2)
    assert bounds[0] < bounds[1] < bounds[2]
    assert not model.log_evidence(x, 3).requires_grad


class Exact(nn.Module):
    """The posterior of z ~ N(m, e^v) given x ~ N(z, 1)."""

    def __init__(self, mean, logvar):
        super().__init__()
        self.mean, self.precision = mean, torch.exp(-logvar)

    def forward(self, x):
        total = (1 + self.precision).expand(x.shape)
        return (x + self.mean * self.precision) / total, -total.log()


@pytest.mark.parametrize("shape", [(), (Z,), (B, Z)], ids=["one", "dimension", "row"])
@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_the_prior_is_the_model_s(shape, kl):
    """z ~ N(m, e^v), x ~ N(z, 1): log p(x) is known, and every importance weight is it."""
    prior = 2 * torch.randn(shape) + 3, torch.randn(shape)
    model = VAE(Exact(*prior), nn.Identity(), likelihood="gaussian", prior=prior, kl=kl)
    x = torch.randn(B, Z)
    true = torch.distributions.Normal(prior[0], torch.sqrt(1 + prior[1].exp())).log_prob(x).sum(1)
    torch.testing.assert_close(model.log_evidence(x, 5, chunk=2), true, rtol=1e-4, atol=1e-4)
    if len(shape) == 2:
        with pytest.raises(ValueError, match=r"VAE.sample: prior mu must broadcast to the shape of mu, \[2, 3\]"):
            model.sample(2)
        return
    z = model.sample(50_000, generator=torch.Generator(DEVICE).manual_seed(1))
    std = torch.exp(prior[1] / 2).expand(Z)
    torch.testing.assert_close(z.mean(0), prior[0].expand(Z), rtol=0, atol=5 * std.max().item() / 50_000**0.5)
    torch.testing.assert_close(z.std(0), std, rtol=0.02, atol=0)


def test_the_monte_carlo_kl_is_of_the_decoder_s_z():
    model, x = VAE(TwoHeads(), nn.Linear(Z, D), kl="monte_carlo"), torch.rand(B, D)
    out = model(x)
    assert torch.equal(out.kl, functional.monte_carlo_kl(out.z, out.mu, out.logvar).detach())


CONSTANTS = {
    "bernoulli": [0.3],
    "continuous_bernoulli": [1.5],
    "gaussian": [0.25, -1.0],
    "laplace": [0.25, -1.0],
    "discretized_logistic": [0.25, -2.0],
    "discretized_logistic_mixture": [0.0, 0.25, -2.0],
    "poisson": [1.0],
    "negative_binomial": [3.0, 2.0],
    "zero_inflated_negative_binomial": [3.0, 2.0, -1.0],
}


class Parts(nn.Module):
    """[B, n] as n tensors."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, parameters):
        return parameters if self.n == 1 else parameters.chunk(self.n, 1)


@pytest.mark.parametrize("autocast", [False, True], ids=["cast", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("likelihood", CONSTANTS)
def test_draws_in_half_precision(likelihood, dtype, autocast):
    """The decoder's numbers are coarse; means and draws made of them are not."""
    numbers = torch.tensor(CONSTANTS[likelihood])
    decoder = nn.Linear(Z, len(numbers))
    with torch.no_grad():
        decoder.weight.zero_()
        decoder.bias.copy_(numbers)
    if likelihood == "discretized_logistic_mixture":
        head, options = nn.Unflatten(1, (-1, 1)), {"channels": 1}
    else:
        head, options = Parts(len(numbers)), {}
    model = VAE(TwoHeads(), nn.Sequential(decoder, head), likelihood=likelihood, latent_dim=Z, **options)
    model = model if autocast else model.to(dtype)
    with torch.no_grad(), torch.autocast(DEVICE.type, dtype, enabled=autocast):
        mean, draws = model.sample(1), model.sample(20_000, mean=False)
    assert mean.dtype == draws.dtype == torch.float32 and draws.isfinite().all()
    error = (draws.mean(0) - mean[0]).abs().item()
    assert error <= 5 * draws.std().item() / 20_000**0.5
    if likelihood in ("gaussian", "laplace", "continuous_bernoulli"):
        assert draws.unique().numel() > 15_000


@pytest.mark.parametrize("of_model", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of_x", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["cast", "autocast"])
def test_the_encoder_has_x_in_its_dtype_the_loss_as_it_is(of_model, of_x, autocast):
    model, x = bernoulli(TwoHeads()).to(of_model), torch.rand(B, D).to(of_x)
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast and of_model == torch.float32):
        out = model(x)
        assert torch.equal(out.nll, functional.bernoulli_nll(out.recon, x).detach())
        assert model.reconstruct(x).shape == (B, D) and model.log_evidence(x, 2).isfinite().all()


@pytest.mark.parametrize(
    ("output", "kind", "got"),
    [
        (lambda x: (x,), TypeError, r"\(Tensor\)"),
        (lambda x: (x, x, x), TypeError, r"\(Tensor, Tensor, Tensor\)"),
        (lambda x: (x, None), TypeError, r"\(Tensor, NoneType\)"),
        (lambda x: None, TypeError, "NoneType"),
        (lambda x: x[:, 0], ValueError, r"shape \[6\]"),
    ],
)
def test_what_an_encoder_may_return(output, kind, got):
    class Encoder(nn.Module):
        def forward(self, x):
            return output(x)

    expected = r"VAE: the encoder must return \(mu, logvar\) or one tensor \[B, 2 Z\], got "
    with pytest.raises(kind, match=expected + got):
        bernoulli(Encoder()).loss(torch.rand(B, D))


def test_what_a_decoder_may_return():
    model = counted()
    model.decoder.forward = lambda z: None
    with pytest.raises(TypeError, match=r"ELBOLoss: recon must be a tuple \(mu, theta, pi, .* got NoneType"):
        model(torch.ones(B, D))


@pytest.mark.parametrize(
    ("library", "kind", "message"),
    [
        (torch.ones(3), ValueError, r"library must be one number a row, of shape \[4\], got \[3\]"),
        (-1.0, ValueError, "library must be finite and not negative, got -1"),
        (torch.tensor([1.0, 2.0, torch.inf, 3.0]), ValueError, "library must be finite and not negative, got inf"),
        (torch.tensor(torch.nan), ValueError, "library must be finite and not negative, got nan"),
        ("5", TypeError, "library must be a number or a tensor, got str"),
    ],
    ids=str,
)
def test_bad_totals(library, kind, message):
    with pytest.raises(kind, match="VAE: " + message):
        counted().decode(torch.zeros(4, Z), library=library)


def test_flat_rows_beside_images():
    """Shapes that lay the same pixels out in the same order; another order of axes is refused."""
    x, mu = torch.rand(B, 1, 3, 4), torch.randn(B, Z)
    mask, logits = torch.rand(B, 1, 3, 4) > 0.3, torch.randn(B, 1, 3, 4)
    expected = ELBOLoss()(logits, x, mu, mu, mask=mask)
    model = VAE(nn.Sequential(nn.Flatten(), nn.Linear(D, 2 * Z)), nn.Linear(Z, D))
    assert model.log_evidence(x, 2).shape == model.objective.nll(model(x).recon, x).shape == (B,)
    for shape in ((B, D), (B, 3, 4), (B, 3, 1, 4), (B, 3, 2, 2), (B, 1, 12, 1)):
        assert ELBOLoss()(logits.reshape(shape), x, mu, mu, mask=mask) == expected
        assert ELBOLoss()(logits, x.reshape(shape), mu, mu, mask=mask.reshape(shape)) == expected
    upside = VAE(
        nn.Sequential(nn.Flatten(), nn.Linear(D, 2 * Z)), nn.Sequential(nn.Linear(Z, D), nn.Unflatten(1, (4, 3)))
    )
    with pytest.raises(ValueError, match=r"differ in shape: \[6, 4, 3\] and \[6, 1, 3, 4\]"):
        upside(x)


def test_beta_is_the_objective_s():
    model, x = bernoulli(), torch.rand(B, D)
    model.beta = 0.0
    assert model.objective.beta == model.beta == 0
    out = model(x)
    assert out.loss.item() == pytest.approx(out.nll.mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match="beta must not be negative"):
        model.beta = -1.0
    with pytest.raises(TypeError, match="VAE: beta must be a number or a plain tensor, got a Parameter"):
        model.beta = nn.Parameter(torch.ones(()))
    with pytest.raises(TypeError, match=r"VAE: beta must be a number .*, got Linear"):
        model.beta = nn.Linear(1, 1)


@pytest.mark.parametrize("owner", ["loss", "model"])
def test_beta_may_be_a_buffer(owner):
    """In a number's place and a number in its, again and again; a tensor fills it."""
    model = VAE(TwoHeads(), MeanAndLogvar())
    holder = model if owner == "model" else model.objective
    for _ in range(2):
        holder.beta = nn.Buffer(torch.tensor(2.0))
        assert dict(model.named_buffers()) == {"objective.beta": 2.0}
        assert "objective.beta" in model.state_dict()
        assert model.double().beta.dtype == torch.float64
        holder.beta = torch.tensor(3.0)
        assert dict(model.named_buffers()) == {"objective.beta": 3.0}
        holder.beta = 0.5
        assert model.objective.beta == 0.5 and not dict(model.named_buffers())


def test_beta_may_be_a_subclass_s_own():
    class Annealed(ELBOLoss):
        @property
        def beta(self):
            return 2 * self.half

        @beta.setter
        def beta(self, value):
            self.half = value / 2

    class Doubled(ELBOLoss):
        beta = 2.0

    for cls in (Annealed, Doubled):
        loss = cls(beta=3.0)
        assert loss.beta == 3
        loss.beta = 0.5
        assert loss.beta == 0.5


def test_noise_from_a_seed_or_a_generator():
    model, x = bernoulli(), torch.rand(B, D)
    assert torch.equal(model(x, seed=1).z, model(x, seed=1).z) and model.loss(x, seed=1) == model.loss(x, seed=1)
    assert not torch.equal(model(x, seed=1).z, model(x, seed=2).z)
    first, second = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(model(x, generator=first).z, model(x, generator=second).z)
    bounds = [model.log_evidence(x, 12, chunk=5, generator=g) for g in (first, second)]
    assert torch.equal(*bounds) and not torch.equal(bounds[0], model.log_evidence(x, 12, chunk=5, generator=first))


def test_samples_are_made_without_gradients():
    model = VAE(nn.Linear(D, 2 * Z), nn.Linear(Z, D), latent_dim=Z)
    assert not model.sample(3).requires_grad and not model.sample(3, mean=False).requires_grad
    assert model.decode(torch.randn(3, Z)).requires_grad and model.reconstruct(torch.rand(B, D)).requires_grad


def test_what_a_model_is_made_of():
    for part, got in ((None, "NoneType"), (nn.Linear, "Linear")):
        with pytest.raises(TypeError, match=f"^VAE: decoder must be a module or a function, got {got}$"):
            VAE(nn.Linear(D, 2 * Z), part)
    x = torch.rand(B, D)
    model = VAE(lambda x: x[:, : 2 * Z], lambda z: z.repeat(1, D // Z))
    assert model.loss(x).isfinite() and model.sample(2).shape == (2, D)
    model = VAE(nn.Linear(D, 2 * Z), nn.Linear(Z, D), latent_dim=Z + 1)
    with pytest.raises(ValueError, match=r"^VAE: mu must have shape \[B, 4\], as latent_dim says, got \[6, 3\]$"):
        model.encode(x)


@pytest.mark.parametrize("likelihood", [entry.name for entry in LIKELIHOODS.values() if entry.public] + ["probs"])
def test_losses_and_models_can_be_pickled(likelihood):
    of = {"from_logits": False} if likelihood == "probs" else {"likelihood": likelihood}
    model = VAE(nn.Linear(D, 2 * Z), nn.Linear(Z, D), **of)
    again = pickle.loads(pickle.dumps(model))
    assert again.objective.entry == model.objective.entry and repr(again) == repr(model)


def test_training_lowers_the_loss_and_the_state_loads():
    torch.manual_seed(0)
    model, x = bernoulli(), (torch.rand(64, 1) > 0.5).float().expand(64, D).contiguous()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    before = model.loss(x).item()
    for _ in range(200):
        optimiser.zero_grad()
        model.loss(x).backward()
        optimiser.step()
    assert model.loss(x).item() < 0.5 * before
    other = bernoulli()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.reconstruct(x), model.reconstruct(x))
