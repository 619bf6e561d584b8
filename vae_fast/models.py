"""A VAE around a user's encoder and decoder."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast import checks, functional
from vae_fast.likelihoods import Likelihood
from vae_fast.losses import ELBOLoss, ELBOTerms, Reconstruction


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
    """A variational autoencoder with a Gaussian posterior and a standard normal prior (Kingma & Welling 2014).

    Arguments:
        encoder: x [B, ...] -> (mu, logvar) of q(z|x), or one tensor [B, 2 Z] that holds both, mu first.
        decoder: z [B, Z] -> parameters of p(x|z), as `ELBOLoss` takes them: logits for "bernoulli"; the mean or
            (mean, logvar) for "gaussian"; [B, C, ...] for "categorical" and "discretized_logistic_mixture".
        likelihood, beta, options: as for `ELBOLoss`.
        latent_dim: Z; needed by `sample` before anything was encoded.
        library: for counts. Given, the decoder's first parameter is of proportions, and each row of x multiplies it by
            its total (scVI's observed library size); this number is the total where there is no x, as in `sample`.

    Data x is floating point, bool, or uint8 (an intensity): the encoder sees it as x/255, the loss reads the bytes.
    Of a likelihood of counts, levels or classes x may be int32, int64 and uint16 too: the encoder sees levels divided
    by the highest, counts and classes as the numbers that they are.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: str = "bernoulli",
        beta: float | Tensor = 1.0,
        latent_dim: int | None = None,
        library: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.latent_dim = encoder, decoder, latent_dim
        self.objective = ELBOLoss(likelihood, beta=beta, **options)
        if library is not None:
            _check_library(self.objective.entry, library)
        self.library = library

    def forward(self, x: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None) -> VAEOutput:
        """Encodes x, samples z, decodes, and returns the loss with everything on the way to it."""
        mu, logvar = self.encode(x)
        z = functional.reparameterize(mu, logvar)
        recon = self._decoded(z, None if self.library is None else _totals(x, mask))
        terms = self._terms(recon, x, mu, logvar, weight, mask)
        return VAEOutput(*terms, recon, z, mu, logvar)

    def loss(self, x: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The negative ELBO in nats, averaged over the batch."""
        return self(x, weight=weight, mask=mask).loss

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of q(z|x), [B, Z] each."""
        output = self.encoder(self._as_input(x))
        if isinstance(output, Tensor):
            if output.dim() < 2 or output.shape[1] % 2:
                raise ValueError(
                    f"VAE: the encoder must return (mu, logvar) or one tensor [B, 2 Z], got shape {list(output.shape)}"
                )
            output = output.chunk(2, dim=1)
        mu, logvar = output
        if mu.dim() != 2:
            raise ValueError(f"VAE: mu must have shape [B, Z], got {list(mu.shape)}")
        self.latent_dim = mu.shape[1]
        return mu, logvar

    def decode(
        self,
        z: Tensor,
        *,
        library: float | Tensor | None = None,
        mean: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean of p(x|z), probabilities for "bernoulli", for "categorical" the likeliest; a draw of x if not mean.

        library: total counts, a number or one a row; by default the model's.
        """
        entry, options = self.objective.entry, self.objective.options
        first, *rest = self.likelihood_parameters(z, library=library)
        shape = first.shape[2:]
        if entry.joint:
            first = first.flatten(2) if shape else first.unsqueeze(2)
        if mean:
            x = entry.mean(first, *rest, **options)
        else:
            x = entry.sample(first, *rest, generator=generator, **options)
        return x.reshape(*x.shape[:-1], *shape) if entry.joint else x

    def likelihood_parameters(self, z: Tensor, *, library: float | Tensor | None = None) -> tuple[Tensor, ...]:
        """Every parameter of p(x|z), those that the decoder leaves out too. `library`: as for `decode`."""
        if library is not None and self.library is None:
            raise ValueError("VAE: library is for a model of counts made with VAE(..., library=)")
        recon = self._decoded(z, self.library if library is None else library)
        parameters = self.objective.parameters_of(recon)
        return tuple(p if isinstance(p, Tensor) else z.new_tensor(p) for p in parameters)

    def reconstruct(self, x: Tensor, *, mean: bool = True, generator: torch.Generator | None = None) -> Tensor:
        """The mean of p(x|z) at z = mu(x), or a draw of x."""
        library = None if self.library is None else _totals(x, None)
        return self.decode(self.encode(x)[0], library=library, mean=mean, generator=generator)

    def sample(
        self,
        n: int,
        *,
        library: float | Tensor | None = None,
        mean: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The means of p(x|z) for n draws of z ~ N(0, I), or draws of x. `library`: as for `decode`."""
        if self.latent_dim is None:
            raise ValueError(
                "VAE.sample: the latent dimension is unknown; pass VAE(..., latent_dim=) or encode a batch first"
            )
        parameter = next(self.decoder.parameters(), torch.empty(0))
        z = torch.randn(n, self.latent_dim, generator=generator, device=parameter.device, dtype=parameter.dtype)
        return self.decode(z, library=library, mean=mean, generator=generator)

    @torch.no_grad()
    def log_evidence(self, x: Tensor, num_samples: int = 100, *, chunk: int = 10) -> Tensor:
        """The importance-weighted bound of log p(x), [B], in nats, from num_samples draws of q(z|x).

        `chunk`: how many draws are decoded at once.
        """
        for name, count in (("num_samples", num_samples), ("chunk", chunk)):
            if count < 1:
                raise ValueError(f"VAE.log_evidence: {name} must be positive, got {count}")
        mu, logvar = self.encode(x)
        weights = []
        for start in range(0, num_samples, chunk):
            count = min(chunk, num_samples - start)
            weights.append(self._log_weights(x, mu, logvar, count))
        log_weight = torch.cat(weights)
        return functional.log_evidence(log_weight, torch.zeros_like(log_weight), torch.zeros_like(log_weight))

    def _log_weights(self, x: Tensor, mu: Tensor, logvar: Tensor, count: int) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x) for `count` draws of z, [count, B]."""
        mu, logvar = mu.repeat(count, 1), logvar.repeat(count, 1)
        z = functional.reparameterize(mu, logvar)
        repeated = x.repeat(count, *[1] * (x.dim() - 1))
        recon = self._decoded(z, None if self.library is None else _totals(repeated, None))
        terms = self._terms(recon, repeated, mu, logvar, None, None)
        return -(terms.nll + functional.monte_carlo_kl(z, mu, logvar)).reshape(count, -1)

    def _decoded(self, z: Tensor, library: float | Tensor | None) -> Reconstruction:
        """The decoder's parameters, and with them the total counts if the model has proportions."""
        recon = self.decoder(z)
        if library is None:
            return recon
        total = torch.as_tensor(library, dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)
        total = total.reshape(-1, 1)
        if not isinstance(recon, Tensor):
            return (*recon, total.expand(len(z), 1))
        return recon + total.log() if self.objective.options.get("log_rate", 1) else recon * total

    def _terms(
        self, recon: Reconstruction, x: Tensor, mu: Tensor, logvar: Tensor, weight: Tensor | None, mask: Tensor | None
    ) -> ELBOTerms:
        first = recon if isinstance(recon, Tensor) else recon[0]
        alike = first.numel() == x.numel() and len(first) == len(x) and not self.objective.entry.joint
        if first.shape != x.shape and alike:
            if mask is not None:
                mask = checks.element_mask("VAE", mask, x).reshape(first.shape)
            x = x.reshape(first.shape)
        return self.objective.terms(recon, x, mu, logvar, weight=weight, mask=mask)

    def _as_input(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x
        dtype = next((p.dtype for p in self.encoder.parameters()), torch.float32)
        entry = self.objective.entry
        if "levels" in entry.options:
            return x.to(dtype) / (float(self.objective.options.get("levels", entry.options["levels"])) - 1)
        return x.to(dtype) / 255 if x.dtype == torch.uint8 and not entry.counts else x.to(dtype)


def _check_library(entry: Likelihood, library: float) -> None:
    if entry.parameters[-1] != "library" and entry.parameters != ("rate",):
        raise ValueError(f"VAE: library is for likelihoods of counts, got {entry.name!r}")
    if not 0 < library < float("inf"):
        raise ValueError(f"VAE: library must be positive, got {library:g}")


def _totals(x: Tensor, mask: Tensor | None) -> Tensor:
    """The sum of each row of x where it counts, [B], float32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.float32
    x = x if mask is None else torch.where(checks.element_mask("VAE", mask, x), x, 0)
    return x.flatten(1).sum(1, dtype=dtype)
