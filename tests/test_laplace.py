"""laplace_nll against the float64 reference, for every way in which the log-scale can be shared."""

import math

import pytest
import torch
from operands import FLOATING, LAYOUTS, SHAPES, assert_gradients, assert_values, leaf, target, wide
from torch.distributions import Laplace

import vae_fast
from vae_fast import reference
from vae_fast.likelihoods import LIKELIHOODS

RELATIVE = 1e-6  # of gradients that |x - m| e^-s is in, as in test_gaussian.py


def expected(mean, x, log_scale, incoming=None):
    """(nll, sum of the terms' parts' magnitudes, gradients of mean and log_scale) in float64."""
    mean, log_scale = wide(mean), wide(log_scale)
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    terms = reference.laplace(mean, log_scale, x)
    nll = terms.sum(1)
    incoming = torch.ones_like(nll) if incoming is None else incoming.double()
    magnitude = (terms - log_scale + log_scale.abs()).sum(1)
    return nll.detach(), magnitude.detach(), torch.autograd.grad(nll, (mean, log_scale), incoming)


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
def test_shared_log_scale(shape, shared, poisoned):
    mean, x = leaf(torch.randn(shape)), target(shape)
    log_scale = leaf(SHARED[shared](*shape))
    incoming = torch.randn(shape[0])
    nll = vae_fast.laplace_nll(mean, x, log_scale=log_scale)
    nll.backward(incoming)
    value, magnitude, gradients = expected(mean, x, log_scale, incoming)
    assert_values(nll, value, magnitude)
    assert_gradients([mean.grad], gradients[:1])
    assert_gradients([log_scale.grad], gradients[1:], mean.numel() / log_scale.numel(), RELATIVE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    mean, log_scale, x = (leaf(LAYOUTS[layout](torch.randn(5, 1025))) for _ in range(3))
    nll = vae_fast.laplace_nll(mean, x.detach(), log_scale=log_scale)
    nll.sum().backward()
    value, magnitude, gradients = expected(mean, x, log_scale)
    assert_values(nll, value, magnitude)
    assert_gradients([mean.grad, log_scale.grad], gradients, relative=RELATIVE)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("scale_dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shared", ["feature", "element"])
def test_dtypes(dtype, scale_dtype, shared):
    mean, log_scale = leaf(torch.randn(5, 37).to(dtype)), leaf(SHARED[shared](5, 37).to(scale_dtype))
    x = target((5, 37), torch.uint8)
    nll = vae_fast.laplace_nll(mean, x, log_scale=log_scale)
    nll.sum().backward()
    value, magnitude, gradients = expected(mean, x, log_scale)
    assert_values(nll, value, magnitude)
    assert_gradients([mean.grad, log_scale.grad], gradients, 5, RELATIVE)


@pytest.mark.parametrize("selected", ["weight", "mask", "both"])
def test_what_does_not_count_is_not_used(selected):
    mean, log_scale, x = torch.randn(6, 40), torch.randn(6, 40), torch.rand(6, 40)
    mask = torch.rand(6, 40) > 0.5 if selected != "weight" else None
    weight = torch.tensor([1.0, 0, 2, 1, 0, 1]) if selected != "mask" else None
    exact = reference.laplace(mean.double(), log_scale.double(), x.double())
    for t in (mean, log_scale, x):
        if mask is not None:
            t[~mask] = torch.nan
        if weight is not None:
            t[weight == 0] = torch.inf
    kept = torch.ones(6, 40, dtype=torch.bool) if mask is None else mask
    kept = kept & (weight[:, None] != 0) if weight is not None else kept
    mean, log_scale = leaf(mean), leaf(log_scale)
    nll = vae_fast.laplace_nll(mean, x, log_scale=log_scale, weight=weight, mask=mask)
    nll.sum().backward()
    value = torch.where(kept, exact, 0).sum(1) * (1 if weight is None else weight)
    assert_values(nll, value, torch.full_like(value, 200))
    assert (mean.grad[~kept] == 0).all() and (log_scale.grad[~kept] == 0).all()
    assert (mean.grad[kept] != 0).all()


def test_the_value_is_torch_s():
    mean, log_scale, x = (torch.randn(50, 3, dtype=torch.float64) for _ in range(3))
    exact = -Laplace(mean, log_scale.exp()).log_prob(x)
    assert torch.allclose(reference.laplace(mean, log_scale, x), exact, rtol=1e-14, atol=1e-14)


def test_fixed_scale_counts_its_constant():
    mean, x = torch.zeros(1, 10), torch.ones(1, 10)
    assert vae_fast.laplace_nll(mean, x).item() == pytest.approx(10 + 10 * math.log(2), rel=1e-6)
    assert vae_fast.laplace_nll(mean, x, log_scale=math.log(4)).item() == pytest.approx(
        10 / 4 + 10 * math.log(8), rel=1e-6
    )


@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_where_x_is_the_mean_is_zero(shared):
    x = torch.tensor([[0.5, -0.0, 0.0, 3.0]])
    mean = leaf(torch.tensor([[0.5, 0.0, -0.0, 4.0]]))
    log_scale = torch.zeros(1, 1) if shared else torch.zeros(1, 4)
    vae_fast.laplace_nll(mean, x, log_scale=log_scale).sum().backward()
    assert mean.grad.tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize("shared", [False, True])
def test_extreme_scales_are_finite(shared):
    for s in (-200.0, -88.0, -60.0, 60.0, 88.0, 200.0):
        mean, x = leaf(torch.tensor([[0.5, 1.0]])), torch.tensor([[0.5, 1.0 + 2.0**-23]])
        log_scale = leaf(torch.full((1, 1 if shared else 2), s))
        nll = vae_fast.laplace_nll(mean, x, log_scale=log_scale)
        nll.sum().backward()
        assert nll.isfinite().all() and mean.grad.isfinite().all() and log_scale.grad.isfinite().all()
        if abs(s) < 88:
            value, magnitude, _ = expected(mean, x, log_scale)
            assert_values(nll, value, magnitude, relative=1e-5)


def test_nan_stays_in_its_row():
    mean = torch.randn(4, 37)
    mean[1, 5] = torch.nan
    mean = leaf(mean)
    nll = vae_fast.laplace_nll(mean, torch.rand(4, 37))
    nll.sum().backward()
    assert nll.isfinite().tolist() == [True, False, True, True]
    assert mean.grad[1, 5].isnan() and mean.grad[[0, 2, 3]].isfinite().all()


def test_an_image_s_channels_have_scales():
    mean, x = leaf(torch.randn(2, 3, 4, 5)), torch.rand(2, 3, 4, 5)
    log_scale = leaf(torch.randn(3, 1, 1))
    vae_fast.laplace_nll(mean, x, log_scale=log_scale).sum().backward()
    mean64, scale64 = wide(mean), wide(log_scale)
    reference.laplace(mean64, scale64, x.double()).sum().backward()
    assert_gradients([mean.grad, log_scale.grad], [mean64.grad, scale64.grad], 40, RELATIVE)


def test_draws_have_the_mean_and_the_scale():
    entry, generator = LIKELIHOODS["laplace"], torch.Generator().manual_seed(3)
    mean, log_scale = torch.full((200_000,), 0.7), torch.full((200_000,), math.log(0.5))
    x = entry.sample(mean, log_scale, generator=generator)
    assert entry.mean(mean, log_scale) is mean
    assert x.mean().item() == pytest.approx(0.7, abs=0.01)
    assert (x - 0.7).abs().mean().item() == pytest.approx(0.5, abs=0.01)
