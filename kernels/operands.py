"""Tensors of an operator as the kernels take them, and where their sums and gradients go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_fast.kernels.accumulator import Accumulator
from vae_fast.kernels.fold import add_partials
from vae_fast.kernels.launch import MANY_REGISTERS, MOST_REGISTERS, REGISTERS
from vae_fast.kernels.tiling import Columns, Tiling


def as_bytes(t: Tensor) -> Tensor:
    """Booleans as the bytes that they are stored in."""
    return t.view(torch.uint8) if t.dtype == torch.bool else t


def taken(t: Tensor) -> Tensor:
    """t, copied where columns lie so far apart that offsets within a row leave 32 bits."""
    return t.contiguous() if t.stride(1) * t.size(1) >= 2**31 else t


def strides_of(t: Tensor, rows: int, width: int) -> tuple[int, int]:
    """The strides of t among operands [rows, width]; a size of 1 repeats."""
    row, column = t.stride()
    return row if t.size(0) == rows else 0, column if t.size(1) == width else 0


@dataclass(frozen=True)
class Operands:
    """The parameters of one accumulator over [rows, width], with what belongs to them.

    A parameter may have size 1 in place of either; `asked` has a bit for each that wants a gradient.
    """

    accumulator: Accumulator
    parameters: Sequence[Tensor]
    rows: int
    width: int
    asked: int
    x: Tensor | None = None
    mask: Tensor | None = None
    options: tuple[float, ...] = ()

    def kind(self, t: Tensor) -> int:
        """1: one number a row, 2: one row for all, 3: both, 0: neither."""
        return (t.size(1) == 1 != self.width) | (t.size(0) == 1 != self.rows) << 1

    def kinds(self) -> tuple[int, ...]:
        return tuple(self.kind(t) for t in self.parameters)

    def wanted(self) -> list[bool]:
        return [bool(self.asked >> k & 1) for k in range(len(self.parameters))]

    def sums_over_rows(self) -> bool:
        return any(w and self.kind(t) & 2 for t, w in zip(self.parameters, self.wanted(), strict=True))

    @property
    def vector(self) -> int:
        """Elements of the widest operand in 128 bits, or fewer that a thread takes at once."""
        widest = max(t.element_size() for t in self.parameters)
        vector = 16 // (widest if self.x is None else max(widest, self.x.element_size()))
        return min(vector, self.accumulator.together or vector)

    @property
    def registers(self) -> int:
        if self.accumulator.heavy:
            return MOST_REGISTERS
        return REGISTERS if self.accumulator.together is None else MANY_REGISTERS

    @property
    def functions(self) -> tuple[Any, Any, Any]:
        return self.accumulator.step, self.accumulator.fold, self.accumulator.finish

    def packed(self, gradients: Sequence["Sum | None"]) -> tuple[Any, ...]:
        """The tuple that rows.py unpacks."""
        parameters = tuple(taken(t) for t in self.parameters)
        mask = None if self.mask is None else as_bytes(self.mask)
        x, mask = (None if t is None else taken(t) for t in (self.x, mask))
        return (
            parameters,
            tuple((0, 0) if t is None else strides_of(t, self.rows, self.width) for t in (*parameters, x, mask)),
            tuple(g.partial if g is not None else None for g in gradients),
            x,
            mask,
        )

    def shape(self, columns: Columns, per_split: int) -> tuple[Any, ...]:
        """The constants that rows.py unpacks."""
        steps = (self.accumulator.steps or 0) // self.vector
        one, together = self.accumulator.heavy, self.accumulator.together
        unroll = 1 if one else columns.unroll(per_split, self.width, self.vector, together)
        return (
            self.kinds(),
            columns.tile,
            self.vector,
            columns.tail,
            columns.bounded,
            unroll,
            steps // unroll * unroll if per_split > steps else 0,
            255 if self.x is not None and self.x.dtype == torch.uint8 and not self.accumulator.counts else 1,
            self.accumulator.states,
            (*self.accumulator.neutral, self.accumulator.neutral_x),
            self.options,
        )


def check(right: bool, message: str) -> None:
    """What a kernel can't be told, since it would read beyond its tensors."""
    if not right:
        raise RuntimeError(message)


def check_matrix(name: str, *tensors: Tensor) -> None:
    for t in tensors:
        check(t.dim() == 2, f"{name} must have shape [B, D], got {list(t.shape)}")


def check_operands(operands: Operands, weight: Tensor | None) -> None:
    """Shapes and dtypes that keep memory safe; the functions above the operators say more."""
    rows, width, x, mask = operands.rows, operands.width, operands.x, operands.mask
    for t in operands.parameters:
        fits = t.dim() == 2 and t.size(0) in (1, rows) and t.size(1) in (1, width)
        check(fits, f"each parameter must have shape [{rows}, {width}] or 1 in place of either, got {list(t.shape)}")
        check(t.is_floating_point(), f"each parameter must be floating point, got {t.dtype}")
    if x is not None:
        counts = (torch.int32, torch.int64, torch.uint16) if operands.accumulator.counts else ()
        known = x.is_floating_point() or x.dtype in (torch.uint8, torch.bool, *counts)
        check(known, f"x must have a dtype that the kernels read, got {x.dtype}")
    if mask is not None:
        fits = mask.dtype == torch.bool and mask.shape == (rows, width)
        check(fits, f"mask must be bool of shape [{rows}, {width}], got {mask.dtype} {list(mask.shape)}")
    check_weight(weight, rows)


def check_weight(weight: Tensor | None, rows: int) -> None:
    if weight is not None:
        fits = weight.is_floating_point() and weight.shape == (rows,)
        check(fits, f"weight must be floating point of shape [{rows}], got {weight.dtype} {list(weight.shape)}")


def check_posterior(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> None:
    check_matrix("mu", mu)
    check(logvar.shape == mu.shape, f"logvar must have mu's shape {list(mu.shape)}, got {list(logvar.shape)}")
    check((prior_mu is None) == (prior_logvar is None), "prior_mu and prior_logvar must go together")
    for t in (prior_mu, prior_logvar):
        if t is not None:
            fits = t.dim() == 2 and all(n in (1, m) for n, m in zip(t.shape, mu.shape, strict=True))
            check(fits, f"a prior must have shape {list(mu.shape)} or 1 in place of either, got {list(t.shape)}")


@dataclass(frozen=True)
class Sum:
    """An output and what the programs write of it: itself, or partial sums [P, N]."""

    out: Tensor
    partial: Tensor

    def finish(self) -> Tensor:
        if self.partial is not self.out:
            add_partials(self.partial, self.out)
        return self.out


def partial_sums(out: Tensor, count: int) -> Sum:
    """count partial sums of each element; one alone is the output itself."""
    if count == 1:
        return Sum(out, out)
    return Sum(out, torch.empty((count, out.numel()), dtype=torch.float32, device=out.device))


@dataclass(frozen=True)
class Outputs:
    """Allocates what a launch with this tiling writes."""

    tiling: Tiling
    rows: int
    device: torch.device

    def of_rows(self) -> Sum:
        """One number a row."""
        return partial_sums(torch.empty(self.rows, dtype=torch.float32, device=self.device), self.tiling.splits)

    def total(self) -> Sum:
        """One number."""
        return partial_sums(
            torch.empty((), dtype=torch.float32, device=self.device), self.tiling.groups * self.tiling.splits
        )

    def gradients(self, operands: Operands) -> list[Sum | None]:
        return [
            self._gradient(t, operands.kind(t)) if wanted else None
            for t, wanted in zip(operands.parameters, operands.wanted(), strict=True)
        ]

    def _gradient(self, t: Tensor, kind: int) -> Sum:
        out = torch.empty(t.shape, dtype=t.dtype, device=self.device)
        count = {0: 1, 1: self.tiling.splits, 2: self.tiling.groups, 3: self.tiling.groups * self.tiling.splits}
        return partial_sums(out, count[kind])
