"""The negative ELBO as a loss module."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_fast import checks, functional
from vae_fast.likelihoods import LIKELIHOODS, find

REDUCTIONS = ("mean", "sum", "none", "mean_all")
Reconstruction = Tensor | tuple[Tensor, ...]


class ELBOTerms(NamedTuple):
    """loss: 0-dim, or [B] with reduction="none"; differentiable. nll, kl: [B], times weight; detached, for logging."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


class ELBOLoss(nn.Module):
    """The negative ELBO, -E_q[log p(x|z)] + beta KL(q(z|x) || p(z)), in nats, with its gradients from one pass.

    Arguments:
        likelihood: "bernoulli" (recon: logits) or "gaussian" (recon: the mean, with unit variance, or (mean, logvar)).
        beta: weight of the KL (Higgins et al. 2017), a number or a 0-dim tensor. Assign `loss.beta` to anneal it; under
            torch.compile or CUDA graphs make it a tensor and change that in place. beta = 0 leaves the KL out.
        reduction: "mean": summed over features, averaged over the batch; "sum"; "none": [B]; "mean_all": averaged over
            batch and features, nats per dimension of x (KL too). An empty batch gives 0.
        from_logits: False if recon holds probabilities (see `bernoulli_nll` for what they lose).
        kl: "analytic": the closed form; "monte_carlo": log q(z|x) - log p(z) at one sample z of q.
        prior: (mu, logvar) of a diagonal Gaussian p(z), tensors that broadcast to mu; None is N(0, I).
        validate_args: check that x lies in the likelihood's support, and for weights on any device. Costs a pass over x
            and, on a GPU, a synchronisation.

    Raises ValueError or TypeError, naming the argument, what came and what was expected.
    """

    def __init__(
        self,
        likelihood: str = "bernoulli",
        *,
        beta: float | Tensor = 1.0,
        reduction: str = "mean",
        from_logits: bool = True,
        kl: str = "analytic",
        prior: functional.Prior | None = None,
        validate_args: bool = False,
    ) -> None:
        super().__init__()
        self.entry = find(likelihood, "ELBOLoss")
        if not from_logits:
            if likelihood != "bernoulli":
                raise ValueError(f"ELBOLoss: from_logits=False is for likelihood 'bernoulli', got {likelihood!r}")
            self.entry = LIKELIHOODS["bernoulli_probs"]
        if reduction not in REDUCTIONS:
            raise ValueError(f"ELBOLoss: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        if kl not in ("analytic", "monte_carlo"):
            raise ValueError(f"ELBOLoss: kl must be analytic or monte_carlo, got {kl!r}")
        if isinstance(beta, Tensor):
            if beta.dim() != 0 or beta.requires_grad:
                raise ValueError(
                    f"ELBOLoss: beta must be a number or a 0-dim tensor without grad, got shape {list(beta.shape)}"
                )
        elif not beta >= 0:
            raise ValueError(f"ELBOLoss: beta must not be negative, got {beta:g}")
        self.likelihood, self.beta, self.reduction, self.kl = likelihood, beta, reduction, kl
        self.from_logits, self.prior, self.validate_args = from_logits, prior, validate_args

    def forward(
        self,
        recon: Reconstruction,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        z: Tensor | None = None,
    ) -> Tensor:
        """The loss: 0-dim, or [B] with reduction="none". float32, or float64 for float64 inputs.

        Arguments:
            recon: [B, ...] the decoder's output: parameters of p(x|z).
            x: [B, ...] the data, of recon's shape: floating point, bool, or uint8 (an intensity, read as x/255).
            mu, logvar: [B, ...] the encoder's output: mean and log-variance of q(z|x).
            weight: [B] not negative, of each sample's ELBO; the mean still divides by B.
            mask: bool, broadcasts to x; True where an observation counts. What is masked, NaN too, is never read.
            z: [B, ...] for kl="monte_carlo" the sample that the decoder saw; without it a fresh one is drawn.
        """
        return self.terms(recon, x, mu, logvar, weight=weight, mask=mask, z=z).loss

    def terms(
        self,
        recon: Reconstruction,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        z: Tensor | None = None,
    ) -> ELBOTerms:
        """(loss, nll [B], kl [B]) for the arguments of `forward`; nll and kl are detached and cost nothing more."""
        parameters = self._parameters_of(recon)
        if self.validate_args:
            self._validate(x, weight)
        scale, reduce = self._scale(parameters[0]), self.reduction != "none"
        if self.kl == "analytic":
            loss, nll, kl = functional.elbo(
                self.entry,
                "ELBOLoss",
                "recon",
                parameters,
                x,
                mu,
                logvar,
                self.prior,
                weight,
                mask,
                self.beta,
                scale,
                reduce,
            )
            return ELBOTerms(loss, *(t.detach() if t.requires_grad else t for t in (nll, kl)))
        nll = functional.nll(self.entry, "ELBOLoss", "recon", parameters, x, weight, mask)
        kl = self._monte_carlo(mu, logvar, z, weight)
        dropped = not isinstance(self.beta, Tensor) and self.beta == 0
        loss = nll if dropped else nll + self.beta * kl
        return ELBOTerms(loss.sum() * scale if reduce else loss, nll.detach(), kl.detach())

    def _parameters_of(self, recon: Reconstruction) -> tuple[Tensor | float, ...]:
        names = self.entry.parameters
        if isinstance(recon, Tensor):
            return (recon, *self.entry.defaults)
        if not isinstance(recon, tuple | list) or len(recon) != len(names):
            expected = "a tensor" if len(names) == 1 else f"a tensor or a tuple ({', '.join(names)})"
            got = f"{len(recon)} values" if isinstance(recon, tuple | list) else type(recon).__name__
            raise TypeError(f"ELBOLoss: recon must be {expected} for likelihood {self.likelihood!r}, got {got}")
        return tuple(recon)

    def _monte_carlo(self, mu: Tensor, logvar: Tensor, z: Tensor | None, weight: Tensor | None) -> Tensor:
        if z is None:
            z = functional.reparameterize(mu, logvar)
        kl = functional.monte_carlo_kl(z, mu, logvar, self.prior)
        return kl if weight is None else torch.where(weight == 0, 0, weight * kl)

    def _scale(self, recon: Tensor | float) -> float:
        if not isinstance(recon, Tensor) or recon.dim() == 0 or self.reduction in ("sum", "none"):
            return 1.0
        return 1 / max(1, recon.shape[0] if self.reduction == "mean" else recon.numel())

    def _validate(self, x: Tensor, weight: Tensor | None) -> None:
        checks.target("ELBOLoss", x)
        checks.support("ELBOLoss", x, *self.entry.support)
        if weight is not None and bool((weight < 0).any()):
            raise ValueError(f"ELBOLoss: weight must not be negative, got {weight.min().item():g}")

    def extra_repr(self) -> str:
        return f"{self.likelihood!r}, beta={self.beta}, reduction={self.reduction!r}, kl={self.kl!r}"
