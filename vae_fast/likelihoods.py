"""The registry of likelihoods: one entry a likelihood, read by the operators, the loss and the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_fast import reference


@dataclass(frozen=True)
class Likelihood:
    """A likelihood p(x | parameters) of independent observations.

    name: of its operators, `<name>_nll` and `elbo_<name>`.
    parameters: their names, in the operators' order; each broadcasts over rows and columns of x [B, D].
    defaults: values of the parameters after the first, where a loss is given the first alone.
    elementwise: (*parameters, x) -> -log p of each observation, in nats, plain PyTorch.
    mean: (*parameters) -> E[x], what a model shows as its reconstruction.
    support: (lowest, highest) value of x that has a likelihood.
    """

    name: str
    parameters: tuple[str, ...]
    defaults: tuple[float, ...]
    elementwise: Callable[..., Tensor]
    mean: Callable[..., Tensor]
    support: tuple[float, float]


def _first(mean: Tensor, *_: Tensor) -> Tensor:
    return mean


LIKELIHOODS = {
    entry.name: entry
    for entry in (
        Likelihood("bernoulli", ("logits",), (), reference.bernoulli, torch.sigmoid, (0.0, 1.0)),
        Likelihood("bernoulli_probs", ("probs",), (), reference.bernoulli_probs, _first, (0.0, 1.0)),
        Likelihood("gaussian", ("mean", "logvar"), (0.0,), reference.gaussian, _first, (-torch.inf, torch.inf)),
    )
}


def find(name: str, owner: str, names: Sequence[str] = ("bernoulli", "gaussian")) -> Likelihood:
    """The likelihood of that name. Raises ValueError, naming `owner`'s argument, for an unknown one."""
    if name not in names:
        raise ValueError(f"{owner}: likelihood must be one of {', '.join(names)}, got {name!r}")
    return LIKELIHOODS[name]
