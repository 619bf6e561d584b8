"""`<likelihood>_nll` and `elbo_<likelihood>` for every entry of the registry.

Parameters and x are [B, D]; a parameter may have size 1 in place of either, and its gradient has its own shape. Of a
joint likelihood the parameters are one tensor [B, C, N], x is [B, N] or [B, channels, N], and the mask [B, N].
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.likelihoods import LIKELIHOODS, Likelihood
from vae_fast.ops.library import define, recording
from vae_fast.ops.onepass import OnePassOperator, one_pass

_LATENT = ("mu", "logvar", "prior_mu", "prior_logvar")


def empty_gradients(tensors: tuple[Tensor | None, ...], asked: int, fallback: Tensor) -> list[Tensor]:
    """Shapes of the gradients: as the tensor's where asked for, else of no elements."""
    return [
        empty_gradient(t) if t is not None and asked >> k & 1 else (fallback if t is None else t).new_empty(0)
        for k, t in enumerate(tensors)
    ]


def empty_gradient(t: Tensor) -> Tensor:
    """Contiguous; of planes [B, C, N] channels last where t is."""
    if t.dim() == 3 and t.stride(1) == 1:
        return t.new_empty((t.shape[0], t.shape[2], t.shape[1])).transpose(1, 2)
    return t.new_empty(t.shape)


def pair(mu: Tensor | None, logvar: Tensor | None) -> reference.Prior | None:
    """A prior from two optional arguments of an operator."""
    return None if mu is None or logvar is None else (mu, logvar)


def differentiate(
    function: Callable[..., Any], tensors: tuple[Tensor | None, ...], asked: int, fallback: Tensor
) -> tuple[Any, list[Tensor]]:
    """function(*tensors) -> (value to differentiate, result); the result and the gradients that are asked for."""
    leaves = [t.detach().requires_grad_(bool(asked >> k & 1)) if t is not None else None for k, t in enumerate(tensors)]
    value, result = function(*leaves)
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(value.sum(), wanted, allow_unused=True) if wanted else ())
    gradients = []
    for leaf in leaves:
        if leaf is None or not leaf.requires_grad:
            gradients.append((fallback if leaf is None else leaf).new_empty(0))
        else:
            gradient = next(found)
            empty = empty_gradient(leaf)
            gradients.append(empty.zero_() if gradient is None else empty.copy_(gradient))
    return result, gradients


def _read_by(entry: Likelihood, numbers: Sequence[float]) -> dict[str, Any]:
    """What the reference must know of the likelihood beside its tensors."""
    options = dict(zip(entry.options, numbers, strict=True))
    return {"options": options, "counts": entry.counts, "joint": entry.joint is not None}


def _floats(entry: Likelihood) -> str:
    return "".join(f"float {name}, " for name in entry.options)


def _define_nll(entry: Likelihood) -> OnePassOperator:
    count, last = len(entry.parameters), len(entry.parameters) + len(entry.options)

    def fake(*args: Any) -> tuple[Tensor, ...]:
        parameters, x, asked = args[:count], args[count], args[-1]
        nll = x.new_empty(x.shape[:1], dtype=reference.sum_dtype(*parameters))
        return (nll, *empty_gradients(parameters, asked, x))

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        x, *numbers, weight, mask, asked = args[count:]
        form = _read_by(entry, numbers)

        def value(*parameters: Tensor) -> tuple[Tensor, Tensor]:
            nll = reference.nll(entry.elementwise, parameters, x, weight=weight, mask=mask, **form)
            return nll, nll.detach()

        nll, gradients = differentiate(value, args[:count], asked, x)
        return (nll, *gradients)

    inputs = ", ".join(f"Tensor {name}" for name in entry.parameters)
    outputs = ", ".join(f"Tensor d{name}" for name in entry.parameters)
    overload = define(
        f"{entry.name}_nll({inputs}, Tensor x, {_floats(entry)}Tensor? weight, Tensor? mask, int asked) "
        f"-> (Tensor nll, {outputs})",
        fake,
        recording(kernel),
    )
    return one_pass(overload, 1, tuple(range(count)), rows=count, weight=last + 1, likelihood=entry)


def _define_elbo(entry: Likelihood) -> OnePassOperator:
    count, mu = len(entry.parameters), len(entry.parameters) + 1 + len(entry.options)

    def split(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Tensor, tuple[Any, ...], tuple[Any, ...]]:
        return (*args[:count], *args[mu : mu + 4]), args[count], args[count + 1 : mu], args[mu + 4 :]

    def fake(*args: Any) -> tuple[Tensor, ...]:
        tensors, x, _, (*_, reduce, asked) = split(args)
        nll = x.new_empty(x.shape[:1], dtype=reference.sum_dtype(*tensors[:count]))
        kl = x.new_empty(x.shape[:1], dtype=reference.sum_dtype(*(t for t in tensors[count:] if t is not None)))
        loss = x.new_empty(() if reduce else x.shape[:1], dtype=reference.sum_dtype(nll, kl))
        return (loss, nll, kl, *empty_gradients(tensors, asked, tensors[count]))

    def kernel(*args: Any) -> tuple[Tensor, ...]:
        tensors, x, numbers, (weight, mask, beta_factor, beta, scale, reduce, asked) = split(args)
        form = _read_by(entry, numbers)

        def value(*leaves: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            *parameters, mu, logvar, prior_mu, prior_logvar = leaves
            terms = reference.elbo(
                entry.elementwise,
                parameters,
                x,
                mu,
                logvar,
                pair(prior_mu, prior_logvar),
                weight=weight,
                mask=mask,
                beta=beta if beta_factor is None else beta * beta_factor.to(reference.sum_dtype(beta_factor)),
                scale=scale,
                reduce=reduce,
                **form,
            )
            return terms[0], tuple(t.detach() for t in terms)

        values, gradients = differentiate(value, tensors, asked, tensors[count])
        return (*values, *gradients)

    recon = [f"recon_{name}" for name in entry.parameters]
    names = (*recon, *_LATENT)
    inputs = ", ".join(f"Tensor {name}" for name in recon)
    outputs = ", ".join(f"Tensor d{name}" for name in names)
    overload = define(
        f"elbo_{entry.name}({inputs}, Tensor x, {_floats(entry)}Tensor mu, Tensor logvar, "
        "Tensor? prior_mu, Tensor? prior_logvar, Tensor? weight, Tensor? mask, "
        "Tensor? beta_factor, float beta, float scale, bool reduce, int asked) "
        f"-> (Tensor loss, Tensor nll, Tensor kl, {outputs})",
        fake,
        recording(kernel),
    )
    positions = (*range(count), *range(mu, mu + 4))
    return one_pass(overload, 3, positions, rows=count, weight=mu + 4, reduce=mu + 9, likelihood=entry)


NLL = {name: _define_nll(entry) for name, entry in LIKELIHOODS.items()}
ELBO = {name: _define_elbo(entry) for name, entry in LIKELIHOODS.items()}
