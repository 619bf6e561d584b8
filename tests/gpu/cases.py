"""Every operator on operands of given shape and dtype: what a backend's kernels give, against the float64 reference.

A backend is its operators, with torch.ops.vae_fast's names: torch.ops.vae_fast itself where it serves the CPU, or
launches.OPERATORS, the Triton kernels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from operands import LAYOUTS, levels
from torch import Tensor

from vae_fast import reference
from vae_fast.likelihoods import LIKELIHOODS

SEED = torch.tensor(2**40 + 7)
Z = 64
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [F32, BF16, F16]
# Short and odd rows; a full tile and its tail; a row that is cut among programs
SHAPES = [(37, 20), (5, 784), (2, 1025), (1, 12_288)]


@dataclass
class Case:
    """arguments: tensors of the operator, a prefix of them differentiable. call: runs a backend's operator on them.
    expected: float64 (values, gradients), as call returns them. terms: how many each value [B] sums. shape: [B, D].
    noise: there is some in the results. differences: the gradients are differences of numbers as large. products: they
    are products of several functions, each approximate."""

    arguments: list[Any]
    call: Callable[..., Sequence[Tensor]]
    expected: Callable[..., Sequence[Tensor]]
    terms: Sequence[int]
    shape: Sequence[int]
    noise: bool = False
    differences: bool = False
    products: bool = False

    def run(self, operators: Any) -> list[Tensor]:
        return [t for t in self.call(operators, *self.arguments) if t.numel()]

    def exact(self) -> list[Tensor]:
        wide = [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in self.arguments]
        return [t.detach() for t in self.expected(*wide)]

    def check(self, operators: Any) -> list[Tensor]:
        """Values within 1e-6 of their terms; gradients within 1e-6, of the largest where they are sums or differences,
        with noise in them 4e-6, as products 2e-6; all then as rounded."""
        got, exact = self.run(operators), self.exact()
        assert [g.shape for g in got] == [e.shape for e in exact]
        terms = iter(self.terms)
        for g, e in zip(got, exact, strict=True):
            rounding = torch.finfo(g.dtype).eps / 2 if g.dtype.itemsize == 2 else 0
            least = torch.finfo(g.dtype).smallest_normal * torch.finfo(g.dtype).eps
            bound = self._bound(e, terms) + rounding * e.abs() * 1.01 + least
            error = (g.double() - e).abs()
            assert (error <= bound).all(), f"{g.dtype} {list(g.shape)}: error {error.max():.3g} of {e.abs().max():.3g}"
        return got

    def _bound(self, e: Tensor, terms: Iterator[int]) -> Tensor:
        if e.dim() < 2:
            return 1e-6 * (e.abs() + (next(terms) if e.dim() else 1))
        rows, columns = self.shape
        if self.differences or len(e) < rows or e.size(1) == 1 < columns:
            return 1e-6 * e.abs().amax().clamp(min=rows)
        if self.noise:
            return 4e-6 * (1 + e.abs())
        return (2e-6 if self.products else 1e-6) * e.abs().clamp(min=1)

    def large(self) -> list[Tensor]:
        """The inputs that aren't read by every block: those of which each byte should be read once."""
        return [t for t in self.arguments if isinstance(t, Tensor) and t.numel() > 10_000]


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
    **options: float,
) -> Case:
    """wanted: how many of the parameters want a gradient, the first ones; None for all."""
    entry, count = LIKELIHOODS[name], len(parameters)
    form = entry.options_for(options, x)
    wanted = count if wanted is None else wanted

    def expected(*wide: Any) -> list[Tensor]:
        (value, gradients) = differentiated(
            lambda *leaves: reference.nll(
                entry.elementwise, leaves, wide[count], weight=wide[-2], mask=wide[-1], options=form,
                counts=entry.counts,
            ),
            wide[:count],
        )  # fmt: skip
        return [value, *gradients[:wanted]]

    def call(operators: Any, *arguments: Any) -> Any:
        return getattr(operators, f"{name}_nll")(*arguments, (1 << wanted) - 1)

    return Case([*parameters, x, *entry.numbers(form), weight, mask], call, expected, [x.size(1)], x.shape)


def logits(b: int, d: int, dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(b, d)).to(dtype)


def normal(b: int, d: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(b, d).to(dtype)


def bernoulli(b: int, d: int, dtype: torch.dtype, x_dtype: torch.dtype = torch.uint8) -> Case:
    x = target(b, d, x_dtype)
    return nll("bernoulli", [logits(b, d, dtype)], x)


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


def laplace(
    b: int,
    d: int,
    dtype: torch.dtype,
    shape: Callable[..., tuple[int, int]] = lambda b, d: (b, d),
    wanted: int | None = None,
) -> Case:
    """shape: of the log-scale."""
    parameters = [torch.randn(b, d).to(dtype), torch.randn(shape(b, d)).to(dtype)]
    return nll("laplace", parameters, target(b, d, dtype), wanted=wanted)


def continuous_bernoulli(b: int, d: int, dtype: torch.dtype, x_dtype: torch.dtype = torch.uint8) -> Case:
    return nll("continuous_bernoulli", [logits(b, d, dtype)], target(b, d, x_dtype))


def discretized_logistic(
    b: int,
    d: int,
    dtype: torch.dtype,
    x_dtype: torch.dtype = torch.uint8,
    shape: Callable[..., tuple[int, int]] = lambda b, d: (b, d),
) -> Case:
    """shape: of the log-scale."""
    parameters = [(0.5 * torch.randn(b, d)).to(dtype), (torch.randn(shape(b, d)) - 1.5).to(dtype)]
    case = nll("discretized_logistic", parameters, levels((b, d), x_dtype))
    case.products = True
    return case


def counts(b: int, d: int, dtype: torch.dtype) -> Tensor:
    """Three of four are 0."""
    return torch.poisson(4 * torch.rand(b, d) ** 4).to(dtype)


def poisson(b: int, d: int, dtype: torch.dtype, x_dtype: torch.dtype | None = None, **options: float) -> Case:
    return nll("poisson", [(torch.rand(b, d) + 0.1).to(dtype)], counts(b, d, x_dtype or dtype), **options)


def negative_binomial(
    b: int, d: int, dtype: torch.dtype, x_dtype: torch.dtype | None = None, inflated: bool = False, **options: float
) -> Case:
    """One theta a feature, one library a row."""
    mu, theta, library = 4 * torch.rand(b, d) + 0.05, torch.rand(1, d) + 0.5, torch.rand(b, 1) + 0.5
    if options:
        mu, theta = mu.log(), theta.log()
    dropout = [2 * torch.randn(b, d)] if inflated else []
    parameters = [t.to(dtype) for t in (mu, theta, *dropout, library)]
    name = "zero_inflated_negative_binomial" if inflated else "negative_binomial"
    return nll(name, parameters, counts(b, d, x_dtype or dtype), **options)


def negative_binomial_each(b: int, d: int, dtype: torch.dtype, inflated: bool = False) -> Case:
    """One theta an element, no library."""
    case = negative_binomial(b, d, dtype, inflated=inflated)
    mu, _, *dropout = case.arguments[: 2 + inflated]
    name = "zero_inflated_negative_binomial" if inflated else "negative_binomial"
    parameters = [mu, (torch.rand(b, d) + 0.5).to(dtype), *dropout, torch.ones(1, 1, dtype=dtype)]
    return nll(name, parameters, counts(b, d, dtype), wanted=2 + inflated)


def elbo(
    name: str,
    parameters: Sequence[Tensor],
    x: Tensor,
    latent: Sequence[Any],
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    beta_factor: Tensor | None = None,
    *,
    beta: float = 0.5,
    reduce: bool = True,
) -> Case:
    """latent: mu, logvar, prior_mu, prior_logvar."""
    entry, count, given = LIKELIHOODS[name], len(parameters), latent[2] is not None
    form = entry.options_for({}, x)
    scale, latents = 0.75, 4 if given else 2

    def expected(*wide: Any) -> list[Tensor]:
        x, (weight, mask, factor) = wide[count], wide[count + 5 :]

        def value(*leaves: Tensor) -> Any:
            mu, logvar, *prior = leaves[count:]
            return reference.elbo(
                entry.elementwise, leaves[:count], x, mu, logvar, prior or None, weight=weight, mask=mask,
                beta=beta if factor is None else beta * factor, scale=scale, reduce=reduce,
                options=form, counts=entry.counts,
            )  # fmt: skip

        values, gradients = differentiated(value, [*wide[:count], *wide[count + 1 : count + 1 + latents]])
        return [*values, *gradients]

    def call(operators: Any, *arguments: Any) -> Any:
        observed = [*arguments[: count + 1], *entry.numbers(form), *arguments[count + 1 :]]
        return getattr(operators, f"elbo_{name}")(*observed, beta, scale, reduce, (1 << count + latents) - 1)

    arguments = [*parameters, x, *latent, weight, mask, beta_factor]
    return Case(arguments, call, expected, [*([] if reduce else [x.size(1)]), x.size(1), latent[0].size(1)], x.shape)


def elbo_case(b: int, d: int, dtype: torch.dtype, *, prior: bool = False, reduce: bool = True, z: int = Z) -> Case:
    latent = posterior(b, z, dtype, "column" if prior else None)
    return elbo("bernoulli", [logits(b, d, dtype)], target(b, d, torch.uint8), latent, reduce=reduce)


def posterior(b: int, z: int, dtype: torch.dtype, prior: str | None) -> list[Any]:
    """mu, logvar, prior_mu, prior_logvar. prior: how it lies beside them."""
    shape = {None: None, "row": (b, 1), "column": (1, z), "full": (b, z), "number": (1, 1)}[prior]
    given = [None, None] if shape is None else [normal(*shape, dtype) for _ in range(2)]
    return [normal(b, z, dtype), normal(b, z, dtype), *given]


def gaussian_kl(b: int, z: int, dtype: torch.dtype, prior: str | None = None) -> Case:
    return kl_of(posterior(b, z, dtype, prior))


def kl_of(latent: list[Any], weight: Tensor | None = None) -> Case:
    given = latent[2] is not None

    def expected(mu: Tensor, logvar: Tensor, prior_mu: Any, prior_logvar: Any, weight: Any) -> list[Tensor]:
        def value(*leaves: Tensor) -> Tensor:
            mu, logvar, *prior = reference.select_rows(weight, *leaves)
            return reference.weighted(reference.gaussian_kl(mu, logvar, prior or None), weight)

        kl, gradients = differentiated(value, [mu, logvar, *((prior_mu, prior_logvar) if given else ())])
        return [kl, *gradients]

    asked, shape = 15 if given else 3, latent[0].shape
    return Case([*latent, weight], lambda o, *a: o.gaussian_kl(*a, asked), expected, [shape[1]], shape)


def monte_carlo_kl(b: int, z: int, dtype: torch.dtype) -> Case:
    return log_ratio_of([normal(b, z, dtype), *posterior(b, z, dtype, "full")])


def log_ratio_of(tensors: list[Tensor]) -> Case:
    """tensors: z, mu, logvar, prior_mu, prior_logvar."""

    def expected(*leaves: Tensor) -> list[Tensor]:
        value, gradients = differentiated(lambda z, m, v, *p: reference.monte_carlo_kl(z, m, v, p), leaves)
        return [value, *gradients]

    def call(operators: Any, *arguments: Any) -> Any:
        return operators.monte_carlo_kl(*arguments, None, 31)

    shape = tensors[0].shape
    return Case(tensors, call, expected, [shape[1]], shape, differences=True)


def sample_kl(b: int, z: int, dtype: torch.dtype, prior: str | None = None) -> Case:
    return sample_of(posterior(b, z, dtype, prior))


def sample_of(latent: list[Any]) -> Case:
    def expected(mu: Tensor, logvar: Tensor, *prior: Any) -> Sequence[Tensor]:
        return reference.sample_kl(mu, logvar, SEED, None if latent[2] is None else prior)

    shape = latent[0].shape
    return Case(latent, lambda o, *a: o.sample_kl(*a, SEED), expected, [shape[1]], shape, noise=True)


def reparameterize(b: int, z: int, dtype: torch.dtype) -> Case:
    def expected(mu: Tensor, logvar: Tensor) -> list[Tensor]:
        return [reference.reparameterize(mu, logvar, SEED)]

    tensors = posterior(b, z, dtype, None)[:2]
    return Case(tensors, lambda o, *a: [o.reparameterize(*a, SEED)], expected, [], (b, z), noise=True)


def sample_kl_backward(b: int, z: int, dtype: torch.dtype, prior: str | None = None) -> Case:
    return sample_backward_of(normal(b, z, dtype), torch.randn(b), posterior(b, z, dtype, prior))


def sample_backward_of(dz: Tensor, dkl: Tensor, latent: list[Any]) -> Case:
    given = latent[2] is not None

    def expected(dz: Tensor, dkl: Tensor, mu: Tensor, logvar: Tensor, *prior: Any) -> list[Tensor]:
        def value(mu: Tensor, logvar: Tensor, *p: Tensor) -> Tensor:
            sample, kl = reference.sample_kl(mu, logvar, SEED, p or None)
            return (sample * dz).sum(1) + kl * dkl

        return differentiated(value, [mu, logvar, *(prior if given else ())])[1]

    def call(operators: Any, *arguments: Any) -> Any:
        return operators.sample_kl_backward(*arguments, SEED, 15 if given else 3)

    return Case([dz, dkl, *latent], call, expected, [], dz.shape, noise=True)


KERNELS: dict[str, Callable[[int, int, torch.dtype], Case]] = {
    "bernoulli": bernoulli,
    "bernoulli, x as the logits": lambda b, d, dtype: bernoulli(b, d, dtype, dtype),
    "bernoulli_probs": bernoulli_probs,
    "gaussian": gaussian,
    "gaussian, one log-variance": lambda b, d, dtype: gaussian(b, d, dtype, lambda b, d: (1, 1)),
    "gaussian, fixed": lambda b, d, dtype: gaussian(b, d, dtype, lambda b, d: (1, 1), wanted=1),
    "gaussian, one a feature": lambda b, d, dtype: gaussian(b, d, dtype, lambda b, d: (1, d)),
    "gaussian, one a row": lambda b, d, dtype: gaussian(b, d, dtype, lambda b, d: (b, 1)),
    "laplace": laplace,
    "laplace, fixed": lambda b, d, dtype: laplace(b, d, dtype, lambda b, d: (1, 1), wanted=1),
    "laplace, one a feature": lambda b, d, dtype: laplace(b, d, dtype, lambda b, d: (1, d)),
    "laplace, one a row": lambda b, d, dtype: laplace(b, d, dtype, lambda b, d: (b, 1)),
    "continuous_bernoulli": continuous_bernoulli,
    "continuous_bernoulli, x as the logits": lambda b, d, dtype: continuous_bernoulli(b, d, dtype, dtype),
    "discretized_logistic": discretized_logistic,
    "discretized_logistic, x as the means": lambda b, d, dtype: discretized_logistic(b, d, dtype, dtype),
    "discretized_logistic, one scale": lambda b, d, dtype: discretized_logistic(b, d, dtype, shape=lambda b, d: (1, 1)),
    "poisson": poisson,
    "poisson, rates": lambda b, d, dtype: poisson(b, d, dtype, log_rate=0.0),
    "negative_binomial": negative_binomial,
    "negative_binomial, logarithms": lambda b, d, dtype: negative_binomial(b, d, dtype, log_mu=1.0, log_theta=1.0),
    "negative_binomial, x int32": lambda b, d, dtype: negative_binomial(b, d, dtype, torch.int32),
    "negative_binomial, x uint16": lambda b, d, dtype: negative_binomial(b, d, dtype, torch.uint16),
    "negative_binomial, x bytes": lambda b, d, dtype: negative_binomial(b, d, dtype, torch.uint8),
    "negative_binomial, each": lambda b, d, dtype: negative_binomial_each(b, d, dtype),
    "zero_inflated_negative_binomial": lambda b, d, dtype: negative_binomial(b, d, dtype, inflated=True),
    "zero_inflated_negative_binomial, each": lambda b, d, dtype: negative_binomial_each(b, d, dtype, inflated=True),
    "elbo": elbo_case,
    "elbo, given prior": lambda b, d, dtype: elbo_case(b, d, dtype, prior=True),
    "elbo of each row": lambda b, d, dtype: elbo_case(b, d, dtype, reduce=False),
    "gaussian_kl": gaussian_kl,
    "gaussian_kl, given prior": lambda b, d, dtype: gaussian_kl(b, d, dtype, "column"),
    "monte_carlo_kl": monte_carlo_kl,
    "sample_kl": sample_kl,
    "sample_kl, given prior": lambda b, d, dtype: sample_kl(b, d, dtype, "column"),
    "reparameterize": reparameterize,
    "sample_kl_backward": sample_kl_backward,
    "sample_kl_backward, given prior": lambda b, d, dtype: sample_kl_backward(b, d, dtype, "column"),
}
# Shapes that vector accesses suit, of which no output is cut
ALIGNED = {
    "bernoulli": (64, 1536),
    "bernoulli, x as the logits": (64, 1536),
    "gaussian": (64, 1536),
    "gaussian, fixed": (64, 1536),
    "gaussian, one a row": (64, 1536),
    "laplace": (64, 1536),
    "continuous_bernoulli": (64, 1536),
    "discretized_logistic": (64, 1536),
    "poisson": (64, 1536),
    "negative_binomial, each": (64, 1536),
    "zero_inflated_negative_binomial, each": (64, 1536),
    "elbo of each row": (64, 1536),
    "gaussian_kl": (8192, 64),
    "monte_carlo_kl": (8192, 64),
    "sample_kl": (8192, 64),
    "reparameterize": (8192, 64),
    "sample_kl_backward": (8192, 64),
}


# Operands that are special


def bytes_or_bits(dtype: torch.dtype, x_dtype: torch.dtype) -> Case:
    x = target(5, 96, torch.uint8) if x_dtype == torch.uint8 else torch.rand(5, 96) > 0.5
    return nll("bernoulli", [logits(5, 96, dtype)], x)


def in_layout(layout: str) -> list[Case]:
    """Any strides; alignment that a vector access can't have."""
    change = LAYOUTS[layout]
    parameters = [change(torch.randn(7, 72)), change(torch.randn(7, 72))]
    mask = change(torch.rand(7, 72)) > 0.3
    return [
        nll("gaussian", parameters, change(torch.rand(7, 72)), torch.rand(14)[::2], mask),
        sample_of([change(torch.randn(7, 72)), change(torch.randn(7, 72)), None, None]),
    ]


def dropped() -> Case:
    """NaN and inf where a mask hides or a weight of 0 drops them."""
    mean, logvar, x = torch.randn(6, 40), torch.randn(6, 40), torch.rand(6, 40)
    mask, weight = torch.rand(6, 40) > 0.5, torch.tensor([1.0, 0, 2, 1, 0, 1])
    for t in (mean, logvar, x):
        t[~mask], t[weight == 0] = torch.nan, torch.inf
    return nll("gaussian", [mean, logvar], x, weight, mask)


def rows_masked_whole() -> Case:
    """They need no variance."""
    mean, logvar, mask = torch.randn(5, 37), torch.zeros(5, 1), torch.ones(5, 37, dtype=torch.bool)
    mask[2:4], logvar[2], logvar[3] = False, torch.nan, torch.inf
    return nll("gaussian", [mean, logvar], torch.rand(5, 37), None, mask)


def smallest_weight(weight: float) -> Case:
    """1 / weight overflows."""
    parameters = [torch.tensor([[200.0, -200.0, 0.5, 88.0]])]
    return nll("bernoulli", parameters, torch.rand(1, 4), torch.tensor([weight]))


def float64_beside_float32() -> Case:
    """x and weights in float64 are read as float32."""
    return nll("bernoulli", [logits(5, 37, F32)], torch.rand(5, 37).double(), torch.rand(5).double())


def logits_not_finite() -> Case:
    given = logits(4, 80, F32)
    given[1, 3], given[2, 5] = torch.nan, torch.inf
    return nll("bernoulli", [given], torch.rand(4, 80))


def confident_logits() -> tuple[Case, Tensor]:
    """On x's side, with the gradient, which is small: as the difference sigmoid(20) - 1 it would be 0 in float32."""
    given = torch.tensor([[-80.0, -40, -20, -5, 5, 20, 40, 80]]).repeat(1, 4)
    return nll("bernoulli", [given], (given > 0).float()), -given.double().sign() / (1 + given.double().abs().exp())


def zero_logits(dtype: torch.dtype) -> Case:
    """Of either sign."""
    zeros = torch.tensor([[0.0, -0.0, 0.0, -0.0]]).repeat(1, 8)
    return nll("bernoulli", [zeros.to(dtype)], torch.rand(1, 32))
