"""What a launch did: instructions, bytes, widths of accesses and 32-byte sectors."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .ptx_types import I64


class Traffic(NamedTuple):
    """Bytes moved between the kernel and one of its arrays; an atomic counts as both."""

    loaded: int = 0
    stored: int = 0


@dataclass
class Stats:
    """Counts of one launch. Kinds of access: ld, st, atom; all but `opcodes` and `shared_bytes` are of global memory.

    `traffic` says the bytes that each array argument moved, by its position in `args` for `run` (or its address in
    `placed`) and by the parameter's name for `run_triton`. Where arguments share memory, each of them counts what is
    read and written there.
    """

    kernel: str
    threads: int = 0
    opcodes: Counter = field(default_factory=Counter)  # instructions that threads executed
    bytes: Counter = field(default_factory=Counter)  # of accesses, by kind
    widths: Counter = field(default_factory=Counter)  # accesses by threads, by (kind, bytes)
    sectors: Counter = field(default_factory=Counter)  # sectors touched by the accesses of warps, by kind
    requests: Counter = field(default_factory=Counter)  # accesses of warps, by kind
    by_line: dict[tuple[int, str], Counter] = field(default_factory=lambda: defaultdict(Counter))  # (PTX line, kind)
    traffic: dict[int | str, Traffic] = field(default_factory=dict)
    shared_bytes: int = 0
    compiled: Any = None  # Triton's result, for run_triton

    @property
    def instructions(self) -> int:
        return sum(self.opcodes.values())

    def coalescing(self, kind: str = "ld") -> float:
        """Bytes used / bytes of the sectors touched; 1 is perfect, and more means that lanes shared bytes."""
        return self.bytes[kind] / (32 * self.sectors[kind]) if self.sectors[kind] else 1.0

    def count_access(self, kind: str, line: int, offsets: np.ndarray, idx: np.ndarray | None, size: int, warps: int):
        """Counts one instruction's accesses to global memory by the threads `idx` (None: all)."""
        n = len(offsets)
        sectors = _sectors_by_warp(offsets, idx, warps)
        touched = int(np.count_nonzero(sectors[:, 1:] != sectors[:, :-1])) + int(np.count_nonzero(sectors[:, 0] >= 0))
        requests = warps if idx is None else int(np.count_nonzero(sectors[:, -1] >= 0))
        self.bytes[kind] += n * size
        self.widths[kind, size] += n
        self.sectors[kind] += touched
        self.requests[kind] += requests
        of_line = self.by_line[line, kind]
        of_line["bytes"] += n * size
        of_line["sectors"] += touched
        of_line["requests"] += requests


def _sectors_by_warp(offsets: np.ndarray, idx: np.ndarray | None, warps: int) -> np.ndarray:
    """[warps, 32] sector numbers in rising order, -1 for lanes that don't take part."""
    if idx is None:
        sectors = (offsets >> 5).reshape(warps, 32)
    else:
        sectors = np.full(warps * 32, -1, I64)
        sectors[idx] = offsets >> 5
        sectors = sectors.reshape(warps, 32)
    return np.sort(sectors, axis=1) if (sectors[:, 1:] < sectors[:, :-1]).any() else sectors
