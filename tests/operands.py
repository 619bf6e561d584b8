"""Operands in every layout and dtype, and comparisons with the float64 reference."""

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vae_fast.likelihoods import LIKELIHOODS

DEVICE = torch.get_default_device()  # see --device
EMULATED = "VAE_FAST_TEST_EMULATED" in os.environ  # see conftest.py
ON_GPU = DEVICE.type != "cpu" or EMULATED
MARGIN = 2 if ON_GPU else 1  # ex2.approx, lg2.approx and rcp.approx add errors of 2^-22 to those of rounding
SHAPES = [(1, 1), (5, 37), (3, 784), (2, 1025), (37, 2), (1, 40_000)]
FLOATING = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _sliced(t: Tensor) -> Tensor:
    """Rows further apart than they are long, at an offset that breaks alignment."""
    wide = torch.full((t.shape[0] + 1, t.shape[1] + 5), torch.nan).to(t.dtype)
    wide[1:, 3:-2] = t
    return wide[1:, 3:-2]


def _transposed(t: Tensor) -> Tensor:
    return t.t().contiguous().t()


def _spaced(t: Tensor) -> Tensor:
    """Every second column of a wider tensor."""
    wide = torch.full((t.shape[0], 2 * t.shape[1]), torch.nan).to(t.dtype)
    wide[:, ::2] = t
    return wide[:, ::2]


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand_as(t)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "sliced": _sliced,
    "transposed": _transposed,
    "spaced": _spaced,
    "expanded": _expanded,
}


def target(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """x in [0, 1], or its bytes or bits."""
    x = torch.rand(shape)
    if dtype == torch.uint8:
        return (x * 255).round().to(torch.uint8)
    return x > 0.5 if dtype == torch.bool else x.to(dtype)


def levels(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """One of 256 levels: its number, as integers, or its place on [-1, 1]."""
    level = torch.randint(256, shape)
    return (2 * level / 255 - 1).to(dtype) if dtype.is_floating_point else level.to(dtype)


def elements(name: str, rows: int, columns: int, dtype: torch.dtype, x_dtype: torch.dtype) -> list:
    """An operator's, up to its weight: parameters of their own for each observation, x, the options."""
    entry = LIKELIHOODS[name]
    positive = (entry.counts and "levels" not in entry.options) or name == "bernoulli_probs"
    parameters = [
        (torch.rand(rows, columns) * 0.8 + 0.1 if positive else torch.randn(rows, columns)).to(dtype)
        for _ in entry.parameters
    ]
    if entry.per_row:
        parameters[-1] = parameters[-1][:, :1]
    if "levels" in entry.options:
        x = levels((rows, columns), x_dtype)
        return [*parameters, x, *entry.numbers(entry.options_for({}, x))]
    if entry.counts:
        return [*parameters, torch.poisson(torch.rand(rows, columns)).to(x_dtype), *(0.0 for _ in entry.options)]
    return [*parameters, target((rows, columns), x_dtype), *(0.0 for _ in entry.options)]


def leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_()


def wide(t: Tensor) -> Tensor:
    """The same numbers in float64, a leaf."""
    return t.detach().double().requires_grad_()


def assert_values(got: Tensor, expected: Tensor, magnitude: Tensor | None = None, relative: float = 1e-6) -> None:
    """|got - expected| <= relative * magnitude, elementwise; magnitude: of what was summed (default: the sum)."""
    assert got.dtype == (torch.float64 if got.dtype == torch.float64 else torch.float32)
    assert got.shape == expected.shape
    bound = MARGIN * relative * (expected if magnitude is None else magnitude).abs()
    error = (got.double() - expected).abs()
    worst = (error / bound).argmax() if got.numel() else 0
    assert (error <= bound).all(), f"error {error.flatten()[worst]:.3g}, allowed {bound.flatten()[worst]:.3g}"


def assert_gradients(
    got: Sequence[Tensor | None], expected: Sequence[Tensor | None], sums: float = 1, relative: float = 5e-7
) -> None:
    """Each within `relative` of its size or of `sums`, what it adds up, and then rounded to its dtype."""
    for g, e in zip(got, expected, strict=True):
        assert g is not None and e is not None
        assert g.shape == e.shape
        rounding = torch.finfo(g.dtype).eps / 2 if g.dtype.itemsize == 2 else 0
        least = torch.finfo(g.dtype).smallest_normal * torch.finfo(g.dtype).eps
        bound = MARGIN * relative * e.abs().clamp(min=sums) + rounding * e.abs() * 1.001 + least
        error = (g.double() - e).abs()
        worst = (error / bound).argmax() if g.numel() else 0
        assert (error <= bound).all(), f"error {error.flatten()[worst]:.3g}, allowed {bound.flatten()[worst]:.3g}"
