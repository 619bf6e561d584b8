"""The negative ELBO as a loss module."""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_fast import checks, functional, parts
from vae_fast.likelihoods import LIKELIHOODS, Likelihood, find
from vae_fast.reference import Prior

AVERAGES = ("mean", "mean_all")
REDUCTIONS = ("mean", "sum", "none", "mean_all")
KLS = ("analytic", "monte_carlo")
FIXED = ("likelihood", "from_logits")  # when the loss is made
Reconstruction = Tensor | tuple[Tensor, ...]


def _expected(entry: Likelihood) -> str:
    """What a decoder may return."""
    required = len(entry.parameters) - len(entry.defaults)
    defaults = zip(entry.parameters[required:], entry.defaults, strict=True)
    names = [*entry.parameters[:required], *(f"{name}={value:g}" for name, value in defaults)]
    forms = ["a tensor"] * (required == 1) + [f"a tuple ({', '.join(names)})"] * (len(names) > 1)
    return " or ".join(forms)


def _same_rows(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes [B, ...] lay out the same elements in the same order: one is the other with neighbouring axes
    made one, all of a row's among them, or with other axes of size 1."""
    if not a or not b or a[0] != b[0] or math.prod(a[1:]) != math.prod(b[1:]):
        return False
    ends = [[n for n in accumulate(shape[1:], mul) if n != 1] for shape in (a, b)]
    return all(n in ends[1] for n in ends[0]) or all(n in ends[0] for n in ends[1])


def _varies(count: int) -> bool:
    """Whether a graph that is traced is for any such number; one that an operator were given would be part of it."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # which imports sympy

    return not has_static_value(count)


class ELBOTerms(NamedTuple):
    """loss: 0-dim, or [B] with reduction="none"; differentiable. nll, kl: [B], times weight; detached, for logging."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


class ELBOLoss(nn.Module):
    """The negative ELBO, -E_q[log p(x|z)] + beta KL(q(z|x) || p(z)), in nats, with its gradients from one pass.

    Arguments:
        likelihood: "bernoulli" (recon: logits), "gaussian" (recon: the mean, with unit variance, or (mean, logvar)) or
            another; recon holds what `<likelihood>_nll` takes before x, in that order (docs/likelihoods.md);
            "categorical" and "discretized_logistic_mixture" take one tensor [B, C, ...].
        beta: weight of the KL (Higgins et al. 2017), not negative, a number or a 0-dim tensor, whose value isn't
            checked. Assign `loss.beta` to anneal it; under torch.compile or CUDA graphs make it a tensor, on the data's
            device, and change that in place, between two steps; an nn.Buffer follows this module to devices and
            dtypes, and into checkpoints. beta = 0 leaves the KL out.
        reduction: "mean": summed over features, averaged over the batch; "sum"; "none": [B]; "mean_all": averaged over
            batch and features, nats per dimension of x (KL too), masked ones among them. An empty batch gives 0.
        from_logits: False if recon holds probabilities (see `bernoulli_nll` for what they lose).
        kl: "analytic": the closed form; "monte_carlo": log q(z|x) - log p(z) at one sample z of q.
        prior: (mu, logvar) of a diagonal Gaussian p(z), tensors that broadcast to mu; None is N(0, I). If they are
            nn.Parameters they are this module's parameters too.
        validate_args: check that x, where it counts, lies in the likelihood's support (counts and classes: finite whole
            numbers), and that no weight is negative (on a CPU weights are checked in any case, outside torch.compile).
            Costs a pass over x, on a GPU a synchronisation, under torch.compile a graph break. recon, mu and logvar are
            not checked: what is no parameter gives NaN.
        options: those of the likelihood, by name: levels, x_range and compat of the discretised logistic and its
            mixture, and of the mixture channels, 3, or 1 for grey images; log_rate of Poisson; log_mu and log_theta of
            the negative binomials. They mean what they mean to `<likelihood>_nll` (docs/likelihoods.md). class_dim and
            channels_last are not among them: pass recon.movedim(-1, 1).

    Raises ValueError or TypeError, naming the argument, what came and what was expected.
    """

    prior_mu: Tensor | None
    prior_logvar: Tensor | None

    def __init__(
        self,
        likelihood: str = "bernoulli",
        *,
        beta: float | Tensor = 1.0,
        reduction: str = "mean",
        from_logits: bool = True,
        kl: str = "analytic",
        prior: Prior | None = None,
        validate_args: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.entry = find(likelihood, "ELBOLoss")
        self.options = self.entry.chosen("ELBOLoss", options)
        if not from_logits:
            if likelihood != "bernoulli":
                raise ValueError(f"ELBOLoss: from_logits=False is for likelihood 'bernoulli', got {likelihood!r}")
            self.entry = LIKELIHOODS["bernoulli_probs"]
        self.likelihood, self.beta, self.reduction, self.kl = likelihood, beta, reduction, kl
        self.from_logits, self.validate_args = from_logits, validate_args
        if prior is not None:
            checks.pair("ELBOLoss", prior)
        for name, t in zip(("prior_mu", "prior_logvar"), prior or (None, None), strict=True):
            if isinstance(t, nn.Parameter):
                self.register_parameter(name, t)
            else:
                self.register_buffer(name, t, persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "beta":
            checks.beta("ELBOLoss", value)
            # nn.Module puts no buffer in an attribute's place, and no number in a buffer's
            if isinstance(value, nn.Buffer):
                self.__dict__.pop(name, None)
            elif not isinstance(value, Tensor) and name in self._buffers:
                delattr(self, name)
        elif name == "reduction":
            checks.one_of("ELBOLoss", name, value, REDUCTIONS)
        elif name == "kl":
            checks.one_of("ELBOLoss", name, value, KLS)
        elif name in FIXED and name in self.__dict__:
            raise AttributeError(f"ELBOLoss: {name} is fixed when the loss is made; make another ELBOLoss")
        super().__setattr__(name, value)

    @property
    def prior(self) -> Prior | None:
        """(mu, logvar) of p(z), or None for N(0, I)."""
        mu, logvar = self._tensor("prior_mu"), self._tensor("prior_logvar")
        return None if mu is None or logvar is None else (mu, logvar)

    def _tensor(self, name: str) -> Tensor | None:
        """An attribute; of a buffer, as None is one, without nn.Module's search, which takes a microsecond."""
        found: Tensor | None = self._buffers[name] if name in self._buffers else getattr(self, name)
        return found

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
            recon: [B, ...] the decoder's output: parameters of p(x|z). "categorical", "discretized_logistic_mixture":
                [B, C, ...], C parameters to each observation; for [B, ..., C] pass recon.movedim(-1, 1), a view.
            x: [B, ...] the data, of the shape of recon's first tensor, or one of them with rows flattened, [B, D], or
                with other axes of size 1; "categorical": classes [B, ...];
                "discretized_logistic_mixture": [B, channels, ...]. Floating point, bool, or uint8: an intensity, read
                as x/255. Of counts, levels and classes uint8 is the number that it is, as are int32, int64 and uint16
                (of classes int8 and int16 too); floating point is taken to the nearest level of x_range.
            mu, logvar: [B, ...] the encoder's output: mean and log-variance of q(z|x).
            weight: [B] not negative, of each sample's ELBO; the mean still divides by B.
            mask: bool, broadcasts to x (of a mixture, without its channels); True where an observation counts. What is
                masked, NaN too, is never used.
            z: [B, ...] for kl="monte_carlo" the sample that the decoder saw; without it a fresh one is drawn. The
                analytic form needs none and ignores it.
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
        parameters = self.parameters_of(recon)
        x, mask = self._like(parameters[0], x, mask)
        count = self._count(parameters[0], x)
        later = torch.compiler.is_compiling() and _varies(count)
        scale = 1.0 if later else 1 / count
        objective = parts.Objective(self.prior, weight, mask, self.beta, scale, self.reduction != "none")
        if self.kl == "analytic":
            names = self._names
            loss, nll, kl = parts.elbo(self.entry, names, parameters, x, mu, logvar, objective, self.options)
            self._validate(parameters[0], x, weight, mask)
        else:
            loss, nll, kl = self._monte_carlo(recon, x, mu, logvar, z, objective)
        if later:
            loss = loss / count
        return ELBOTerms(loss, *(t.detach() if t.requires_grad else t for t in (nll, kl)))

    def nll(
        self, recon: Reconstruction, x: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """-log p(x|z), [B], times weight, differentiable: the first of `terms` without a posterior."""
        parameters = self.parameters_of(recon)
        x, mask = self._like(parameters[0], x, mask)
        nll = parts.nll(self.entry, self._names, parameters, x, weight, mask, self.options)
        self._validate(parameters[0], x, weight, mask)
        return nll

    @property
    def _names(self) -> tuple[str, ...]:
        """Of the caller and the parameters, for errors."""
        return ("ELBOLoss", "recon", *self.entry.parameters[1:])

    def parameters_of(self, recon: Reconstruction) -> tuple[Tensor | float, ...]:
        """The likelihood's parameters, defaults filled in. Raises TypeError for too few or too many."""
        entry = self.entry
        given = (recon,) if isinstance(recon, Tensor) else recon
        least = len(entry.parameters) - len(entry.defaults)
        if not isinstance(given, tuple | list) or not least <= len(given) <= len(entry.parameters):
            got = f"{len(recon)} values" if isinstance(recon, tuple | list) else type(recon).__name__
            raise TypeError(f"ELBOLoss: recon must be {_expected(entry)} for likelihood {self.likelihood!r}, got {got}")
        return (*given, *entry.defaults[len(given) - least :])

    def _monte_carlo(
        self,
        recon: Reconstruction,
        x: Tensor,
        mu: Tensor,
        logvar: Tensor,
        z: Tensor | None,
        objective: parts.Objective,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, nll, kl), with log q(z|x) - log p(z) in place of the KL."""
        prior, weight, mask, beta, scale, reduce = objective
        nll = self.nll(recon, x, weight=weight, mask=mask)
        parts.same_batch("ELBOLoss", "recon", x, mu)
        if z is None:
            z = functional.reparameterize(mu, logvar)
        kl = parts.weighted_monte_carlo_kl("ELBOLoss", z, mu, logvar, prior, weight)
        beta = beta.to(kl) if isinstance(beta, Tensor) else kl.new_full((), beta)
        loss = scale * (nll + torch.where(beta == 0, 0, beta * kl))
        return loss.sum() if reduce else loss, nll, kl

    def _like(self, recon: Tensor | float, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x and the mask in recon's shape, where those lay out the same rows."""
        if self.entry.joint or not isinstance(recon, Tensor) or not isinstance(x, Tensor) or recon.shape == x.shape:
            return x, mask
        if not _same_rows(recon.shape, x.shape):
            return x, mask
        checks.dense("ELBOLoss", "x", x)
        mask = mask if mask is None else checks.element_mask("ELBOLoss", mask, x).reshape(recon.shape)
        return x.reshape(recon.shape), mask

    def _count(self, recon: Tensor | float, x: Tensor) -> int:
        """What the loss is divided by."""
        if not isinstance(recon, Tensor) or recon.dim() == 0 or self.reduction not in AVERAGES:
            return 1
        return max(1, recon.shape[0] if self.reduction == "mean" else (x if self.entry.joint else recon).numel())

    def _validate(self, recon: Tensor | float, x: Tensor, weight: Tensor | None, mask: Tensor | None) -> None:
        """Where asked to: x, which passed the other checks, lies in the support."""
        if not self.validate_args:
            return
        low, high = self.entry.bounds(self.entry.options_for(self.options, x))
        if self.entry.joint == "classes" and isinstance(recon, Tensor):
            high = recon.shape[1] - 1
        elif self.entry.joint == "channels" and mask is not None and mask.dim() < x.dim():
            mask = mask.expand(x.shape[0], *x.shape[2:]).unsqueeze(1)
        checks.support("ELBOLoss", x, low, high, weight, mask, self.entry.kind)

    def extra_repr(self) -> str:
        return f"{self.likelihood!r}, beta={self.beta}, reduction={self.reduction!r}, kl={self.kl!r}"
