"""Compiles Triton kernels offline and runs the PTX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .launch import run
from .parsing import parse
from .ptx_types import U8
from .stats import Stats

Arguments = Sequence[Any] | Mapping[str, Any]


def compile_triton(
    fn: Any,
    args: Arguments,
    constexprs: Mapping[str, Any] | None = None,
    num_warps: int = 4,
    cc: int = 90,
    **options: Any,
) -> tuple[Any, list[Any]]:
    """Compiles a @triton.jit function as its JIT would for these arguments; gives the result and run's arguments.

    args: arrays, CPU tensors and numbers, in order or by name; those that Triton makes constants get left out.
    constexprs: values of the tl.constexpr parameters.
    cc: compute capability, such as 80, 90, 100.
    options: Triton's (num_stages, debug, ...); unlike in Triton 3.10, enable_fp_fusion is on.
    """
    compiled, runtime = _compile(fn, args, constexprs, num_warps, cc, options)
    return compiled, list(runtime.values())


def run_triton(
    fn: Any,
    grid: Sequence[int] | Callable[[dict[str, Any]], Sequence[int]],
    args: Arguments,
    constexprs: Mapping[str, Any] | None = None,
    num_warps: int = 4,
    cc: int = 90,
    emulation: Mapping[str, Any] | None = None,
    **options: Any,
) -> Stats:
    """Compiles as `compile_triton` does and runs the kernel; `stats.compiled` is Triton's result.

    grid: three numbers at most, or a function of the constexprs that gives them.
    emulation: options of `run`.
    """
    compiled, runtime = _compile(fn, args, constexprs, num_warps, cc, options)
    meta, ptx = compiled.metadata, compiled.asm["ptx"]
    if getattr(meta, "num_ctas", 1) != 1:
        raise NotImplementedError("clusters of blocks (num_ctas > 1)")
    grid = tuple(grid(dict(constexprs or {})) if callable(grid) else grid)
    values = list(runtime.values())
    values += _scratch(meta, int(np.prod(grid)))[: len(parse(ptx).entry(meta.name).params) - len(values)]
    stats = run(ptx, meta.name, grid, meta.num_warps * 32, values, meta.shared, **(emulation or {}))
    names = list(runtime)
    stats.traffic = {names[k]: traffic for k, traffic in stats.traffic.items() if k < len(names)}
    stats.compiled = compiled
    return stats


def _compile(fn, args, constexprs, num_warps, cc, options) -> tuple[Any, dict[str, Any]]:
    """Triton's result and the arguments that remain when the kernel runs, by name."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes, runtime = {}, {}, {}, {}
    for i, (p, value, is_constant) in enumerate(_bind(fn, args, dict(constexprs or {}))):
        kind, key = ("constexpr", value) if is_constant else _specialise(p, value)
        signature[p.name] = kind
        if kind == "constexpr":
            constants[(i,)] = key
            continue
        if isinstance(key, str):
            attributes[(i,)] = _attributes(key)
        runtime[p.name] = value
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": num_warps, "enable_fp_fusion": True, **options}
    return triton.compile(source, target=GPUTarget("cuda", cc, 32), options=options), runtime


def _bind(fn, args, constexprs):
    """(parameter, value, whether it is a tl.constexpr) for each of the function's parameters."""
    given = dict(args) if isinstance(args, Mapping) else None
    queue = [] if given is not None else list(args)
    bound = []
    for p in fn.params:
        if p.name in constexprs or (p.is_constexpr and (given is None or p.name not in given)):
            bound.append((p, constexprs.get(p.name, p.default), True))
        else:
            bound.append((p, _plain(given[p.name] if given is not None else queue.pop(0)), False))
    if queue:
        raise TypeError(f"{len(queue)} arguments too many for {fn.__name__}")
    return bound


def _plain(value):
    """NumPy's values as those that Triton knows."""
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return value.item() if isinstance(value, np.generic) else value


def _specialise(p, value):
    """(type, key) as Triton's launcher finds them: divisibility by 16, the integer 1, the pointer's type."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    return native_specialize_impl(
        CUDABackend, value, p.is_const, not p.do_not_specialize, not p.do_not_specialize_on_alignment
    )


def _attributes(key):
    from triton.backends.nvidia.compiler import CUDABackend

    return CUDABackend.parse_attr(key)


def _scratch(meta, blocks):
    """The parameters for scratch memory that Triton adds to the kernel's own."""
    sizes = [getattr(meta, f"{kind}_scratch_size", 0) * blocks for kind in ("global", "profile")]
    return [np.zeros(size, U8) if size else None for size in sizes]
