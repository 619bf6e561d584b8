"""The Triton kernels as compiled for GPUs, executed in the emulator: numbers, bytes, accesses."""

import cases
import pytest
import torch
from launches import emulated

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ARCHITECTURES = [80, 90, 100]
KERNELS = {
    "bernoulli": cases.bernoulli,
    "bernoulli, x as the logits": lambda b, d, dtype: cases.bernoulli(b, d, dtype, dtype),
    "bernoulli_probs": cases.bernoulli_probs,
    "gaussian": cases.gaussian,
    "gaussian, one log-variance": lambda b, d, dtype: cases.gaussian(b, d, dtype, lambda b, d: (1, 1)),
    "gaussian, one a feature": lambda b, d, dtype: cases.gaussian(b, d, dtype, lambda b, d: (1, d)),
    "gaussian, one a row": lambda b, d, dtype: cases.gaussian(b, d, dtype, lambda b, d: (b, 1)),
    "elbo": cases.elbo_case,
    "elbo, given prior": lambda b, d, dtype: cases.elbo_case(b, d, dtype, prior=True),
    "elbo of each row": lambda b, d, dtype: cases.elbo_case(b, d, dtype, reduce=False),
    "gaussian_kl": cases.gaussian_kl,
    "gaussian_kl, given prior": lambda b, d, dtype: cases.gaussian_kl(b, d, dtype, "column"),
    "monte_carlo_kl": cases.monte_carlo_kl,
    "sample_kl": cases.sample_kl,
    "sample_kl, given prior": lambda b, d, dtype: cases.sample_kl(b, d, dtype, "column"),
    "reparameterize": cases.reparameterize,
    "sample_kl_backward": cases.sample_kl_backward,
    "sample_kl_backward, given prior": lambda b, d, dtype: cases.sample_kl_backward(b, d, dtype, "column"),
}
# Short and odd rows; a full tile and its tail; a row that is cut among programs
SHAPES = [(37, 20), (5, 784), (2, 1025), (1, 12_288)]


def close(got, exact, shape):
    """Values within 1e-6 of their D terms, gradients within 5e-7 of the terms that they sum, then as rounded."""
    assert len(got) == len(exact)
    for g, e in zip(got, exact, strict=True):
        assert g.shape == e.shape
        if e.dim() == 2:
            summed = shape[0] * shape[1] / max(shape[1], e.numel()) if e.numel() < shape[0] * shape[1] else 1
            bound = 5e-7 * (e.abs().clamp(min=summed) + 8)
        else:
            bound = 1e-6 * (e.abs() + (shape[1] if e.dim() else 1))
        rounding = torch.finfo(g.dtype).eps / 2 if g.dtype.itemsize == 2 else 0
        bound = bound + rounding * e.abs() * 1.01 + torch.finfo(g.dtype).smallest_normal * torch.finfo(g.dtype).eps
        error = (g.double() - e).abs()
        assert (error <= bound).all(), f"{g.dtype} {tuple(g.shape)}: error {error.max():.3g} of {e.abs().max():.3g}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_numbers(name, dtype, shape, poisoned):
    case = KERNELS[name](*shape, dtype)
    cc = ARCHITECTURES[(DTYPES.index(dtype) + SHAPES.index(shape)) % 3]
    with emulated(cc):
        close(case.run(), case.exact(), shape)
