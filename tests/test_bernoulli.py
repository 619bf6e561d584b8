"""bernoulli_nll against the float64 reference: values, gradients, layouts, dtypes, extremes."""

import mpmath
import pytest
import torch
from operands import FLOATING, LAYOUTS, SHAPES, assert_gradients, assert_values, leaf, target, wide

import vae_fast
from vae_fast import reference


def expected(logits, x, incoming=None, *, probs=False, weight=None, mask=None):
    """(nll, gradient) in float64."""
    parameter = wide(logits)
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    function = reference.bernoulli_probs if probs else reference.bernoulli
    nll = reference.nll(function, [parameter], x, weight=weight, mask=mask)
    (gradient,) = torch.autograd.grad(nll, parameter, torch.ones_like(nll) if incoming is None else incoming.double())
    return nll.detach(), gradient


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(shape, layout, poisoned):
    logits = leaf(LAYOUTS[layout](torch.randn(shape) * 5))
    x = LAYOUTS[layout](target(shape))
    incoming = torch.randn(shape[0])
    nll = vae_fast.bernoulli_nll(logits, x)
    nll.backward(incoming)
    value, gradient = expected(logits, x, incoming)
    assert_values(nll, value)
    assert_gradients([logits.grad], [gradient])


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("x_dtype", [*FLOATING, torch.uint8, torch.bool], ids=str)
def test_dtypes(dtype, x_dtype, poisoned):
    logits = leaf((torch.randn(5, 1025) * 5).to(dtype))
    x = target((5, 1025), x_dtype)
    nll = vae_fast.bernoulli_nll(logits, x)
    nll.sum().backward()
    value, gradient = expected(logits, x)
    assert nll.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_values(nll, value)
    assert_gradients([logits.grad], [gradient])


def test_extreme_logits_keep_their_true_values():
    """Also where x is nearly, not quite, on the logit's side, and l x nearly cancels the rest."""
    mpmath.mp.prec = 100
    logits = torch.tensor([-1e4, -200, -87.5, -20, -17, -12, -1e-3, 0, 1e-3, 12, 17, 20, 50, 87.5, 200, 1e3, 1e4])
    for x in torch.tensor([0.0, 1e-6, 0.001, 0.25, 254 / 255, 0.999, 0.9999, 1.0]):
        nll = vae_fast.bernoulli_nll(logits.unsqueeze(1), x.expand(len(logits), 1))
        exact, t = [mpmath.mpf(v.item()) for v in logits], mpmath.mpf(x.item())
        true = [float(mpmath.log(1 + mpmath.exp(v)) - t * v) for v in exact]
        assert_values(nll, torch.tensor(true, dtype=torch.float64), torch.tensor(true).double().abs() + 1e-30)


def test_small_gradients_keep_their_digits():
    """sigmoid(20) - 1 is 0 in float32; the gradient is -2e-9. At a logit of 0, of either sign, it is 1/2 - x."""
    logits = leaf(torch.tensor([[-80.0, -40, -20, -5, -0.0, 0.0, 5, 20, 40, 80]]))
    x = torch.tensor([[0.0, 0, 0, 0, 0.25, 0.25, 1, 1, 1, 1]])
    vae_fast.bernoulli_nll(logits, x).sum().backward()
    _, gradient = expected(logits.detach(), x)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-5, atol=0)


def test_gradients_are_rounded_to_the_nearest_bfloat16():
    """Whole vectors and their rest, by whatever instruction: torch's rounding of the float32 gradient."""
    for columns in (1, 15, 16, 33, 1025):
        logits = (torch.randn(3, columns) * 5).bfloat16()
        x = torch.rand(3, columns)
        narrow, whole = leaf(logits), leaf(logits.float())
        for parameter in (narrow, whole):
            vae_fast.bernoulli_nll(parameter, x).sum().backward()
        assert torch.equal(narrow.grad, whole.grad.bfloat16())


def test_a_confident_mistake_costs_its_logit():
    """Cross-entropy of probabilities gives 100 and no gradient at logit 17; the true loss is 17, its gradient 1."""
    logits = torch.tensor([[17.0]], requires_grad=True)
    loss = vae_fast.bernoulli_nll(logits, torch.zeros(1, 1)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(17, rel=1e-6)
    assert logits.grad.item() == pytest.approx(1, rel=1e-6)
    rounded = torch.nn.functional.binary_cross_entropy(1 / (1 + torch.exp(-logits)), torch.zeros(1, 1))
    assert rounded.item() == 100


def test_long_rows_keep_small_terms():
    """A million terms of 1e-7 each: a logarithm a term, or a product of (1 + e), would round them away."""
    logits = torch.full((1, 1_000_000), -16.118095)
    value, _ = expected(logits, torch.zeros(1, 1_000_000))
    assert_values(vae_fast.bernoulli_nll(logits, torch.zeros(1, 1_000_000)), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_probabilities(dtype):
    probs = leaf(torch.rand(5, 1025).to(dtype).clamp(1e-6, 1 - 1e-6))
    x = target((5, 1025))
    nll = vae_fast.bernoulli_nll(probs, x, from_logits=False)
    nll.sum().backward()
    value, gradient = expected(probs, x, probs=True)
    assert_values(nll, value)
    assert (probs.grad - gradient).abs().div(gradient.abs().clamp(min=1)).max() < 1e-6


def test_probabilities_of_zero_and_one_are_finite_and_push_the_right_way():
    probs = torch.tensor([[0.0, 0.0, 1.0, 1.0]], requires_grad=True)
    x = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    nll = vae_fast.bernoulli_nll(probs, x, from_logits=False)
    nll.sum().backward()
    assert nll.isfinite().all() and probs.grad.isfinite().all()
    assert nll.item() == pytest.approx(126 * 0.6931472 + 24 * 0.6931472, rel=1e-6)
    assert (probs.grad.sign() == torch.tensor([[1.0, -1.0, 1.0, -1.0]])).all()


def test_images_keep_their_shape():
    logits = torch.randn(4, 3, 8, 6, requires_grad=True)
    x = torch.rand(4, 3, 8, 6)
    for layout in (torch.contiguous_format, torch.channels_last):
        logits.grad = None
        nll = vae_fast.bernoulli_nll(logits.to(memory_format=layout), x.to(memory_format=layout))
        nll.sum().backward()
        value, gradient = expected(logits, x)
        assert_values(nll, value)
        assert_gradients([logits.grad], [gradient])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (0, 2, 2)], ids=str)
def test_empty(shape):
    logits = torch.randn(shape, requires_grad=True)
    nll = vae_fast.bernoulli_nll(logits, torch.rand(shape))
    nll.sum().backward()
    assert nll.shape == shape[:1] and (nll == 0).all()
    assert logits.grad.shape == shape


def test_nan_stays_in_its_row():
    logits = torch.randn(4, 37, requires_grad=True)
    x = torch.rand(4, 37)
    with torch.no_grad():
        logits[1, 5], logits[2, 36] = torch.nan, torch.inf
    nll = vae_fast.bernoulli_nll(logits, x)
    nll.sum().backward()
    assert nll.isfinite().tolist() == [True, False, False, True]
    assert logits.grad[[0, 3]].isfinite().all()
    assert logits.grad[1, 5].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("columns", [7, 37, 784, 1025, 20000])
def test_nan_has_the_gradient_nan_and_no_other_has(columns, dtype):
    """Wherever it lies in a block or behind the last whole one, whatever its sign, and beside masked observations."""
    logits = torch.randn(3, columns).to(dtype).requires_grad_()
    x, mask = torch.rand(3, columns).to(dtype), torch.rand(3, columns) < 0.7
    lost = torch.zeros(3, columns, dtype=torch.bool)
    lost[1, torch.tensor([0, 5, columns // 2, columns - 1])] = True
    with torch.no_grad():
        logits[lost] = torch.tensor([torch.nan, -torch.nan, torch.nan, -torch.nan]).to(dtype)[: lost.sum()]
    for given, expected in ((None, lost), (mask, lost & mask)):
        logits.grad = None
        vae_fast.bernoulli_nll(logits, x, mask=given).sum().backward()
        assert (logits.grad.isnan() == expected).all()
