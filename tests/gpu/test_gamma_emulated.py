"""The gamma function's family and L(v) = v - log1p(v) in Triton, as compiled, against mpmath."""

import counts
import mpmath as mp
import pytest
import torch
import triton
import triton.language as tl
from counts import elementwise, log_uniform
from launches import Launch

from vae_fast.kernels.fastmath import log1p_minus
from vae_fast.kernels.gamma import digamma, digamma_remainder, lgamma, stirling

COUNT = 2048


@triton.jit
def functions(v_ptr, w_ptr, u_ptr, out_ptr, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    v = tl.load(v_ptr + place)
    tl.store(out_ptr + place, lgamma(v))
    tl.store(out_ptr + SIZE + place, digamma(v))
    tl.store(out_ptr + 2 * SIZE + place, stirling(v))
    tl.store(out_ptr + 3 * SIZE + place, digamma_remainder(v))
    tl.store(out_ptr + 4 * SIZE + place, log1p_minus(tl.load(w_ptr + place), tl.load(u_ptr + place)))


@pytest.mark.parametrize("cc", [80, 90, 100])
def test_functions(cc):
    """Relative 1e-6, absolute where a value is below 1; stirling and its slope 5e-7: lg2.approx errs by 2^-22."""
    v = torch.cat([log_uniform(1e-8, 1e8, COUNT // 2), torch.linspace(0.25, 4, COUNT // 2)])
    w = torch.cat([log_uniform(1e-10, 1e10, COUNT // 2), -log_uniform(1e-10, 0.5, COUNT // 4), torch.zeros(COUNT // 4)])
    u = 1 + w
    u[-COUNT // 4 :] = log_uniform(1e-30, 0.5, COUNT // 4)
    w[-COUNT // 4 :] = u[-COUNT // 4 :] - 1
    out = torch.full((5, COUNT), torch.nan)
    Launch(functions, (1,), (v, w, u, out, COUNT), 4).execute(cc)
    expected = elementwise(
        lambda v: (mp.loggamma(v), mp.digamma(v), counts.stirling(v), counts.digamma_remainder(v)), v
    )
    for got, exact, bound in zip(out, expected, (1e-6, 1e-6, 5e-7, 5e-7), strict=False):
        assert ((got - exact).abs() <= bound * exact.abs().clamp(min=1)).all()
    of_v = elementwise(lambda w: (w - mp.log1p(w),), w[: -COUNT // 4])[0]
    of_u = elementwise(lambda u: (u - 1 - mp.log(u),), u[-COUNT // 4 :])[0]
    exact = torch.cat([of_v, of_u])
    assert ((out[4] - exact).abs() <= 1e-6 * exact).all()
