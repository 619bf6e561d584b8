"""The ELBO's parts for any likelihood of the registry: what the functions, the loss and the model call.

Operands of most calls are looked at in C++ alone; the others, and wrong ones, are checked here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vae_fast import checks, reference
from vae_fast.likelihoods import Likelihood, Options
from vae_fast.operands import channels_first, check_posterior, observations, prior_rows, rows_of, tensors_or_none
from vae_fast.ops import latent as _latent
from vae_fast.ops import onepass as _onepass
from vae_fast.ops.backend import use_reference
from vae_fast.ops.likelihoods import ELBO, NLL
from vae_fast.ops.onepass import is_plain_call
from vae_fast.reference import Prior

_NONE: Options = {}


class Objective(NamedTuple):
    """What a loss is made of beside the distributions: scale * sum of weight (nll + beta kl); [B] unless reduced."""

    prior: Prior | None
    weight: Tensor | None
    mask: Tensor | None
    beta: float | Tensor
    scale: float
    reduce: bool


def nll(
    entry: Likelihood,
    names: Sequence[str],
    parameters: Sequence[Tensor | float],
    x: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    options: Options = _NONE,
    channels_last: bool = False,
) -> Tensor:
    """-log p(x | parameters), [B], of any likelihood; `names`, of the caller and the parameters, speak in errors.

    channels_last: of a joint likelihood, whose parameters are [B, ..., C], and x so if it has channels.
    """
    plain = NLL[entry.name].plain
    if weight is None and mask is None and plain is not None:
        given = _plain_arguments(entry, parameters, x, options)
        value = None if given is None else plain(*given, None, None, channels_last)
        if value is not None:
            return value
    if channels_last:
        parameters, x = channels_first(entry, names, parameters, x)
    tensors, target, weight, mask = observations(entry, names, parameters, x, weight, mask, options)
    options, numbers, by_reference = entry.form(options, target)
    if use_reference(*tensors) or by_reference:
        return reference.nll(
            entry.elementwise,
            tensors,
            target,
            weight=weight,
            mask=mask,
            options=options,
            counts=entry.counts,
            joint=entry.joint is not None,
        )
    return _onepass.apply(NLL[entry.name], *tensors, target, *numbers, weight, mask)


def _plain_arguments(
    entry: Likelihood, parameters: Sequence[Tensor | float], x: Tensor, options: Options, *others: Tensor
) -> tuple[Any, ...] | None:
    """An operator's first ones, parameters, x and numbers, if C++ may look at them and at the others."""
    operands = (*tensors_or_none(parameters), x)
    if not is_plain_call(*operands, *others):
        return None
    _, numbers, by_reference = entry.form(options, x)
    return None if by_reference else (*operands, *numbers)


def elbo(
    entry: Likelihood,
    names: Sequence[str],
    parameters: Sequence[Tensor | float],
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    objective: Objective,
    options: Options = _NONE,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, nll [B], kl [B]) in one pass."""
    prior, weight, mask, beta, scale, reduce = objective
    plain = ELBO[entry.name].plain
    if prior is None and weight is None and mask is None and plain is not None and not isinstance(beta, Tensor):
        given = _plain_arguments(entry, parameters, x, options, mu, logvar)
        if given is not None:
            loss, value, kl = plain(*given, mu, logvar, None, None, None, None, None, beta, scale, reduce, False)
            if loss is not None:
                return loss, value, kl
    owner, name = names[:2]
    check_posterior(owner, mu, logvar)
    tensors, target, weight, mask = observations(entry, names, parameters, x, weight, mask, options)
    same_batch(owner, name, target, mu)
    options, numbers, by_reference = entry.form(options, target)
    rows, prior = (rows_of(mu), rows_of(logvar)), prior_rows(owner, prior, mu)
    if use_reference(*tensors, *rows, *(prior or ())) or by_reference:
        return reference.elbo(
            entry.elementwise,
            tensors,
            target,
            *rows,
            prior,
            weight=weight,
            mask=mask,
            beta=beta,
            scale=scale,
            reduce=reduce,
            options=options,
            counts=entry.counts,
            joint=entry.joint is not None,
        )
    factor, number = (beta.to(mu.device), 1.0) if isinstance(beta, Tensor) else (None, beta)
    return _onepass.apply(
        ELBO[entry.name],
        *tensors,
        target,
        *numbers,
        *rows,
        *(prior or (None, None)),
        weight,
        mask,
        factor,
        number,
        scale,
        reduce,
    )


def same_batch(owner: str, name: str, x: Tensor, mu: Tensor) -> None:
    """x and mu are on one device and have one batch size."""
    checks.same_device(owner, name, x, "mu", mu)
    if mu.shape[0] != x.shape[0]:
        raise ValueError(f"{owner}: {name} and mu differ in batch size: {x.shape[0]} and {mu.shape[0]}")


def weighted_monte_carlo_kl(
    owner: str, z: Tensor, mu: Tensor, logvar: Tensor, prior: Prior | None, weight: Tensor | None
) -> Tensor:
    """`monte_carlo_kl` times weight [B]; rows of weight 0 are not used."""
    check_posterior(owner, mu, logvar)
    checks.floating(owner, "z", z)
    checks.same_shape(owner, "z", z, "mu", mu)
    checks.same_device(owner, "mu", mu, "z", z)
    rows, prior = (rows_of(z), rows_of(mu), rows_of(logvar)), prior_rows(owner, prior, mu)
    if use_reference(*rows, *(prior or ())):
        z, mu, logvar, *given = reference.select_rows(weight, *rows, *(prior or ()))
        value = reference.monte_carlo_kl(z, mu, logvar, (given[0], given[1]) if given else None)
        return reference.weighted(value, weight)
    if prior is None:
        zero = mu.new_zeros((1, 1))
        prior = (zero, zero)
    return _onepass.apply(_latent.MONTE_CARLO_KL, *rows, *prior, weight)
