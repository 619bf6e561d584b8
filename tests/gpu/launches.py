"""The launches of vae_fast.kernels, compiled for GPUs that aren't there and executed in the PTX emulator.

with emulated(cc=90) as launches:
    OPERATORS.bernoulli_nll(...)         # on CPU tensors: each launch runs in the emulator
launches[0].stats.bytes
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ptx_emulator
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.compiler import compile as triton_compile
from triton.runtime import driver
from triton.runtime.jit import create_function_from_signature

from vae_fast.kernels import elbo, latent, planes, scale
from vae_fast.kernels import launch as launching
from vae_fast.likelihoods import LIKELIHOODS

TARGETS = {
    **{cc: GPUTarget("cuda", cc, 32) for cc in (80, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
# The kernels by their operators' names
OPERATORS = SimpleNamespace(
    **{f"{name}_nll": functools.partial((planes if e.joint else elbo).nll, name) for name, e in LIKELIHOODS.items()},
    **{
        f"elbo_{name}": functools.partial(planes.elbo_of if entry.joint else elbo.elbo, name)
        for name, entry in LIKELIHOODS.items()
    },
    gaussian_kl=elbo.gaussian_kl,
    monte_carlo_kl=elbo.monte_carlo_kl,
    reparameterize=latent.reparameterize,
    sample_kl=latent.sample_kl,
    sample_kl_backward=latent.sample_kl_backward,
    scale_rows_=lambda gradient, factor: scale.scale_rows_([gradient], factor),
)
_SCRATCH = ("global_scratch", "profile_scratch")


@dataclass
class Launch:
    """One launch as the library asked for it; `stats` once it has been executed."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    num_warps: int
    registers: int = launching.REGISTERS
    stats: Any = None
    runtime: tuple[Any, ...] = ()  # the arguments that stats.traffic numbers

    def compile(self, target: Any) -> tuple[Any, list[Any]]:
        """The compiled kernel and the arguments that are left at run time, as Triton's own launcher has them."""
        backend = make_backend(TARGETS[target])
        options = {"num_warps": self.num_warps, **_options(target, self.registers)}
        binder = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, _ = binder(*self.arguments, **options)
        parsed, signature, constants, attributes = self.kernel._pack_args(
            backend, options, bound, specialization, options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        with _active(TARGETS[target]):
            compiled = triton_compile(source, target=TARGETS[target], options=parsed.__dict__)
        return compiled, list(_runtime(list(bound.values()), (), constants))

    def execute(self, cc: int, **emulation: Any) -> None:
        compiled, arguments = self.compile(cc)
        meta = compiled.metadata
        scratch = [_bytes(getattr(meta, f"{kind}_size", 0) * _count(self.grid)) for kind in _SCRATCH]
        self.stats = ptx_emulator.run(
            compiled.asm["ptx"],
            meta.name,
            self.grid,
            meta.num_warps * 32,
            [*arguments, *scratch],
            meta.shared,
            **emulation,
        )
        self.stats.compiled, self.runtime = compiled, tuple(arguments)


def _bytes(size: int) -> torch.Tensor | None:
    return torch.zeros(size, dtype=torch.uint8) if size else None


def _count(grid: Sequence[int]) -> int:
    return int(torch.tensor(grid).prod())


def _runtime(value: Any, path: tuple[int, ...], constants: dict[tuple[int, ...], Any]) -> Iterator[Any]:
    """The leaves of nested arguments that are no constants."""
    if path in constants:
        return
    if isinstance(value, (list, tuple)):
        for k, part in enumerate(value):
            yield from _runtime(part, (*path, k), constants)
    else:
        yield value


def _options(target: Any, registers: int) -> dict[str, Any]:
    return launching.nvidia_options(registers) if isinstance(target, int) else launching.FUSION


class _Driver:
    """Stands in for the driver of a GPU, which kernels ask for their target while they are compiled."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def _active(target: GPUTarget) -> Iterator[None]:
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver._active = None  # looked for again when asked for


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches are written down and not run."""
    launches: list[Launch] = []
    with _executor(lambda launch: launches.append(launch)):
        yield launches


@contextmanager
def emulated(cc: int, **emulation: Any) -> Iterator[list[Launch]]:
    """Launches run in the emulator, compiled for compute capability `cc`."""
    launches: list[Launch] = []

    def execute(launch: Launch) -> None:
        launch.execute(cc, **emulation)
        launches.append(launch)

    with _executor(execute):
        yield launches


def executed(cc: int) -> AbstractContextManager[None]:
    """As `emulated`, with nothing kept of the launches."""
    return _executor(lambda launch: launch.execute(cc))


@contextmanager
def _executor(receive: Any) -> Iterator[None]:
    before = launching.executor

    def executor(
        kernel: Any, grid: tuple[int, ...], device: Any, *arguments: Any, num_warps: int, registers: int
    ) -> None:
        receive(Launch(kernel, grid, arguments, num_warps, registers))

    launching.executor = executor
    try:
        yield
    finally:
        launching.executor = before
