"""Loads and stores, and what all accesses to memory share."""

from __future__ import annotations

import numpy as np

from ..memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
from ..operands import Vector, items_of
from ..ptx_types import TYPES, U64
from ..steps import Compute, in_turn
from .building import builds

SPACES = ("global", "shared", "local", "const", "param", "shared::cta", "param::entry", "param::func")
NOUNS = {"ld": "load", "st": "store", "atom": "atomic"}
WINDOW_BITS = U64(40)
WINDOWS = (SHARED_WINDOW, LOCAL_WINDOW, PARAM_WINDOW)


def memory_modifiers(ins, mods):
    """(space, words, type of a word) of an access."""
    space = mods.take(*SPACES) or "generic"
    count = {"v2": 2, "v4": 4, "v8": 8, None: 1}[mods.take("v2", "v4", "v8")]
    t = mods.type()
    mods.done_but_for_memory()
    vectors = {len(a.items) for a in ins.args if isinstance(a, Vector)}
    if vectors != {count} and (vectors or count > 1):
        raise NotImplementedError(f"{ins.op} of {ins.args}")
    return space.split("::")[0], count, t


def _by_space(m, space, addr, idx):
    """(memory, addresses in it, threads): generic addresses may fall into several memories."""
    spaces = {
        "global": m.memory.space,
        "const": m.memory.space,
        "shared": m.shared,
        "local": m.local,
        "param": m.params,
    }
    if space in spaces:
        return [(spaces[space], addr, idx)]
    number = addr >> WINDOW_BITS
    of_window = [number == U64(window) >> WINDOW_BITS for window in WINDOWS]
    pieces = []
    for memory, here, window in zip(
        (m.shared, m.local, m.params, m.memory.space), (*of_window, ~np.any(of_window, 0)), (*WINDOWS, 0), strict=True
    ):
        if here.all():
            return [(memory, addr - U64(window), idx)]
        if here.any():
            k = np.flatnonzero(here)
            pieces.append((memory, addr[k] - U64(window), k if idx is None else idx[k]))
    return pieces


def count_global(m, site, kind, offsets, idx, size):
    """Adds an access to global memory to the statistics."""
    m.stats.count_access(kind, site.ins.line, offsets, idx, size, m.warps)
    m.memory.count_traffic(kind, offsets, size)


def accesses(m, site, kind, space, addr, idx, size):
    """Checks and counts an access; yields (memory, byte offsets, threads, addresses) for each memory it reaches."""
    for memory, at, threads in _by_space(m, space, addr, idx):
        offsets = memory.locate(at, threads, size, site, NOUNS[kind])
        if memory is m.params and kind != "ld":
            site.fault(f"{NOUNS[kind]} to a parameter", at, np.ones(len(at), np.bool_), threads)
        if memory is m.memory.space:
            count_global(m, site, kind, offsets, threads, size)
        if memory is m.shared and m.races and kind != "atom":
            m.races.access(offsets, size, threads, site, store=kind == "st")
        yield memory, offsets, threads, at


@builds("ld", "ldu")
def build_load(m, ins, mods):
    space, count, t = memory_modifiers(ins, mods)
    width, items, site = t.bits // 8, items_of(ins.args[0]), m.site(ins)
    raw = t if t.kind == "s" else TYPES[f"b{t.bits}"]
    if space == "param":
        param = _parameter(m, ins)
        if param is not None:
            return _load_parameter(m, items, raw, param)
        space = "local" if _of_call(m, ins) else "param"
    address = m.address_of(ins.args[1])
    out = [m.destination(d, raw)[0] for d in items]

    def load(act):
        idx = act.indices()
        for memory, offsets, threads, at in accesses(m, site, "ld", space, address(idx), idx, width * count):
            where = slice(None) if threads is None else threads
            for d, v in zip(out, memory.read(offsets, width, count, site, threads, at), strict=True):
                d[where] = v.view(raw.raw)

    return Compute(load)


def _parameter(m, ins):
    """The bytes at an address if they belong to a parameter of the kernel."""
    address = ins.args[1]
    name = m.program.alias.get(address.base.name, address.base.name)
    return m.param_bytes[name][address.offset :] if name in m.param_bytes else None


def _of_call(m, ins):
    """Whether an address names a parameter of a call; one in a register is of the kernel's."""
    return ins.args[1].base.name in m.program.locals


def _load_parameter(m, items, t, param):
    width = t.bits // 8
    words = [int.from_bytes(param[k * width : (k + 1) * width], "little") for k in range(len(items))]
    return in_turn([m.assign(d, t, np.positive, [m.constant(word, t)]) for d, word in zip(items, words, strict=True)])


@builds("st")
def build_store(m, ins, mods):
    space, count, t = memory_modifiers(ins, mods)
    space = "local" if space == "param" else space
    width, raw, site = t.bits // 8, TYPES[f"b{t.bits}"], m.site(ins)
    address = m.address_of(ins.args[0])
    values = [m.source(a, raw) for a in items_of(ins.args[1])]

    def store(act):
        idx = act.indices()
        for memory, offsets, threads, _ in accesses(m, site, "st", space, address(idx), idx, width * count):
            memory.write(offsets, width, values if threads is None else [v[threads] for v in values])

    return Compute(store)
