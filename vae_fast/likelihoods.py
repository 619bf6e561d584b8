"""The registry of likelihoods: one entry a likelihood, read by the operators, the loss and the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vae_fast import reference


@dataclass(frozen=True)
class Likelihood:
    """A likelihood p(x | parameters) of independent observations.

    name: of its operators, `<name>_nll` and `elbo_<name>`.
    parameters: their names, in the operators' order; each broadcasts over rows and columns of x [B, D].
    defaults: values of the last parameters, those that may be left out.
    options: numbers that choose a form of it, by name, with their defaults; keyword arguments of what follows.
    elementwise: (*parameters, x, **options) -> -log p of each observation, in nats, plain PyTorch.
    mean: (*parameters, **options) -> E[x], what a model shows as its reconstruction.
    sample: (*parameters, generator, **options) -> a draw of x.
    support: (lowest, highest) value of x that has a likelihood.
    counts: x is a count, and bytes are the numbers that they are; else they are intensities, x/255.
    per_row: the last parameter is one number a row, or one for all.
    public: whether losses and models know it by its name.
    """

    name: str
    parameters: tuple[str, ...]
    defaults: tuple[float, ...]
    elementwise: Callable[..., Tensor]
    mean: Callable[..., Tensor]
    sample: Callable[..., Tensor]
    support: tuple[float, float]
    options: Mapping[str, float] = field(default_factory=dict)
    counts: bool = False
    per_row: bool = False
    public: bool = True

    def numbers(self, chosen: Mapping[str, float]) -> tuple[float, ...]:
        """The options' values in the operators' order."""
        return tuple(float(chosen.get(name, value)) for name, value in self.options.items())


def _first(mean: Tensor, *_: Tensor) -> Tensor:
    return mean


def _bernoulli_sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.bernoulli(torch.sigmoid(logits), generator=generator)


def _gaussian_sample(mean: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    noise = torch.empty_like(mean).normal_(generator=generator)
    return mean + torch.exp(logvar / 2) * noise


LIKELIHOODS = {
    entry.name: entry
    for entry in (
        Likelihood("bernoulli", ("logits",), (), reference.bernoulli, torch.sigmoid, _bernoulli_sample, (0.0, 1.0)),
        Likelihood(
            "bernoulli_probs",
            ("probs",),
            (),
            reference.bernoulli_probs,
            _first,
            lambda probs, generator=None: torch.bernoulli(probs, generator=generator),
            (0.0, 1.0),
            public=False,
        ),
        Likelihood(
            "gaussian",
            ("mean", "logvar"),
            (0.0,),
            reference.gaussian,
            _first,
            _gaussian_sample,
            (-torch.inf, torch.inf),
        ),
        Likelihood(
            "poisson",
            ("rate",),
            (),
            reference.poisson,
            reference.poisson_mean,
            reference.poisson_sample,
            (0.0, torch.inf),
            {"log_rate": 1.0},
            counts=True,
        ),
        Likelihood(
            "negative_binomial",
            ("mu", "theta", "library"),
            (1.0,),
            reference.negative_binomial,
            reference.negative_binomial_mean,
            reference.negative_binomial_sample,
            (0.0, torch.inf),
            {"log_mu": 0.0, "log_theta": 0.0},
            counts=True,
            per_row=True,
        ),
        Likelihood(
            "zero_inflated_negative_binomial",
            ("mu", "theta", "pi", "library"),
            (1.0,),
            reference.zero_inflated_negative_binomial,
            reference.zero_inflated_negative_binomial_mean,
            reference.zero_inflated_negative_binomial_sample,
            (0.0, torch.inf),
            {"log_mu": 0.0, "log_theta": 0.0},
            counts=True,
            per_row=True,
        ),
    )
}


def find(name: str, owner: str, options: Mapping[str, float] | None = None) -> Likelihood:
    """The likelihood of that name. Raises ValueError or TypeError, naming `owner`'s argument, for an unknown name or
    option."""
    names = [entry.name for entry in LIKELIHOODS.values() if entry.public]
    if name not in names:
        raise ValueError(f"{owner}: likelihood must be one of {', '.join(names)}, got {name!r}")
    entry = LIKELIHOODS[name]
    for option in options or {}:
        if option not in entry.options:
            known = f"the options {', '.join(entry.options)}" if entry.options else "no options"
            raise TypeError(f"{owner}: likelihood {name!r} has {known}, got {option!r}")
    return entry
