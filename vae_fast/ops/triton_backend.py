"""Triton kernels behind the operators, for tensors on a GPU.

An operator stays one opaque node for torch.compile: its arguments decide at run time which launches it needs (dtypes,
strides, what is asked for), and one schema serves all devices. The kernels are imported with the first call, since
importing triton takes longer than importing vae_fast.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops.library import REFERENCES, announce

INSTALLED = importlib.util.find_spec("triton") is not None


def obstacle() -> str | None:
    """Why the kernels can't run here, None if they can."""
    if not INSTALLED:
        return "triton is not installed"
    return None if torch.cuda.is_available() else "torch sees no GPU"


def scale(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Gradients times factor, [] or [B], in place and in one launch."""
    if any(t.dtype == torch.float64 for t in (*gradients, factor)):
        for gradient in gradients:
            REFERENCES["scale_rows_"](gradient, factor)
    else:
        _function("scale", "scale_rows_")(gradients, factor)


@functools.cache
def _function(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"vae_fast.kernels.{module}"), name)


def _operator(operator: str, module: str, name: str, *first: Any) -> Callable[..., Any]:
    """An operator's kernel; float64, which GPUs for training are slow at, is left to the reference."""

    def kernel(*args: Any) -> Any:
        for t in args:
            if isinstance(t, Tensor) and t.dtype == torch.float64:
                announce(t.device.type, "the Triton kernels don't compute in float64")
                return REFERENCES[operator](*args)
        return _function(module, name)(*first, *args)

    return kernel


def register(device: str = "CUDA") -> torch.library.Library:
    """Puts the kernels behind the operators for a device, as long as the result lives."""
    library = torch.library.Library("vae_fast", "IMPL")
    kernels = {
        **{f"{name}_nll": _operator(f"{name}_nll", "elbo", "nll", name) for name in LIKELIHOODS},
        **{f"elbo_{name}": _operator(f"elbo_{name}", "elbo", "elbo", name) for name in LIKELIHOODS},
        "gaussian_kl": _operator("gaussian_kl", "elbo", "gaussian_kl"),
        "monte_carlo_kl": _operator("monte_carlo_kl", "elbo", "monte_carlo_kl"),
        **{name: _operator(name, "latent", name) for name in ("reparameterize", "sample_kl", "sample_kl_backward")},
        "scale_rows_": lambda gradient, factor: scale((gradient,), factor),
    }
    for name, kernel in kernels.items():
        library.impl(name, kernel, device, allow_override=True)
    return library


REGISTERED = register() if INSTALLED else None
