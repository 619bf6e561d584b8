"""Every operator on operands drawn at random, against its reference in float64. test_sanitizers.py runs it.

Each operand is a block of memory of its own, which ends with the operand's last element: whatever is read or written
before or after it is not the operand's. In the gaps between strided elements lies NaN.

    python -m pytest tests/operator_calls.py
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from operands import FLOATING, levels, target
from torch import Tensor

from vae_fast.likelihoods import LIKELIHOODS

pytestmark = pytest.mark.filterwarnings("ignore:vae_fast. the plain PyTorch reference runs on cpu")  # as it shall
DRAWS = 60
ROWS = (0, 1, 2, 3, 5, 37, 130)
COLUMNS = (0, 1, 2, 3, 15, 16, 17, 255, 511, 512, 513, 784, 1025)
COUNTS = (torch.int32, torch.int64, torch.uint16, torch.uint8, torch.bool)
LONG = (16_383, 16_384, 16_385, 33_000)
LATENTS = (0, 1, 2, 3, 37, 511, 512, 513, 1500)
POSITIVE = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")  # parameters


class Draw:
    """Operands from one seed: the numbers by torch's generator, what they are like by one of Python's."""

    def __init__(self, seed: str) -> None:
        self.chance = random.Random(seed)
        self.dtype = self.chance.choice(FLOATING)

    def maybe(self, probability: float = 0.5) -> bool:
        return self.chance.random() < probability

    def size(self, columns: tuple[int, ...]) -> tuple[int, int]:
        if self.maybe(0.1) and columns is COLUMNS:
            return self.chance.choice((1, 2)), self.chance.choice(LONG)
        return self.chance.choice(ROWS), self.chance.choice(columns)

    def floating(self) -> torch.dtype:
        """Mostly the same."""
        return self.chance.choice(FLOATING) if self.maybe(0.2) else self.dtype

    def placed(self, t: Tensor) -> Tensor:
        """Such numbers in a layout drawn at random; those of one row or column may be repeated."""
        shape = t.shape
        if self.maybe(0.2) and t.numel():
            t = self.chance.choice((t[:1], t[:, :1]))
        rows, columns = t.shape
        strides = self.chance.choice(
            [(columns, 1), (columns, 1), (columns + 3, 1), (1, rows), (2 * columns + 1, 2), (3, 3 * rows + 1)]
        )
        offset = self.chance.choice((0, 0, 1, 3))
        size = offset + (1 + (rows - 1) * strides[0] + (columns - 1) * strides[1] if t.numel() else 0)
        memory = torch.full((size,), torch.nan).to(t.dtype)
        return memory.as_strided(t.shape, strides, offset).copy_(t).expand(shape)

    def volume(self, t: Tensor) -> Tensor:
        """Such numbers [B, C, N] in planes or, channels last, in pixels, with gaps or without."""
        _, planes, columns = t.shape
        gap = self.chance.choice((0, 0, 3))
        strides = (planes * columns + gap, 1, planes) if self.maybe() else (planes * (columns + gap), columns + gap, 1)
        size = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, strides, strict=True)) if t.numel() else 0
        memory = torch.full((size,), torch.nan if t.is_floating_point() else 77)
        return memory.to(t.dtype).as_strided(t.shape, strides).copy_(t)

    def shared(self, rows: int, columns: int) -> tuple[int, int]:
        """The size of a parameter that may be repeated along either dimension."""
        return (1 if self.maybe(0.2) else rows), (1 if self.maybe(0.2) else columns)

    def parameter(self, rows: int, columns: int) -> Tensor:
        return self.placed(torch.randn(rows, columns).to(self.floating()))

    def parameters(self, likelihood: str, rows: int, columns: int) -> list[Tensor]:
        entry = LIKELIHOODS[likelihood]
        shapes = [self.shared(rows, columns) for _ in entry.parameters]
        if entry.per_row:
            shapes[-1] = (shapes[-1][0], 1)
        if likelihood == "bernoulli_probs":
            return [self.placed(torch.rand(shape).clamp(0.05, 0.95).to(self.floating())) for shape in shapes]
        if likelihood in POSITIVE:
            return [self.placed((torch.rand(shape) + 0.1).to(self.floating())) for shape in shapes]
        return [self.parameter(*shape) for shape in shapes]

    def observations(self, likelihood: str, rows: int, columns: int) -> Tensor:
        if likelihood == "discretized_logistic":
            return self.placed(levels((rows, columns), self.chance.choice([*FLOATING, torch.uint8, torch.int64])))
        if LIKELIHOODS[likelihood].counts:
            x = torch.poisson(4 * torch.rand(rows, columns) ** 3)
            return self.placed(x.to(self.chance.choice([*FLOATING, *COUNTS])))
        return self.placed(target((rows, columns), self.chance.choice([*FLOATING, torch.uint8, torch.bool])))

    def options(self, likelihood: str) -> list[float]:
        return [self.chance.choice((0.0, 1.0)) for _ in LIKELIHOODS[likelihood].options]

    def mask(self, rows: int, columns: int) -> Tensor | None:
        return self.placed(torch.rand(self.shared(rows, columns)) > 0.3) if self.maybe() else None

    def vector(self, rows: int) -> Tensor:
        """[B], with zeros and ones in it."""
        each = torch.rand(rows) * torch.randint(4, (rows,)).clamp(max=1)
        each[::7] = 1
        return self.placed(each.to(self.floating()).reshape(rows, 1))[:, 0]

    def weight(self, rows: int) -> Tensor | None:
        return self.vector(rows) if self.maybe() else None

    def posterior(self, rows: int, columns: int, prior: bool) -> list[Any]:
        q = [self.parameter(rows, columns) for _ in range(2)]
        return q + [self.parameter(*self.shared(rows, columns)) if prior else None for _ in range(2)]

    def asked(self, count: int) -> int:
        return self.chance.choice((0, 2**count - 1, self.chance.randrange(2**count)))

    def seed(self) -> Tensor:
        return torch.tensor(self.chance.choice((0, -1, 2**40 + 7)))


def _observations(draw: Draw, likelihood: str, rows: int, columns: int) -> list[Any]:
    """x and the options."""
    entry, x = LIKELIHOODS[likelihood], draw.observations(likelihood, rows, columns)
    if "levels" in entry.options:
        return [x, *entry.numbers(entry.options_for({}, x))]
    return [x, *draw.options(likelihood)]


def joint_nll(draw: Draw, likelihood: str) -> list[Any]:
    entry, (rows, columns) = LIKELIHOODS[likelihood], draw.size(COLUMNS)
    classes, channels, columns = entry.joint == "classes", draw.chance.choice((1, 3)), min(columns, 1100)
    planes = draw.chance.choice((1, 2, 7, 40, 300)) if classes else draw.chance.choice((1, 4)) * (3, 10)[channels == 3]
    parameters = draw.volume(torch.randn(rows, planes, columns).to(draw.floating()))
    if classes:
        x = draw.placed(torch.randint(planes, (rows, columns)).to(draw.chance.choice((torch.int64, torch.int32))))
        options: tuple[float, ...] = ()
    else:
        x = draw.volume(
            torch.randint(256, (rows, channels, columns)).to(draw.chance.choice((torch.uint8, torch.int64)))
        )
        options = entry.numbers(entry.options_for({"channels": channels}, x))
    return [parameters, x, *options, draw.weight(rows), draw.mask(rows, columns), draw.asked(1)]


def nll(draw: Draw, likelihood: str) -> list[Any]:
    if LIKELIHOODS[likelihood].joint:
        return joint_nll(draw, likelihood)
    size = draw.size(COLUMNS)
    parameters = draw.parameters(likelihood, *size)
    return [
        *parameters,
        *_observations(draw, likelihood, *size),
        draw.weight(size[0]),
        draw.mask(*size),
        draw.asked(len(parameters)),
    ]


def elbo(draw: Draw, likelihood: str) -> list[Any]:
    *operands, weight, mask, _ = nll(draw, likelihood)
    x = operands[len(LIKELIHOODS[likelihood].parameters)]
    latent = draw.posterior(x.shape[0], draw.chance.choice(LATENTS), draw.maybe())
    factor = torch.rand(()).to(draw.floating()) if draw.maybe() else None
    asked = len(LIKELIHOODS[likelihood].parameters) + 4
    beta, scale = draw.chance.choice((0.0, 0.7)), draw.chance.choice((1.0, 0.25))
    return [*operands, *latent, weight, mask, factor, beta, scale, draw.maybe(), draw.asked(asked)]


def sample_kl_backward(draw: Draw) -> list[Any]:
    size = draw.size(LATENTS)
    dz = draw.parameter(*draw.shared(*size)) if draw.maybe(0.7) else None
    dkl = draw.vector(size[0]) if draw.maybe(0.7) else None
    return [dz, dkl, *draw.posterior(*size, draw.maybe()), draw.seed(), draw.asked(4)]


def gaussian_kl(draw: Draw) -> list[Any]:
    size = draw.size(LATENTS)
    return [*draw.posterior(*size, draw.maybe()), draw.weight(size[0]), draw.asked(4)]


def monte_carlo_kl(draw: Draw) -> list[Any]:
    size = draw.size(LATENTS)
    return [draw.parameter(*size), *draw.posterior(*size, True), draw.weight(size[0]), draw.asked(5)]


def scale_rows(draw: Draw) -> list[Any]:
    gradient = draw.parameter(*draw.size(COLUMNS))
    if 0 in gradient.stride():
        gradient = gradient.contiguous()
    return [gradient, draw.vector(gradient.shape[0]) if draw.maybe(0.7) else draw.vector(8)[draw.chance.randrange(8)]]


OPERATORS: dict[str, Callable[[Draw], list[Any]]] = {
    **{f"{name}_nll": partial(nll, likelihood=name) for name in LIKELIHOODS},
    **{f"elbo_{name}": partial(elbo, likelihood=name) for name in LIKELIHOODS},
    "reparameterize": lambda draw: [*draw.posterior(*draw.size(LATENTS), False)[:2], draw.seed()],
    "sample_kl": lambda draw: [*draw.posterior(*draw.size(LATENTS), draw.maybe()), draw.seed()],
    "sample_kl_backward": sample_kl_backward,
    "gaussian_kl": gaussian_kl,
    "monte_carlo_kl": monte_carlo_kl,
    "scale_rows_": scale_rows,
}


def exact(name: str, arguments: list[Any]) -> Any:
    """What the reference gives in float64."""
    wide = [a.to(torch.float64, copy=True) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    result = getattr(torch.ops.vae_fast_reference, name)(*wide)
    return wide[0] if name == "scale_rows_" else result


@contextmanager
def streaming(always: bool) -> Iterator[None]:
    """Gradients of any size are written past the caches, or none."""
    stream_from = torch.ops.vae_fast_memory.stream_from
    before = stream_from(0 if always else 2**62)
    try:
        yield
    finally:
        stream_from(before)


def tensors(result: Any) -> Iterator[Tensor]:
    yield from result if isinstance(result, (tuple, list)) else [result]


@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.parametrize("name", OPERATORS)
def test_call(name, draw, poisoned):
    arguments = OPERATORS[name](Draw(f"{name} {draw}"))
    expected = exact(name, arguments)
    with streaming(draw % 2 == 1):
        result = getattr(torch.ops.vae_fast, name)(*arguments)
    for got, value in zip(tensors(arguments[0] if name == "scale_rows_" else result), tensors(expected), strict=True):
        assert got.shape == value.shape
        if got.numel():
            beyond = value.abs() > torch.finfo(got.dtype).max  # what half precision holds
            error = torch.where(beyond, 0, (got.double() - value).abs()).max()
            assert error <= (1e-5 + torch.finfo(got.dtype).eps) * (1 + value.abs().max())


def test_every_operator_is_called():
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("vae_fast::")}
    assert names == OPERATORS.keys()
