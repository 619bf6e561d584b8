"""Which backend runs: by the tensors' device, or as the user asks."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from vae_fast.ops.library import NO_FLOAT64, NO_NATIVE_NODES, build_record, unavailable

# Each with the device that it serves, None for any
BACKENDS = {"reference": None, "cpp": "cpu", "triton": "cuda", "cuda": "cuda"}


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: unknown backend {name!r}, expected one of {', '.join(BACKENDS)}")
    if reason := unavailable(name):
        raise RuntimeError(f"{source}: the backend {name!r} can't run: {reason}")
    return name


def _from_environment() -> str | None:
    name = os.environ.get("VAE_FAST_BACKEND", "")
    return _checked(name, "VAE_FAST_BACKEND") if name else None


_forced: str | None = _from_environment()
SWITCHES: list[Callable[[str | None], None]] = []  # called with what `forced()` has become


def _force(name: str | None) -> None:
    global _forced
    _forced = name
    for switch in SWITCHES:
        switch(name)


def backend(name: str) -> AbstractContextManager[None]:
    """`with backend(name):` runs what is inside on "cpp" (CPU), "cuda", "triton" (GPU) or "reference" (PyTorch, any
    device).

    The choice holds for the whole process while the block lasts; VAE_FAST_BACKEND is the choice where there is none.
    Only the reference differentiates twice.

    Raises ValueError for an unknown name, RuntimeError with the reason where the backend can't run.
    """
    return _forcing(_checked(name, "backend"))


@contextmanager
def _forcing(name: str) -> Iterator[None]:
    before = _forced
    _force(name)
    try:
        yield
    finally:
        _force(before)


def forced() -> str | None:
    """The backend that was asked for, None where the tensors' device chooses."""
    return _forced


def use_reference(*parameters: Tensor) -> bool:
    """Whether the reference was asked for. Raises RuntimeError if a backend was that can't serve the parameters."""
    if _forced is None or _forced == "reference":
        return _forced is not None
    serves, device = BACKENDS[_forced], parameters[0].device
    if serves != device.type:
        raise RuntimeError(f"the backend {_forced!r} serves {serves} tensors, got tensors on {device}")
    if serves == "cuda" and any(t.dtype == torch.float64 for t in parameters):
        raise RuntimeError(f"the backend {_forced!r} can't run: {NO_FLOAT64}")
    return False


def report() -> str:
    """The backends with what each runs on, or why it can't, and what the build recorded."""
    lines = [f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} CPU threads"]
    for name, device in BACKENDS.items():
        reason = unavailable(name)
        lines.append(
            f"{name:<10} {'any' if device is None else device:<5} "
            + ("available" if reason is None else f"unavailable: {reason}")
        )
    lines.append(f"autograd   cpu   nodes in {f'Python: {NO_NATIVE_NODES}' if NO_NATIVE_NODES else 'C++'}")
    on_cpu = "reference" if unavailable("cpp") else "cpp"
    on_gpu = next((name for name in ("cuda", "triton") if not unavailable(name)), "reference")
    chosen = f"chosen by the tensors' device: cpu -> {on_cpu}, cuda -> {on_gpu}, others -> reference"
    lines.append(f"forced     {_forced}" if _forced else chosen)
    lines += [f"build      {key}: {value}" for key, value in build_record().items()]
    return "\n".join(lines)
