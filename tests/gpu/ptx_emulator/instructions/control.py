"""The ends of threads, barriers, assertions, and what does nothing here."""

from __future__ import annotations

import numpy as np

from ..errors import EmulatorError
from ..memory import GLOBAL_BASE
from ..ptx_types import TYPES, U64
from ..steps import Barrier, Compute, Exit, WarpSync
from .building import builds
from .warp import predicate

WITHOUT_EFFECT = ("membar", "fence", "nanosleep", "griddepcontrol", "pmevent")
CACHE_HINTS = ("prefetch", "prefetchu", "discard", "applypriority")
LONGEST_MESSAGE = 400


@builds("ret", "exit")
def build_exit(m, ins, mods):
    return Exit()


@builds("trap", "brkpt")
def build_trap(m, ins, mods):
    site = m.site(ins)

    def trap(act):
        raise EmulatorError(f"trap: {site}: {m.thread_name(act.first())}")

    return Compute(trap)


@builds("bar", "barrier")
def build_barrier(m, ins, mods):
    kind, u32 = mods.take("warp", "red", "sync"), TYPES["u32"]
    if kind == "warp":
        mods.take("sync")
        mods.done()
        return WarpSync(m.source(ins.args[0], u32), lambda act: None)
    if kind == "red":
        return _reducing_barrier(m, ins, mods)
    if kind is None:
        raise NotImplementedError(ins.op)
    mods.done_but_for_memory()
    return Barrier(*[m.source(a, u32) for a in ins.args[:2]])


def _reducing_barrier(m, ins, mods):
    op, t, u32 = mods.take("popc", "and", "or"), mods.type(), TYPES["u32"]
    mods.done_but_for_memory()
    p, (out, _) = predicate(m, ins.args[-1]), m.destination(ins.args[0], t)
    result = {
        "popc": lambda yes, here: yes,
        "or": lambda yes, here: yes > 0,
        "and": lambda yes, here: yes == here,
    }[op]

    def reduce(act):
        mask = act.full_mask()
        yes, here = ((x & mask).reshape(m.ctas, -1).sum(1) for x in (p(), mask))
        np.copyto(out, np.repeat(result(yes, here), m.per_cta).astype(t.raw), where=mask)

    count = m.source(ins.args[2], u32) if len(ins.args) > 3 else None
    return Barrier(m.source(ins.args[1], u32), count, reduce)


@builds(*WITHOUT_EFFECT, *CACHE_HINTS)
def build_nothing(m, ins, mods):
    if ins.parts[0] == "fence" and "proxy" in ins.parts and "async" not in ins.op:
        raise NotImplementedError(ins.op)
    return Compute(lambda act: None)


@builds("extern")
def build_external_call(m, ins, mods):
    name, site = ins.parts[1], m.site(ins)

    def call(act):
        if name == "__assertfail":
            thread = act.first()
            message = _text_argument(m, ins.args[0].name, thread)
            raise EmulatorError(f"device assertion: {message}: {site}: {m.thread_name(thread)}")
        if name != "vprintf":
            raise NotImplementedError(f"external function {name}")

    return Compute(call)


def _text_argument(m, parameter, thread):
    """The string whose address lies in a call's parameter."""
    at = int(m.symbols[parameter] + m.local.row_offset[thread])
    start = int(m.local.data[at : at + 8].view(U64)[0]) - GLOBAL_BASE
    return bytes(m.memory.space.data[start : start + LONGEST_MESSAGE]).split(b"\0")[0].decode(errors="replace")
