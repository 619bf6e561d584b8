"""The gamma function's family and L(v) = v - log1p(v): csrc/gamma.h and math.h compiled alone, and the reference."""

import ctypes

import counts
import mpmath as mp
import native
import pytest
import torch
from counts import elementwise, log_uniform

from vae_fast.reference import gamma

SOURCE = """
#include "gamma.h"

template <class T>
void all(const T* v, const T* u, T* to, long n) {
  for (long i = 0; i < n; ++i) {
    to[i] = vae_fast::lgamma(v[i]), to[n + i] = vae_fast::digamma(v[i]);
    to[2 * n + i] = vae_fast::stirling(v[i]), to[3 * n + i] = vae_fast::digamma_remainder(v[i]);
    to[4 * n + i] = vae_fast::log1p_minus(v[i], u[i]);
  }
}
extern "C" void all_float(const float* v, const float* u, float* to, long n) { all(v, u, to, n); }
extern "C" void all_double(const double* v, const double* u, double* to, long n) { all(v, u, to, n); }
"""
NAMES = ("lgamma", "digamma", "stirling", "digamma_remainder", "log1p_minus")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return native.library(tmp_path_factory.mktemp("gamma"), SOURCE)


def evaluated(library, v, u=None):
    u = 1 + v if u is None else u
    to = torch.full((len(NAMES), len(v)), torch.nan, dtype=v.dtype)
    function = library.all_float if v.dtype == torch.float32 else library.all_double
    function(*map(native.pointer, (v, u, to)), ctypes.c_long(len(v)))
    return dict(zip(NAMES, to, strict=True))


def error(got, expected, least=0.0):
    """The largest one, relative where |expected| > least and in its units else."""
    return ((got.double() - expected).abs() / expected.abs().clamp(min=least)).max()


def positive(dtype):
    """[1e-8, 1e8], more densely where the functions have their zeros, and where methods meet."""
    return torch.cat([log_uniform(1e-8, 1e8, 2000), torch.linspace(0.25, 4, 2001), torch.linspace(8, 20, 500)]).to(
        dtype
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 4e-15)], ids=str)
def test_gamma(library, dtype, bound):
    v = positive(dtype)
    got = evaluated(library, v)
    lgamma, digamma, stirling, remainder = elementwise(
        lambda v: (mp.loggamma(v), mp.digamma(v), counts.stirling(v), counts.digamma_remainder(v)), v
    )
    assert error(got["lgamma"], lgamma, least=1) <= bound
    assert error(got["digamma"], digamma, least=1) <= bound
    # At most 3e-7, where v < 1 is shifted to v + 1: (v + 1/2) ln((v + 1)/v) - 1 rounds numbers around 1
    assert error(got["stirling"], stirling, least=1) <= bound / 3
    assert error(got["stirling"][v >= 1], stirling[v >= 1], least=1) <= (5e-8 if dtype == torch.float32 else bound)
    assert error(got["digamma_remainder"], remainder, least=1) <= bound / 3
    assert error(got["digamma_remainder"][v >= 1], remainder[v >= 1]) <= (bound if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 4e-15)], ids=str)
def test_log1p_minus(library, dtype, bound):
    v = torch.cat([log_uniform(1e-10, 1e10, 2000), -log_uniform(1e-10, 0.5, 1000), torch.linspace(-0.75, 2, 2001)])
    v = v.to(dtype)
    (expected,) = elementwise(lambda v: (v - mp.log1p(v),), v)
    assert error(evaluated(library, v)["log1p_minus"], expected) <= bound


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 4e-15)], ids=str)
def test_log1p_minus_near_minus_one_is_as_good_as_the_quotient(library, dtype, bound):
    u = log_uniform(1e-30, 0.5, 2000).to(dtype)
    (expected,) = elementwise(lambda u: (u - 1 - mp.log(u),), u)
    assert error(evaluated(library, u - 1, u)["log1p_minus"], expected) <= bound


def test_reference():
    v = positive(torch.float64)
    leaf = v.clone().requires_grad_()
    stirling, remainder = elementwise(lambda v: (counts.stirling(v), counts.digamma_remainder(v)), v)
    got = gamma.stirling(leaf)
    got.sum().backward()
    assert error(got.detach(), stirling, least=1) <= 1e-14
    assert error(-leaf.grad, remainder, least=1) <= 1e-14
    assert error(-leaf.grad[v < 1e5], remainder[v < 1e5]) <= 1e-10
    w = torch.cat([log_uniform(1e-10, 1e10, 1000), -log_uniform(1e-10, 0.5, 1000)]).double()
    (expected,) = elementwise(lambda v: (v - mp.log1p(v),), w)
    assert error(gamma.log1p_minus(w, 1 + w), expected) <= 4e-15


def test_reference_differentiates_twice():
    v = torch.tensor([0.1, 0.9, 3.0, 15.9, 17.0, 1e3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(gamma.stirling, v)
    assert torch.autograd.gradgradcheck(lambda v: gamma.log1p_minus(v, 1 + v), v - 0.5)
