"""Kernels around a few instructions, to run those alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from .launch import run
from .ptx_types import UNSIGNED

THREADS = 128
HEADER = """.version 8.8
.target sm_100
.address_size 64
.visible .entry t({params})
{{ {registers}
"""
ELEMENT = """ld.param.u64 %base, [p{argument}]; mul.wide.u32 %off, %t, {bytes}; add.u64 %addr, %base, %off;
"""
THREAD_SETUP = """.reg .b64 %rd<9>; .reg .b32 %r<20>; .reg .pred %p<9>; .shared .align 4 .b8 sm[256];
ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd3, %rd1, %rd2;
shl.b32 %r9, %r1, 2; mov.u32 %r8, sm; add.u32 %r8, %r8, %r9; setp.lt.u32 %p1, %r1, 16; mov.u32 %r2, 5;
"""


def kernel(body: str, variables: str = "") -> str:
    """A kernel `t` of one array p, with what threads need set up before the body.

    %r1 is the thread, %rd1 the array, %rd3 the thread's word of it, %r8 the thread's word of 64 in shared memory `sm`,
    %r9 its offset, %r2 is 5, and %p1 says that the thread is one of the first 16.
    """
    return HEADER.format(params=".param .u64 p", registers=variables) + THREAD_SETUP + body + " }"


def execute(op: str, out_bits: int, operands: list[Any], body: str | None = None) -> np.ndarray:
    """The results of `op %o, operands;` for each element, as unsigned integers.

    An operand is an array of unsigned integers or PTX's text. A body replaces the instruction; it finds the operands in
    %x0, %x1, ..., puts the result into %o and may use the predicates %p and %q.
    """
    arrays = [x for x in operands if not isinstance(x, str)]
    registers = f".reg .b{out_bits} %o; .reg .pred %p, %q; .reg .b64 %base, %off, %addr; .reg .b32 %t, %i;"
    n, loads, names = len(arrays[0]), "", []
    for k, x in enumerate(operands):
        names.append(x if isinstance(x, str) else f"%x{k}")
        if not isinstance(x, str):
            bits, argument = x.dtype.itemsize * 8, sum(a.startswith("%x") for a in names) - 1
            registers += f" .reg .b{bits} %x{k};"
            loads += ELEMENT.format(argument=argument, bytes=bits // 8) + f"ld.global.b{bits} %x{k}, [%addr];\n"
    block = min(n, THREADS)
    assert n % block == 0
    out = np.zeros(n, UNSIGNED[out_bits])
    ptx = HEADER.format(params=", ".join(f".param .u64 p{k}" for k in range(len(arrays) + 1)), registers=registers)
    ptx += f"mov.u32 %t, %ctaid.x; mov.u32 %i, %tid.x; mad.lo.u32 %t, %t, {block}, %i;\n{loads}"
    ptx += (body or f"{op} %o, {', '.join(names)};") + "\n"
    ptx += ELEMENT.format(argument=len(arrays), bytes=out_bits // 8) + f"st.global.b{out_bits} [%addr], %o; ret; }}"
    run(ptx, "t", n // block, block, [*arrays, out])
    return out


def awkward_integers(rng: np.random.Generator, bits: int, n: int = 256) -> np.ndarray:
    """Unsigned integers of all magnitudes, with the limits of both signs among them."""
    x = rng.integers(0, 2**64, n, dtype=np.uint64)
    x = np.where(rng.random(n) < 0.5, x >> rng.integers(0, bits, n).astype(np.uint64), x)
    limits = [0, 1, 2, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2**bits - 2]
    x[: len(limits)] = limits
    rng.shuffle(x)
    return x.astype(UNSIGNED[bits])
