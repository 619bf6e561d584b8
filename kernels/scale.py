"""`scale_rows_`: what backward does to the gradients that the forward pass has left."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from vae_fast.kernels.launch import launch
from vae_fast.kernels.operands import check

PROGRAMS = 1024  # that go through a gradient together: where the factor is 1, all that happens is that they start
COLS = 1024


@triton.jit
def scale(gradients, counts, widths, factor_ptr, factor_stride, COLS: tl.constexpr, PER_ROW: tl.constexpr):
    """Each gradient times a factor, in place; a factor of 0 selects. Programs of axis 1 take one gradient each."""
    for k in tl.static_range(len(gradients)):
        if tl.program_id(1) == k:
            if PER_ROW:
                scale_rows(gradients[k], counts[k], widths[k], factor_ptr, factor_stride, COLS)
            else:
                factor = tl.load(factor_ptr).to(tl.float32)
                if factor != 1.0:
                    scale_all(gradients[k], counts[k], factor, COLS)


@triton.jit
def scale_all(gradient_ptr, count, factor, COLS: tl.constexpr):
    for first in range(tl.program_id(0).to(tl.int64) * COLS, count, tl.num_programs(0) * COLS):
        place = first + tl.arange(0, COLS)
        times(gradient_ptr + place, tl.zeros([COLS], tl.float32) + factor, place < count)


@triton.jit
def scale_rows(gradient_ptr, count, width, factor_ptr, factor_stride, COLS: tl.constexpr):
    for first in range(tl.program_id(0).to(tl.int64) * COLS, count, tl.num_programs(0) * COLS):
        place = first + tl.arange(0, COLS)
        inside = place < count
        row = first // width  # one division in 64 bits for all
        row += ((first - row * width).to(tl.int32) + tl.arange(0, COLS)) // width
        factor = tl.load(factor_ptr + row * factor_stride, mask=inside, other=0.0).to(tl.float32)
        times(gradient_ptr + place, factor, inside)


@triton.jit
def times(pointers, factor, inside):
    scaled = tl.where(factor == 0, 0.0, tl.load(pointers, mask=inside, other=0.0).to(tl.float32) * factor)
    tl.store(pointers, scaled.to(pointers.dtype.element_ty), mask=inside)


def scale_rows_(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Contiguous gradients times factor, [] or [B], in place and in one launch. The factor is read on the device."""
    longest = max((g.numel() for g in gradients), default=0)
    for g in gradients:
        check(g.is_contiguous(), "gradient must be contiguous")
        fits = factor.dim() == 0 or factor.shape == g.shape[:1]
        check(fits, f"factor must have shape [] or [{len(g)}], got {list(factor.shape)}")
    if longest and factor.dim() and factor.stride(0) == 0:  # of a sum or a mean over rows: one number
        factor = factor[0]
    launch(
        scale,
        (min(PROGRAMS, triton.cdiv(longest, COLS)), len(gradients)),
        factor.device,
        tuple(gradients),
        tuple(g.numel() for g in gradients),
        tuple(g.numel() // max(1, g.size(0)) if factor.dim() else 1 for g in gradients),
        factor,
        factor.stride(0) if factor.dim() else 0,
        COLS,
        factor.dim() == 1,
        num_warps=4,
    )
