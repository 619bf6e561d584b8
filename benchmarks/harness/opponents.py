"""Who runs a case, and the speed of memory beside them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Opponent, on_gpu

Call = Callable[[], None]

LIMITS = ("limit", "limit, out=")
LIMIT_BYTES = {"torch.sum": 4, "torch.add": 12, "torch.clone": 8}  # of an element: read and written
WRITTEN = {"torch.sum": 0.0, "torch.add": 1 / 3, "torch.clone": 1 / 2}


def opponents_of(case: Case) -> tuple[str, ...]:
    """The names of a case's opponents, in the order in which they are shown."""
    tuned = ("max-autotune",) if on_gpu() else ()
    return case.opponents or ("eager", "compile", *tuned, *case.peers, "ours", *LIMITS)


def opponent_of(case: Case, name: str, quick: bool = False, graphs: bool = False) -> Opponent:
    """An opponent by its name. quick: compile nothing in earnest. graphs: all is captured in CUDA graphs anyway."""
    if name == "ours":
        return Opponent(case.ours)
    if name == "eager":
        return Opponent(case.eager)
    if name == "compile":
        return Opponent(compiled(case.eager, backend="eager" if quick else "inductor"))
    if name == "max-autotune":
        return Opponent(tuned(case.eager, graphs))
    return case.peers[name]


def compiled(function: Callable[..., Any], **options: str) -> Callable[..., Any]:
    """torch.compile for the shapes it meets; compiling happens in the gate and is not timed."""
    return torch.compile(function, fullgraph=True, dynamic=False, **options)


def tuned(function: Callable[..., Any], graphs: bool) -> Callable[..., Any]:
    """As compiled; by measuring, and in CUDA graphs of its own, whose memory each call may use again."""
    found = compiled(function, mode="max-autotune-no-cudagraphs" if graphs else "max-autotune")

    def step(*operands: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return found(*operands)

    return step


def limit_for(read: int, written: int) -> str:
    """The operation of PyTorch's whose share of bytes written is nearest."""
    share = written / (read + written)
    return min(WRITTEN, key=lambda name: abs(WRITTEN[name] - share))


def limits(operation: str, moved: int) -> dict[str, Call]:
    """The operation on float32 arrays that move so many bytes. Its result is fresh, as gradients are, or not."""
    size = max(1, moved // LIMIT_BYTES[operation])
    a = torch.randn(size)
    b = torch.randn(size) if operation == "torch.add" else a
    out = torch.empty(()) if operation == "torch.sum" else torch.empty(size)
    run: dict[str, Callable[[], Tensor]] = {
        "torch.sum": lambda: torch.sum(a),
        "torch.add": lambda: torch.add(a, b),
        "torch.clone": lambda: torch.clone(a),
    }
    again: dict[str, Callable[[], Tensor]] = {
        "torch.sum": lambda: torch.sum(a, 0, out=out),
        "torch.add": lambda: torch.add(a, b, out=out),
        "torch.clone": lambda: out.copy_(a),
    }
    kept: list[Tensor] = []

    def fresh() -> None:
        kept.clear()
        kept.append(run[operation]())

    def used() -> None:
        again[operation]()

    return dict(zip(LIMITS, (fresh, used), strict=True))
