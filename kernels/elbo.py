"""`<likelihood>_nll`, `elbo_<likelihood>`, `gaussian_kl` and `monte_carlo_kl`: one kernel over rows serves them all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vae_fast.kernels.divergences import GAUSSIAN_KL, LOG_RATIO, STANDARD_KL
from vae_fast.kernels.launch import launch
from vae_fast.kernels.likelihoods import LIKELIHOODS
from vae_fast.kernels.operands import Operands, Outputs, check, check_matrix, check_operands, check_posterior
from vae_fast.kernels.rows import store_column_sums, store_row_sums, sum_rows, zeros_for
from vae_fast.kernels.tiling import tiling_of


@triton.jit
def objective_of_rows(
    tile,
    split,
    operands,
    latent,
    weight_ptr,
    weight_stride,
    nll_ptr,
    kl_ptr,
    loss_ptr,
    beta,
    scale,
    rows,
    width: tl.constexpr,
    per_split,
    latent_width: tl.constexpr,
    latent_per_split,
    over_rows,
    latent_over_rows,
    STEP: tl.constexpr,
    FOLD: tl.constexpr,
    FINISH: tl.constexpr,
    SHAPE: tl.constexpr,
    LATENT_STEP: tl.constexpr,
    LATENT_FOLD: tl.constexpr,
    LATENT_FINISH: tl.constexpr,
    LATENT_SHAPE: tl.constexpr,
    CUT: tl.constexpr,
    REDUCE: tl.constexpr,
    ANNEALED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A split of ROWS rows: stores nll, kl and, unless it is summed, the loss; returns scale (nll + beta kl)
    [ROWS] and the grown sums over rows."""
    row = tile * ROWS + tl.arange(0, ROWS)
    exists = row < rows
    row = tl.minimum(row, rows - 1)  # a row beyond the last is the last again, computed and dropped
    at = split.to(tl.int64) * rows + row
    tall, tall_exists = row[:, None], exists[:, None]
    live = tall_exists
    factor = tl.full([1, 1], scale, tl.float32)
    SELECT: tl.constexpr = weight_ptr is not None or operands[4] is not None or (ANNEALED and LATENT_STEP is None)
    if LATENT_STEP is None:
        factor *= beta
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + row * weight_stride).to(tl.float32)
        live = live & (weight != 0)[:, None]
        factor = factor * weight[:, None]

    nll, over_columns, over_rows = sum_rows(
        operands, (tall, tall_exists, live, factor), split, per_split, width, over_rows,
        STEP, FOLD, FINISH, SHAPE, SELECT, CUT, ROWS,
    )  # fmt: skip
    store_row_sums(operands[2], over_columns, at, exists, SHAPE)
    if weight_ptr is not None:
        nll = tl.where(weight == 0, 0.0, weight * nll)
    tl.store(nll_ptr + at, nll, mask=exists)
    loss = nll
    if LATENT_STEP is not None:
        kl, over_columns, latent_over_rows = sum_rows(
            latent, (tall, tall_exists, live, factor * beta), split, latent_per_split, latent_width, latent_over_rows,
            LATENT_STEP, LATENT_FOLD, LATENT_FINISH, LATENT_SHAPE, True, CUT, ROWS,
        )  # fmt: skip
        store_row_sums(latent[2], over_columns, at, exists, LATENT_SHAPE)
        if weight_ptr is not None:
            kl = tl.where(weight == 0, 0.0, weight * kl)
        tl.store(kl_ptr + at, kl, mask=exists)
        loss += tl.where(beta == 0, 0.0, beta * kl)
    loss *= scale
    if loss_ptr is not None and not REDUCE:
        tl.store(loss_ptr + at, loss, mask=exists)
    return tl.where(exists, loss, 0.0), over_rows, latent_over_rows


@triton.jit(do_not_specialize=["rows", "tiles", "per_split", "latent_per_split"])
def objective(
    operands,
    latent,
    weight_ptr,
    weight_stride,
    beta_ptr,
    nll_ptr,  # [splits, B]
    kl_ptr,  # [splits, B]
    loss_ptr,  # [splits, B], or [splits, groups] if REDUCE, or None
    beta,
    scale,
    rows,
    tiles,  # of ROWS rows in a group
    width: tl.constexpr,
    per_split,
    latent_width: tl.constexpr,
    latent_per_split,
    STEP: tl.constexpr,
    FOLD: tl.constexpr,
    FINISH: tl.constexpr,
    SHAPE: tl.constexpr,
    LATENT_STEP: tl.constexpr,
    LATENT_FOLD: tl.constexpr,
    LATENT_FINISH: tl.constexpr,
    LATENT_SHAPE: tl.constexpr,
    CUT: tl.constexpr,
    GROUPED: tl.constexpr,
    REDUCE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """nll and kl of each row, times its weight; scale (nll + beta kl); and the gradients of that."""
    group = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if beta_ptr is not None:
        beta *= tl.load(beta_ptr).to(tl.float32)

    over_rows = zeros_for(operands[2], SHAPE, 2, ROWS, SHAPE[1])
    latent_over_rows = ()
    if LATENT_STEP is not None:
        latent_over_rows = zeros_for(latent[2], LATENT_SHAPE, 2, ROWS, LATENT_SHAPE[1])
    if GROUPED:
        losses = tl.zeros([ROWS], tl.float32)
        for tile in range(group * tiles, (group + 1) * tiles):
            loss, over_rows, latent_over_rows = objective_of_rows(
                tile, split, operands, latent, weight_ptr, weight_stride, nll_ptr, kl_ptr, loss_ptr, beta, scale, rows,
                width, per_split, latent_width, latent_per_split, over_rows, latent_over_rows,
                STEP, FOLD, FINISH, SHAPE, LATENT_STEP, LATENT_FOLD, LATENT_FINISH, LATENT_SHAPE, CUT, REDUCE,
                beta_ptr is not None, ROWS,
            )  # fmt: skip
            losses += loss
        store_column_sums(operands[2], over_rows, group, split, width, SHAPE)
        if LATENT_STEP is not None:
            store_column_sums(latent[2], latent_over_rows, group, split, latent_width, LATENT_SHAPE)
    else:
        losses, over_rows, latent_over_rows = objective_of_rows(
            group, split, operands, latent, weight_ptr, weight_stride, nll_ptr, kl_ptr, loss_ptr, beta, scale, rows,
            width, per_split, latent_width, latent_per_split, over_rows, latent_over_rows,
            STEP, FOLD, FINISH, SHAPE, LATENT_STEP, LATENT_FOLD, LATENT_FINISH, LATENT_SHAPE, CUT, REDUCE,
            beta_ptr is not None, ROWS,
        )  # fmt: skip
    if loss_ptr is not None and REDUCE:
        tl.store(loss_ptr + split * tl.num_programs(0) + group, tl.sum(losses, 0))


def _accumulate(
    operands: Operands,
    latent: Operands | None,
    weight: Tensor | None,
    *,
    beta_factor: Tensor | None = None,
    beta: float = 1.0,
    scale: float = 1.0,
    reduce: bool | None = None,
) -> tuple[Tensor, ...]:
    """(loss, unless reduce is None; nll; kl, if there is a latent; the gradients of operands and latent)."""
    check_operands(operands, weight)
    if latent is not None:
        check_operands(latent, weight)
    device = operands.parameters[0].device
    shared = operands.sums_over_rows() or (latent is not None and latent.sums_over_rows())
    tiling = tiling_of(operands.rows, operands.width, latent.width if latent else 0, operands.vector, shared)
    outputs = Outputs(tiling, operands.rows, device)
    loss = None if reduce is None else outputs.total() if reduce else outputs.of_rows()
    nll, kl = outputs.of_rows(), outputs.of_rows() if latent else None
    gradients, latent_gradients = outputs.gradients(operands), outputs.gradients(latent) if latent else []
    launch(
        objective,
        (tiling.groups, tiling.splits),
        device,
        operands.packed(gradients),
        latent.packed(latent_gradients) if latent else None,
        weight,
        weight.stride(0) if weight is not None else 0,
        beta_factor,
        nll.partial,
        kl.partial if kl else None,
        loss.partial if loss else None,
        float(beta),
        float(scale),
        operands.rows,
        tiling.tiles,
        operands.width,
        tiling.per_split,
        latent.width if latent else 0,
        tiling.latent_per_split,
        *operands.functions,
        operands.shape(tiling.columns, tiling.per_split),
        *(latent.functions if latent else (None, None, None)),
        latent.shape(tiling.latent_columns, tiling.latent_per_split) if latent else None,
        tiling.splits > 1,
        tiling.grouped,
        bool(reduce),
        tiling.rows,
        num_warps=tiling.warps,
        registers=operands.registers,
    )
    values = [s.finish() for s in (loss, nll, kl) if s is not None]
    parameters = (*operands.parameters, *(latent.parameters if latent else ()))
    found = zip((*gradients, *latent_gradients), parameters, strict=True)
    return (*values, *(g.finish() if g else parameter.new_empty(0) for g, parameter in found))


def _likelihood(
    name: str, parameters: Sequence[Tensor], x: Tensor, options: Sequence[float], mask: Tensor | None, asked: int
) -> Operands:
    each, shared = LIKELIHOODS[name]
    check_matrix("x", x)
    check_matrix("each parameter", *parameters)
    rows, width = x.shape
    accumulator = shared if parameters[-1].size(1) == 1 != width else each
    return Operands(accumulator, parameters, rows, width, asked, x, mask, tuple(options))


def _observations(name: str, arguments: Sequence[Any]) -> tuple[Sequence[Any], Tensor, Sequence[float], Sequence[Any]]:
    """An operator's arguments as parameters, x, options and what follows them."""
    count = len(LIKELIHOODS[name][0].neutral)
    options = next(k for k, a in enumerate(arguments[count + 1 :]) if not isinstance(a, float))
    last = count + 1 + options
    return arguments[:count], arguments[count], arguments[count + 1 : last], arguments[last:]


def nll(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator <name>_nll: (parameters, x, options, weight?, mask?, asked) -> (nll [B], gradients)."""
    parameters, x, options, (weight, mask, asked) = _observations(name, arguments)
    return _accumulate(_likelihood(name, parameters, x, options, mask, asked), None, weight)


def elbo(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator elbo_<name>; see vae_fast/ops/likelihoods.py for its arguments and results."""
    parameters, x, options, rest = _observations(name, arguments)
    mu, logvar, prior_mu, prior_logvar, weight, mask, beta_factor, beta, scale, reduce, asked = rest
    operands = _likelihood(name, parameters, x, options, mask, asked)
    latent, absent = _latent(mu, logvar, prior_mu, prior_logvar, asked >> len(parameters))
    check(len(mu) == len(x), f"mu must have {len(x)} rows, got {len(mu)}")
    outputs = _accumulate(operands, latent, weight, beta_factor=beta_factor, beta=beta, scale=scale, reduce=reduce)
    return (*outputs, *absent)


def _latent(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None, asked: int
) -> tuple[Operands, tuple[Tensor, ...]]:
    """The KL's operands, and what stands for the gradients of a prior that isn't given."""
    check_posterior(mu, logvar, prior_mu, prior_logvar)
    if prior_mu is None or prior_logvar is None:
        return Operands(STANDARD_KL, (mu, logvar), *mu.shape, asked), (mu.new_empty(0), mu.new_empty(0))
    return Operands(GAUSSIAN_KL, (mu, logvar, prior_mu, prior_logvar), *mu.shape, asked), ()


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    weight: Tensor | None,
    asked: int,
) -> tuple[Tensor, ...]:
    """The operator gaussian_kl -> (kl [B], gradients)."""
    operands, absent = _latent(mu, logvar, prior_mu, prior_logvar, asked)
    return (*_accumulate(operands, None, weight), *absent)


def scaled_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    weight: Tensor | None,
    beta_factor: Tensor | None,
    beta: float,
    scale: float,
    asked: int,
) -> tuple[Tensor, ...]:
    """(kl [B] times weight, the gradients of scale beta kl)"""
    operands, absent = _latent(mu, logvar, prior_mu, prior_logvar, asked)
    if beta == 0:
        kl, *gradients = _accumulate(replace(operands, asked=0), None, weight)
        given = [
            torch.zeros_like(t) if w else g
            for t, g, w in zip(operands.parameters, gradients, operands.wanted(), strict=True)
        ]
        return (kl, *given, *absent)
    return (*_accumulate(operands, None, weight, beta_factor=beta_factor, beta=beta, scale=scale), *absent)


def monte_carlo_kl(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator monte_carlo_kl: (z, mu, logvar, prior_mu, prior_logvar, weight?, asked) -> (kl [B], gradients)."""
    *parameters, weight, asked = arguments
    return _accumulate(Operands(LOG_RATIO, parameters, *parameters[0].shape, asked), None, weight)
