"""`sample_kl`, its backward and `reparameterize`: z = mu + e^(logvar/2) eps, the noise made in the kernel.

The noise of element i is that of (seed, i), i counted through contiguous [B, Z]; backward makes it again.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vae_fast.kernels import elbo
from vae_fast.kernels.divergences import gaussian_kl
from vae_fast.kernels.fastmath import LOG2_E, ex2, expm1_minus, inverse_root, widen
from vae_fast.kernels.launch import launch
from vae_fast.kernels.operands import Outputs, check, check_posterior, strides_of, taken
from vae_fast.kernels.philox import normals
from vae_fast.kernels.rows import address
from vae_fast.kernels.tiling import Tiling, latent_tiling_of


@triton.jit
def load(pointer, row, column, strides, inside, FOURS: tl.constexpr):
    return widen(tl.load(address(pointer, row, column, strides), mask=inside), FOURS)


@triton.jit(do_not_specialize=["rows", "tiles", "per_split"])
def sample(
    posterior,  # mu, logvar
    strides,
    prior,  # mu, logvar, or None
    prior_strides,
    seed_ptr,
    z_ptr,
    kl_ptr,  # [splits, B], or None
    rows,
    width,
    tiles,  # of ROWS rows, one after the other
    per_split,  # tiles of COLS columns
    TOGETHER: tl.constexpr,
    BOUNDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """z, and the KL of each row in the same pass."""
    FOURS: tl.constexpr = ROWS * COLS >= 256  # see tiling.py: warps
    seed = tl.load(seed_ptr)
    begin = tl.program_id(1) * per_split
    end = tl.minimum(begin + per_split, tl.cdiv(width, COLS))
    top = tl.program_id(0).to(tl.int64) * tiles
    for tile in range(top, top + tiles):
        row = tile * ROWS + tl.arange(0, ROWS)
        exists = row < rows
        at = tl.program_id(1).to(tl.int64) * rows + row
        row = tl.minimum(row, rows - 1)[:, None]
        total = tl.zeros([ROWS, COLS], tl.float32)
        for part in range(begin, end):
            column = part * COLS + tl.arange(0, COLS)[None, :]
            inside = column < width if BOUNDED else None
            stored = exists[:, None] & inside if BOUNDED else exists[:, None]
            mu = load(posterior[0], row, column, strides[0], inside, FOURS)
            logvar = load(posterior[1], row, column, strides[1], inside, FOURS)
            sigma = ex2(logvar * (0.5 * LOG2_E))
            eps = normals(tile * ROWS * width + part * COLS, width, seed, ROWS, COLS, TOGETHER)
            tl.store(z_ptr + row * width + column, (sigma * eps + mu).to(z_ptr.dtype.element_ty), mask=stored)
            if kl_ptr is not None:
                if prior is None:
                    terms = mu * mu + expm1_minus(logvar, sigma * sigma)
                else:
                    prior_mu = load(prior[0], row, column, prior_strides[0], inside, FOURS)
                    prior_logvar = load(prior[1], row, column, prior_strides[1], inside, FOURS)
                    terms = gaussian_kl((0.0,), (mu, logvar, prior_mu, prior_logvar), None, 1.0, 1, ())[0][0]
                total += tl.where(inside, terms, 0.0) if BOUNDED else terms
        if kl_ptr is not None:
            tl.store(kl_ptr + at, 0.5 * tl.sum(total, 1), mask=exists)


@triton.jit(do_not_specialize=["rows", "tiles", "per_split"])
def sample_backward(
    posterior,
    strides,
    prior,
    prior_strides,
    seed_ptr,
    dz_ptr,  # or None
    dz_strides,
    dkl_ptr,  # or None
    dkl_stride,
    dmu_ptr,
    dlogvar_ptr,
    rows,
    width,
    tiles,  # of ROWS rows, one after the other
    per_split,  # tiles of COLS columns
    TOGETHER: tl.constexpr,
    BOUNDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """dmu = dz + dkl dKL/dmu, dlogvar = 1/2 dz e^(logvar/2) eps + dkl dKL/dlogvar"""
    FOURS: tl.constexpr = ROWS * COLS >= 256  # see tiling.py: warps
    seed = tl.load(seed_ptr)
    begin = tl.program_id(1) * per_split
    end = tl.minimum(begin + per_split, tl.cdiv(width, COLS))
    top = tl.program_id(0).to(tl.int64) * tiles
    for tile in range(top, top + tiles):
        row = tile * ROWS + tl.arange(0, ROWS)
        exists = (row < rows)[:, None]
        row = tl.minimum(row, rows - 1)[:, None]
        if dkl_ptr is not None:
            dkl = tl.load(dkl_ptr + row * dkl_stride).to(tl.float32)
        for part in range(begin, end):
            column = part * COLS + tl.arange(0, COLS)[None, :]
            inside = column < width if BOUNDED else None
            stored = exists & inside if BOUNDED else exists
            logvar = load(posterior[1], row, column, strides[1], inside, FOURS)
            half_sigma = ex2(logvar * (0.5 * LOG2_E) - 1.0)
            dmu = tl.zeros([ROWS, COLS], tl.float32)
            dlogvar = tl.zeros([ROWS, COLS], tl.float32)
            if dz_ptr is not None:
                dz = load(dz_ptr, row, column, dz_strides, inside, FOURS)
                eps = normals(tile * ROWS * width + part * COLS, width, seed, ROWS, COLS, TOGETHER)
                dmu = dz
                dlogvar = dz * (half_sigma * eps)
            if dkl_ptr is not None:
                mu = load(posterior[0], row, column, strides[0], inside, FOURS)
                if prior is None:
                    dmu += dkl * mu
                    dlogvar += (2.0 * dkl) * half_sigma * half_sigma - 0.5 * dkl
                else:
                    root = inverse_root(load(prior[1], row, column, prior_strides[1], inside, FOURS))
                    ratio = half_sigma * root
                    dmu += dkl * ((mu - load(prior[0], row, column, prior_strides[0], inside, FOURS)) * root * root)
                    dlogvar += (2.0 * dkl) * ratio * ratio - 0.5 * dkl
            to = row * width + column
            tl.store(dmu_ptr + to, dmu.to(dmu_ptr.dtype.element_ty), mask=stored)
            tl.store(dlogvar_ptr + to, dlogvar.to(dlogvar_ptr.dtype.element_ty), mask=stored)


def _prior(prior_mu: Tensor | None, prior_logvar: Tensor | None) -> tuple[Tensor, ...] | None:
    return None if prior_mu is None or prior_logvar is None else (taken(prior_mu), taken(prior_logvar))


def _strides(tensors: Sequence[Tensor] | None, rows: int, width: int) -> tuple[tuple[int, int], ...] | None:
    return None if tensors is None else tuple(strides_of(t, rows, width) for t in tensors)


def _sample(
    mu: Tensor, logvar: Tensor, prior: tuple[Tensor, ...] | None, seed: Tensor, divergence: bool
) -> tuple[Tensor, Tensor | None]:
    rows, width = mu.shape
    mu, logvar = taken(mu), taken(logvar)
    tiling = latent_tiling_of(rows, width)
    z = torch.empty_like(mu, memory_format=torch.contiguous_format)
    kl = Outputs(tiling, rows, mu.device).of_rows() if divergence else None
    launch(
        sample,
        (tiling.groups, tiling.splits),
        mu.device,
        (mu, logvar),
        _strides((mu, logvar), rows, width),
        prior,
        _strides(prior, rows, width),
        seed,
        z,
        kl.partial if kl else None,
        rows,
        width,
        tiling.tiles,
        tiling.per_split,
        *_constants(tiling, mu),
        num_warps=tiling.warps,
    )
    return z, kl.finish() if kl else None


def _constants(tiling: Tiling, mu: Tensor) -> tuple[int, bool, int, int]:
    """TOGETHER, BOUNDED, ROWS and COLS"""
    columns = tiling.columns.tile
    together = next((n for n in (8, 4) if n * mu.element_size() <= 16 and mu.size(1) % n == 0 == columns % n), 1)
    return together, tiling.columns.bounded, tiling.rows, columns


def reparameterize(mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
    """The operator reparameterize. Contiguous operands are one long row, whose fours of noise are whole."""
    check_posterior(mu, logvar, None, None)
    if mu.is_contiguous() and logvar.is_contiguous() and mu.numel() < 2**31:
        return _sample(mu.view(1, -1), logvar.view(1, -1), None, seed, False)[0].view(mu.shape)
    return _sample(mu, logvar, None, seed, False)[0]


def sample_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None, seed: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The operator sample_kl -> (z, kl [B])."""
    check_posterior(mu, logvar, prior_mu, prior_logvar)
    return _sample(mu, logvar, _prior(prior_mu, prior_logvar), seed, True)


def sample_kl_backward(
    dz: Tensor | None,
    dkl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor,
    asked: int,
) -> tuple[Tensor, ...]:
    """The operator sample_kl_backward -> (dmu, dlogvar, dprior_mu, dprior_logvar); the prior's only if asked for."""
    check_posterior(mu, logvar, prior_mu, prior_logvar)
    check(dz is None or dz.shape == mu.shape, "dz must have mu's shape")
    check(dkl is None or dkl.shape == mu.shape[:1], "dkl must have one number a row")
    rows, width = mu.shape
    tiling = latent_tiling_of(rows, width)
    prior = _prior(prior_mu, prior_logvar)
    mu, logvar, dz = taken(mu), taken(logvar), None if dz is None else taken(dz)
    dmu, dlogvar = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (mu, logvar))
    launch(
        sample_backward,
        (tiling.groups, tiling.splits),
        mu.device,
        (mu, logvar),
        _strides((mu, logvar), rows, width),
        prior,
        _strides(prior, rows, width),
        seed,
        dz,
        dz.stride() if dz is not None else None,
        dkl,
        dkl.stride(0) if dkl is not None else 0,
        dmu,
        dlogvar,
        rows,
        width,
        tiling.tiles,
        tiling.per_split,
        *_constants(tiling, mu),
        num_warps=tiling.warps,
    )
    if dkl is None or asked & 12 == 0:
        return dmu, dlogvar, mu.new_empty(0), mu.new_empty(0)
    return dmu, dlogvar, *elbo.gaussian_kl(mu, logvar, prior_mu, prior_logvar, dkl, asked & 12)[3:]
