"""From elementwise likelihoods to the ELBO: masks, weights, sums and reductions, for every likelihood alike."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vae_fast.reference.latent import Prior, gaussian_kl

Elementwise = Callable[..., Tensor]
_SAFE = 0.5  # a parameter in the interior of every likelihood's domain: stands in where a mask hides the true one


def _intensity(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def _sum_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values
    return torch.where(weight == 0, 0, values * weight.to(values.dtype))


def _columns(t: Tensor) -> tuple[int, ...]:
    return (-1,) + (1,) * (t.dim() - 1)


def nll(
    likelihood: Elementwise,
    parameters: Sequence[Tensor],
    x: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """-log p(x | parameters) summed over features, times weight, [B]. What is masked or of weight 0 is not read."""
    dtype = _sum_dtype(parameters)
    wide = [p.to(dtype) for p in parameters]
    target = _intensity(x, dtype)
    if weight is not None:
        rows = (weight != 0).reshape(_columns(x))
        mask = rows.expand(x.shape) if mask is None else mask & rows
    if mask is not None:
        wide = [torch.where(mask, p, _SAFE) for p in wide]
        target = torch.where(mask, target, 0)
    terms = likelihood(*wide, target)
    if mask is not None:
        terms = torch.where(mask, terms, 0)
    return _weighted(terms.flatten(1).sum(1), weight)


def elbo(
    likelihood: Elementwise,
    parameters: Sequence[Tensor],
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior: Prior | None = None,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    beta: float | Tensor = 1.0,
    scale: float = 1.0,
    reduce: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, nll [B], kl [B]); loss = scale (nll + beta kl), summed over the batch if reduce. beta = 0 drops the KL."""
    reconstruction = nll(likelihood, parameters, x, weight=weight, mask=mask)
    if weight is not None:
        rows = (weight != 0).reshape(_columns(mu))
        mu, logvar = torch.where(rows, mu, 0), torch.where(rows, logvar, 0)
    kl = _weighted(gaussian_kl(mu, logvar, prior), weight)
    beta = torch.as_tensor(beta, dtype=kl.dtype, device=kl.device)
    loss = scale * (reconstruction + torch.where(beta == 0, 0, beta * kl))
    return (loss.sum() if reduce else loss), reconstruction, kl
