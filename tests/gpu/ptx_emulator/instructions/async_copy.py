"""cp.async: a copy happens when it is waited for, and until then its destination counts as uninitialised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ptx_types import I64, TYPES, U32, immediate_bits
from ..steps import Compute
from .building import builds
from .memory_access import count_global


@dataclass
class Copy:
    """Copies on their way: `size` bytes each, of which `taken` come from global memory and the rest are zero."""

    threads: np.ndarray
    to: np.ndarray
    source: np.ndarray
    size: int
    taken: np.ndarray
    group: np.ndarray

    def part(self, chosen: np.ndarray) -> Copy:
        arrays = (self.threads, self.to, self.source, self.taken, self.group)
        threads, to, source, taken, group = (a[chosen] for a in arrays)
        return Copy(threads, to, source, self.size, taken, group)


@builds("cp")
def build_async_copy(m, ins, mods):
    mods.need("async")
    group = mods.take("commit_group", "wait_all", "wait_group")
    if not group:
        mods.need("shared", "shared::cta")
        mods.need("global")
    mods.done_but_for_memory()
    if not group:
        return _copy(m, ins)
    if group == "commit_group":
        return Compute(lambda act: np.add(m.async_group, 1, out=m.async_group, where=act.where))
    return _wait(m, ins, None if group == "wait_all" else immediate_bits(ins.args[0].text, TYPES["u32"]))


def _wait(m, ins, groups_left):
    site = m.site(ins)

    def wait(act):
        here, left = act.full_mask(), []
        for copy in m.async_pending:
            done = here[copy.threads]
            if groups_left is not None:
                done = done & (copy.group < m.async_group[copy.threads] - groups_left)
            if done.any():
                _complete(m, copy.part(done), site)
            if not done.all():
                left.append(copy.part(~done))
        m.async_pending = left

    return Compute(wait)


def _complete(m, copy, site):
    if m.races:
        m.races.access(copy.to, copy.size, copy.threads, site, store=True)
    words = m.memory.space.views[4]
    for byte in range(0, copy.size, 4):
        word = words.take((copy.source >> 2) + byte // 4, mode="clip")
        m.shared.write(copy.to + byte, 4, [np.where(copy.taken > byte, word, U32(0))])


def _copy(m, ins):
    to, source, site = m.address_of(ins.args[0]), m.address_of(ins.args[1]), m.site(ins)
    size = immediate_bits(ins.args[2].text, TYPES["u32"])
    has_policy = any("cache_hint" in part for part in ins.parts)
    optional = ins.args[3 : len(ins.args) - has_policy]
    taken = m.source(optional[0], TYPES["u32"]) if optional else m.constant(size, TYPES["u32"])

    def copy(act):
        idx = act.indices()
        threads = m.thread if idx is None else idx
        offsets = m.shared.locate(to(idx), idx, size, site, "cp.async destination")
        n = taken[threads].astype(I64)
        if ((n != 0) & (n != size)).any():
            raise NotImplementedError("partial src-size")
        places, real = np.zeros(len(threads), I64), n > 0
        if real.any():
            addr = source(threads)[real]
            places[real] = m.memory.space.locate(addr, threads[real], size, site, "cp.async source")
            count_global(m, site, "ld", places[real], threads[real], size)
        if m.races:
            m.races.access(offsets, size, threads, site, store=True)
        m.shared.forget(offsets, size)
        m.async_pending.append(Copy(threads, offsets, places, size, n, m.async_group[threads]))

    return Compute(copy)
