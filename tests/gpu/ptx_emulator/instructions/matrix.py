"""Matrix fragments: ldmatrix, stmatrix and mma.sync."""

from __future__ import annotations

import re

import numpy as np

from ..numerics import bf16_to_f32
from ..operands import items_of
from ..options import WARP
from ..ptx_types import F32, F64, I64, TYPES, U16, U32
from ..steps import WarpSync
from .building import builds

LANE = np.arange(WARP)
ROW, QUAD = LANE >> 2, LANE & 3  # a lane's row and its place among the four lanes of a row
ALL_LANES = 0xFFFFFFFF


@builds("ldmatrix", "stmatrix")
def build_matrix_access(m, ins, mods):
    load, trans = ins.parts[0] == "ldmatrix", mods.take("trans") is not None
    for x in ("sync", "aligned", "m8n8", "shared", "shared::cta"):
        mods.take(x)
    count = {"x1": 1, "x2": 2, "x4": 4}[mods.take("x1", "x2", "x4")]
    mods.type()
    mods.done()
    fragment, place = ins.args if load else ins.args[::-1]
    registers = [m.destination(a, TYPES["b32"])[0] for a in items_of(fragment)]
    address, site = m.address_of(place), m.site(ins)
    move = _load_matrix if load else _store_matrix

    def access(act):
        rows = np.flatnonzero(act.full_mask() & (m.lane < 8 * count))  # the threads that give addresses of rows
        warps = np.unique(rows // WARP)
        offsets = m.shared.locate(address(rows), rows, 16, site, "matrix row")
        if m.races:
            m.races.access(offsets, 16, rows, site, store=not load)
        by_matrix = offsets.reshape(len(warps), count, 8)
        threads = (warps[:, None] * WARP + LANE).ravel()
        for k in range(count):
            move(m, site, registers[k], threads, _pieces(by_matrix[:, k], trans))

    return WarpSync(m.constant(ALL_LANES, TYPES["u32"]), access)


def _pieces(rows, trans):
    """Byte offsets of what each lane holds of an 8 x 8 matrix: one word of 4 bytes, or two of 2 if transposed."""
    if not trans:
        return [(rows[:, ROW] + QUAD * 4).ravel()]
    return [(rows[:, QUAD * 2 + half] + ROW * 2).ravel() for half in (0, 1)]


def _load_matrix(m, site, register, threads, pieces):
    width = 4 // len(pieces)
    words = [m.shared.read(p, width, 1, site, threads, p)[0] for p in pieces]
    register[threads] = words[0] if width == 4 else words[0].astype(U32) | (words[1].astype(U32) << U32(16))


def _store_matrix(m, site, register, threads, pieces):
    v = register[threads]
    for half, p in enumerate(pieces):
        m.shared.write(p, 4 // len(pieces), [v if len(pieces) == 1 else (v >> U32(16 * half)).astype(U16)])


@builds("mma")
def build_mma(m, ins, mods):
    """mma.sync m16n8kK (row.col): products exact, accumulated in float64, rounded once."""
    shape = next((p for p in ins.parts if re.fullmatch(r"m16n8k\d+", p)), None)
    if shape is None or ".row.col." not in ins.op:
        raise NotImplementedError(ins.op)
    for x in ("sync", "aligned", shape, "row", "col"):
        mods.take(x)
    td, ta, tb, tc = mods.types()
    mods.done()
    if ta.bits not in (8, 16, 32) or ta.name in ("f32", "f64"):
        raise NotImplementedError(ins.op)
    depth, bits = int(shape[6:]), TYPES["b32"]
    a_regs, b_regs, c_regs = ([m.source(x, bits) for x in items_of(operand)] for operand in ins.args[1:4])
    d_regs = [m.destination(x, bits)[0] for x in items_of(ins.args[0])]

    def multiply(act):
        i = m.thread if act.mask is None else act.indices()
        a = _matrix_a([_values(r[i], ta) for r in a_regs], depth)
        b = _matrix_b([_values(r[i], tb) for r in b_regs], depth)
        d = a @ b + _matrix_c([_values(r[i], tc) for r in c_regs])
        d = d.astype(I64 if td.kind == "s" else F64).astype(td.raw)
        for register, words in zip(d_regs, _words_of_d(d), strict=True):
            register[i] = words

    return WarpSync(m.constant(ALL_LANES, TYPES["u32"]), multiply)


def _values(words, t):
    """Registers of whole warps as float64: [warps, 32, values in a register]."""
    if t.name == "tf32":
        return (words & U32(0xFFFFE000)).view(F32).astype(F64).reshape(-1, WARP, 1)
    x = np.ascontiguousarray(words).view(t.raw)
    return (bf16_to_f32(x) if t.kind == "bf" else x).astype(F64).reshape(len(words) // WARP, WARP, -1)


def _matrix_a(fragments, depth):
    """[warps, 16, depth]: registers go down the rows first, then along k."""
    each = fragments[0].shape[2]
    columns = QUAD[:, None] * each + np.arange(each)
    a = np.zeros((len(fragments[0]), 16, depth))
    for k, x in enumerate(fragments):
        a[:, (ROW + 8 * (k & 1))[:, None], columns + 4 * each * (k >> 1)] = x
    return a


def _matrix_b(fragments, depth):
    """[warps, depth, 8]"""
    each = fragments[0].shape[2]
    columns = QUAD[:, None] * each + np.arange(each)
    b = np.zeros((len(fragments[0]), depth, 8))
    for k, x in enumerate(fragments):
        b[:, columns + 4 * each * k, ROW[:, None]] = x
    return b


COLUMNS_OF_C = 2 * QUAD[:, None] + np.arange(2)


def _matrix_c(fragments):
    """[warps, 16, 8] of two packed or four single registers."""
    if fragments[0].shape[2] == 1:
        fragments = [np.concatenate(fragments[k : k + 2], 2) for k in (0, 2)]
    c = np.zeros((len(fragments[0]), 16, 8))
    for k, x in enumerate(fragments):
        c[:, (ROW + 8 * k)[:, None], COLUMNS_OF_C] = x
    return c


def _words_of_d(d):
    """The registers of the result, each for all lanes of all warps."""
    words = []
    for k in range(2):
        x = d[:, (ROW + 8 * k)[:, None], COLUMNS_OF_C]
        parts = [x] if d.itemsize == 2 else [x[:, :, half] for half in (0, 1)]
        words += [np.ascontiguousarray(part).view(U32).ravel() for part in parts]
    return words
