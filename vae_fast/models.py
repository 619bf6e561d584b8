"""A VAE around a user's encoder and decoder."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast import checks, functional
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
        decoder: z [B, Z] -> parameters of p(x|z): logits for "bernoulli"; the mean or (mean, logvar) for "gaussian".
        likelihood, beta, options: as for `ELBOLoss`.
        latent_dim: Z; needed by `sample` before anything was encoded.

    Data x is floating point, bool, or uint8 (an intensity): the encoder sees it as x/255, the loss reads the bytes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        likelihood: str = "bernoulli",
        beta: float | Tensor = 1.0,
        latent_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.latent_dim = encoder, decoder, latent_dim
        self.objective = ELBOLoss(likelihood, beta=beta, **options)

    def forward(self, x: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None) -> VAEOutput:
        """Encodes x, samples z, decodes, and returns the loss with everything on the way to it."""
        mu, logvar = self.encode(x)
        z = functional.reparameterize(mu, logvar)
        recon = self.decoder(z)
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

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z): probabilities for "bernoulli"."""
        recon = self.decoder(z)
        parameters = (recon,) if isinstance(recon, Tensor) else recon
        return self.objective.entry.mean(*parameters)

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(x|z) at z = mu(x)."""
        return self.decode(self.encode(x)[0])

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The means of p(x|z) for n draws of z ~ N(0, I)."""
        if self.latent_dim is None:
            raise ValueError(
                "VAE.sample: the latent dimension is unknown; pass VAE(..., latent_dim=) or encode a batch first"
            )
        parameter = next(self.decoder.parameters(), torch.empty(0))
        z = torch.randn(n, self.latent_dim, generator=generator, device=parameter.device, dtype=parameter.dtype)
        return self.decode(z)

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
        terms = self._terms(self.decoder(z), repeated, mu, logvar, None, None)
        return -(terms.nll + functional.monte_carlo_kl(z, mu, logvar)).reshape(count, -1)

    def _terms(
        self, recon: Reconstruction, x: Tensor, mu: Tensor, logvar: Tensor, weight: Tensor | None, mask: Tensor | None
    ) -> ELBOTerms:
        first = recon if isinstance(recon, Tensor) else recon[0]
        if first.shape != x.shape and first.numel() == x.numel() and len(first) == len(x):
            if mask is not None:
                mask = checks.element_mask("VAE", mask, x).reshape(first.shape)
            x = x.reshape(first.shape)
        return self.objective.terms(recon, x, mu, logvar, weight=weight, mask=mask)

    def _as_input(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x
        dtype = next((p.dtype for p in self.encoder.parameters()), torch.float32)
        return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)
