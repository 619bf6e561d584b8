"""The latent variable: `vae_fast.sample_kl` against reparameterisation and KL as they are usually written."""

import torch
from harness import Case, batch, both, each
from torch import Tensor

import vae_fast
from vae_fast import reference


def posterior(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.randn(rows, columns), torch.randn(rows, columns)], []


def eager(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return z, -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1)


def truth(outputs: tuple[Tensor, Tensor], mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """(z, KL) for the noise in z: each opponent draws its own, which must be standard normal."""
    eps = ((outputs[0] - mu) * torch.exp(-0.5 * logvar)).detach()
    for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs((eps**moment).mean().item() - expected)
        assert error < 6 * (variance / eps.numel()) ** 0.5, f"the noise's moment {moment} is off by {error:.3g}"
    return mu + torch.exp(0.5 * logvar) * eps, reference.gaussian_kl(mu, logvar)


CASE = Case("sample_kl(mu, logvar)", "float32", batch(16384, 64), posterior, eager, vae_fast.sample_kl, truth)


@each(both(CASE))
def test_sample_kl(case, opponent, compared):
    compared(case, opponent)
