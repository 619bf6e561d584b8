"""The ends of threads, barriers, assertions, and what does nothing here."""

from __future__ import annotations

import numpy as np

from ..errors import EmulatorError
from ..memory import GLOBAL_BASE
from ..ptx_types import TYPES, U64
from ..steps import Barrier, Compute, Exit, WarpSync
from .building import builds
from .warp import predicate

WITHOUT_EFFECT = {  # and their modifiers, beyond those of ordering and caching
    "membar": ("gl",),
    "fence": ("cluster", "mbarrier_init"),
    "nanosleep": ("u32",),
    "griddepcontrol": ("wait", "launch_dependents"),
    "pmevent": ("mask",),
    "prefetch": ("global", "local", "L1", "L2"),
    "prefetchu": ("L1",),
    "applypriority": ("global",),
}
LONGEST_MESSAGE = 400


@builds("ret", "exit")
def build_exit(m, ins, mods):
    mods.take("uni")
    mods.done()
    return Exit()


@builds("trap", "brkpt")
def build_trap(m, ins, mods):
    mods.done()
    site = m.site(ins)

    def trap(act):
        raise EmulatorError(f"trap: {site}: {m.thread_name(act.first())}")

    return Compute(trap)


@builds("bar", "barrier")
def build_barrier(m, ins, mods):
    mods.take("cta")
    kind, u32 = mods.need("warp", "red", "sync"), TYPES["u32"]
    if kind == "warp":
        mods.need("sync")
        mods.done()
        return WarpSync(m.source(ins.args[0], u32), lambda act: None)
    if kind == "red":
        return _reducing_barrier(m, ins, mods)
    mods.take("aligned")
    mods.done()
    return Barrier(*[m.source(a, u32) for a in ins.args[:2]])


def _reducing_barrier(m, ins, mods):
    op, t, u32 = mods.need("popc", "and", "or"), mods.type(), TYPES["u32"]
    mods.take("aligned")
    mods.done()
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


@builds(*WITHOUT_EFFECT)
def build_nothing(m, ins, mods):
    if ins.op.startswith("fence.proxy.async"):
        for x in ("proxy", "async", "global", "shared::cta"):
            mods.take(x)
    for x in WITHOUT_EFFECT[ins.parts[0]]:
        mods.take(x)
    mods.done_but_for_memory()
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
