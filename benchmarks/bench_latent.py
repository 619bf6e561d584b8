"""The latent variable: `vae_fast.sample_kl` against reparameterisation and KL as usually written, and distributions."""

from dataclasses import replace

import peers
import torch
from harness import LATENTS, Case, both, each, over
from torch import Tensor

import vae_fast
from vae_fast import reference


def posterior(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns), torch.randn(rows, columns)], []


def eager(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return z, -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1)


def halves(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [t.bfloat16() for t in posterior(rows, columns)[0]], []


def eager_halves(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """As autocast leaves it: computed in float32, z rounded for the layer that takes it."""
    z, kl = eager(mu.float(), logvar.float())
    return z.bfloat16(), kl


def truth(outputs: tuple[Tensor, Tensor], mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """(z, KL) for the noise in z: each opponent draws its own, which must be standard normal."""
    eps = ((outputs[0] - mu) * torch.exp(-0.5 * logvar)).detach()
    for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs((eps**moment).mean().item() - expected)
        assert error < 6 * (variance / eps.numel()) ** 0.5, f"the noise's moment {moment} is off by {error:.3g}"
    return mu + torch.exp(0.5 * logvar) * eps, reference.gaussian_kl(mu, logvar)


def rounded(outputs: tuple[Tensor, Tensor], incoming: list[Tensor]) -> list[Tensor]:
    """What truth doesn't know of logvar's gradient, dz (z - mu) / 2 + ..., for it sees z rounded."""
    z, dz = outputs[0].detach().double(), incoming[0].double()
    return [torch.zeros_like(z), torch.finfo(outputs[0].dtype).eps / 4 * (dz * z).abs()]


SHAPES = ((64, 16), (1024, 64), (16384, 64), (4096, 512))
CASE = Case(
    "sample_kl(mu, logvar)",
    "float32",
    (16384, 64),
    posterior,
    eager,
    vae_fast.sample_kl,
    truth,
    slack=rounded,
    peers=peers.latent(),
)
HALF = replace(CASE, dtype="bfloat16", inputs=halves, eager=eager_halves)
CASES = [*over(CASE, SHAPES, LATENTS), *over(HALF, SHAPES[2:3], LATENTS)]


@each(both(CASES, forward_at=SHAPES[2:3]))
def test_sample_kl(case, opponent, compared):
    compared(case, opponent)
