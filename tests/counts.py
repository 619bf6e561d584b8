"""Negative binomial and Poisson by mpmath, in 60 digits, and operands from one end of their range to the other."""

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import torch
from torch import Tensor

DIGITS = 60
COUNTS = [torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.uint16, torch.uint8]


def log_uniform(low: float, high: float, n: int) -> Tensor:
    return torch.exp(torch.empty(n, dtype=torch.float64).uniform_(math.log(low), math.log(high))).float()


def wide_counts(n: int) -> Tensor:
    """Zeros, small counts, and counts up to a million."""
    x = log_uniform(1, 1e6, n).floor()
    x[::4], x[1::4] = 0, torch.poisson(torch.full_like(x[1::4], 3))
    return x


def wide_means(x: Tensor) -> Tensor:
    """From 1e-8 to 1e6; every second within two standard deviations of x."""
    mu = log_uniform(1e-8, 1e6, x.numel())
    mu[::2] = (x + x.sqrt() * torch.randn(x.shape)).clamp(1e-8, 1e6)[::2]
    return mu


def elementwise(function: Callable[..., Any], *operands: Tensor) -> list[Tensor]:
    """function of mpmath's numbers -> results, over tensors, in float64."""
    operands = tuple(t.double() for t in operands)
    with mp.workdps(DIGITS):
        rows = [function(*map(mp.mpf, numbers)) for numbers in zip(*(t.tolist() for t in operands), strict=True)]
    return [torch.tensor([float(r) for r in column], dtype=torch.float64) for column in zip(*rows, strict=True)]


def stirling(v: Any) -> Any:
    return mp.loggamma(v + 1) - ((v + 0.5) * mp.log(v) - v + mp.log(2 * mp.pi) / 2)


def digamma_remainder(v: Any) -> Any:
    return mp.log(v) - 1 / (2 * v) - mp.digamma(v)


def negative_binomial(m: Any, t: Any, x: Any) -> tuple[Any, Any, Any, Any]:
    """nll, d/dm, d/dt, and the sum of the magnitudes of d/dt's terms, of which that is a difference."""
    nll = mp.loggamma(x + 1) + mp.loggamma(t) - mp.loggamma(x + t) + t * mp.log1p(m / t) + x * mp.log1p(t / m)
    by_t = mp.log1p(m / t) + (x - m) / (t + m) + mp.digamma(t) - mp.digamma(x + t)
    r = (x - m) / (t + m)
    others = x / (2 * t * (x + t)) + digamma_remainder(t) - digamma_remainder(x + t) if x else mp.mpf(0)
    return nll, t * (m - x) / (m * (m + t)), by_t, (r - mp.log1p(r)) + others


def inflated(m: Any, t: Any, l: Any, x: Any) -> tuple[Any, Any, Any, Any, Any]:  # noqa: E741
    """nll, d/dm, d/dt, d/dl, and the magnitude of d/dt's terms."""
    nll, by_m, by_t, terms = negative_binomial(m, t, x)
    drop, keep = 1 / (1 + mp.exp(-l)), 1 / (1 + mp.exp(l))
    if x:
        return nll - mp.log(keep), by_m, by_t, drop, terms
    zero = mp.exp(-nll)
    a, rest = keep * -mp.expm1(-nll), drop + keep * zero
    kept = keep * zero / rest
    return -mp.log1p(-a) if a < 0.5 else -mp.log(rest), kept * by_m, kept * by_t, -drop * a / rest, kept * terms


def poisson(m: Any, x: Any) -> tuple[Any, Any]:
    """nll and d/dm."""
    return m - x * mp.log(m) + mp.loggamma(x + 1), 1 - x / m


def assert_within(got: Tensor, expected: Tensor, bound: float, magnitude: Tensor | None = None) -> None:
    """|got - expected| <= bound * magnitude (default: expected's), elementwise, above what float32 can hold."""
    error = (got.detach().double() - expected).abs()
    allowed = bound * (expected if magnitude is None else magnitude).abs() + 1e-37
    worst = (error / allowed).argmax()
    assert (error <= allowed).all(), f"error {error[worst]:.3g} of {expected[worst]:.3g}, allowed {allowed[worst]:.3g}"
