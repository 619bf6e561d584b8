"""Atomic operations; those of one instruction happen in the order of the threads."""

from __future__ import annotations

import numpy as np

from ..numerics import FMAX, FMIN
from ..operands import Register, Sink, Vector, items_of
from ..ptx_types import TYPES, U32, UNSIGNED
from ..steps import Compute
from .building import builds, lift
from .memory_access import accesses, memory_modifiers

OPERATIONS = {
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, b: b,
    "cas": lambda old, b, c: np.where(old == b, c, old),
    "inc": lambda old, b: np.where(old >= b, U32(0), old + U32(1)),
    "dec": lambda old, b: np.where((old == 0) | (old > b), b, old - U32(1)),
}


@builds("atom", "red")
def build_atomic(m, ins, mods):
    op = mods.take("add", *OPERATIONS)
    space, count, t = memory_modifiers(ins, mods)
    args = ins.args if ins.parts[0] == "atom" else [Sink(), *ins.args]
    results = list(args[0].items) if isinstance(args[0], Vector) else [args[0]] * count
    bits, width, site = TYPES[f"b{t.bits}"], t.bits // 8, m.site(ins)
    word = bits if op in ("exch", "cas") or t.kind == "u" else t
    out = [m.destination(d, bits)[0] for d in results]
    operands = [[m.source(x, word) for x in items_of(a)] for a in args[2 : 4 if op == "cas" else 3]]
    address, update = m.address_of(args[1]), _update(m, results, op, t)

    def atomic(act):
        idx = act.indices()
        for memory, offsets, threads, at in accesses(m, site, "atom", space, address(idx), idx, width * count):
            memory.read(offsets, width, count, site, threads, at)  # checks that somebody has written there
            words = memory.data.view(word.raw)
            words = words.reshape(-1, 2) if word.lanes == 2 else words
            where = slice(None) if threads is None else threads
            for j in range(count):
                old = update(words, offsets // width + j, [o[j][where] for o in operands])
                if old is not None:
                    out[j][where] = np.ascontiguousarray(old).view(UNSIGNED[t.bits]).reshape(-1)

    return Compute(atomic)


def _update(m, results, op, t):
    """The function that changes memory words and gives their old values, or None where nobody reads those."""
    old_is_used = any(isinstance(d, Register) and m.mentions[d.name] > 1 for d in results)
    at_once = {"add": np.add, "min": np.minimum, "max": np.maximum}.get(op)
    if not old_is_used and at_once and (t.integer or (t.name in ("f32", "f64") and op == "add")):
        return lambda words, e, values: at_once.at(words, e, values[0])
    if op == "add":
        fn = lift(t, np.add)
    elif op in ("min", "max") and t.floating:
        fn = lift(t, FMIN if op == "min" else FMAX)
    else:
        fn = OPERATIONS[op]
    return lambda words, e, values: _update_in_order(words, e, values, fn)


def _update_in_order(words, e, values, fn):
    """words[e] = fn(words[e], values), one after the other where e repeats; gives the old values."""
    order = np.argsort(e, kind="stable")
    sorted_e = e[order]
    first = np.flatnonzero(np.r_[True, sorted_e[1:] != sorted_e[:-1]])
    repeats = np.diff(np.r_[first, len(e)])
    old = np.empty((len(e), *words.shape[1:]), words.dtype)
    for r in range(int(repeats.max())):
        k = order[first[repeats > r] + r]
        old[k] = words[e[k]]
        words[e[k]] = fn(old[k], *[v[k] for v in values])
    return old
