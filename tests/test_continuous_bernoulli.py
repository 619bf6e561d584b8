"""continuous_bernoulli_nll against the float64 reference, and that against mpmath: values, gradients, mean, draws.

-log p is the sum of |l| d, which is not negative, and log((1 - e^-|l|) / |l|), which is not positive; errors are
relative to the sum of their sizes, as nothing about l and x can be known better.
"""

import itertools
import math

import mpmath
import pytest
import torch
from operands import FLOATING, LAYOUTS, SHAPES, assert_gradients, assert_values, leaf, target, wide

import vae_fast
from vae_fast import reference

EXTREME = [1e-8, 1e-5, 1e-3, 0.1, 0.49, 0.51, 0.99, 1.0, 1.01, 1.99, 2.01, 5, 17, 30, 87, 88, 89, 104, 700, 1e4]
LOGITS = torch.tensor([0.0, -0.0, *EXTREME, *(-v for v in EXTREME)])
X = torch.tensor([0.0, 1e-6, 0.25, 0.5, 0.7, 254 / 255, 1 - 2.0**-24, 1.0])


def expected(logits, x, incoming=None):
    """(nll, sum of the parts' magnitudes, gradient) in float64."""
    parameter = wide(logits)
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    nll = reference.continuous_bernoulli(parameter, x).sum(1)
    (gradient,) = torch.autograd.grad(nll, parameter, torch.ones_like(nll) if incoming is None else incoming.double())
    return nll.detach(), magnitude(logits.detach().double(), x).sum(1), gradient


def magnitude(logits, x):
    linear = logits.abs() * torch.where(logits < 0, x, 1 - x)
    return 2 * linear - reference.continuous_bernoulli(logits, x)


def exact(logit, x):
    """(-log p, E[x]) by mpmath, as mpmath's numbers."""
    logit = mpmath.mpf(logit)
    normaliser = mpmath.log(mpmath.expm1(logit) / logit) if logit else mpmath.mpf(0)
    mean = 1 / -mpmath.expm1(-logit) - 1 / logit if logit else mpmath.mpf(0.5)
    return normaliser - logit * mpmath.mpf(x), mean


@pytest.fixture(autouse=True)
def precision():
    with mpmath.workdps(60):
        yield


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_values_and_gradients_are_mpmath_s(dtype):
    """Of the reference and of the kernels, from one grid; float64 is truth for all other tests."""
    grid = list(itertools.product(LOGITS.tolist(), X.tolist()))
    logits, x = (torch.tensor(v, dtype=dtype).unsqueeze(1) for v in zip(*grid, strict=True))
    true = [exact(*place) for place in grid]
    values = torch.tensor([float(v) for v, _ in true], dtype=torch.float64)
    gradients = torch.tensor([[float(m - v)] for (_, m), (_, v) in zip(true, grid, strict=True)], dtype=torch.float64)
    sizes = magnitude(logits.double(), x.double()).flatten()
    functions = [vae_fast.continuous_bernoulli_nll]
    if dtype == torch.float64:
        functions.append(lambda logits, x: reference.continuous_bernoulli(logits, x).sum(1))
    for function in functions:
        parameter = leaf(logits)
        nll = function(parameter, x)
        nll.sum().backward()
        relative = 1e-6 if dtype == torch.float32 else 3e-15
        assert_values(nll, values, sizes + 1e-30, relative)
        assert_gradients([parameter.grad], [gradients], relative=5e-7 if dtype == torch.float32 else 1e-15)


def test_a_confident_logit_has_its_true_likelihood():
    """torch's ContinuousBernoulli gives -6.231: there e^-30 is lost when 1 - sigmoid(30) is taken."""
    logits, x = torch.tensor([[30.0]]), torch.tensor([[0.7]])
    assert vae_fast.continuous_bernoulli_nll(logits, x).item() == pytest.approx(5.598803, rel=1e-6)
    assert float(exact(30, x.item())[0]) == pytest.approx(5.598803, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [0.01, 5.0])
def test_layouts(shape, layout, scale, poisoned):
    logits = leaf(LAYOUTS[layout](torch.randn(shape) * scale))
    x = LAYOUTS[layout](target(shape))
    incoming = torch.randn(shape[0])
    nll = vae_fast.continuous_bernoulli_nll(logits, x)
    nll.backward(incoming)
    value, size, gradient = expected(logits, x, incoming)
    assert_values(nll, value, size)
    assert_gradients([logits.grad], [gradient])


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("x_dtype", [*FLOATING, torch.uint8, torch.bool], ids=str)
def test_dtypes(dtype, x_dtype, poisoned):
    logits = leaf((torch.randn(5, 1025) * 5).to(dtype))
    x = target((5, 1025), x_dtype)
    nll = vae_fast.continuous_bernoulli_nll(logits, x)
    nll.sum().backward()
    value, size, gradient = expected(logits, x)
    assert_values(nll, value, size)
    assert_gradients([logits.grad], [gradient])


def test_what_does_not_count_is_not_used():
    logits, x = torch.randn(6, 40) * 3, torch.rand(6, 40)
    mask, weight = torch.rand(6, 40) > 0.5, torch.tensor([1.0, 0, 2, 1, 0, 1])
    kept = mask & (weight[:, None] != 0)
    value = torch.where(kept, reference.continuous_bernoulli(logits.double(), x.double()), 0).sum(1) * weight
    logits[~mask], x[weight == 0] = torch.nan, torch.inf
    logits = leaf(logits)
    nll = vae_fast.continuous_bernoulli_nll(logits, x, weight=weight, mask=mask)
    nll.sum().backward()
    assert_values(nll, value, torch.full_like(value, 200))
    assert (logits.grad[~kept] == 0).all() and (logits.grad[kept] != 0).all()


def test_the_density_integrates_to_one():
    x = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    for logit in (0.0, 1e-3, 0.9, 1.1, -3.0, 30.0):
        density = torch.exp(-reference.continuous_bernoulli(torch.full_like(x, logit), x))
        assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-5)


def test_nan_stays_in_its_row():
    logits = torch.randn(4, 37)
    logits[1, 5] = torch.nan
    logits = leaf(logits)
    nll = vae_fast.continuous_bernoulli_nll(logits, torch.rand(4, 37))
    nll.sum().backward()
    assert nll.isfinite().tolist() == [True, False, True, True]
    assert logits.grad[1, 5].isnan() and logits.grad[[0, 2, 3]].isfinite().all()


def test_the_second_derivative_is_the_variance():
    logits = leaf(torch.tensor([0.0, 0.3, 0.999, 1.001, -8.0], dtype=torch.float64))
    nll = reference.continuous_bernoulli(logits, torch.full_like(logits, 0.3))
    (first,) = torch.autograd.grad(nll.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logits)
    for logit, got in zip(logits.tolist(), second.tolist(), strict=True):
        variance = mpmath.diff(lambda v: exact(v, 0.3)[1], logit) if logit else mpmath.mpf(1) / 12
        assert got == pytest.approx(float(variance), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_mean(dtype):
    mean = reference.continuous_bernoulli_mean(LOGITS.to(dtype))
    true = torch.tensor([float(exact(v, 0)[1]) for v in LOGITS.tolist()], dtype=torch.float64)
    assert (mean - true).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("logit", [0.0, 1e-20, 1e-4, 2.0, -2.0, 30.0, -200.0, 1e4])
def test_draws_follow_the_distribution(logit, dtype):
    count, generator = 100_000, torch.Generator().manual_seed(5)
    x = reference.continuous_bernoulli_sample(torch.full((count,), logit, dtype=dtype), generator=generator)
    assert x.dtype == dtype and x.min() >= 0 and x.max() <= 1
    mean = float(exact(logit, 0)[1])
    spread = (mpmath.mpf(1) / 12) ** 0.5 if abs(logit) < 1 else mpmath.sqrt(1 / mpmath.mpf(logit) ** 2)
    assert x.double().mean().item() == pytest.approx(mean, abs=5 * float(spread) / count**0.5)
    if logit:
        from_side = x.double() if logit < 0 else 1 - x.double()
        places = (torch.expm1(-abs(logit) * from_side) / math.expm1(-abs(logit))).sort().values
        assert (places - torch.linspace(0, 1, count)).abs().max() < 0.01  # Kolmogorov's distance
