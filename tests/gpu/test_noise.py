"""The noise of the Triton kernels, as compiled: the reference's words, and normals."""

import math

import pytest
import scipy.stats
import torch
import triton
import triton.language as tl
from launches import Launch, emulated

from vae_fast import reference
from vae_fast.kernels import latent
from vae_fast.kernels.philox import philox

SEEDS = [0, -1, 2**40 + 7, -(2**62) + 3]


@triton.jit
def words(counter_ptr, seed_ptr, out_ptr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    w0, w1, w2, w3 = philox(tl.load(counter_ptr + place), tl.load(seed_ptr))
    tl.store(out_ptr + place * 4, w0)
    tl.store(out_ptr + place * 4 + 1, w1)
    tl.store(out_ptr + place * 4 + 2, w2)
    tl.store(out_ptr + place * 4 + 3, w3)


def standard(seed, rows=1000, columns=1000, **emulation):
    zeros = torch.zeros(rows, columns)
    with emulated(90, **emulation):
        return latent.reparameterize(zeros, zeros, torch.tensor(seed))


@pytest.mark.parametrize("cc", [80, 100])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_words_are_the_reference_s(seed, cc):
    counters = torch.cat([torch.arange(64), 2**32 - 32 + torch.arange(64)])
    out = torch.empty(128, 4, dtype=torch.int32)
    Launch(words, (1,), (counters, torch.tensor(seed), out, 128), 4).execute(cc)
    zeros = torch.zeros_like(counters)
    upper = counters >> 32 & 0xFFFFFFFF
    exact = reference.philox((counters & 0xFFFFFFFF, upper, zeros, zeros), torch.tensor(seed))
    assert torch.equal(out.long() & 0xFFFFFFFF, torch.stack(exact, 1))


def test_normals_are_the_reference_s():
    for shape in ((5, 64), (7, 37), (3, 1500)):
        exact = reference.normals(shape, torch.tensor(99), torch.float64)
        assert (standard(99, *shape) - exact).abs().max() <= 4e-6


def test_normals_with_the_worst_errors_of_approximate_instructions():
    """lg2.approx may be 2^-22 off next to 1, where the radius is its square root: one sample in a thousand."""
    exact = reference.normals((100, 1000), torch.tensor(99), torch.float64)
    error = (standard(99, 100, 1000, approx_noise=3) - exact).abs()
    assert (error > 6e-6).double().mean() < 2e-3
    assert error.max() < 6e-4


def test_a_million_normals_are_normal():
    eps = standard(1).flatten().double()
    n = eps.numel()
    assert abs(eps.mean()) < 4 / math.sqrt(n)
    assert abs(eps.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((eps**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((eps**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert scipy.stats.kstest(eps.numpy(), "norm").pvalue > 1e-3


def test_noise_is_the_element_s_whatever_the_shape():
    """Rows that begin a four, rows that don't, one long row: element i has the same eps."""
    flat = standard(5, 1, 4096).flatten()
    for rows, columns in ((64, 64), (16, 256), (4096, 1), (2048, 2)):
        assert torch.equal(standard(5, rows, columns).flatten(), flat)
    strided = torch.zeros(37, 8)[:, 1:]
    with emulated(90):
        z = latent.reparameterize(strided, strided, torch.tensor(5))
    assert (z.flatten() - flat[: 37 * 7]).abs().max() < 1e-6


def test_the_seed_is_read_in_full():
    low, high = standard(1, 4, 64), standard(1 + 2**32, 4, 64)
    assert not torch.equal(low, high)
