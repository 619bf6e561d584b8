"""From elementwise likelihoods to the ELBO: masks, weights, sums and reductions, for every likelihood alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.reference.latent import Prior, gaussian_kl, sum_dtype

Elementwise = Callable[..., Tensor]
_NONE: Mapping[str, float | str] = {}
_SAFE = 0.5  # a parameter in the interior of every likelihood's domain: stands in where a mask hides the true one


def _observed(x: Tensor, dtype: torch.dtype, counts: bool) -> Tensor:
    return x.to(dtype) / 255 if x.dtype == torch.uint8 and not counts else x.to(dtype)


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """values [B] times weight [B]; 0 where the weight is, whatever the value."""
    if weight is None:
        return values
    return torch.where(weight == 0, 0, values * weight.to(values.dtype))


def select_rows(weight: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    """The tensors [B, ...], with 0 in rows of weight 0."""
    if weight is None:
        return list(tensors)
    return [torch.where((weight != 0).reshape(_columns(t)), t, 0) for t in tensors]


def _columns(t: Tensor) -> tuple[int, ...]:
    return (-1,) + (1,) * (t.dim() - 1)


def _over(mask: Tensor, t: Tensor) -> Tensor:
    """A mask of observations, for t with more numbers than one to each, along its second dimension."""
    return mask if mask.dim() == t.dim() else mask.unsqueeze(1)


def nll(
    likelihood: Elementwise,
    parameters: Sequence[Tensor],
    x: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    options: Mapping[str, float | str] = _NONE,
    counts: bool = False,
    joint: bool = False,
) -> Tensor:
    """-log p(x | parameters) summed over features, times weight, [B]. What is masked or of weight 0 is not used.

    options: keyword arguments of the likelihood. counts: bytes are the numbers that they are, else x/255.
    joint: parameters are [B, C, N], x is [B, N] or [B, channels, N], mask is [B, N].
    """
    dtype = sum_dtype(*parameters)
    wide = [p.to(dtype) for p in parameters]
    target = _observed(x, dtype, counts)
    if weight is not None:
        rows = (weight != 0).reshape((-1, 1) if joint else _columns(x))
        mask = rows if mask is None else mask & rows
    if mask is not None:
        wide = [torch.where(_over(mask, p), p, _SAFE) for p in wide]
        target = torch.where(_over(mask, target), target, 0)
    terms = likelihood(*wide, target, **options)
    if mask is not None:
        terms = torch.where(mask, terms, 0)
    return weighted(terms.flatten(1).sum(1), weight)


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
    options: Mapping[str, float | str] = _NONE,
    counts: bool = False,
    joint: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, nll [B], kl [B]); loss = scale (nll + beta kl), summed over the batch if reduce. beta = 0 drops the KL."""
    form: dict[str, Any] = {"options": options, "counts": counts, "joint": joint}
    reconstruction = nll(likelihood, parameters, x, weight=weight, mask=mask, **form)
    mu, logvar, *given = select_rows(weight, mu, logvar, *(prior or ()))
    kl = weighted(gaussian_kl(mu, logvar, (given[0], given[1]) if given else None), weight)
    beta = beta.to(kl) if isinstance(beta, Tensor) else kl.new_full((), beta)
    loss = scale * (reconstruction + torch.where(beta == 0, 0, beta * kl))
    return (loss.sum() if reduce else loss), reconstruction, kl
