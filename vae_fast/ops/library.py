"""The namespace torch.ops.vae_fast: schemas, and the compiled library if there is one.

Schemas are written here rather than in C++, so that an installation without a compiler has the same operators.
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
_FOLDER = Path(__file__).resolve().parent.parent
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
REFERENCES: dict[str, Callable[..., Any]] = {}  # the plain PyTorch implementation of each operator
_AUTOGRAD = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)


class ReferenceWarning(UserWarning):
    """The plain PyTorch reference runs because no faster kernel can."""


def define(schema: str, fake: Callable[..., Any], reference: Callable[..., Any]) -> Any:
    """Defines an operator with its shape function and, for devices without a kernel, the reference: its overload."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"vae_fast::{name}", fake, lib=LIBRARY)
    REFERENCES[name] = reference
    LIBRARY.impl(name, _announced(reference), "CompositeExplicitAutograd")
    return getattr(torch.ops.vae_fast, name).default


def recording(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that may use autograd inside, where the dispatcher has already gone below it."""

    @functools.wraps(function)
    def kernel(*args: Any) -> Any:
        include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        with torch._C._ForceDispatchKeyGuard(include, exclude - _AUTOGRAD), torch.enable_grad():
            return function(*args)

    return kernel


def _announced(reference: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(reference)
    def kernel(*args: Any) -> Any:
        announce(next(a.device for a in args if isinstance(a, Tensor)).type)
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
    if backend == "reference":
        return None
    if backend == "cpp":
        return _LOAD_FAILURE
    if backend == "triton":
        if not TRITON_INSTALLED:
            return "triton is not installed"
        return None if torch.cuda.is_available() else "torch sees no GPU"
    return f"this version of vae_fast has no {backend} kernels"


def build_record() -> dict[str, Any]:
    """What the build left to say: which parts were compiled, with what, or why not."""
    path = _FOLDER / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _load() -> str | None:
    path = _FOLDER / "_C_cpu.so"
    if not path.exists():
        reason = build_record().get("skipped", {}).get("cpu")
        return "the C++ library was not built" + (f": {reason}" if reason else "")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the C++ library did not load: {error}"
    return None


_LOAD_FAILURE = _load()
