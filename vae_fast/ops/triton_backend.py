"""Triton kernels behind the operators, for tensors on a GPU.

An operator stays one opaque node for torch.compile: its arguments decide at run time which launches it needs (dtypes,
strides, what is asked for), and one schema serves all devices. The kernels are imported with the first call, since
importing triton takes longer than importing vae_fast.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_fast.likelihoods import LIKELIHOODS
from vae_fast.ops.backend import SWITCHES, forced
from vae_fast.ops.library import MISSING


def scale(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Gradients times factor, [] or [B], in place and in one launch."""
    if any(t.dtype == torch.float64 for t in (*gradients, factor)):
        for gradient in gradients:
            torch.ops.vae_fast_reference.scale_rows_(gradient, factor)
    else:
        _function("scale", "scale_rows_")(gradients, factor)


@functools.cache
def _function(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"vae_fast.kernels.{module}"), name)


def _operator(operator: str, parameters: Sequence[int], module: str, name: str, *first: Any) -> Callable[..., Any]:
    """An operator's kernel. Parameters in float64, in which GPUs for training are slow, are left to the reference."""

    def kernel(*args: Any) -> Any:
        for i in parameters:
            if args[i] is not None and args[i].dtype == torch.float64:
                return getattr(torch.ops.vae_fast_reference, operator)(*args)
        return _function(module, name)(*first, *args)

    return kernel


def register(device: str = "CUDA") -> torch.library.Library:
    """Puts the kernels behind the operators for a device, as long as the result lives."""
    library = torch.library.Library("vae_fast", "IMPL")
    kernels = {
        "gaussian_kl": _operator("gaussian_kl", range(4), "elbo", "gaussian_kl"),
        "monte_carlo_kl": _operator("monte_carlo_kl", range(5), "elbo", "monte_carlo_kl"),
        "reparameterize": _operator("reparameterize", range(2), "latent", "reparameterize"),
        "sample_kl": _operator("sample_kl", range(4), "latent", "sample_kl"),
        "sample_kl_backward": _operator("sample_kl_backward", range(2, 6), "latent", "sample_kl_backward"),
        "scale_rows_": lambda gradient, factor: scale((gradient,), factor),
    }
    for name, entry in LIKELIHOODS.items():
        count = len(entry.parameters)
        first = count + 1 + len(entry.options)  # x and the options stand between
        latents = range(first, first + 4)
        module, whole = ("planes", "elbo_of") if entry.joint else ("elbo", "elbo")
        kernels[f"{name}_nll"] = _operator(f"{name}_nll", range(count), module, "nll", name)
        kernels[f"elbo_{name}"] = _operator(f"elbo_{name}", (*range(count), *latents), module, whole, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that compiled kernels are overridden
        for name, kernel in kernels.items():
            library.impl(name, kernel, device, allow_override=True)
    return library


class Override:
    """Keeps the kernels behind the operators where they are to run: asked for, or with nothing compiled for the device.

    library: what they are registered by, None while they are not.
    """

    def __init__(self, device: str, *, compiled: bool) -> None:
        self.device, self.compiled = device, compiled
        self.library: torch.library.Library | None = None

    def switch(self, asked_for: str | None) -> None:
        wanted = asked_for == "triton" or not self.compiled
        if wanted and self.library is None:
            self.library = register(self.device)
        elif self.library is not None and not wanted:
            self.library._destroy()
            self.library = None


ON_GPU = Override("CUDA", compiled=MISSING["cuda"] is None)
if MISSING["triton"] is None:
    ON_GPU.switch(forced())
    SWITCHES.append(ON_GPU.switch)
