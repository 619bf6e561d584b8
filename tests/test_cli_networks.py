"""Networks for images of any size."""

import math

import pytest
import torch

from vae_fast.cli.errors import UserError
from vae_fast.cli.heads import LOGVAR_FLOOR, GaussianDecoder
from vae_fast.cli.module import VAEModule
from vae_fast.cli.networks import NETWORKS

SHAPES = [(1, 8, 8), (3, 9, 8), (1, 13, 37), (3, 28, 30), (1, 31, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("network", "widths"), [("conv", [3, 6, 5]), ("conv", [4, 9]), ("conv", [2, 3, 4, 5]), ("mlp", [7])]
)
def test_shapes_come_back(shape: tuple[int, int, int], network: str, widths: list[int]) -> None:
    encoder, decoder = (make(shape, 5, widths) for make in NETWORKS[network])
    assert encoder(torch.rand(2, *shape)).shape == (2, 10)
    assert decoder(torch.randn(2, 5)).shape == (2, *shape)


@pytest.mark.parametrize("network", ["conv", "mlp"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_parameter_gets_a_gradient(network: str, likelihood: str) -> None:
    module = VAEModule((3, 9, 11), likelihood, 3, network=network, widths=[4, 5])
    module.vae(torch.randint(0, 256, (6, 3, 9, 11), dtype=torch.uint8)).loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gaussian_learns_the_variance_of_the_pixels() -> None:
    torch.manual_seed(0)
    vae = VAEModule((1, 8, 8), "gaussian", 2, network="mlp", widths=[8]).vae
    for parameter in vae.decoder.mean.parameters():
        torch.nn.init.zeros_(parameter)
    x = 0.1 * torch.randn(64, 1, 8, 8)
    optimizer = torch.optim.Adam([vae.decoder.logvar], 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        vae.loss(x).backward()
        optimizer.step()
    assert vae.decoder.logvar.item() == pytest.approx(x.square().mean().log().item(), abs=0.02)


def test_constant_images_leave_the_variance_above_its_floor() -> None:
    decoder = GaussianDecoder(torch.nn.Linear(2, 4))
    torch.nn.init.constant_(decoder.logvar, -100.0)
    assert decoder(torch.zeros(1, 2))[1].unique().item() == LOGVAR_FLOOR


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shape": (1, 7, 8)}, "use --network mlp"),
        ({"latent_dim": 0}, "--latent_dim 0: expected a positive number"),
        ({"lr": math.nan}, "--lr nan"),
        ({"beta": -1.0}, "--beta -1.0: expected zero or a positive number"),
        ({"widths": [8]}, "expected at least two for conv"),
        ({"widths": [8, 0]}, "--widths [8, 0]: expected positive numbers"),
    ],
)
def test_bad_options_are_named(options: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected.replace("[", r"\[")):
        VAEModule(**{"shape": (1, 28, 28), **options})
