"""Operands of any shape as the operators take them: checked, [B, D] or [B, C, N], views where strides allow it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_fast import checks
from vae_fast.likelihoods import Likelihood, Options
from vae_fast.reference import Prior


def observations(
    entry: Likelihood,
    names: Sequence[str],
    parameters: Sequence[Tensor | float],
    x: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None]:
    """Checked operands of a likelihood as [B, D]; parameters after the first keep size 1 where they repeat."""
    if weight is None and mask is None:
        plain = _plain(entry, parameters, x)
        if plain is not None:
            return plain, x, None, None
    owner, name, *others = names
    first: Tensor = parameters[0]  # type: ignore[assignment]
    checks.floating(owner, name, first)
    checks.target(owner, x, entry.kind)
    if x.dtype in checks.SMALL_INTEGERS:
        x = x.to(torch.int32)
    if entry.joint:
        return _planes(entry, owner, name, first, x, weight, mask, options)
    checks.same_shape(owner, name, first, "x", x)
    checks.same_device(owner, name, first, "x", x)
    if weight is not None:
        weight = checks.row_weight(owner, weight, x)
    if mask is not None:
        mask = checks.element_mask(owner, mask, x)
    rest = [
        p if isinstance(p, Tensor) else checks.number(owner, other, p)
        for other, p in zip(others, parameters[1:], strict=True)
    ]
    if entry.per_row and isinstance(rest[-1], Tensor):
        rest[-1] = checks.one_a_row(owner, others[-1], rest[-1], first)
    if _channels_last(first) and _channels_last(x):
        for k, p in enumerate(rest):
            if isinstance(p, Tensor) and p.numel() > 1 and p.shape[-3:].numel() > 1:
                checks.broadcast(owner, others[k], p, x)
                rest[k] = _channels_to_the_end(p)
        mask = mask if mask is None else _channels_to_the_end(mask)
        first, x = _channels_to_the_end(first), _channels_to_the_end(x)
    tensors = [rows_of(first)]
    for other, p in zip(others, rest, strict=True):
        tensors.append(_broadcast_rows(owner, other, p, "x", first) if isinstance(p, Tensor) else _number(p, first))
    return tensors, rows_of(x), weight, mask if mask is None else rows_of(mask)


def channels_first(
    entry: Likelihood, names: Sequence[str], parameters: Sequence[Tensor | float], x: Tensor
) -> tuple[Sequence[Tensor | float], Tensor]:
    """The operands of a joint likelihood, [B, ..., C], as [B, C, ...], views; x too where it has channels."""
    owner, name = names
    first: Tensor = parameters[0]  # type: ignore[assignment]
    checks.floating(owner, name, first)
    checks.target(owner, x, entry.kind)
    checks.second_axis(owner, name, first, "[B, ..., C]")
    if entry.joint == "channels":
        checks.second_axis(owner, "x", x, "[B, ..., channels]")
        x = x.movedim(-1, 1) if x.dim() > 2 else x
    return (first.movedim(-1, 1) if first.dim() > 2 else first,), x


def tensors_or_none(parameters: Sequence[Tensor | float]) -> list[Tensor | float | None]:
    """The parameters; after the first with tensors in place of the most usual numbers, None of others."""
    return [parameters[0], *(_NUMBERS.get(p) if type(p) is float else p for p in parameters[1:])]


def _plain(entry: Likelihood, parameters: Sequence[Tensor | float], x: Tensor) -> list[Tensor] | None:
    """The parameters of most calls, where all is as the operators take it; None leaves the rest, errors too, to checks.

    The plainest of what `Plain` in `csrc/autograd/one_pass.cpp` takes, for calls that don't come there. One function,
    not a dozen: after a training step has been through the caches, each costs microseconds.
    """
    first = parameters[0]
    if entry.joint or (entry.per_row and type(parameters[-1]) is not float):
        return None
    if type(first) is not Tensor or type(x) is not Tensor or first.dim() != 2 or x.requires_grad:
        return None
    if first.layout is not torch.strided or x.layout is not torch.strided:
        return None
    shape, device, dtype = first.shape, first.device, first.dtype
    if (
        x.shape != shape
        or x.device != device
        or dtype not in checks.FLOATING
        or x.dtype not in checks.TARGETS[entry.kind]
    ):
        return None
    tensors = [first]
    for p in parameters[1:]:
        if type(p) is float:
            tensors.append(_number(p, first))
        elif type(p) is not Tensor or p.shape != shape or p.device != device or p.dtype not in checks.FLOATING:
            return None
        elif p.layout is not torch.strided:
            return None
        else:
            tensors.append(p)
    return tensors


def _planes(
    entry: Likelihood,
    owner: str,
    name: str,
    parameters: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    options: Options,
) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None]:
    """The same of a joint likelihood: [B, C, N], views of images in either layout."""
    channels = int(options.get("channels", entry.options["channels"])) if entry.joint == "channels" else None
    checks.planes(owner, name, parameters, x, channels)
    checks.same_device(owner, name, parameters, "x", x)
    if channels is None:
        checks.classes(owner, name, parameters)
    else:
        checks.mixture(owner, name, parameters.shape[1], channels)
    if weight is not None:
        weight = checks.row_weight(owner, weight, x)
    if mask is not None:
        each = x if channels is None else x[:, 0]
        if isinstance(mask, Tensor) and mask.dim() > each.dim() and mask.shape[1] == 1:
            checks.dense(owner, "mask", mask)
            mask = mask.squeeze(1)
        mask = rows_of(checks.element_mask(owner, mask, each))
    return [_flat(parameters)], rows_of(x) if channels is None else _flat(x), weight, mask


def _flat(t: Tensor) -> Tensor:
    """[B, C, ...] as [B, C, N]: a view where the strides allow it."""
    return t.flatten(2) if t.dim() > 2 else t.unsqueeze(2)


# The numbers that stand in for parameters most often: making one takes longer than all checks of a call
with torch.inference_mode(False):
    _NUMBERS = {p: torch.full((1, 1), p, dtype=torch.float32, device="cpu") for p in (0.0, 1.0)}


def _number(p: float, like: Tensor) -> Tensor:
    """p as [1, 1] in the dtype that computes with `like`."""
    if type(like) in (Tensor, torch.nn.Parameter) and like.is_cpu and not torch.compiler.is_compiling():
        found = _NUMBERS.get(p)
        if found is not None and like.dtype is not torch.float64:
            return found
    return torch.full((1, 1), p, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def _channels_last(t: Tensor) -> bool:
    """Whether t is an image batch that lies channels last: flattened as [B, C, H, W] it would be copied."""
    return t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def _channels_to_the_end(t: Tensor) -> Tensor:
    """[..., C, H, W] as [..., H, W, C], a view; sums over features don't mind the order."""
    return t.reshape((1,) * (3 - t.dim()) + t.shape).movedim(-3, -1)


def _broadcast_rows(owner: str, name: str, p: Tensor, of: str, like: Tensor) -> Tensor:
    """p, which broadcasts to `like` [B, ...], as [B, D], with 1 in place of B or of both where it repeats."""
    checks.floating(owner, name, p if p.dim() else p.reshape(1))
    checks.same_device(owner, of, like, name, p)
    if p.numel() == 1:
        return p.reshape(1, 1)
    if p.shape == like.shape:
        return rows_of(p)
    if p.dtype.itemsize == 2:
        p = p.float()  # what torch expands it also sums, in the same dtype
    try:
        if p.shape == like.shape[1:]:
            return p.reshape(1, -1)
        if p.dim() < like.dim() or p.shape[0] == 1:
            return p.expand(1, *like.shape[1:]).reshape(1, -1)
        if p.shape == (like.shape[0], *[1] * (like.dim() - 1)):
            return p.reshape(-1, 1)
        return rows_of(p.expand(like.shape))
    except RuntimeError:
        raise ValueError(
            f"{owner}: {name} must broadcast to the shape of {of}, {list(like.shape)}, got {list(p.shape)}"
        ) from None


def rows_of(t: Tensor) -> Tensor:
    """[B, ...] as [B, D]: a view where the strides allow it."""
    if t.dim() == 2:
        return t
    return t.unsqueeze(1) if t.dim() == 1 else t.flatten(1)


def like(t: Tensor, shape_of: Tensor) -> Tensor:
    return t if shape_of.dim() == 2 else t.reshape(shape_of.shape)


def check_posterior(owner: str, mu: Tensor, logvar: Tensor) -> None:
    if type(mu) is Tensor and type(logvar) is Tensor and mu.dim() == 2 and mu.shape == logvar.shape:
        known = mu.dtype in checks.FLOATING and logvar.dtype in checks.FLOATING and mu.device == logvar.device
        if known and mu.layout is torch.strided and logvar.layout is torch.strided:
            return  # as most are
    checks.floating(owner, "mu", mu)
    checks.floating(owner, "logvar", logvar)
    checks.same_shape(owner, "mu", mu, "logvar", logvar)
    checks.same_device(owner, "mu", mu, "logvar", logvar)


def prior_rows(owner: str, prior: Prior | None, mu: Tensor) -> Prior | None:
    """The prior's tensors as [1 or B, 1 or Z]."""
    if prior is None:
        return None
    checks.pair(owner, prior)
    mean, logvar = prior
    return (
        _broadcast_rows(owner, "prior mu", mean, "mu", mu),
        _broadcast_rows(owner, "prior logvar", logvar, "mu", mu),
    )
