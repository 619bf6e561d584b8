"""Gradients that are written past the caches: the same bits, wherever their lines begin and whatever is in them."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operands import elements, target
from torch import Tensor

import vae_fast
from vae_fast.likelihoods import LIKELIHOODS

ELEMENTS = [name for name, entry in LIKELIHOODS.items() if not entry.joint]
NEVER = 2**62
CPUINFO = Path("/proc/cpuinfo")

pytestmark = pytest.mark.skipif("cpp        cpu   available" not in vae_fast.report(), reason="no C++")


@pytest.fixture
def stream_from():
    """bytes -> results of so many are streamed from now on."""
    before = torch.ops.vae_fast_memory.stream_from(NEVER)
    yield torch.ops.vae_fast_memory.stream_from
    torch.ops.vae_fast_memory.stream_from(before)


@pytest.mark.skipif(not CPUINFO.exists(), reason="which processor it is, is not known")
def test_from_which_size_on():
    calls = ", ".join(f"is_streamed({size}, {light})" for size in (2**23 - 1, 2**23) for light in (True, False))
    code = f"import torch, vae_fast; is_streamed = torch.ops.vae_fast_memory.is_streamed; print([{calls}])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    x86, intel = platform.machine() == "x86_64", "GenuineIntel" in CPUINFO.read_text()
    assert found.strip() == str([False, False, x86, intel])


# Parameters' and x's
DTYPES = [(torch.float32, torch.float32), (torch.float32, torch.uint8), (torch.float64, torch.float32)]


def both_ways(stream_from, operator, *arguments) -> list[tuple[Tensor, Tensor]]:
    """Each result, kept in the caches and streamed."""
    found = []
    for least in (NEVER, 0):
        stream_from(least)
        found.append(operator(*arguments))
    return [*zip(*found, strict=True)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 3, 15, 16, 17, 129, 784, 1100])
@pytest.mark.parametrize("name", ELEMENTS)
def test_likelihoods(name, columns, dtypes, stream_from, poisoned):
    arguments = elements(name, 37, columns, *dtypes)
    count = len(LIKELIHOODS[name].parameters)
    operator = getattr(torch.ops.vae_fast, f"{name}_nll")
    for kept, streamed in both_ways(stream_from, operator, *arguments, None, None, 2**count - 1):
        assert kept.isfinite().all() and same_bits(kept, streamed)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (37, 1)], ids=str)
@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_one_scale(name, shape, x_dtype, stream_from, poisoned):
    """Whose steps are light: other processors than Intel's stream them too."""
    operator, columns = getattr(torch.ops.vae_fast, f"{name}_nll"), (16, 33, 129, 784, 1100)
    for d in columns:
        arguments = torch.randn(37, d), torch.randn(shape), target((37, d), x_dtype)
        for asked in (1, 3):
            for kept, streamed in both_ways(stream_from, operator, *arguments, None, None, asked):
                assert same_bits(kept, streamed)


@pytest.mark.parametrize("dtypes", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", ELEMENTS)
def test_rows_that_are_changed_after_they_are_computed(name, dtypes, stream_from, poisoned):
    """Weights of 0, NaN among parameters and observations, a mask."""
    arguments = elements(name, 37, 784, *dtypes)
    arguments[0][5, 700] = arguments[0][9, 3] = torch.nan
    if dtypes[1].is_floating_point:
        arguments[len(LIKELIHOODS[name].parameters)][11, 130] = torch.nan
    weight = torch.rand(37) + 0.1
    weight[[0, 5, 20]] = 0
    asked = 2 ** len(LIKELIHOODS[name].parameters) - 1
    operator = getattr(torch.ops.vae_fast, f"{name}_nll")
    for mask in (None, torch.rand(37, 784) > 0.3):
        results = both_ways(stream_from, operator, *arguments, weight, mask, asked)
        for kept, streamed in results:
            assert same_bits(kept.nan_to_num(1234.0), streamed.nan_to_num(1234.0))
        nll, gradient = results[0][1], results[1][1]
        assert (gradient[[0, 5, 20]] == 0).all()
        assert mask is not None or (nll[9].isnan() and gradient[9, 3].isnan())


def test_gradients_that_are_multiplied_by_0(stream_from, poisoned):
    """beta = 0: whatever the steps compute, NaN too."""
    mu, logvar, logits, x = torch.randn(37, 300), torch.randn(37, 300), torch.randn(37, 784), torch.rand(37, 784)
    mu[3, 5], mu[4, 6], logvar[7, 200] = torch.inf, torch.nan, torch.inf
    objective = (None, None, None, 0.0, 1.0, True)
    operator = torch.ops.vae_fast.elbo_bernoulli
    results = both_ways(stream_from, operator, logits, x, mu, logvar, None, None, *objective, 7)
    for gradients in results[4:6]:
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("threads_used", [1, 2, 7])
def test_divergences_and_losses(threads_used, stream_from, threads, poisoned):
    torch.set_num_threads(threads_used)
    posterior = [torch.randn(300, 130) for _ in range(4)]
    operators = torch.ops.vae_fast
    calls = [
        (operators.gaussian_kl, *posterior[:2], None, None, None, 3),
        (operators.gaussian_kl, *posterior, None, 15),
        (operators.monte_carlo_kl, torch.randn(300, 130), *posterior, None, 31),
    ]
    logits, x = torch.randn(300, 784), torch.rand(300, 784)
    objective = (None, None, None, 0.7, 1 / 300, True)
    calls.append((operators.elbo_bernoulli, logits, x, *posterior[:2], None, None, *objective, 7))
    for operator, *arguments in calls:
        for kept, streamed in both_ways(stream_from, operator, *arguments):
            assert same_bits(kept, streamed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_shared_parameters_are_as_ever(dtype, stream_from):
    """Gradients that are rounded on their way, or summed, aren't streamed."""
    mean, logvar, x = torch.randn(64, 784).to(dtype), torch.randn(1, 784), torch.rand(64, 784)
    operator = torch.ops.vae_fast.gaussian_nll
    for kept, streamed in both_ways(stream_from, operator, mean, logvar, x, None, None, 3):
        assert same_bits(kept, streamed)
