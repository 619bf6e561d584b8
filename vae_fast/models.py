"""A VAE around a user's encoder and decoder."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast import checks, functional
from vae_fast.likelihoods import Likelihood
from vae_fast.losses import ELBOLoss, Reconstruction
from vae_fast.operands import prior_rows


class VAEOutput(NamedTuple):
    """loss: 0-dim, differentiable; nll, kl: [B], detached, nats; recon: the decoder's output; z, mu, logvar: [B, Z]."""

    loss: Tensor
    nll: Tensor
    kl: Tensor
    recon: Reconstruction
    z: Tensor
    mu: Tensor
    logvar: Tensor


class VAE(nn.Module):
    """A variational autoencoder with a Gaussian posterior and prior (Kingma & Welling 2014).

    Arguments:
        encoder: x [B, ...] -> (mu, logvar) of q(z|x), or one tensor [B, 2 Z] that holds both, mu first.
        decoder: z [B, Z] -> parameters of p(x|z), as `ELBOLoss` takes them: logits for "bernoulli"; the mean or
            (mean, logvar) for "gaussian"; [B, C, ...] for "categorical" and "discretized_logistic_mixture".
        likelihood, beta, options: as for `ELBOLoss`, which is `objective`; `beta` may be assigned here too. A
            prior=(mu, logvar) among them is p(z) in everything here, in `sample` and `log_evidence` too; without it
            p(z) = N(0, I).
        latent_dim: Z; needed by `sample` before anything was encoded.
        library: for counts. Given, the decoder's first parameter is of proportions, and each row of x multiplies it by
            its total (scVI's observed library size); this number is the total where there is no x, as in `sample`.

    Encoder and decoder are modules, or functions, whose parameters, if any, aren't the model's: `sample` hands such a
    decoder float32 on the CPU.

    Data x is floating point, bool, or uint8 (an intensity): the encoder sees it as x/255, the loss reads the bytes.
    The encoder is given x in the dtype of its parameters (under autocast floats as they come), the loss x as it is.
    Of a likelihood of counts, levels or classes x may be int32, int64 and uint16 too: the encoder sees levels divided
    by the highest, counts and classes as the numbers that they are. A mask is the loss's: the encoder sees what it
    masks, so that x must have a number there, `torch.where(mask, x, 0)` for one.
    """

    def __init__(
        self,
        encoder: Callable[..., Any],
        decoder: Callable[..., Any],
        *,
        likelihood: str = "bernoulli",
        beta: float | Tensor = 1.0,
        latent_dim: int | None = None,
        library: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if not callable(part) or isinstance(part, type):
                got = part.__name__ if isinstance(part, type) else type(part).__name__
                raise TypeError(f"VAE: {name} must be a module or a function, got {got}")
        self.encoder, self.decoder, self.latent_dim = encoder, decoder, latent_dim
        self._expected_latent_dim = latent_dim
        self.objective = ELBOLoss(likelihood, beta=beta, **options)
        if library is not None:
            _check_library(self.objective.entry, library)
        self.library = library

    @property
    def beta(self) -> float | Tensor:
        """The weight of the KL."""
        return self.objective.beta

    @beta.setter
    def beta(self, value: float | Tensor) -> None:
        self.objective.beta = value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "beta":  # the property: nn.Module would look first whether it is a buffer, parameter or module
            checks.beta("VAE", value)
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(
        self,
        x: Tensor,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> VAEOutput:
        """Encodes x, samples z, decodes, and returns the loss with everything on the way to it.

        weight, mask: as for `ELBOLoss`. seed, generator: of the noise, as for `reparameterize`.
        """
        mu, logvar = self.encode(x)
        z = functional.reparameterize(mu, logvar, seed=seed, generator=generator)
        recon = self._decoded(z, self._library_of(x, mask))
        terms = self.objective.terms(recon, x, mu, logvar, weight=weight, mask=mask, z=z)
        return VAEOutput(*terms, recon, z, mu, logvar)

    def loss(self, x: Tensor, **options: Any) -> Tensor:
        """The negative ELBO in nats, averaged over the batch. options: as for `forward`."""
        return self(x, **options).loss

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of q(z|x), [B, Z] each."""
        mu, logvar = _mu_and_logvar(self.encoder(self._as_input(x)))
        if mu.dim() != 2:
            raise ValueError(f"VAE: mu must have shape [B, Z], got {list(mu.shape)}")
        expected = self._expected_latent_dim
        if expected is None:
            self.latent_dim = mu.shape[1]
        elif mu.shape[1] != expected:
            raise ValueError(f"VAE: mu must have shape [B, {expected}], as latent_dim says, got {list(mu.shape)}")
        return mu, logvar

    def decode(
        self,
        z: Tensor,
        *,
        library: float | Tensor | None = None,
        mean: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of p(x|z), probabilities for "bernoulli"; a draw of x if not mean. float32, or float64 of a float64
        decoder, whatever it computes in; classes int64.

        For "categorical" the likeliest class stands for the mean; of "discretized_logistic_mixture" with three
        channels the means of green and blue are approximate (`discretized_logistic_mixture_mean`).

        library: total counts, not negative, a number or one a row; by default the model's.
        """
        return self._shown(self.likelihood_parameters(z, library=library), mean, generator)

    def _shown(self, parameters: tuple[Tensor, ...], mean: bool, generator: torch.Generator | None) -> Tensor:
        """The mean or a draw of x, of x's shape."""
        entry, options = self.objective.entry, self.objective.options
        first, *rest = parameters
        shape = first.shape[2:]
        if entry.joint:
            first = first.flatten(2) if shape else first.unsqueeze(2)
        if mean:
            x = entry.mean(first, *rest, **options)
        else:
            x = entry.sample(first, *rest, generator=generator, **options)
        return x.reshape(*x.shape[:-1], *shape) if entry.joint else x

    def likelihood_parameters(self, z: Tensor, *, library: float | Tensor | None = None) -> tuple[Tensor, ...]:
        """Every parameter of p(x|z), those that the decoder leaves out too, in float32 or float64. `library`: as for
        `decode`."""
        if library is None:
            return self._every_parameter(z, self.library)
        if self.library is None:
            raise ValueError("VAE: library is for a model of counts made with VAE(..., library=)")
        return self._every_parameter(z, _checked_library(library, z))

    def reconstruction_parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        """`likelihood_parameters` at z = mu(x), of counts with each row's total."""
        return self._every_parameter(self.encode(x)[0], self._library_of(x))

    def _every_parameter(self, z: Tensor, library: float | Tensor | None) -> tuple[Tensor, ...]:
        parameters = self.objective.parameters_of(self._decoded(z, library))
        tensors = (p if isinstance(p, Tensor) else z.new_tensor(p) for p in parameters)
        return tuple(p.to(torch.promote_types(p.dtype, torch.float32)) for p in tensors)

    def reconstruct(self, x: Tensor, *, mean: bool = True, generator: torch.Generator | None = None) -> Tensor:
        """The mean of p(x|z) at z = mu(x), or a draw of x: as `decode` has them."""
        return self._shown(self.reconstruction_parameters(x), mean, generator)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        library: float | Tensor | None = None,
        mean: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The means of p(x|z) for n draws of z from the prior, or draws of x, without gradients. `library`: as for
        `decode`."""
        if self.latent_dim is None:
            raise ValueError(
                "VAE.sample: the latent dimension is unknown; pass VAE(..., latent_dim=) or encode a batch first"
            )
        parameter = next(_parameters(self.decoder), torch.empty(0))
        z = torch.randn(n, self.latent_dim, generator=generator, device=parameter.device, dtype=parameter.dtype)
        if prior := prior_rows("VAE.sample", self.objective.prior, z):
            z = (prior[0] + torch.exp(prior[1] / 2) * z).to(z.dtype)
        return self.decode(z, library=library, mean=mean, generator=generator)

    @torch.no_grad()
    def log_evidence(
        self, x: Tensor, num_samples: int = 100, *, chunk: int = 10, generator: torch.Generator | None = None
    ) -> Tensor:
        """The importance-weighted bound of log p(x), [B], in nats, from num_samples draws of q(z|x).

        `chunk`: how many draws are decoded at once. `generator`: of the noise, as for `reparameterize`.
        """
        for name, count in (("num_samples", num_samples), ("chunk", chunk)):
            if count < 1:
                raise ValueError(f"VAE.log_evidence: {name} must be positive, got {count}")
        posterior = self.encode(x)
        counts = [min(chunk, num_samples - start) for start in range(0, num_samples, chunk)]
        log_weight = torch.cat([self._log_weights(x, *posterior, count, generator) for count in counts])
        return functional.log_evidence(log_weight, torch.zeros_like(log_weight), torch.zeros_like(log_weight))

    def _log_weights(
        self, x: Tensor, mu: Tensor, logvar: Tensor, count: int, generator: torch.Generator | None
    ) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) for `count` draws of z, [count, B]."""
        if prior := prior_rows("VAE.log_evidence", self.objective.prior, mu):
            prior = prior[0].expand(mu.shape).repeat(count, 1), prior[1].expand(mu.shape).repeat(count, 1)
        mu, logvar = mu.repeat(count, 1), logvar.repeat(count, 1)
        z = functional.reparameterize(mu, logvar, generator=generator)
        x = x.repeat(count, *[1] * (x.dim() - 1))
        recon = self._decoded(z, self._library_of(x))
        nll = self.objective.nll(recon, x)
        return -(nll + functional.monte_carlo_kl(z, mu, logvar, prior)).reshape(count, -1)

    def _library_of(self, x: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """The total of each row of x where it counts, for a model of proportions."""
        return None if self.library is None else _totals(x, mask)

    def _decoded(self, z: Tensor, library: float | Tensor | None) -> Reconstruction:
        """The decoder's parameters, and with them the total counts if the model has proportions."""
        recon = self.decoder(z)
        if library is None or not isinstance(recon, Tensor | tuple | list):
            return recon
        total = torch.as_tensor(library, dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)
        if not isinstance(recon, Tensor):
            if self.objective.entry.per_row:
                return (*recon, total.reshape(-1, 1).expand(len(z), 1))
            if len(recon) != 1:
                return tuple(recon)  # which the loss refuses
            recon = recon[0]
        total = total.reshape(-1, *[1] * (recon.dim() - 1))
        return recon + total.log() if self.objective.options.get("log_rate", 1) else recon * total

    def _as_input(self, x: Tensor) -> Tensor:
        """x as the encoder takes it."""
        own = next((p.dtype for p in _parameters(self.encoder) if p.is_floating_point()), None)
        if x.is_floating_point():
            casts = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64  # which autocast leaves
            return x if own is None or casts else x.to(own)
        dtype, entry = own or torch.float32, self.objective.entry
        if "levels" in entry.options:
            return x.to(dtype) / (float(self.objective.options.get("levels", entry.options["levels"])) - 1)
        return x.to(dtype) / 255 if x.dtype == torch.uint8 and not entry.counts else x.to(dtype)


def _parameters(part: Callable[..., Any]) -> Iterator[nn.Parameter]:
    """Those of an encoder or decoder, of which a function has none."""
    return part.parameters() if isinstance(part, nn.Module) else iter(())


def _mu_and_logvar(output: Any) -> tuple[Tensor, Tensor]:
    """An encoder's output as two tensors."""
    if isinstance(output, Tensor) and output.dim() > 1 and output.shape[1] % 2 == 0:
        mu, logvar = output.chunk(2, dim=1)
        return mu, logvar
    if isinstance(output, tuple | list) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
        return output[0], output[1]
    expected = "VAE: the encoder must return (mu, logvar) or one tensor [B, 2 Z]"
    if isinstance(output, Tensor):
        raise ValueError(f"{expected}, got shape {list(output.shape)}")
    names = f"({', '.join(type(part).__name__ for part in output)})" if isinstance(output, tuple | list) else ""
    raise TypeError(f"{expected}, got {names or type(output).__name__}")


def _checked_library(library: float | Tensor, z: Tensor) -> Tensor:
    """A user's total counts, one or one a row of z."""
    given = library if isinstance(library, Tensor) else torch.tensor(checks.number("VAE", "library", library))
    checks.one_a_row("VAE", "library", given, z)
    wrong = given[~((given >= 0) & (given < torch.inf))]
    if wrong.numel():
        raise ValueError(f"VAE: library must be finite and not negative, got {wrong.flatten()[0].item():g}")
    return given


def _check_library(entry: Likelihood, library: float) -> None:
    if entry.parameters[-1] != "library" and entry.parameters != ("rate",):
        raise ValueError(f"VAE: library is for likelihoods of counts, got {entry.name!r}")
    if not checks.is_number(library):
        raise TypeError(f"VAE: library must be a number, got {type(library).__name__}")
    if not 0 < library < float("inf"):
        raise ValueError(f"VAE: library must be positive, got {library:g}")


def _totals(x: Tensor, mask: Tensor | None) -> Tensor:
    """The sum of each row of x where it counts, [B], float32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float32
    x = x if mask is None else torch.where(checks.element_mask("VAE", mask, x), x, 0)
    return x.flatten(1).sum(1, dtype=dtype)
