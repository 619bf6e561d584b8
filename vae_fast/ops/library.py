"""The namespace torch.ops.vae_fast: schemas, and the compiled libraries that are there.

Schemas are written here rather than in C++, so that an installation without a compiler has the same operators. Each
operator has a namesake in torch.ops.vae_fast_reference, which kernels for a GPU call where they are given float64.
"""

import functools
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("vae_fast", "DEF")
_FALLBACK = torch.library.Library("vae_fast_reference", "DEF")
_FOLDER = Path(__file__).resolve().parent.parent
NO_FLOAT64 = "the kernels for GPUs don't compute in float64"
TOO_MANY = "the kernels for GPUs hold no more planes, or classes, of an observation"
_AUTOGRAD = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)


class ReferenceWarning(UserWarning):
    """The plain PyTorch reference runs because no faster kernel can."""


def define(schema: str, fake: Callable[..., Any], reference: Callable[..., Any]) -> Any:
    """Defines an operator with its shape function and, for devices without a kernel, the reference: its overload."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"vae_fast::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, _announced(reference), "CompositeExplicitAutograd")
    _FALLBACK.define(schema)
    _FALLBACK.impl(name, _announced(reference, _left_to_reference), "CompositeExplicitAutograd")
    return getattr(torch.ops.vae_fast, name).default


def recording(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that may use autograd inside, where the dispatcher has already gone below it."""

    @functools.wraps(function)
    def kernel(*args: Any) -> Any:
        include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        with torch._C._ForceDispatchKeyGuard(include, exclude - _AUTOGRAD), torch.enable_grad():
            return function(*args)

    return kernel


def _left_to_reference(tensors: list[Tensor]) -> str:
    """Why kernels have left these to the reference."""
    return NO_FLOAT64 if any(t.dtype is torch.float64 for t in tensors) else TOO_MANY


def _announced(
    reference: Callable[..., Any], reason: Callable[[list[Tensor]], str] | None = None
) -> Callable[..., Any]:
    @functools.wraps(reference)
    def kernel(*args: Any) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        announce(tensors[0].device.type, reason and reason(tensors))
        return reference(*args)

    return kernel


@functools.cache
def announce(device: str, reason: str | None = None) -> None:
    """Warns, once for a device and reason, that the reference serves it."""
    if reason is None:
        reason = unavailable("cpp") if device == "cpu" else f"no kernels for {device} tensors are installed"
    warnings.warn(f"vae_fast: the plain PyTorch reference runs on {device}: {reason}", ReferenceWarning, stacklevel=3)


@functools.cache
def unavailable(backend: str) -> str | None:
    """Why a backend can't run, or None if it can."""
    on_gpu = backend in ("cuda", "triton")
    return MISSING.get(backend) or ("torch sees no GPU" if on_gpu and not torch.cuda.is_available() else None)


def build_record() -> dict[str, Any]:
    """What the build left to say: which parts were compiled, with what, or why not."""
    path = _FOLDER / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _load(kind: str, language: str) -> str | None:
    """Loads a compiled library: why it can't, or None."""
    path, record = _FOLDER / f"_C_{kind}.so", build_record()
    if not path.exists():
        reason = record.get("skipped", {}).get(kind)
        return f"the {language} library was not built" + (f": {reason}" if reason else "")
    if kind == "cuda" and (reason := _other_cuda(record.get("nvcc", ""))):
        return reason
    if kind == "autograd" and record.get("torch") != torch.__version__:
        return f"the {language} library was built with torch {record.get('torch')}, this is {torch.__version__}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the {language} library did not load: {error.__cause__ or error}"
    return None


def _other_cuda(built: str) -> str | None:
    """Why torch's CUDA doesn't fit kernels built with that version: drivers that serve it may not serve a newer one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not built with CUDA"
    if built and int(built.split(".")[0]) > int(torch.version.cuda.split(".")[0]):
        return f"it was built with CUDA {built}, torch with CUDA {torch.version.cuda}"
    return None


def empty_cache() -> None:
    """Gives back the memory that large results on a CPU have left to those that come after them.

    Results of 1 MiB and more are made in memory that is kept when nobody holds them any longer: fresh memory of the
    system's takes longer than what is computed into it. What is kept and what is in use are together never more than
    was in use at one time, and what 64 results have found no use for is given back. Set VAE_FAST_KEEP_MEMORY=0 in the
    environment to keep nothing. The storage of such results can't be resized. On a GPU the memory is torch's:
    `torch.cuda.empty_cache`.
    """
    if MISSING["cpp"] is None:
        torch.ops.vae_fast_memory.empty_cache()


# Why there are no nodes of autograd's in C++, None if there are
NO_NATIVE_NODES = _load("autograd", "autograd")
# Why a backend isn't there at all, None if it is
MISSING = {
    "cpp": _load("cpu", "C++"),
    "cuda": _load("cuda", "CUDA"),
    "triton": None if importlib.util.find_spec("triton") else "triton is not installed",
}
