"""The registry of likelihoods: one entry a likelihood, read by the operators, the loss and the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vae_fast import checks, reference

Options = Mapping[str, float | str]

# What was made of options, by likelihood: calls choose the same each time, and checks cost as much as a small kernel
_CHOSEN: dict[tuple[Any, ...], Options] = {}
MOST_KEPT = 256


def _exactly(value: Any) -> tuple[Any, ...]:
    """A key for an option: 1, 1.0 and True are equal, and not all of them are levels."""
    return (type(value), value, *map(type, value)) if isinstance(value, tuple) else (type(value), value)


@dataclass(frozen=True)
class Likelihood:
    """A likelihood p(x | parameters) of independent observations.

    name: of its operators, `<name>_nll` and `elbo_<name>`.
    parameters: their names, in the operators' order; each broadcasts over rows and columns of x [B, D].
    defaults: values of the last parameters, those that may be left out.
    options: numbers that choose a form of it, by name, with their defaults; keyword arguments of what follows.
    elementwise: (*parameters, x, **options) -> -log p of each observation, in nats, plain PyTorch.
    mean: (*parameters, **options) -> E[x], or what stands for it, which a model shows as its reconstruction.
    sample: (*parameters, generator, **options) -> a draw of x. Both of float32 or float64.
    support: (lowest, highest) value of x that has a likelihood.
    counts: x is a count, and bytes are the numbers that they are; else they are intensities, x/255.
    by_reference: options that no kernel has, by name: the reference computes what is asked for with one of them.
    of_x: (options, x) -> all options, as they are for such an x; None leaves them.
    per_row: the last parameter is one number a row, or one for all.
    joint: "classes" or "channels" where many parameters belong to one observation, along dimension 1: [B, C, ...]. x is
        [B, ...] or, of channels, [B, channels, ...].
    public: whether losses and models know it by its name.
    kind: what one number of x is: "intensity", "count", "level" or "class".
    """

    name: str
    parameters: tuple[str, ...]
    defaults: tuple[float, ...]
    elementwise: Callable[..., Tensor]
    mean: Callable[..., Tensor]
    sample: Callable[..., Tensor]
    support: tuple[float, float]
    options: Options = field(default_factory=dict)
    counts: bool = False
    by_reference: tuple[str, ...] = ()
    of_x: Callable[[Options, Tensor], Options] | None = None
    per_row: bool = False
    joint: str | None = None
    public: bool = True
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        levels = "level" if "levels" in self.options else "count" if self.counts else "intensity"
        object.__setattr__(self, "kind", "class" if self.joint == "classes" else levels)

    def chosen(self, owner: str, options: Mapping[str, Any]) -> Options:
        """A user's options as the reference and the operators have them: numbers, x_range as x_low and x_high, without
        compat=None. Raises TypeError or ValueError, naming `owner`, for an unknown name and for a bad value."""
        if torch.compiler.is_compiling():
            return self._checked(owner, options)
        key = (self.name, *options, *map(_exactly, options.values()))
        try:
            found = _CHOSEN.get(key)
        except TypeError:  # a list has no hash
            return self._checked(owner, options)
        if found is None:
            found = self._checked(owner, options)
            if len(_CHOSEN) < MOST_KEPT:
                _CHOSEN[key] = found
        return dict(found)

    def _checked(self, owner: str, options: Mapping[str, Any]) -> Options:
        known = [name for name in self.options if name not in ("x_low", "x_high")]
        known += ["x_range"] * ("x_low" in self.options) + list(self.by_reference)
        for name in options:
            if name not in known:
                there = f"the options {', '.join(known)}" if known else "no options"
                raise TypeError(f"{owner}: likelihood {self.name!r} has {there}, got {name!r}")
        return {key: value for name, given in options.items() for key, value in _option(owner, name, given).items()}

    def options_for(self, chosen: Options, x: Tensor) -> Options:
        """What was chosen, as it is for such an x."""
        return self.of_x(chosen, x) if self.of_x else chosen

    def form(self, chosen: Options, x: Tensor) -> tuple[Options, tuple[float, ...], bool]:
        """What was chosen, as it is for such an x; its values in the operators' order; whether only the reference can
        compute it."""
        if not self.options:
            return chosen, (), False
        chosen = self.options_for(chosen, x)
        return chosen, self.numbers(chosen), any(name in chosen for name in self.by_reference)

    def bounds(self, chosen: Options) -> tuple[float, float]:
        """The support, which options may shift."""
        return (float(chosen["x_low"]), float(chosen["x_high"])) if "x_low" in chosen else self.support

    def numbers(self, chosen: Options) -> tuple[float, ...]:
        """The options' values in the operators' order."""
        return tuple(float(chosen.get(name, value)) for name, value in self.options.items())


def _first(mean: Tensor, *_: Tensor) -> Tensor:
    return mean


def _bernoulli_sample(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.bernoulli(torch.sigmoid(logits), generator=generator)


def _probs_sample(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.bernoulli(probs, generator=generator)


def _gaussian_sample(mean: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    noise = torch.empty_like(mean).normal_(generator=generator)
    return mean + torch.exp(logvar / 2) * noise


def _laplace_sample(mean: Tensor, log_scale: Tensor, generator: torch.Generator | None = None) -> Tensor:
    a, b = (torch.empty_like(mean).exponential_(generator=generator) for _ in range(2))
    return mean + torch.exp(log_scale) * (a - b)


def _option(owner: str, name: str, value: Any) -> Options:
    """One option's value, checked."""
    if name == "levels":
        return {name: checks.levels(owner, value)}
    if name == "x_range":
        low, high = checks.x_range(owner, value)
        return {"x_low": low, "x_high": high}
    if name == "channels":
        checks.one_of(owner, name, value, (1, 3))
        return {name: float(value)}
    if name == "compat":
        if value is not None:
            checks.one_of(owner, name, value, tuple(reference.COMPATIBLE))
        return {} if value is None else {name: value}
    return {name: checks.flag(owner, name, value)}


def _levels_for(options: Options, x: Tensor) -> Options:
    """Integers are levels."""
    chosen = {"levels": 256.0, "x_low": -1.0, "x_high": 1.0, **options}
    return chosen if x.is_floating_point() else {**chosen, "x_low": 0.0, "x_high": float(chosen["levels"]) - 1}


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
            _probs_sample,
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
            "laplace",
            ("mean", "log_scale"),
            (0.0,),
            reference.laplace,
            _first,
            _laplace_sample,
            (-torch.inf, torch.inf),
        ),
        Likelihood(
            "continuous_bernoulli",
            ("logits",),
            (),
            reference.continuous_bernoulli,
            reference.continuous_bernoulli_mean,
            reference.continuous_bernoulli_sample,
            (0.0, 1.0),
        ),
        Likelihood(
            "discretized_logistic",
            ("mean", "log_scale"),
            (),
            reference.discretized_logistic,
            reference.discretized_logistic_mean,
            reference.discretized_logistic_sample,
            (-torch.inf, torch.inf),
            options={"levels": 256.0, "x_low": -1.0, "x_high": 1.0},
            counts=True,
            by_reference=("compat",),
            of_x=_levels_for,
        ),
        Likelihood(
            "categorical",
            ("logits",),
            (),
            reference.categorical,
            reference.categorical_mean,
            reference.categorical_sample,
            (0.0, torch.inf),
            counts=True,
            joint="classes",
        ),
        Likelihood(
            "discretized_logistic_mixture",
            ("parameters",),
            (),
            reference.discretized_logistic_mixture,
            reference.discretized_logistic_mixture_mean,
            reference.discretized_logistic_mixture_sample,
            (-torch.inf, torch.inf),
            options={"channels": 3.0, "levels": 256.0, "x_low": -1.0, "x_high": 1.0},
            counts=True,
            by_reference=("compat",),
            of_x=_levels_for,
            joint="channels",
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


def find(name: str, owner: str) -> Likelihood:
    """The likelihood of that name. Raises ValueError, naming `owner`'s argument, for an unknown one."""
    names = [entry.name for entry in LIKELIHOODS.values() if entry.public]
    if name not in names:
        raise ValueError(f"{owner}: likelihood must be one of {', '.join(names)}, got {name!r}")
    return LIKELIHOODS[name]
