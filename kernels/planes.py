"""The loop over planes: sums of terms over the observations of each row, to each of which C parameters belong, and
their gradients, in one pass.

A tile [PIXELS, COMPONENTS] holds every component of its observations, one tensor for each kind of parameter: all are
reduced over components, and every parameter is read once. A program takes `tiles` tiles of one row, or, where a row is
one observation, of rows. What programs share they leave as partial sums, which fold.py adds in fixed order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vae_fast.kernels import elbo
from vae_fast.kernels.joint import Joint
from vae_fast.kernels.launch import launch
from vae_fast.kernels.likelihoods import JOINT
from vae_fast.kernels.operands import as_bytes, check, check_weight, partial_sums

PROGRAMS = 2048  # that a row's tiles are cut among, all rows together, where there are enough
LARGEST = 16_384  # components of a tile


@triton.jit
def tile_of(
    pixel,  # [PIXELS, 1], of the row or, if SINGLE, rows
    row,
    inside,
    live,
    factor,
    parameters,
    gradient,
    x,
    mask,
    planes,
    STEP: tl.constexpr,
    OPTIONS: tl.constexpr,
    KINDS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SELECT: tl.constexpr,
    COMPONENTS: tl.constexpr,
):
    """nll [PIXELS, 1] of a tile; its gradients are stored."""
    parameters_ptr, of_row, of_plane, of_pixel = parameters
    x_ptr, x_of_row, x_of_channel, x_of_pixel = x
    mask_ptr, mask_of_row, mask_of_pixel = mask
    keep = inside & live
    if mask_ptr is not None:
        keep = keep & (tl.load(mask_ptr + row * mask_of_row + pixel * mask_of_pixel, mask=inside, other=0) != 0)
    each = planes // KINDS
    component = tl.arange(0, COMPONENTS)[None, :]
    there = component < each
    loaded = keep & there if SELECT else inside & there
    first = row * of_row + pixel * of_pixel
    tensors = ()
    for kind in tl.static_range(KINDS):
        place = parameters_ptr + first + (kind * each + component) * of_plane
        value = tl.load(place, mask=loaded, other=0.0).to(tl.float32)
        if kind == 0:
            value = tl.where(there, value, float("-inf"))
        tensors = tensors + (value,)
    observed = ()
    for channel in tl.static_range(CHANNELS):
        place = x_ptr + row * x_of_row + channel * x_of_channel + pixel * x_of_pixel
        observed = observed + (tl.load(place, mask=keep, other=0).to(tl.float32),)

    nll, gradients = STEP(tensors, observed, tl.where(there, component, -1), OPTIONS)

    gradient_ptr, gradient_of_row, gradient_of_plane, gradient_of_pixel = gradient
    if gradient_ptr is not None:
        to = gradient_ptr + row * gradient_of_row + pixel * gradient_of_pixel
        for kind in tl.static_range(KINDS):
            value = gradients[kind] * factor
            if SELECT:
                value = tl.where(keep & (factor != 0), value, 0.0)
            place = to + (kind * each + component) * gradient_of_plane
            tl.store(place, value.to(gradient_ptr.dtype.element_ty), mask=inside & there)
    return tl.where(keep, nll, 0.0)


@triton.jit(do_not_specialize=["rows", "tiles"])
def joint_objective(
    parameters,  # pointer, strides of rows, planes and pixels
    gradient,
    x,
    mask,  # pointer, strides of rows and pixels
    weight_ptr,
    weight_stride,
    kl_ptr,  # [B] or None, times weight
    beta_ptr,
    nll_ptr,  # [splits, B]
    loss_ptr,  # [splits, B], or [splits, programs] if REDUCE, or None
    beta,
    scale,
    rows,
    width,
    planes,
    tiles,
    STEP: tl.constexpr,
    OPTIONS: tl.constexpr,
    KINDS: tl.constexpr,
    CHANNELS: tl.constexpr,
    REDUCE: tl.constexpr,
    SINGLE: tl.constexpr,
    PIXELS: tl.constexpr,
    COMPONENTS: tl.constexpr,
):
    """nll of each row, times its weight; scale (nll + beta kl); and the gradients of scale nll."""
    SELECT: tl.constexpr = weight_ptr is not None or mask[0] is not None
    if beta_ptr is not None:
        beta *= tl.load(beta_ptr).to(tl.float32)
    split = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, PIXELS)
    if SINGLE:
        row = row * PIXELS + lane
        inside = row < rows
        row = tl.minimum(row, rows - 1)
        tall, pixel, within = row[:, None], tl.zeros([PIXELS, 1], tl.int32), inside[:, None]
        factor, live = tl.full([PIXELS, 1], scale, tl.float32), within
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + row * weight_stride).to(tl.float32)
            live = (weight != 0)[:, None]
            factor = factor * weight[:, None]
        nll = tile_of(
            pixel, tall, within, live, factor, parameters, gradient, x, mask, planes,
            STEP, OPTIONS, KINDS, CHANNELS, SELECT, COMPONENTS,
        )  # fmt: skip
        value = tl.reshape(nll, [PIXELS])
        if weight_ptr is not None:
            value = tl.where(weight == 0, 0.0, weight * value)
    else:
        inside = row < rows
        factor, live = tl.full([1, 1], scale, tl.float32), inside
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + row * weight_stride).to(tl.float32)
            live = weight != 0
            factor = factor * weight
        total = tl.zeros([PIXELS, 1], tl.float32)
        for tile in range(split * tiles, (split + 1) * tiles):
            pixel = (tile * PIXELS + lane)[:, None]
            total += tile_of(
                pixel, row, pixel < width, live, factor, parameters, gradient, x, mask, planes,
                STEP, OPTIONS, KINDS, CHANNELS, SELECT, COMPONENTS,
            )  # fmt: skip
        value = tl.sum(tl.reshape(total, [PIXELS]), 0)
        if weight_ptr is not None:
            value = tl.where(weight == 0, 0.0, weight * value)
    at = split.to(tl.int64) * rows + row
    tl.store(nll_ptr + at, value, mask=inside)
    if loss_ptr is not None:
        loss = value
        if kl_ptr is not None:
            kl = tl.load(kl_ptr + row, mask=inside & (split == 0) & (beta != 0), other=0.0)
            loss += tl.where(beta == 0, 0.0, beta * kl)
        loss *= scale
        if REDUCE:
            if SINGLE:
                loss = tl.sum(tl.where(inside, loss, 0.0), 0)
            tl.store(loss_ptr + split * tl.num_programs(0) + tl.program_id(0), loss)
        else:
            tl.store(loss_ptr + at, loss, mask=inside)


def _strided(t: Tensor, *dimensions: int) -> tuple[Any, ...]:
    return (t, *(t.stride(d) for d in dimensions))


def _empty_planes(t: Tensor) -> Tensor:
    """For the gradient: channels last where t is, else contiguous."""
    if t.stride(1) == 1:
        return t.new_empty((t.size(0), t.size(2), t.size(1))).transpose(1, 2)
    return torch.empty(t.shape, dtype=t.dtype, device=t.device)


def _check(entry: Joint, p: Tensor, x: Tensor, weight: Tensor | None, mask: Tensor | None) -> int:
    """The number of channels."""
    check(p.dim() == 3 and p.is_floating_point(), f"parameters must be [B, C, N], got {p.dtype} {list(p.shape)}")
    rows, planes, width = p.shape
    fits = x.dim() in (2, 3) and (x.size(0), x.size(-1)) == (rows, width)
    check(fits, f"x must be [{rows}, {width}] or [{rows}, channels, {width}], got {list(x.shape)}")
    channels = x.size(1) if x.dim() == 3 else 1
    kinds = entry.kinds.get(channels, 0)
    check(kinds > 0 and planes > 0 and planes % kinds == 0, f"{planes} planes don't fit {channels} channels of x")
    for t in (p, x):
        extent = sum((n - 1) * stride for n, stride in zip(t.shape[1:], t.stride()[1:], strict=True))
        check(extent < 2**31, "a row's elements must lie within 2^31 of one another")
    if mask is not None:
        fits = mask.dtype == torch.bool and mask.dim() == 2
        fits = fits and all(n in (1, m) for n, m in zip(mask.shape, (rows, width), strict=True))
        check(fits, f"mask must be bool of shape [{rows}, {width}], got {mask.dtype} {list(mask.shape)}")
    check_weight(weight, rows)
    return channels


def _tiling(entry: Joint, rows: int, width: int, components: int) -> tuple[int, int, int]:
    """Pixels of a tile, tiles of a program, and programs that a row is cut among."""
    pixels = max(1, entry.threads * entry.elements // components)
    pixels = min(pixels, triton.next_power_of_2(max(1, rows if width == 1 else width)))
    parts = max(1, triton.cdiv(width, pixels)) if width != 1 else 1
    splits = min(parts, max(1, triton.cdiv(PROGRAMS, max(1, rows))))
    tiles = triton.cdiv(parts, splits)
    return pixels, tiles, triton.cdiv(parts, tiles)


def _objective(
    name: str,
    parameters: Tensor,
    x: Tensor,
    options: Sequence[float],
    weight: Tensor | None,
    mask: Tensor | None,
    asked: int,
    kl: Tensor | None = None,
    beta_factor: Tensor | None = None,
    beta: float = 1.0,
    scale: float = 1.0,
    reduce: bool | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(loss, unless reduce is None; nll; the gradient)"""
    entry = JOINT[name]
    channels = _check(entry, parameters, x, weight, mask)
    rows, planes, width = parameters.shape
    kinds = entry.kinds[channels]
    components = triton.next_power_of_2(planes // kinds)
    pixels, tiles, splits = _tiling(entry, rows, width, components)
    programs = triton.cdiv(rows, pixels) if width == 1 else rows
    device = parameters.device
    nll = partial_sums(torch.empty(rows, dtype=torch.float32, device=device), splits)
    loss = None
    if reduce is not None:
        shape = () if reduce else (rows,)
        loss = partial_sums(
            torch.empty(shape, dtype=torch.float32, device=device), splits * (programs if reduce else 1)
        )
    gradient = _empty_planes(parameters) if asked & 1 else None
    x_strides = (x.stride(0), x.stride(1) if x.dim() == 3 else 0, x.stride(-1))
    seen = None if mask is None else as_bytes(mask.expand(rows, width))
    launch(
        joint_objective,
        (programs, splits),
        device,
        _strided(parameters, 0, 1, 2),
        (None, 0, 0, 0) if gradient is None else _strided(gradient, 0, 1, 2),
        (x, *x_strides),
        (None, 0, 0) if seen is None else _strided(seen, 0, 1),
        weight,
        weight.stride(0) if weight is not None else 0,
        kl,
        beta_factor,
        nll.partial,
        loss.partial if loss else None,
        float(beta),
        float(scale),
        rows,
        width,
        planes,
        tiles,
        entry.step,
        tuple(options),
        kinds,
        channels,
        bool(reduce),
        width == 1,
        pixels,
        components,
        num_warps=max(1, min(16, pixels * components // (32 * entry.elements))),
    )
    found = parameters.new_empty(0) if gradient is None else gradient
    return loss.finish() if loss else None, nll.finish(), found


def _left_to_reference(name: str, parameters: Tensor, x: Tensor) -> bool:
    """More components than a tile holds."""
    kinds = JOINT[name].kinds
    of_channels = kinds.get(x.size(1) if x.dim() == 3 else 1, max(kinds.values()))
    return parameters.dim() == 3 and parameters.size(1) > LARGEST * of_channels


def nll(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator <name>_nll: (parameters, x, options, weight?, mask?, asked) -> (nll [B], gradient)."""
    parameters, x, *options, weight, mask, asked = arguments
    if _left_to_reference(name, parameters, x):
        return getattr(torch.ops.vae_fast_reference, f"{name}_nll")(*arguments)
    _, value, gradient = _objective(name, parameters, x, options, weight, mask, asked)
    return value, gradient


def elbo_of(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator elbo_<name>; the KL, with its gradients, is a launch of its own, before."""
    parameters, x, *options = arguments[:-11]
    mu, logvar, prior_mu, prior_logvar, weight, mask, beta_factor, beta, scale, reduce, asked = arguments[-11:]
    if _left_to_reference(name, parameters, x):
        return getattr(torch.ops.vae_fast_reference, f"elbo_{name}")(*arguments)
    check(len(mu) == len(x), f"mu must have {len(x)} rows, got {len(mu)}")
    kl, *latent = elbo.scaled_kl(mu, logvar, prior_mu, prior_logvar, weight, beta_factor, beta, scale, asked >> 1)
    loss, value, gradient = _objective(
        name, parameters, x, options, weight, mask, asked, kl, beta_factor, beta, scale, reduce
    )
    assert loss is not None
    return (loss, value, kl, gradient, *latent)
