"""gaussian_nll against the float64 reference, for every way in which the log-variance can be shared."""

import contextlib
import math

import pytest
import torch
from operands import FLOATING, LAYOUTS, SHAPES, assert_gradients, assert_values, leaf, target, wide

import vae_fast
from vae_fast import reference


def expected(mean, x, logvar, incoming=None):
    """(nll, sum of the terms' magnitudes, gradients of mean and logvar) in float64."""
    mean, logvar = wide(mean), wide(logvar)
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    terms = reference.gaussian(mean, logvar, x)
    nll = terms.sum(1)
    incoming = torch.ones_like(nll) if incoming is None else incoming.double()
    return nll.detach(), terms.abs().sum(1).detach(), torch.autograd.grad(nll, (mean, logvar), incoming)


RELATIVE = 1e-6  # of gradients: twice the error of PyTorch's own float32, 4.7e-7, where (x - m)^2 e^-v is squared last

SHARED = {
    "number": lambda b, d: torch.randn(()),
    "one": lambda b, d: torch.randn(1),
    "feature": lambda b, d: torch.randn(d),
    "row of features": lambda b, d: torch.randn(1, d),
    "row": lambda b, d: torch.randn(b, 1),
    "element": lambda b, d: torch.randn(b, d),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", SHARED)
def test_shared_logvar(shape, shared, poisoned):
    mean, x = leaf(torch.randn(shape)), target(shape)
    logvar = leaf(SHARED[shared](*shape))
    incoming = torch.randn(shape[0])
    nll = vae_fast.gaussian_nll(mean, x, logvar=logvar)
    nll.backward(incoming)
    value, magnitude, gradients = expected(mean, x, logvar, incoming)
    assert_values(nll, value, magnitude)
    assert_gradients([mean.grad], gradients[:1], relative=RELATIVE)
    assert_gradients([logvar.grad], gradients[1:], mean.numel() / logvar.numel(), RELATIVE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    mean, logvar, x = (leaf(LAYOUTS[layout](torch.randn(5, 1025))) for _ in range(3))
    nll = vae_fast.gaussian_nll(mean, x.detach(), logvar=logvar)
    nll.sum().backward()
    value, magnitude, gradients = expected(mean, x, logvar)
    assert_values(nll, value, magnitude)
    assert_gradients([mean.grad, logvar.grad], gradients, relative=RELATIVE)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("logvar_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shared", ["feature", "element"])
def test_dtypes(dtype, logvar_dtype, shared):
    mean, logvar = leaf(torch.randn(5, 37).to(dtype)), leaf(SHARED[shared](5, 37).to(logvar_dtype))
    x = target((5, 37), torch.uint8)
    nll = vae_fast.gaussian_nll(mean, x, logvar=logvar)
    nll.sum().backward()
    value, magnitude, gradients = expected(mean, x, logvar)
    assert_values(nll, value, magnitude)
    assert_gradients([mean.grad, logvar.grad], gradients, 5, RELATIVE)


def test_fixed_variance_counts_its_constant():
    mean, x = torch.zeros(1, 10), torch.ones(1, 10)
    assert vae_fast.gaussian_nll(mean, x).item() == pytest.approx(5 + 5 * math.log(2 * math.pi), rel=1e-6)
    assert vae_fast.gaussian_nll(mean, x, logvar=math.log(4)).item() == pytest.approx(
        10 / 8 + 5 * math.log(2 * math.pi * 4), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_scale_that_is_0_to_every_dtype(dtype):
    """The mean hits x: no infinity times 0, in kernels or in the reference."""
    mean, low = leaf(torch.zeros(1, 3, dtype=dtype)), torch.full((1, 3), -2000.0, dtype=dtype)
    for backend in (contextlib.nullcontext(), vae_fast.backend("reference")):
        with backend:
            nll = vae_fast.gaussian_nll(mean, mean.detach(), logvar=low)
            nll = nll + vae_fast.laplace_nll(mean, mean.detach(), log_scale=low)
            (gradient,) = torch.autograd.grad(nll, mean)
        assert nll.item() == pytest.approx(3 * (-3000 + 0.5 * math.log(2 * math.pi) + math.log(2)))
        assert gradient.tolist() == [[0, 0, 0]]


def test_finite_wherever_the_true_value_is():
    """e^170 overflows float32; 1e-20 squared times it does not."""
    logvar = torch.tensor([[-170.0, -340.0, 60.0, 100.0]])
    mean, x = torch.tensor([[1e-20, 0.0, 1e10, 1e20]]), torch.zeros(1, 4)
    value, magnitude, _ = expected(mean, x, logvar)
    assert_values(vae_fast.gaussian_nll(mean, x, logvar=logvar), value, magnitude, relative=1e-5)


def test_empty_batch_gives_shared_parameters_a_zero_gradient():
    logvar = torch.zeros(5, requires_grad=True)
    mean = torch.zeros(0, 5, requires_grad=True)
    vae_fast.gaussian_nll(mean, torch.zeros(0, 5), logvar=logvar).sum().backward()
    assert torch.equal(logvar.grad, torch.zeros(5)) and mean.grad.shape == (0, 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 1, 1), (1, 1, 4, 5), (4, 5), (5,), (2, 1, 1, 1)], ids=str)
def test_images(layout, shape):
    """Images in either layout, with a log-variance a channel, a pixel, a column, an image."""
    mean, x = leaf(torch.randn(2, 3, 4, 5).to(memory_format=layout)), torch.rand(2, 3, 4, 5).to(memory_format=layout)
    logvar, mask = leaf(torch.randn(shape)), torch.rand(2, 1, 4, 5) > 0.3
    nll = vae_fast.gaussian_nll(mean, x, logvar=logvar, mask=mask)
    nll.sum().backward()
    mean64, logvar64 = wide(mean), wide(logvar)
    terms = reference.gaussian(mean64, logvar64, x.double()) * mask
    terms.sum().backward()
    assert_values(nll, terms.flatten(1).sum(1).detach(), terms.abs().flatten(1).sum(1).detach())
    assert_gradients([mean.grad, logvar.grad], [mean64.grad, logvar64.grad], 120 / logvar.numel(), RELATIVE)
    assert mean.grad.is_contiguous(memory_format=layout)
