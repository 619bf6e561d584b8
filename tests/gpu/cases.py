"""Every operator on operands of given shape and dtype: what the Triton kernels give, and the float64 reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_fast import reference
from vae_fast.kernels import elbo, latent

SEED = torch.tensor(2**40 + 7)
Z = 64


@dataclass
class Case:
    """arguments: tensors of the operator, a prefix of them differentiable. call: runs the kernels on them.
    expected: float64 (values, gradients), as call returns them. terms: sizes of what a value sums, for tolerances."""

    arguments: list[Any]
    call: Callable[..., Sequence[Tensor]]
    expected: Callable[..., Sequence[Tensor]]

    def run(self) -> list[Tensor]:
        return [t for t in self.call(*self.arguments) if t is not None and t.numel()]

    def exact(self) -> list[Tensor]:
        wide = [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in self.arguments]
        return [t.detach() for t in self.expected(*wide)]

    @property
    def ideal(self) -> int:
        """Bytes of the inputs once."""
        return sum(t.numel() * t.element_size() for t in self.arguments if isinstance(t, Tensor))


def differentiated(value: Callable[..., Any], leaves: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
    """(value's result, gradients of its first part, summed)"""
    leaves = [t.detach().requires_grad_() for t in leaves]
    result = value(*leaves)
    first = result[0] if isinstance(result, tuple) else result
    return result, list(torch.autograd.grad(first.sum(), leaves))


def target(b: int, d: int, dtype: torch.dtype) -> Tensor:
    x = torch.rand(b, d)
    return (x * 255).round().to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)


def nll(
    name: str,
    parameters: Sequence[Tensor],
    x: Tensor,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    wanted: int | None = None,
) -> Case:
    """wanted: how many of the parameters want a gradient, the first ones; None for all."""
    elementwise = getattr(reference, name)
    count = len(parameters)
    wanted = count if wanted is None else wanted

    def expected(*wide: Any) -> list[Tensor]:
        (value, gradients) = differentiated(
            lambda *leaves: reference.nll(
                elementwise, leaves, wide[count], weight=wide[count + 1], mask=wide[count + 2]
            ),
            wide[:count],
        )
        return [value, *gradients[:wanted]]

    return Case(
        [*parameters, x, weight, mask], lambda *arguments: elbo.nll(name, *arguments, (1 << wanted) - 1), expected
    )


def logits(b: int, d: int, dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(b, d)).to(dtype)


def bernoulli(b: int, d: int, dtype: torch.dtype, x_dtype: torch.dtype = torch.uint8, **selection: Any) -> Case:
    x = target(b, d, x_dtype)
    return nll("bernoulli", [logits(b, d, dtype)], x, selection.get("weight"), selection.get("mask"))


def bernoulli_probs(b: int, d: int, dtype: torch.dtype) -> Case:
    return nll("bernoulli_probs", [torch.rand(b, d).clamp(0.01, 0.99).to(dtype)], target(b, d, dtype))


def gaussian(
    b: int,
    d: int,
    dtype: torch.dtype,
    shape: Callable[..., tuple[int, int]] = lambda b, d: (b, d),
    wanted: int | None = None,
) -> Case:
    """shape: of the log-variance."""
    parameters = [torch.randn(b, d).to(dtype), torch.randn(shape(b, d)).to(dtype)]
    return nll("gaussian", parameters, target(b, d, dtype), wanted=wanted)


def elbo_case(b: int, d: int, dtype: torch.dtype, *, prior: bool = False, reduce: bool = True, z: int = Z) -> Case:
    tensors = [logits(b, d, dtype), target(b, d, torch.uint8), *(torch.randn(b, z).to(dtype) for _ in range(2))]
    tensors += [torch.randn(1, z).to(dtype) for _ in range(2)] if prior else [None, None]

    def expected(recon: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, *given: Any) -> list[Tensor]:
        def value(recon: Tensor, mu: Tensor, logvar: Tensor, *given: Tensor) -> Any:
            return reference.elbo(
                reference.bernoulli, [recon], x, mu, logvar, given or None, beta=0.5, scale=0.75, reduce=reduce
            )

        values, gradients = differentiated(value, [recon, mu, logvar, *(given if prior else ())])
        return [*values, *gradients]

    def call(*arguments: Any) -> Any:
        return elbo.elbo("bernoulli", *arguments, None, None, None, 0.5, 0.75, reduce, 31 if prior else 7)

    return Case(tensors, call, expected)


def posterior(b: int, z: int, dtype: torch.dtype, prior: str | None) -> list[Any]:
    tensors: list[Any] = [torch.randn(b, z).to(dtype) for _ in range(2)]
    shape = {None: None, "row": (b, 1), "column": (1, z), "full": (b, z), "number": (1, 1)}[prior]
    return tensors + ([None, None] if shape is None else [torch.randn(shape).to(dtype) for _ in range(2)])


def gaussian_kl(b: int, z: int, dtype: torch.dtype, prior: str | None = None) -> Case:
    def expected(mu: Tensor, logvar: Tensor, *given: Any) -> list[Tensor]:
        leaves = [mu, logvar, *(given if prior else ())]
        value, gradients = differentiated(lambda m, v, *p: reference.gaussian_kl(m, v, p or None), leaves)
        return [value, *gradients]

    asked = 15 if prior else 3
    return Case(posterior(b, z, dtype, prior), lambda *a: elbo.gaussian_kl(*a, None, asked), expected)


def monte_carlo_kl(b: int, z: int, dtype: torch.dtype) -> Case:
    def expected(*leaves: Tensor) -> list[Tensor]:
        value, gradients = differentiated(lambda z, m, v, *p: reference.monte_carlo_kl(z, m, v, p), leaves)
        return [value, *gradients]

    tensors = [torch.randn(b, z).to(dtype), *posterior(b, z, dtype, "full")]
    return Case(tensors, lambda *a: elbo.monte_carlo_kl(*a, None, 31), expected)


def sample_kl(b: int, z: int, dtype: torch.dtype, prior: str | None = None) -> Case:
    def expected(mu: Tensor, logvar: Tensor, *given: Any) -> Sequence[Tensor]:
        return reference.sample_kl(mu, logvar, SEED, given if prior else None)

    return Case(posterior(b, z, dtype, prior), lambda *a: latent.sample_kl(*a, SEED), expected)


def reparameterize(b: int, z: int, dtype: torch.dtype) -> Case:
    def expected(mu: Tensor, logvar: Tensor) -> list[Tensor]:
        return [reference.reparameterize(mu, logvar, SEED)]

    return Case(posterior(b, z, dtype, None)[:2], lambda *a: [latent.reparameterize(*a, SEED)], expected)


def sample_kl_backward(b: int, z: int, dtype: torch.dtype, prior: str | None = None) -> Case:
    def expected(dz: Tensor, dkl: Tensor, mu: Tensor, logvar: Tensor, *given: Any) -> list[Tensor]:
        def value(mu: Tensor, logvar: Tensor, *p: Tensor) -> Tensor:
            sample, kl = reference.sample_kl(mu, logvar, SEED, p or None)
            return (sample * dz).sum(1) + kl * dkl

        return differentiated(value, [mu, logvar, *(given if prior else ())])[1]

    tensors = [torch.randn(b, z).to(dtype), torch.randn(b), *posterior(b, z, dtype, prior)]
    return Case(tensors, lambda *a: latent.sample_kl_backward(*a, SEED, 15 if prior else 3), expected)
