"""The latent variable: sampling, and divergences between diagonal Gaussians, summed over latent dimensions, in nats."""

import math

import torch
from torch import Tensor

from vae_fast.reference.elementary import exp_finite
from vae_fast.reference.philox import normals

Prior = tuple[Tensor, Tensor]


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of sums and values: float64 where any tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _wide(*tensors: Tensor) -> list[Tensor]:
    dtype = sum_dtype(*tensors)
    return [t.to(dtype) for t in tensors]


def _expm1_minus(v: Tensor) -> Tensor:
    """e^v - 1 - v, by its series where |v| < 1/2 would cancel."""
    near = v.abs() < 0.5
    inside = torch.where(near, v, 0)
    series = torch.zeros_like(v)
    for k in range(15, 1, -1):
        series = series * inside + 1 / math.factorial(k)
    return torch.where(near, series * inside**2, torch.expm1(v) - v)


def _precision_root(logvar: Tensor) -> Tensor:
    """e^(-logvar/2), 1 / sigma; the largest number where that would overflow."""
    return exp_finite(-logvar / 2)


def gaussian_kl(mu: Tensor, logvar: Tensor, prior: Prior | None = None) -> Tensor:
    """KL(N(mu, e^v) || prior) = 1/2 sum [e^r - 1 - r + h^2], r = v - v', h = (mu - mu') e^(-v'/2), v = logvar."""
    if prior is None:
        mu, logvar = _wide(mu, logvar)
        return 0.5 * (mu**2 + _expm1_minus(logvar)).flatten(1).sum(1)
    mu, logvar, prior_mu, prior_logvar = _wide(mu, logvar, *prior)
    h = (mu - prior_mu) * _precision_root(prior_logvar)
    return 0.5 * (_expm1_minus(logvar - prior_logvar) + h**2).flatten(1).sum(1)


def reparameterize(mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
    """z = mu + e^(logvar/2) eps, in mu's dtype; eps is regenerated from the seed wherever it is needed."""
    wide_mu, wide_logvar = _wide(mu, logvar)
    eps = normals(mu.shape, seed, wide_mu.dtype)
    return (wide_mu + torch.exp(wide_logvar / 2) * eps).to(mu.dtype)


def sample_kl(mu: Tensor, logvar: Tensor, seed: Tensor, prior: Prior | None = None) -> tuple[Tensor, Tensor]:
    """(reparameterize, gaussian_kl)."""
    return reparameterize(mu, logvar, seed), gaussian_kl(mu, logvar, prior)


def monte_carlo_kl(z: Tensor, mu: Tensor, logvar: Tensor, prior: Prior | None = None) -> Tensor:
    """log q(z) - log p(z) = 1/2 sum [v' - v + h'^2 - h^2], h = (z - mu) e^(-v/2), h' the same of the prior."""
    if prior is None:
        prior = (torch.zeros_like(mu), torch.zeros_like(mu))
    z, mu, logvar, prior_mu, prior_logvar = _wide(z, mu, logvar, *prior)
    h, prior_h = (z - mu) * _precision_root(logvar), (z - prior_mu) * _precision_root(prior_logvar)
    return 0.5 * (prior_logvar - logvar + (prior_h - h) * (prior_h + h)).flatten(1).sum(1)


def log_evidence(log_px_z: Tensor, log_pz: Tensor, log_qz_x: Tensor) -> Tensor:
    """log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) from [K, B] log-densities; a column of -inf: -inf, with gradient 0."""
    log_px_z, log_pz, log_qz_x = _wide(log_px_z, log_pz, log_qz_x)
    log_weight = log_px_z + log_pz - log_qz_x
    top = log_weight.detach().amax(0)
    top = torch.where(top.isinf(), 0, top)
    total = torch.exp(log_weight - top).sum(0)
    empty = total == 0
    log_total = torch.log(torch.where(empty, 1, total))
    return torch.where(empty, -math.inf, log_total + top - math.log(log_weight.shape[0]))
