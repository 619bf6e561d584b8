"""Instructions across the lanes of a warp: shuffles, votes, matches, reductions, elections."""

from __future__ import annotations

import functools

import numpy as np

from ..errors import EmulatorError
from ..operands import Immediate, Negated, Pair, Sink
from ..options import WARP
from ..ptx_types import I64, TYPES, U32
from ..steps import Compute, WarpSync
from .building import builds


def _members(m, a):
    return m.source(a, TYPES["u32"])


def _spread(per_warp):
    return np.repeat(per_warp, WARP)


def _ballot(m, bits):
    """A 32-bit word for each warp."""
    return np.packbits(bits.reshape(m.warps, WARP), axis=1, bitorder="little").view(U32)[:, 0]


def predicate(m, a):
    """A function that gives the values of p or !p."""
    negated = isinstance(a, Negated)
    p = m.source(a.operand if negated else a, TYPES["pred"])
    return (lambda: ~p) if negated else (lambda: p)


@builds("shfl")
def build_shuffle(m, ins, mods):
    mods.need("sync")
    mode = mods.need("bfly", "up", "down", "idx")
    t, u32 = mods.type(), TYPES["u32"]
    mods.done()
    d, p = (ins.args[0].first, ins.args[0].second) if isinstance(ins.args[0], Pair) else (ins.args[0], Sink())
    (out, _), (valid, _) = m.destination(d, t), m.destination(p, TYPES["pred"])
    a, b, c = (m.source(x, s) for x, s in zip(ins.args[1:4], (t, u32, u32), strict=True))
    origin = functools.partial(_shuffle_origin, m, mode)
    fixed = origin(b, c) if all(isinstance(x, Immediate) for x in ins.args[2:4]) else None
    site = m.site(ins)

    def shuffle(act):
        origins, ok = fixed or origin(b, c)
        if act.mask is None:
            out[...], valid[...] = a.take(origins), ok
            return
        i = act.indices()
        there = act.mask[origins[i]]
        if not there.all():
            name = m.thread_name(i[~there][0])
            raise EmulatorError(f"shfl reads a lane that does not take part: {site}: {name}")
        out[i], valid[i] = a[origins[i]], ok[i]

    return WarpSync(_members(m, ins.args[4]), shuffle)


def _shuffle_origin(m, mode, b, c):
    """The threads to read from, and whether they are in range: the manual's pseudo-code."""
    lane, first = m.lane.astype(I64), m.thread - m.lane
    segment, clamp, delta = (x.astype(I64) for x in ((c >> U32(8)) & U32(31), c & U32(31), b & U32(31)))
    low = lane & segment
    top = low | (clamp & ~segment)
    j = {"up": lane - delta, "down": lane + delta, "bfly": lane ^ delta, "idx": low | (delta & ~segment)}[mode]
    ok = j >= top if mode == "up" else j <= top
    return first + np.where(ok, j, lane), ok


@builds("activemask")
def build_activemask(m, ins, mods):
    mods.type()
    mods.done()
    out, _ = m.destination(ins.args[0], TYPES["u32"])
    return Compute(lambda act: np.copyto(out, _spread(_ballot(m, act.full_mask())), where=act.where))


@builds("elect")
def build_elect(m, ins, mods):
    mods.need("sync")
    mods.done()
    out, _ = m.destination(ins.args[0].first, TYPES["u32"])
    chosen, _ = m.destination(ins.args[0].second, TYPES["pred"])

    def elect(act):
        leader = _spread(np.argmax(act.full_mask().reshape(m.warps, WARP), 1)).astype(U32)
        np.copyto(out, leader, where=act.where)
        np.copyto(chosen, leader == m.lane, where=act.where)

    return WarpSync(_members(m, ins.args[1]), elect)


@builds("vote")
def build_vote(m, ins, mods):
    mods.need("sync")
    mode, t = mods.need("ballot", "all", "any", "uni"), mods.type()
    mods.done()
    p, (out, _) = predicate(m, ins.args[1]), m.destination(ins.args[0], t)
    result = {
        "ballot": lambda yes, here: yes,
        "all": lambda yes, here: yes == here,
        "any": lambda yes, here: yes != 0,
        "uni": lambda yes, here: (yes == here) | (yes == 0),
    }[mode]

    def vote(act):
        here = act.full_mask()
        np.copyto(out, _spread(result(_ballot(m, here & p()), _ballot(m, here))), where=act.where)

    return WarpSync(_members(m, ins.args[2]), vote)


@builds("redux")
def build_redux(m, ins, mods):
    mods.need("sync")
    op, t = mods.need("add", "min", "max", "and", "or", "xor"), mods.type()
    nan = mods.take("NaN") if t.floating else None
    mods.done()
    fn, neutral = _reduction(op, t, nan)
    source, (out, _) = m.source(ins.args[1], t), m.destination(ins.args[0], t)

    def redux(act):
        x = source if act.mask is None else np.where(act.mask, source, neutral)
        np.copyto(out, _spread(fn.reduce(x.reshape(m.warps, WARP), axis=1, dtype=t.raw)), where=act.where)

    return WarpSync(_members(m, ins.args[2]), redux)


def _reduction(op, t, nan):
    """A ufunc and its neutral element."""
    functions = {"add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    if op in functions:
        return functions[op], np.array(-1 if op == "and" else 0).astype(t.raw)
    if t.kind == "f":
        ordered = {"min": np.minimum, "max": np.maximum} if nan else {"min": np.fmin, "max": np.fmax}
        return ordered[op], t.raw(np.inf if op == "min" else -np.inf)
    info = np.iinfo(t.raw)
    return (np.minimum, t.raw(info.max)) if op == "min" else (np.maximum, t.raw(info.min))


@builds("match")
def build_match(m, ins, mods):
    mods.need("sync")
    mode, t = mods.need("any", "all"), mods.type()
    mods.done()
    if mode != "any":
        raise NotImplementedError("match.all")
    source, (out, _) = m.source(ins.args[1], t), m.destination(ins.args[0], TYPES["u32"])

    def match(act):
        x, here = source.reshape(m.warps, WARP), act.full_mask().reshape(m.warps, WARP)
        same = (x[:, :, None] == x[:, None, :]) & here[:, None, :]
        words = np.packbits(same, axis=2, bitorder="little").view(U32)[:, :, 0].ravel()
        np.copyto(out, words, where=act.where)

    return WarpSync(_members(m, ins.args[2]), match)
