"""Instructions of the PTX emulator across lanes: shuffles, votes, matrix products, atomics."""

import functools
import operator

import numpy as np
import pytest
from ptx_emulator.snippets import awkward_integers, execute

CLAMPS = {"up": (0, 0x1800, 0x1000)} | dict.fromkeys(("down", "bfly", "idx"), (31, 0x181F, 0x101F, 0x1807))
ODD = "{ .reg .b32 %bit; and.b32 %bit, %x0, 1; setp.eq.u32 %p, %bit, 1; } "


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def shuffled(x, thread, mode, delta, c):
    """The manual's pseudo-code: the value, with the top bit flipped where the lane is in range."""
    lane, segment, clamp = thread % 32, c >> 8 & 31, c & 31
    low = lane & segment
    top = low | (clamp & ~segment & 31)
    j = {"up": lane - delta, "down": lane + delta, "bfly": lane ^ delta, "idx": low | (delta & ~segment & 31)}[mode]
    valid = j >= top if mode == "up" else j <= top
    return x[thread - lane + (j if valid else lane)] ^ (0x80000000 if valid else 0)


@pytest.mark.parametrize("mode", CLAMPS)
@pytest.mark.parametrize("delta", [0, 1, 2, 5, 16, 31])
def test_shuffles(rng, mode, delta):
    x = awkward_integers(rng, 32, 64)
    for c in CLAMPS[mode]:
        body = f"shfl.sync.{mode}.b32 %o|%p, %x0, {delta}, {c}, -1; @%p xor.b32 %o, %o, 0x80000000;"
        expected = [shuffled(x.tolist(), thread, mode, delta, c) for thread in range(64)]
        assert execute("", 32, [x], body).tolist() == expected


def by_warp(f, values):
    """f of each warp's values, for every lane."""
    return [f(values[warp : warp + 32]) for warp in range(0, len(values), 32) for _ in range(32)]


def test_votes(rng):
    x = awkward_integers(rng, 32, 64)
    x[:32] |= np.uint32(1)
    odd = [v & 1 for v in x.tolist()]
    ballot = by_warp(lambda bits: sum(bit << i for i, bit in enumerate(bits)), odd)
    assert execute("", 32, [x], ODD + "vote.sync.ballot.b32 %o, %p, -1;").tolist() == ballot
    for op, f in (("all", all), ("any", any), ("uni", lambda bits: all(bits) or not any(bits))):
        got = execute("", 32, [x], f"{ODD} vote.sync.{op}.pred %q, %p, -1; selp.b32 %o, 1, 0, %q;")
        assert got.tolist() == by_warp(f, odd)
    active = execute("", 32, [x], ODD + "mov.b32 %o, 0; @%p activemask.b32 %o;")
    assert active.tolist() == [mask if bit else 0 for mask, bit in zip(ballot, odd, strict=True)]


def test_match_and_elect(rng):
    x = awkward_integers(rng, 32, 64) & np.uint32(3)
    got = execute("", 32, [x], "match.any.sync.b32 %o, %x0, -1;").tolist()
    for thread, mask in enumerate(got):
        warp = x[thread // 32 * 32 :][:32]
        assert mask == sum(int(v == x[thread]) << i for i, v in enumerate(warp))
    elected = execute("", 32, [x], "elect.sync %o|%p, -1; @%p add.u32 %o, %o, 100;")
    assert elected.tolist() == ([100] + [0] * 31) * 2


REDUCTIONS = {
    "add.u32": lambda v: sum(v) % 2**32,
    "max.u32": max,
    "min.u32": min,
    "and.b32": functools.partial(functools.reduce, operator.and_),
    "or.b32": functools.partial(functools.reduce, operator.or_),
    "xor.b32": functools.partial(functools.reduce, operator.xor),
}


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(rng, op):
    x = awkward_integers(rng, 32, 64)
    assert execute("", 32, [x], f"redux.sync.{op} %o, %x0, -1;").tolist() == by_warp(REDUCTIONS[op], x.tolist())


PER_REGISTER = {"f16": 2, "bf16": 2, "tf32": 1, "s8": 4}


def element_of_a(t, group, quad, i):
    """(row, column) of a lane's element i, from the manual's tables."""
    if t == "tf32":
        return group + 8 * (i in (1, 3)), quad + 4 * (i >= 2)
    half = PER_REGISTER[t]  # elements of a register, which lie in one row
    return group + 8 * (i // half % 2), quad * half + i % half + 4 * half * (i >= 2 * half)


def element_of_b(t, group, quad, i):
    if t == "tf32":
        return quad + 4 * i, group
    half = PER_REGISTER[t]
    return quad * half + i % half + 4 * half * (i >= half), group


def element_of_c(group, quad, i):
    return group + 8 * (i >= 2), quad * 2 + (i & 1)


def bits_of(t, value):
    if t == "bf16":
        return int(np.float32(value).view(np.uint32)) >> 16
    dtype = {"f16": np.float16, "tf32": np.float32, "f32": np.float32, "s8": np.int8, "s32": np.int32}[t]
    return int(dtype(value).view(f"u{dtype().itemsize}"))


def fragment(matrix, t, place, count):
    """Registers of a matrix, [count, 32]."""
    each = {"f32": 1, "s32": 1, **PER_REGISTER}[t]
    registers = np.zeros((count, 32), np.uint32)
    for lane in range(32):
        for i in range(count * each):
            bits = bits_of(t, matrix[place(lane >> 2, lane & 3, i)])
            registers[i // each, lane] |= np.uint32(bits << 32 // each * (i % each))
    return registers


MMA = [
    ("m16n8k16", "f16", "f32"),
    ("m16n8k8", "f16", "f32"),
    ("m16n8k16", "bf16", "f32"),
    ("m16n8k8", "tf32", "f32"),
    ("m16n8k4", "tf32", "f32"),
    ("m16n8k16", "f16", "f16"),
    ("m16n8k32", "s8", "s32"),
    ("m16n8k16", "s8", "s32"),
]


@pytest.mark.parametrize(("shape", "t", "td"), MMA)
def test_mma_fragments(rng, shape, t, td):
    k, each = int(shape[6:]), PER_REGISTER[t]
    a, b, c = (rng.integers(-8, 8, size) for size in ((16, k), (k, 8), (16, 8)))
    counts = [16 * k // 32 // each, k * 8 // 32 // each, 2 if td == "f16" else 4]
    registers = [
        *fragment(a, t, functools.partial(element_of_a, t), counts[0]),
        *fragment(b, t, functools.partial(element_of_b, t), counts[1]),
        *fragment(c, td, element_of_c, counts[2]),
    ]
    names = iter([f"%x{j}" for j in range(len(registers))])
    vectors = ["{" + ", ".join(next(names) for _ in range(count)) + "}" for count in counts]
    out = [f"d{j}" for j in range(counts[2])]
    product = f"mma.sync.aligned.{shape}.row.col.{td}.{t}.{t}.{td} {{{', '.join(out)}}}, {', '.join(vectors)};"
    expected = fragment(a @ b + c, td, element_of_c, counts[2])
    for name, words in zip(out, expected, strict=True):
        body = f"{{ .reg .b32 {', '.join(out)}; {product} mov.b32 %o, {name}; }}"
        assert np.array_equal(execute("", 32, registers, body), words)


ATOMICS = {
    "add.u32": lambda old, v: (old + v) % 2**32,
    "max.u32": max,
    "exch.b32": lambda old, v: v,
    "xor.b32": operator.xor,
    "inc.u32": lambda old, v: 0 if old >= v else old + 1,
    "dec.u32": lambda old, v: v if old == 0 or old > v else old - 1,
}


@pytest.mark.parametrize("op", ATOMICS)
def test_atomics_happen_in_the_order_of_the_threads(rng, op):
    n = 128
    x, slots = awkward_integers(rng, 32, n), (np.arange(n) * 7 % 4).astype(np.uint32)
    memory = np.zeros(n, np.uint32)
    memory[:4] = 5
    body = "{ .reg .b64 a; ld.param.u64 a, [p0]; mad.wide.u32 a, %x2, 4, a; "
    old = execute("", 32, [memory, x, slots], f"{body} atom.global.{op} %o, [a], %x1; }}")
    expected = [5] * 4
    for thread in range(n):
        slot = slots[thread]
        assert old[thread] == expected[slot]
        expected[slot] = ATOMICS[op](expected[slot], int(x[thread]))
    assert memory[:4].tolist() == expected
    unread = np.full(n, 5, np.uint32)
    execute("", 32, [unread, x, slots], f"{body} red.global.{op} [a], %x1; mov.b32 %o, 0; }}")
    assert unread[:4].tolist() == expected
