"""Other libraries' own code for what the benchmarks compare, called and not written again.

torch.distributions is always there; pythae, Pyro and diffusers where the extra `peers` is installed. Distributions are
built without argument checks, which cost them a pass over the data. Each function: name -> `Opponent`.
"""

import importlib
import math
import types
import warnings
from typing import Any

import torch
from harness import Opponent
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

LOG_TWO_PI = math.log(2 * math.pi)


def installed(name: str) -> Any:
    """A module, or None where it, or what it needs, isn't installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


pyro = installed("pyro.distributions")
pythae = installed("pythae.models")
diffusers = installed("diffusers.models.autoencoders.vae")


def wide(t: Tensor) -> Tensor:
    """float32, from half precision and from bytes, as a training script converts them."""
    return t.float() / 255 if t.dtype == torch.uint8 else t.float()


def standard_normal(like: Tensor) -> Normal:
    return Normal(torch.zeros((), device=like.device), torch.ones((), device=like.device), validate_args=False)


def likelihood(of: Any, *parameters: Tensor) -> Any:
    """torch's or Pyro's distribution of x. of: its class; parameters: logits, mean, or mean and logvar."""
    if of.__name__ == "Bernoulli":
        return of(logits=wide(parameters[0]), validate_args=False)
    mean = wide(parameters[0])
    scale = torch.exp(0.5 * wide(parameters[1])) if len(parameters) > 1 else torch.ones((), device=mean.device)
    return of(mean, scale, validate_args=False)


def nll(name: str) -> dict[str, Opponent]:
    """Sums of -log p(x); name: Bernoulli or Normal."""

    def of_torch(*operands: Tensor) -> Tensor:
        *parameters, x = operands
        return -likelihood({"Bernoulli": Bernoulli, "Normal": Normal}[name], *parameters).log_prob(wide(x)).sum()

    def of_pyro(*operands: Tensor) -> Tensor:
        *parameters, x = operands
        return -likelihood(getattr(pyro, name), *parameters).to_event(1).log_prob(wide(x)).sum()

    found = {"torch.distributions": Opponent(of_torch)}
    return found | ({"pyro": Opponent(of_pyro)} if pyro else {})


def elbo(name: str, learned: bool = False) -> dict[str, Opponent]:
    """(nll + KL) / B. learned: a variance for each observation, which pythae has not."""

    def with_kl(summed: Any) -> Any:
        def loss(*operands: Tensor) -> Tensor:
            *parameters, mu, logvar, x = operands
            q = Normal(wide(mu), torch.exp(0.5 * wide(logvar)), validate_args=False)
            return (summed(*parameters, x) + kl_divergence(q, standard_normal(mu)).sum()) / x.shape[0]

        return loss

    found = {key: Opponent(with_kl(opponent.function)) for key, opponent in nll(name).items()}
    if pythae and not learned:
        found["pythae"] = of_pythae(name)
    return found


def of_pythae(name: str) -> Opponent:
    """VAE.loss_function. Its BCE takes probabilities: a decoder there ends in a sigmoid. Its Gaussian leaves out
    log 2 pi."""
    bernoulli = name == "Bernoulli"
    config = pythae.VAEConfig(reconstruction_loss="bce" if bernoulli else "mse")
    model = types.SimpleNamespace(model_config=config)  # all that the loss looks at

    def loss(parameter: Tensor, mu: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
        recon = torch.sigmoid(wide(parameter)) if bernoulli else wide(parameter)
        total: Tensor = pythae.VAE.loss_function(model, recon, wide(x), mu, logvar, None)[0]
        return total

    return Opponent(loss, shift=lambda shape: 0.0 if bernoulli else 0.5 * shape[1] * LOG_TWO_PI)


def latent() -> dict[str, Opponent]:
    """z ~ q and KL(q || N(0, 1)), a number a row."""

    def of_torch(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        q = Normal(wide(mu), torch.exp(0.5 * wide(logvar)), validate_args=False)
        return q.rsample().to(mu.dtype), kl_divergence(q, standard_normal(mu)).sum(1)

    def of_pyro(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        q = pyro.Normal(wide(mu), torch.exp(0.5 * wide(logvar)), validate_args=False).to_event(1)
        prior = pyro.Normal(mu.new_zeros((), dtype=torch.float32), 1.0, validate_args=False)
        return q.rsample().to(mu.dtype), kl_divergence(q, prior.expand(mu.shape).to_event(1))

    def of_diffusers(moments: Tensor) -> tuple[Tensor, Tensor]:
        q = diffusers.DiagonalGaussianDistribution(wide(moments))
        return q.sample().flatten(1).to(moments.dtype), q.kl()

    def as_moments(leaves: list[Tensor]) -> list[Tensor]:
        """mu and logvar in one tensor of four dimensions, as an encoder there leaves them."""
        return [torch.cat(leaves, 1)[:, :, None, None]]

    found = {"torch.distributions": Opponent(of_torch)}
    found |= {"pyro": Opponent(of_pyro)} if pyro else {}
    return found | ({"diffusers": Opponent(of_diffusers, arrange=as_moments)} if diffusers else {})
