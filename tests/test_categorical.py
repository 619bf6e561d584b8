"""categorical_nll against the float64 reference and torch's cross_entropy, in every layout and dtype."""

import math

import pytest
import torch
import torch.nn.functional as F
from operands import FLOATING, assert_gradients, assert_values, leaf, wide

import vae_fast
from vae_fast import ELBOLoss, reference

# (B, C, N): fewer and more classes and observations than vectors and blocks have lanes; one observation a row
SHAPES = [(1, 1, 1), (3, 2, 70), (5, 7, 37), (2, 33, 130), (37, 10, 1), (4, 300, 3), (3, 1000, 1), (2, 1100, 65)]
CLASSES = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint16, torch.uint8, torch.bool, torch.float32]
LAYOUTS = {
    "planes": lambda t: t,
    "classes last": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "classes first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "spaced": lambda t: torch.stack((t, torch.full_like(t, math.nan)), 3)[..., 0],
    "sliced": lambda t: F.pad(t, (1, 2, 3, 4, 1, 0), value=math.nan)[1:, 3 : 3 + t.shape[1], 1:-2],
    "expanded": lambda t: t[:1].expand_as(t),
}


def expected(logits, x, mask=None, incoming=None):
    """(nll, sum of the terms' magnitudes, gradient) in float64."""
    logits = wide(logits)
    terms = reference.categorical(logits, x.long())
    terms = terms if mask is None else torch.where(mask, terms, 0)
    nll = terms.sum(1)
    (gradient,) = torch.autograd.grad(nll, logits, torch.ones_like(nll) if incoming is None else incoming.double())
    return nll.detach(), terms.abs().sum(1).detach(), gradient


def classes(shape):
    return torch.randint(shape[1], (shape[0], shape[2]))


def as_planes(logits, x, **options):
    """categorical_nll of logits [B, C, N]"""
    return vae_fast.categorical_nll(logits, x, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(shape, layout, poisoned):
    logits, x, incoming = leaf(LAYOUTS[layout](3 * torch.randn(shape))), classes(shape), torch.randn(shape[0])
    nll = as_planes(logits, x)
    nll.backward(incoming)
    value, magnitude, gradient = expected(logits, x, incoming=incoming)
    assert_values(nll, value, magnitude)
    assert_gradients([logits.grad], [gradient])


def test_the_gradient_lies_as_the_logits_do():
    for shape, strides in (((2, 7, 5, 3), (105, 15, 3, 1)), ((2, 5, 3, 7), (105, 21, 7, 1))):
        logits, x = leaf(torch.randn(shape)), torch.randint(7, (2, 5, 3))
        vae_fast.categorical_nll(logits, x, class_dim=1 if shape[1] == 7 else -1).sum().backward()
        assert logits.grad.stride() == strides
    logits = leaf(torch.randn(2, 7, 5, 3).to(memory_format=torch.channels_last))
    vae_fast.categorical_nll(logits, x).sum().backward()
    assert logits.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("of_x", CLASSES, ids=str)
@pytest.mark.parametrize("layout", ["planes", "classes last"])
def test_dtypes(dtype, of_x, layout):
    logits = leaf(LAYOUTS[layout](torch.randn(5, 9, 37)).to(dtype))
    x = torch.randint(2 if of_x == torch.bool else 9, (5, 37)).to(of_x)
    nll = as_planes(logits, x)
    nll.sum().backward()
    value, magnitude, gradient = expected(logits, x)
    assert nll.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_values(nll, value, magnitude)
    assert_gradients([logits.grad], [gradient])


@pytest.mark.parametrize("class_dim", [1, -1])
@pytest.mark.parametrize("sizes", [(), (5,), (4, 3), (2, 3, 4)], ids=str)
def test_it_is_cross_entropy(class_dim, sizes):
    logits, x = torch.randn(6, 11, *sizes), torch.randint(11, (6, *sizes))
    theirs = F.cross_entropy(logits.double(), x, reduction="none").reshape(6, -1).sum(1)
    ours = vae_fast.categorical_nll(logits.movedim(1, class_dim), x, class_dim=class_dim)
    assert_values(ours, theirs)


@pytest.mark.parametrize("layout", ["planes", "classes last"])
@pytest.mark.parametrize("shape", [(4, 6, 37), (4, 1000, 2)], ids=str)
def test_what_is_masked_is_not_used(layout, shape):
    logits, x = LAYOUTS[layout](torch.randn(shape)), classes(shape)
    mask, weight = torch.rand(shape[0], shape[2]) > 0.4, torch.tensor([0.0, 1.0, 2.5, 0.3])
    used = mask & (weight != 0).unsqueeze(1)
    spoilt = leaf(torch.where(used.unsqueeze(1), logits, math.nan))
    hidden = torch.where(used, x, -(2**40))
    nll = as_planes(spoilt, hidden, mask=mask, weight=weight)
    nll.sum().backward()
    value, magnitude, gradient = expected(logits, x, mask)
    assert_values(nll, value * weight, magnitude * weight)
    assert_gradients([spoilt.grad], [gradient * weight.reshape(-1, 1, 1)], sums=2.5)
    assert (spoilt.grad[~used.unsqueeze(1).expand(shape)] == 0).all()


@pytest.mark.parametrize("shape", [(3, 7, 37), (3, 1000, 1)], ids=str)
@pytest.mark.parametrize("layout", ["planes", "classes last"])
@pytest.mark.parametrize("wrong", [-1, "C", 2**31, -(2**63)])
def test_a_class_that_is_not_there_gives_nan(shape, layout, wrong):
    logits, x = leaf(LAYOUTS[layout](torch.randn(shape))), classes(shape)
    x[1, -1] = shape[1] if wrong == "C" else wrong
    nll = as_planes(logits, x)
    nll.sum().backward()
    assert nll.isnan().tolist() == [False, True, False]
    assert logits.grad[1, :, -1].isnan().all() and not logits.grad[[0, 2]].isnan().any()
    assert not logits.grad[1, :, :-1].isnan().any()


def test_a_value_near_zero_keeps_its_digits():
    logits = leaf(torch.tensor([[20.0, 0.0, -3.0], [0.0, 60.0, 0.0]]))
    nll = vae_fast.categorical_nll(logits, torch.tensor([0, 1]))
    nll.sum().backward()
    others = torch.tensor([math.exp(-20) + math.exp(-23), 2 * math.exp(-60)], dtype=torch.float64)
    assert_values(nll, torch.log1p(others))
    picked = logits.grad.double()[[0, 1], [0, 1]]
    assert torch.allclose(picked, -others / (1 + others), rtol=1e-6, atol=0)


def test_extreme_logits():
    inf = math.inf
    logits = leaf(torch.tensor([[-inf, 3.0, 1e38], [-1e38, 1e38, 0.0], [0.0, -inf, -inf], [0.0, -inf, 1.0]]))
    nll = vae_fast.categorical_nll(logits, torch.tensor([2, 1, 0, 1]))
    nll.sum().backward()
    assert nll.tolist() == [pytest.approx(0, abs=1e-37)] * 3 + [inf]
    assert logits.grad.abs().max() <= 1 and logits.grad[3, 1] == -1


def test_many_classes_sum_exactly():
    logits, x = torch.randn(2, 70_000, 1), torch.tensor([[3], [69_999]])
    for layout in ("planes", "classes first"):
        assert_values(as_planes(LAYOUTS[layout](logits), x), expected(logits, x)[0], relative=3e-7)


def test_threads_do_not_matter(threads):
    logits, x = leaf(torch.randn(7, 40, 2500)), torch.randint(40, (7, 2500))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        nll = as_planes(logits, x)
        results.append((nll, *torch.autograd.grad(nll.sum(), logits)))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize("sizes", [(0, 3, 5), (3, 4, 0)], ids=str)
def test_nothing_to_sum(sizes):
    logits = leaf(torch.randn(sizes))
    nll = as_planes(logits, torch.zeros(sizes[0], sizes[2], dtype=torch.int64))
    nll.sum().backward()
    assert torch.equal(nll, torch.zeros(sizes[0])) and logits.grad.shape == sizes


def test_the_reference_differentiates_twice():
    logits, x = leaf(torch.randn(2, 4, 3, dtype=torch.float64)), torch.randint(4, (2, 3))
    assert torch.autograd.gradgradcheck(lambda t: reference.categorical(t, x), (logits,))


def test_samples_follow_the_probabilities():
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    draws = reference.categorical_sample(logits.reshape(1, 3, 1).expand(1, 3, 100_000))
    assert torch.allclose(torch.bincount(draws.flatten()) / 1e5, logits.exp(), atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_all"])
def test_elbo(dtype, reduction):
    logits, x = leaf(torch.randn(4, 6, 5, 3).to(dtype)), torch.randint(6, (4, 5, 3))
    mu, logvar, weight = leaf(torch.randn(4, 3)), leaf(torch.randn(4, 3)), torch.tensor([0.0, 1.0, 2.0, 0.5])
    mask = torch.rand(4, 5, 3) > 0.2
    loss = ELBOLoss("categorical", beta=0.5, reduction=reduction)(logits, x, mu, logvar, weight=weight, mask=mask)
    (loss * torch.arange(1, 5) if reduction == "none" else 3 * loss).sum().backward()
    wide_logits, wide_mu, wide_logvar = wide(logits), wide(mu), wide(logvar)
    terms = (reference.categorical(wide_logits.flatten(2), x.flatten(1)) * mask.flatten(1)).sum(1)
    rows = weight * (terms + 0.5 * reference.gaussian_kl(wide_mu, wide_logvar))
    value = {"mean": rows.mean(), "sum": rows.sum(), "none": rows, "mean_all": rows.sum() / x.numel()}[reduction]
    (value * torch.arange(1, 5) if reduction == "none" else 3 * value).sum().backward()
    assert_values(loss, value.detach(), relative=2e-6)
    assert_gradients([logits.grad, mu.grad, logvar.grad], [wide_logits.grad, wide_mu.grad, wide_logvar.grad], 24, 1e-6)


@pytest.mark.parametrize("of_x", [torch.uint8, torch.uint16, torch.int8, torch.int16], ids=str)
def test_validation_names_the_range(of_x):
    loss = ELBOLoss("categorical", validate_args=True)
    logits, q = torch.zeros(2, 4, 3), (torch.zeros(2, 1), torch.zeros(2, 1))
    x = torch.tensor([[0, 1, 2], [3, 3, 9]], dtype=of_x)
    with pytest.raises(ValueError, match=r"ELBOLoss: x must lie in \[0, 3\], got values from 0 to 9"):
        loss(logits, x, *q)
    loss(logits, x, *q, mask=x.long() < 4)


ERRORS = {
    "shape": (
        lambda logits, x: vae_fast.categorical_nll(logits, x[:, :2]),
        ValueError,
        r"categorical_nll: x must have shape \[2, 3\] beside logits of shape \[2, 5, 3\], got \[2, 2\]",
    ),
    "one dimension": (
        lambda logits, x: vae_fast.categorical_nll(logits[:, 0, 0], x),
        ValueError,
        r"categorical_nll: logits must have shape \[B, C, ...\], got \[2\]",
    ),
    "class_dim": (
        lambda logits, x: vae_fast.categorical_nll(logits, x, class_dim=2),
        ValueError,
        "categorical_nll: class_dim must be 1 or -1, got 2",
    ),
    "x as a list": (
        lambda logits, x: vae_fast.categorical_nll(logits, [1]),
        TypeError,
        "categorical_nll: x must be a tensor",
    ),
    "logits of integers": (
        lambda logits, x: vae_fast.categorical_nll(x, x),
        TypeError,
        "categorical_nll: logits must be float32, bfloat16, float16 or float64, got int64",
    ),
    "logits of integers and class_dim": (
        lambda logits, x: vae_fast.categorical_nll(x, x, class_dim=2),
        TypeError,
        "categorical_nll: logits must be float32, bfloat16, float16 or float64, got int64",
    ),
    "mask": (
        lambda logits, x: vae_fast.categorical_nll(logits, x, mask=torch.ones(2, 5, 3, dtype=torch.bool)),
        ValueError,
        r"categorical_nll: mask must broadcast to the shape of x, \[2, 3\], got \[2, 5, 3\]",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 5, 3), torch.zeros(2, 3, dtype=torch.int64))
