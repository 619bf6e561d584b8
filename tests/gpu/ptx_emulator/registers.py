"""Registers as arrays over the threads of a batch: special ones, and views of one as another type."""

from __future__ import annotations

import numpy as np

from .options import WARP, Launch
from .ptx_types import U32, U64, PtxType


def special_registers(launch: Launch, threads: int, shared_bytes: int) -> dict[str, np.ndarray]:
    """All special registers; %ctaid changes from batch to batch."""
    in_cta = np.arange(threads) % launch.padded_threads
    special = {
        "%laneid": in_cta % WARP,
        "%warpid": in_cta // WARP,
        "%tid.x": in_cta % launch.block[0],
        "%tid.y": in_cta // launch.block[0] % launch.block[1],
        "%tid.z": in_cta // (launch.block[0] * launch.block[1]),
        **_lane_masks((in_cta % WARP).astype(U64)),
    }
    fixed = {
        "%nwarpid": launch.padded_threads // WARP,
        "%nsmid": 1,
        "%cluster_nctarank": 1,
        "%dynamic_smem_size": shared_bytes,
        "%total_smem_size": shared_bytes,
    }
    fixed |= dict.fromkeys(("%smid", "%clock", "%cluster_ctarank"), 0)
    for d, block, grid in zip("xyz", launch.block, launch.grid, strict=True):
        fixed |= {f"%ntid.{d}": block, f"%nctaid.{d}": grid, f"%nclusterid.{d}": grid, f"%cluster_nctaid.{d}": 1}
        fixed |= {f"%ctaid.{d}": 0, f"%clusterid.{d}": 0, f"%cluster_ctaid.{d}": 0}
    special |= {name: np.full(threads, value) for name, value in fixed.items()}
    special = {name: np.ascontiguousarray(value, U32) for name, value in special.items()}
    return special | {name: np.zeros(threads, U64) for name in ("%clock64", "%globaltimer", "%gridid")}


def _lane_masks(lane: np.ndarray) -> dict[str, np.ndarray]:
    one, everyone = np.left_shift(U64(1), lane), U64(0xFFFFFFFF)
    return {
        "%lanemask_eq": one,
        "%lanemask_lt": one - U64(1),
        "%lanemask_le": U64(2) * one - U64(1),
        "%lanemask_ge": everyone - (one - U64(1)),
        "%lanemask_gt": everyone - (U64(2) * one - U64(1)),
    }


def width_of(register: np.ndarray) -> int:
    """Bits of the register that an array holds."""
    return 1 if register.dtype == np.bool_ else register.dtype.itemsize * 8


def view(register: np.ndarray, t: PtxType, name: str = "") -> np.ndarray:
    """A register read as type `t`: shape [N], or [N, 2] for packed types; of a wider register, the low part."""
    bits = width_of(register)
    if t.lanes == 2:
        if bits != t.bits:
            raise NotImplementedError(f"{t.name} in a {bits}-bit register {name}")
        return register.view(t.raw).reshape(-1, 2)
    if t.bits == bits:
        return register.view(t.raw)
    if 1 < t.bits < bits:
        return register.view(t.raw)[:: bits // t.bits]  # little-endian
    raise NotImplementedError(f"{t.name} from a {bits}-bit register {name}")
