"""Hazards in shared memory between the warps of a CTA with no barrier of the whole CTA between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import EmulatorError
from .ptx_types import I64

if TYPE_CHECKING:
    from .machine import Machine, Site


class RaceCheck:
    """For each byte of shared memory, who read and wrote it last; an accessor is epoch * 64 + warp + 1."""

    def __init__(self, m: Machine):
        self.m = m
        size = len(m.shared.data)
        self.writer, self.reader = np.zeros(size, I64), np.zeros(size, I64)
        self.many_readers = np.zeros(size, I64)  # the epoch in which two warps read it

    def access(self, offsets: np.ndarray, size: int, threads: np.ndarray | None, site: Site, store: bool) -> None:
        """Records an access and raises if another warp's may come before or after it."""
        m = self.m
        threads = m.thread if threads is None else threads
        epoch = m.epoch[m.cta_of[threads]]
        me = epoch * 64 + threads % m.per_cta // 32 + 1
        for b in range(size):
            bad = self._store(offsets + b, epoch, me) if store else self._load(offsets + b, epoch, me)
            if bad.any():
                before = "read" if store else "write"
                thread = m.thread_name(threads[bad][0])
                raise EmulatorError(
                    f"shared-memory race (no barrier after a {before} by another warp): {site}: {thread}"
                )

    def _store(self, at, epoch, me):
        reader = self.reader[at]
        self.writer[at] = me
        return ((reader >> 6 == epoch) & (reader != me)) | (self.many_readers[at] == epoch)

    def _load(self, at, epoch, me):
        writer, reader = self.writer[at], self.reader[at]
        again = (reader >> 6 == epoch) & (reader != me)
        self.many_readers[at[again]] = epoch[again]
        self.reader[at] = me
        together = self.reader[at] != me  # several warps read it in this very instruction
        self.many_readers[at[together]] = epoch[together]
        return (writer >> 6 == epoch) & (writer != me)
