"""The second stage of sums that several programs share: partial sums [P, N] are added over P, in fixed order."""

import triton
import triton.language as tl
from torch import Tensor

from vae_fast.kernels.launch import launch


@triton.jit(do_not_specialize=["count"])
def fold(partial_ptr, out_ptr, count, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """out[n] = the sum over p of partial[p, n]"""
    column = tl.program_id(0).to(tl.int64) * COLS + tl.arange(0, COLS)[None, :]
    sums = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(0, count, ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        sums += tl.load(partial_ptr + row * width + column, mask=(row < count) & (column < width), other=0.0)
    total = tl.sum(sums, 0)[None, :]
    tl.store(out_ptr + column, total.to(out_ptr.dtype.element_ty), mask=column < width)


def add_partials(partial: Tensor, out: Tensor) -> None:
    """partial [P, N] float32 summed into out, of N elements and any dtype."""
    count, width = partial.shape
    columns = min(64, triton.next_power_of_2(max(1, width)))
    grid = (triton.cdiv(width, columns),)
    launch(fold, grid, partial.device, partial, out, count, width, 1024 // columns, columns, num_warps=4)
