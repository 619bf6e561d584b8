"""Logic, shifts, byte permutations, bit fields and bit counts."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np

from ..operands import Immediate
from ..ptx_types import F64, I32, TYPES, U8, U32, U64, UNSIGNED, immediate_bits
from .building import builds, elementwise

ALL_ONES = U32(0xFFFFFFFF)
OF_TWO_OPERANDS = {  # by truth table, bit 2b + c
    0: lambda b, c: U32(0),
    1: lambda b, c: ~(b | c),
    2: lambda b, c: ~b & c,
    3: lambda b, c: ~b,
    4: lambda b, c: b & ~c,
    5: lambda b, c: ~c,
    6: lambda b, c: b ^ c,
    7: lambda b, c: ~(b & c),
    8: lambda b, c: b & c,
    9: lambda b, c: ~(b ^ c),
    10: lambda b, c: c,
    11: lambda b, c: ~b | c,
    12: lambda b, c: b,
    13: lambda b, c: b | ~c,
    14: lambda b, c: b | c,
    15: lambda b, c: ALL_ONES,
}


@builds("and", "or", "xor", "not", "cnot")
def build_logic(m, ins, mods):
    t = mods.type()
    mods.done()
    functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
    return elementwise(m, ins, t, functions.get(ins.parts[0], lambda a: (a == 0).astype(t.raw)))


def shift_left(a, n, bits):
    r = a << np.minimum(n, bits - 1).astype(a.dtype)
    return np.where(n >= bits, a.dtype.type(0), r)


def shift_right(a, n, bits):
    r = a >> np.minimum(n, bits - 1).astype(a.dtype)
    return r if a.dtype.kind == "i" else np.where(n >= bits, a.dtype.type(0), r)


@builds("shl", "shr")
def build_shift(m, ins, mods):
    t = mods.type()
    mods.done()
    left = ins.parts[0] == "shl"
    if isinstance(ins.args[2], Immediate):
        n = immediate_bits(ins.args[2].text, TYPES["u32"])
        if n < t.bits:
            op = np.left_shift if left else np.right_shift
            return m.assign(ins.args[0], t, op, [m.source(ins.args[1], t), m.constant(n, t)])
    fn = shift_left if left else shift_right
    return elementwise(m, ins, t, lambda a, n: fn(a, n, t.bits), [t, TYPES["u32"]])


@builds("shf")
def build_funnel_shift(m, ins, mods):
    left, wrap = mods.need("l", "r") == "l", mods.need("wrap", "clamp") == "wrap"
    t = mods.type()
    mods.done()

    def shift(a, b, c):
        v = (b.astype(U64) << U64(32)) | a
        n = (c & U32(31) if wrap else np.minimum(c, U32(32))).astype(U64)
        return (v >> (U64(32) - n) if left else v >> n).astype(U32)  # the upper half of v << n, or the lower of v >> n

    return elementwise(m, ins, t, shift)


@functools.lru_cache(None)
def _lop3_function(table):
    """Shannon's expansion over a, with a function of b and c on either side."""
    with_a, without_a = OF_TWO_OPERANDS[table >> 4], OF_TWO_OPERANDS[table & 15]
    return lambda a, b, c: (a & with_a(b, c)) | (~a & without_a(b, c))


@builds("lop3")
def build_lop3(m, ins, mods):
    t = mods.type()
    mods.done()
    fn = _lop3_function(immediate_bits(ins.args[4].text, TYPES["u32"]))
    return m.assign(ins.args[0], t, fn, [m.source(a, t) for a in ins.args[1:4]])


@builds("prmt")
def build_permute(m, ins, mods):
    t = mods.type()
    mods.done()
    if isinstance(ins.args[3], Immediate):
        fn = _fixed_permutation(immediate_bits(ins.args[3].text, TYPES["u32"]))
        return m.assign(ins.args[0], t, fn, [m.source(a, t) for a in ins.args[1:3]])
    return elementwise(m, ins, t, _permute)


def _permute(a, b, selector):
    v, r = (b.astype(U64) << U64(32)) | a, U64(0)
    for i in range(4):
        pick = (selector >> U32(4 * i)).astype(U64)
        byte = (v >> ((pick & U64(7)) * U64(8))) & U64(0xFF)
        sign = np.where(byte & U64(0x80), U64(0xFF), U64(0))
        r = r | (np.where(pick & U64(8), sign, byte) << U64(8 * i))
    return r.astype(U32)


def _fixed_permutation(selector):
    """As _permute for one selector: bytes that move together move as one."""
    moves, signs = Counter(), []
    for i in range(4):
        operand, byte, is_sign = selector >> 4 * i + 2 & 1, selector >> 4 * i & 3, selector >> 4 * i & 8
        if is_sign:
            signs.append((operand, U32(8 * byte + 7), U32(0xFF << 8 * i)))
        else:
            moves[operand, 8 * (i - byte)] |= 0xFF << 8 * i

    def permute(*operands):
        r = U32(0)
        for (k, left), mask in moves.items():
            word = operands[k] << U32(left) if left > 0 else operands[k] >> U32(-left)
            r = r | (word & U32(mask))
        for k, sign_bit, mask in signs:
            r = r | (((operands[k] >> sign_bit) & U32(1)) * mask)
        return r

    return permute


@builds("bfe")
def build_extract_field(m, ins, mods):
    t, u32 = mods.type(), TYPES["u32"]
    mods.done()

    def extract(a, position, length):
        position, n = position & U32(255), length & U32(255)
        unused = U32(t.bits) - np.minimum(n, U32(t.bits))
        v = shift_left(shift_right(a, position, t.bits), unused, t.bits)
        v = v >> np.minimum(unused, U32(t.bits - 1)).astype(a.dtype)
        return np.where(n == 0, a.dtype.type(0), v)

    return elementwise(m, ins, t, extract, [t, u32, u32])


@builds("bfi")
def build_insert_field(m, ins, mods):
    t, u32 = mods.type(), TYPES["u32"]
    mods.done()

    def insert(a, b, position, length):
        position, n = position & U32(255), length & U32(255)
        ones = ~shift_left(np.full(len(a), ~t.raw(0)), n, t.bits)
        field = shift_left(ones, position, t.bits)
        return (b & ~field) | (shift_left(a, position, t.bits) & field)

    return elementwise(m, ins, t, insert, [t, t, u32, u32])


def _bit_length(a):
    half = a.dtype.itemsize * 4
    high = np.frexp((a >> a.dtype.type(half)).astype(F64))[1]
    low = np.frexp((a & a.dtype.type((1 << half) - 1)).astype(F64))[1]
    return np.where(high > 0, high + half, low)


def _reverse(a):
    b = np.unpackbits(np.ascontiguousarray(a).view(U8).reshape(len(a), -1), axis=1, bitorder="little")
    return np.packbits(b[:, ::-1], axis=1, bitorder="little").view(a.dtype)[:, 0]


@builds("popc", "clz", "brev", "bfind")
def build_bit_count(m, ins, mods):
    t, base = mods.type(), ins.parts[0]
    shift_amount = mods.take("shiftamt") if base == "bfind" else None
    mods.done()

    def find(a):
        top = _bit_length(np.where(a < 0, ~a, a).view(UNSIGNED[t.bits])) - 1
        return (np.where(top >= 0, t.bits - 1 - top, top) if shift_amount else top).astype(I32).view(U32)

    functions = {
        "popc": lambda a: np.bitwise_count(a).astype(U32),
        "clz": lambda a: (t.bits - _bit_length(a)).astype(U32),
        "brev": _reverse,
        "bfind": find,
    }
    return elementwise(m, ins, t if base == "brev" else TYPES["u32"], functions[base], [t])
