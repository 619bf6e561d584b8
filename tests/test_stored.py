"""Observations in bfloat16 and bytes that a CPU widens in registers, beside those that it moves to a buffer, as it does
where there is a mask. Where it has no code for the former (lanes.h), it moves all, and both are the same."""

import pytest
import torch
from operands import elements
from torch import Tensor

import vae_fast
from vae_fast.likelihoods import LIKELIHOODS

BF16, F32, U8, BOOL = torch.bfloat16, torch.float32, torch.uint8, torch.bool
NAMES = ["bernoulli", "bernoulli_probs", "gaussian", "laplace", "continuous_bernoulli", "discretized_logistic"]
DTYPES = [(BF16, U8), (BF16, BOOL), (BF16, BF16), (BF16, F32), (F32, U8), (F32, BOOL)]

pytestmark = pytest.mark.skipif("cpp        cpu   available" not in vae_fast.report(), reason="no C++")


def widened(name: str, arguments: list, weight: Tensor | None, asked: int) -> list[tuple[Tensor, Tensor]]:
    """Each result, of what is widened in registers and in a buffer."""
    operator = getattr(torch.ops.vae_fast, f"{name}_nll")
    everything = torch.ones_like(arguments[0], dtype=torch.bool)
    masks = (None, everything)
    return [*zip(*(operator(*arguments, weight, mask, asked) for mask in masks), strict=True)]


def assert_alike(results: list[tuple[Tensor, Tensor]]) -> None:
    """Within what a sum in another order, and a product that is rounded with its sum or before, may differ."""
    (nll, expected), *gradients = results
    torch.testing.assert_close(nll, expected, rtol=2e-6, atol=2e-5, equal_nan=True)
    for gradient, expected in gradients:
        rtol, atol = (2e-6, 2e-6) if gradient.dtype == F32 else (2**-7, 1e-6)
        torch.testing.assert_close(gradient, expected, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("columns", [1, 3, 15, 16, 17, 129, 784, 1100, 16500])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_likelihoods(name, dtypes, columns, poisoned):
    arguments = elements(name, 7, columns, *dtypes)
    count = len(LIKELIHOODS[name].parameters)
    for asked in range(2**count):
        assert_alike(widened(name, arguments, None, asked))


@pytest.mark.parametrize("shape", [(1, 1), (37, 1), (1, 784)], ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_scales_that_observations_share(name, dtypes, shape, poisoned):
    for scale_dtype in (dtypes[0], F32):
        mean, _, x = elements(name, 37, 784, *dtypes)[:3]
        arguments = [mean, torch.randn(shape).to(scale_dtype), x]
        for asked in range(4):
            assert_alike(widened(name, arguments, None, asked))


@pytest.mark.parametrize("columns", [1, 15, 16, 128, 255])
@pytest.mark.parametrize("each", [False, True], ids=["shared", "each"])
def test_a_mean_that_is_what_a_byte_stands_for(each, columns):
    """Laplace's gradient is 0 there, which no multiply-add's unrounded product may change."""
    x = torch.arange(256 * columns).to(U8).reshape(256, columns)
    mean = x.float() * torch.tensor(1 / 255)
    log_scale = torch.zeros(x.shape if each else (1, 1))
    _, gradient, _ = torch.ops.vae_fast.laplace_nll(mean, log_scale, x, None, None, 1 + 2 * each)
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_nan(name, dtypes, poisoned):
    """Rows of weight 0, whatever is in them; NaN among parameters and observations, which stays in its row."""
    arguments = elements(name, 37, 784, *dtypes)
    arguments[0][5, 700] = arguments[0][9, 3] = torch.nan
    count = len(LIKELIHOODS[name].parameters)
    if dtypes[1].is_floating_point:
        arguments[count][11, 130] = torch.nan
    weight = torch.rand(37) + 0.1
    weight[[0, 5, 20]] = 0
    results = widened(name, arguments, weight, 2**count - 1)
    assert_alike(results)
    (nll, _), (gradient, _), *_ = results
    assert nll.isnan().nonzero().flatten().tolist() == [9, 11][: 1 + dtypes[1].is_floating_point]
    assert (gradient[[0, 5, 20]] == 0).all()
    assert gradient[9].isnan().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_rows_among_others(name, dtypes, poisoned):
    """Columns of larger matrices, whose rows begin anywhere, and every second row of them."""
    wide = elements(name, 14, 801, *dtypes)
    count = len(LIKELIHOODS[name].parameters)
    for rows, columns in ((slice(None), slice(5, 790)), (slice(None, None, 2), slice(1, 400))):
        part = [t[rows, columns] if isinstance(t, Tensor) else t for t in wide]
        whole = [t.contiguous() if isinstance(t, Tensor) else t for t in part]
        operator = getattr(torch.ops.vae_fast, f"{name}_nll")
        found = [operator(*arguments, None, None, 2**count - 1) for arguments in (part, whole)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("columns", [1, 15, 16, 33, 784])
def test_gradients_that_an_incoming_one_scales(columns):
    """Rounded once more, as float32 times a factor is."""
    gradient = torch.randn(5, columns).to(BF16)
    gradient[0, 0], gradient[1, -1], gradient[3, 0], gradient[3, -1] = torch.nan, torch.inf, torch.nan, torch.inf
    factor = torch.tensor([0.3, -1.7, 1.0, 0.0, 1e-3])
    expected = (gradient.float() * factor[:, None]).to(BF16)
    expected[3] = 0
    torch.ops.vae_fast.scale_rows_(gradient, factor)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)
