"""Checks of arguments: each error names the function, the argument, what came and what was expected."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int32, torch.int64, torch.uint16)  # that counts come in
SMALL_INTEGERS = (torch.int8, torch.int16)  # that classes come in besides
_INTEGERS_OF: dict[str, tuple[torch.dtype, ...]] = {
    "intensity": (),
    "count": _INTEGERS,
    "level": _INTEGERS,
    "class": (*SMALL_INTEGERS, *_INTEGERS),
}
TARGETS = {kind: (*FLOATING, torch.uint8, torch.bool, *integers) for kind, integers in _INTEGERS_OF.items()}


def floating(owner: str, name: str, t: Tensor) -> None:
    """t is a floating point tensor that the kernels read, with a batch dimension."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{owner}: {name} must be a tensor, got {type(t).__name__}")
    dense(owner, name, t)
    if t.dtype not in FLOATING:
        raise TypeError(f"{owner}: {name} must be float32, bfloat16, float16 or float64, got {str(t.dtype)[6:]}")
    if t.dim() == 0:
        raise ValueError(f"{owner}: {name} must have a batch dimension, [B, ...], got a 0-dim tensor")


def dense(owner: str, name: str, t: Tensor) -> None:
    if t.layout is not torch.strided:
        raise TypeError(f"{owner}: {name} must be a dense tensor, got {t.layout}; pass {name}.to_dense()")


def same_shape(owner: str, a: str, first: Tensor, b: str, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"{owner}: {a} and {b} differ in shape: {list(first.shape)} and {list(second.shape)}")


def same_device(owner: str, a: str, first: Tensor, b: str, second: Tensor) -> None:
    if first.device != second.device:
        raise ValueError(f"{owner}: {a} and {b} are on different devices: {first.device} and {second.device}")


def planes(owner: str, name: str, p: Tensor, x: Tensor, channels: int | None) -> None:
    """p is [B, C, ...] and x [B, ...], or [B, channels, ...]."""
    second_axis(owner, name, p, "[B, C, ...]")
    if channels is not None:
        second_axis(owner, "x", x, "[B, channels, ...]")
    expected = [p.shape[0], *([] if channels is None else [channels]), *p.shape[2:]]
    if list(x.shape) == expected:
        return
    got = list(x.shape)
    other = channels is not None and x.dim() > 1 and x.shape[1] in (1, 3) and [got[0], channels, *got[2:]] == expected
    hint = f"; for images of {got[1]} channel{'s' * (got[1] > 1)} pass channels={got[1]}" if other else ""
    raise ValueError(f"{owner}: x must have shape {expected} beside {name} of shape {list(p.shape)}, got {got}{hint}")


def second_axis(owner: str, name: str, t: Tensor, form: str) -> None:
    """t has a second dimension."""
    if t.dim() < 2:
        raise ValueError(f"{owner}: {name} must have shape {form}, got {list(t.shape)}")


def classes(owner: str, name: str, p: Tensor) -> None:
    """p, [B, C, ...], has classes."""
    if p.shape[1] == 0:
        raise ValueError(f"{owner}: {name} must have a class at least, got shape {list(p.shape)}, [B, C, ...]")


def mixture(owner: str, name: str, planes: int, channels: int) -> None:
    """As many planes as mixtures of that many channels have."""
    if channels not in (1, 3):
        raise ValueError(f"{owner}: x must have 1 or 3 channels, got {channels}")
    each = 10 if channels == 3 else 3
    if planes == 0 or planes % each:
        raise ValueError(f"{owner}: {name} must have {each} M planes for {channels} channels of x, got {planes}")


def target(owner: str, x: Tensor, kind: str) -> None:
    """x is of a dtype that numbers of that kind come in: "intensity", "count", "level" or "class"."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{owner}: x must be a tensor, got {type(x).__name__}")
    dense(owner, "x", x)
    if x.dtype not in TARGETS[kind]:
        names = "".join(f"{str(dtype)[6:]}, " for dtype in _INTEGERS_OF[kind])
        expected = (
            f"a {kind}: floating point, {names}uint8 or bool"
            if names
            else "floating point, bool or uint8 (an intensity, x/255)"
        )
        raise TypeError(f"{owner}: x must be {expected}, got {str(x.dtype)[6:]}")
    constant(owner, "x", x)


def constant(owner: str, name: str, t: Tensor) -> None:
    """No gradient is defined with respect to t."""
    if t.requires_grad:
        raise ValueError(f"{owner}: {name} requires grad, but no gradient is defined for it; pass {name}.detach()")


def row_weight(owner: str, weight: Tensor, x: Tensor) -> Tensor:
    """A weight for each row of x, floating point."""
    rows = x.shape[0]
    if not isinstance(weight, Tensor) or weight.shape != (rows,):
        got = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{owner}: weight must be a tensor of shape [{rows}], one number a row, got {got}")
    dense(owner, "weight", weight)
    constant(owner, "weight", weight)
    same_device(owner, "x", x, "weight", weight)
    if weight.is_cpu and type(weight) is Tensor and not torch.compiler.is_compiling():
        not_negative(owner, weight)
    return weight if weight.dtype in FLOATING else weight.to(torch.float32)


def not_negative(owner: str, weight: Tensor) -> None:
    """Reads the weights: on a GPU, waits for them."""
    if bool((weight < 0).any()):
        raise ValueError(f"{owner}: weight must not be negative, got {weight.min().item():g}")


def element_mask(owner: str, mask: Tensor, x: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = str(mask.dtype)[6:] if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{owner}: mask must be a bool tensor, True where x counts, got {got}")
    dense(owner, "mask", mask)
    same_device(owner, "x", x, "mask", mask)
    return broadcast(owner, "mask", mask, x)


def one_a_row(owner: str, name: str, t: Tensor, like: Tensor) -> Tensor:
    """t, one number or one a row of `like`, as [1 or B, 1, ...]; whole numbers in floating point, as `like` is."""
    rows = like.shape[0]
    dense(owner, name, t)
    if not t.is_floating_point() and not t.is_complex():
        t = t.to(torch.promote_types(like.dtype, torch.float32))
    if t.numel() != 1 and (t.numel() != rows or t.shape[0] != rows):
        raise ValueError(f"{owner}: {name} must be one number a row, of shape [{rows}], got {list(t.shape)}")
    return t.reshape(-1, *[1] * (like.dim() - 1))


def broadcast(owner: str, name: str, t: Tensor, x: Tensor) -> Tensor:
    """t expanded to x's shape."""
    try:
        return t.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"{owner}: {name} must broadcast to the shape of x, {list(x.shape)}, got {list(t.shape)}"
        ) from None


def pair(owner: str, prior: object) -> None:
    """prior is (mu, logvar)."""
    if not isinstance(prior, tuple | list) or len(prior) != 2 or not all(isinstance(p, Tensor) for p in prior):
        got = (
            f"({', '.join(type(p).__name__ for p in prior)})"
            if isinstance(prior, tuple | list)
            else type(prior).__name__
        )
        raise TypeError(f"{owner}: prior must be None or a pair of tensors (mu, logvar), got {got}")


def beta(owner: str, value: float | Tensor) -> None:
    """A number or a 0-dim tensor, not negative, without grad; no parameter, which a module would keep as one."""
    if isinstance(value, torch.nn.Parameter):
        raise TypeError(f"{owner}: beta must be a number or a plain tensor, got a Parameter; pass beta.detach()")
    if not isinstance(value, Tensor):
        if not is_number(value):
            expected = "a number or a 0-dim floating point tensor without grad"
            raise TypeError(f"{owner}: beta must be {expected}, got {type(value).__name__}")
        if not value >= 0:
            raise ValueError(f"{owner}: beta must not be negative, got {value:g}")
        return
    if value.dim() != 0 or not value.is_floating_point() or value.requires_grad:
        got = f"{str(value.dtype)[6:]} {list(value.shape)}" + (" that requires grad" if value.requires_grad else "")
        raise ValueError(f"{owner}: beta must be a number or a 0-dim floating point tensor without grad, got {got}")


def is_number(value: object) -> TypeGuard[float]:
    """A number of Python's or NumPy's."""
    return isinstance(value, int | float) or isinstance(value, numbers.Real)


def number(owner: str, name: str, value: object) -> float:
    """A parameter that is no tensor."""
    if not is_number(value):
        raise TypeError(f"{owner}: {name} must be a number or a tensor, got {type(value).__name__}")
    return value if isinstance(value, int | float) else float(value)


def flag(owner: str, name: str, value: Any) -> float:
    """True or False, as a number."""
    if not (is_number(value) or isinstance(value, np.bool_)) or value not in (0, 1):
        raise TypeError(f"{owner}: {name} must be True or False, got {value!r}")
    return float(value)


def levels(owner: str, value: object) -> float:
    """How many levels there are."""
    if not is_number(value) or not 2 <= value < math.inf or value != round(value):
        raise ValueError(f"{owner}: levels must be an integer, at least 2, got {value!r}")
    return float(value)


def x_range(owner: str, value: Any) -> tuple[float, float]:
    """(lowest, highest) level."""
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value))
    if not pair or not -math.inf < value[0] < value[1] < math.inf:
        raise ValueError(f"{owner}: x_range must be (low, high), finite numbers, low below high, got {value!r}")
    return float(value[0]), float(value[1])


def one_of(owner: str, name: str, value: Any, expected: Sequence[Any]) -> None:
    if not (isinstance(value, str) or is_number(value)) or value not in expected:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(map(str, expected))}, got {value!r}")


def support(
    owner: str,
    x: Tensor,
    low: float,
    high: float,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    kind: str = "intensity",
) -> None:
    """Every x that counts lies in the likelihood's support: of counts and classes, whole numbers; no weight is
    negative. `kind`: as for `target`. On a GPU, waits for it."""
    if weight is not None:
        not_negative(owner, weight)
    if x.dtype in (torch.uint8, torch.bool) and kind == "intensity":
        return
    x = x.to(torch.int32) if x.dtype == torch.uint16 else x.detach()  # which torch has no minimum of
    if weight is not None:
        x = x[weight != 0]
        mask = mask if mask is None else mask.expand(len(weight), *x.shape[1:])[weight != 0]
    if mask is not None:
        x = x[mask.expand(x.shape)]
    if x.numel() == 0:
        return
    least, most = (float(v) for v in torch.aminmax(x))
    if not (low <= least and most <= high):
        raise ValueError(f"{owner}: x must lie in [{low:g}, {high:g}], got values from {least:g} to {most:g}")
    if kind in ("count", "class") and x.is_floating_point():
        whole(owner, x)


def whole(owner: str, x: Tensor) -> None:
    """x holds finite whole numbers."""
    others = x[~(torch.isfinite(x) & (x == x.round()))]
    if others.numel():
        raise ValueError(f"{owner}: x must be finite whole numbers, got {others[0].item():g} among them")
