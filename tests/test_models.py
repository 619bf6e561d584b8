"""VAE: shapes, dtypes, the bound, training."""

import pytest
import torch
from operands import DEVICE
from torch import nn

from vae_fast import VAE

B, D, Z = 6, 12, 3


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.mu, self.logvar = nn.Linear(D, Z), nn.Linear(D, Z)

    def forward(self, x):
        return self.mu(x.flatten(1)), self.logvar(x.flatten(1))


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
