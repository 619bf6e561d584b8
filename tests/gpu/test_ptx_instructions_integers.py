"""Integer and bit instructions of the PTX emulator against Python's integers and the manual's pseudo-code."""

import functools

import numpy as np
import pytest
from ptx_emulator.snippets import awkward_integers, execute

N = 256
UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def python_integers(x, bits, kind="u"):
    return [int(v) - (1 << bits) if kind == "s" and int(v) >> (bits - 1) else int(v) for v in x]


def assert_integers(op, bits, operands, expected):
    got = execute(op, bits, operands)
    assert [int(g) for g in got] == [e & ((1 << bits) - 1) for e in expected], op


def truncated(x, y):
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("kind", ["u", "s"])
def test_arithmetic(rng, bits, kind):
    t, raw = f"{kind}{bits}", [awkward_integers(rng, bits) for _ in range(3)]
    a, b, c = (python_integers(x, bits, kind) for x in raw)
    two = list(zip(a, b, strict=True))
    three = list(zip(a, b, c, strict=True))
    assert_integers(f"add.{t}", bits, raw[:2], [x + y for x, y in two])
    assert_integers(f"sub.{t}", bits, raw[:2], [x - y for x, y in two])
    assert_integers(f"mul.lo.{t}", bits, raw[:2], [x * y for x, y in two])
    assert_integers(f"mul.hi.{t}", bits, raw[:2], [x * y >> bits for x, y in two])
    assert_integers(f"mad.lo.{t}", bits, raw, [x * y + z for x, y, z in three])
    assert_integers(f"min.{t}", bits, raw[:2], [min(pair) for pair in two])
    assert_integers(f"max.{t}", bits, raw[:2], [max(pair) for pair in two])
    if bits < 64:
        wide = awkward_integers(rng, 2 * bits)
        sums = [x * y + z for (x, y), z in zip(two, python_integers(wide, 2 * bits), strict=True)]
        assert_integers(f"mul.wide.{t}", 2 * bits, raw[:2], [x * y for x, y in two])
        assert_integers(f"mad.wide.{t}", 2 * bits, [*raw[:2], wide], sums)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("kind", ["u", "s"])
def test_division_truncates(rng, bits, kind):
    a, b = (awkward_integers(rng, bits) for _ in range(2))
    b = np.where(b == 0, UNSIGNED[bits](3), b)
    pairs = list(zip(python_integers(a, bits, kind), python_integers(b, bits, kind), strict=True))
    assert_integers(f"div.{kind}{bits}", bits, [a, b], [truncated(x, y) for x, y in pairs])
    assert_integers(f"rem.{kind}{bits}", bits, [a, b], [x - y * truncated(x, y) for x, y in pairs])


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_and_signs(rng, bits):
    a, n = awkward_integers(rng, bits), rng.integers(0, 2 * bits, N).astype(np.uint32)
    values, amounts = python_integers(a, bits), [int(k) for k in n]
    for kind in "us":
        shifted = [x >> k for x, k in zip(python_integers(a, bits, kind), amounts, strict=True)]
        assert_integers(f"shr.{kind}{bits}", bits, [a, n], shifted)
        by_three = [x >> 3 for x in python_integers(a, bits, kind)]
        assert_integers(f"shr.{kind}{bits}", bits, [a, "3"], by_three)
    assert_integers(f"shl.b{bits}", bits, [a, n], [x << k for x, k in zip(values, amounts, strict=True)])
    assert_integers(f"shl.b{bits}", bits, [a, "3"], [x << 3 for x in values])
    assert_integers(f"not.b{bits}", bits, [a], [~x for x in values])
    assert_integers(f"cnot.b{bits}", bits, [a], [x == 0 for x in values])
    assert_integers(f"neg.s{bits}", bits, [a], [-x for x in values])
    assert_integers(f"abs.s{bits}", bits, [a], [abs(x) for x in python_integers(a, bits, "s")])


@pytest.mark.parametrize(("op", "sign"), [("add", 1), ("sub", -1)])
def test_two_limbs_with_carry(rng, op, sign):
    a, b = awkward_integers(rng, 64), awkward_integers(rng, 64)
    body = f"""{{ .reg .b32 al, ah, bl, bh, lo, hi; mov.b64 {{al, ah}}, %x0; mov.b64 {{bl, bh}}, %x1;
    {op}.cc.u32 lo, al, bl; {op}c.u32 hi, ah, bh; mov.b64 %o, {{lo, hi}}; }}"""
    expected = [(int(x) + sign * int(y)) % 2**64 for x, y in zip(a, b, strict=True)]
    assert execute("", 64, [a, b], body).tolist() == expected


@pytest.mark.parametrize(("op", "sign"), [("add", 1), ("sub", -1)])
def test_three_limbs_with_carry_in_and_out(rng, op, sign):
    a, b, low_a, low_b = (awkward_integers(rng, 32) for _ in range(4))
    a[:32] = 0xFFFFFFFF
    b[:16] = 0
    b[40:60] = a[40:60]
    body = f"""{{ .reg .b32 l, m, h; {op}.cc.u32 l, %x2, %x3; {op}c.cc.u32 m, %x0, %x1; {op}c.u32 h, 0, 0;
    mov.b64 %o, {{m, h}}; }}"""
    for g, *limbs in zip(execute("", 64, [a, b, low_a, low_b], body), a, b, low_a, low_b, strict=True):
        x, y, p, q = (int(v) for v in limbs)
        assert int(g) == ((x << 32 | p) + sign * (y << 32 | q)) >> 32 & (2**64 - 1)


def test_long_multiplication_with_carries(rng):
    a, b = awkward_integers(rng, 64), awkward_integers(rng, 64)
    body = """{ .reg .b32 al, ah, bl, bh, r0, r1, r2, r3; mov.b64 {al, ah}, %x0; mov.b64 {bl, bh}, %x1;
    mul.lo.u32 r0, al, bl; mul.hi.u32 r1, al, bl; mad.lo.cc.u32 r1, al, bh, r1; madc.hi.u32 r2, al, bh, 0;
    mad.lo.cc.u32 r1, ah, bl, r1; madc.hi.cc.u32 r2, ah, bl, r2; addc.u32 r3, 0, 0;
    mad.lo.cc.u32 r2, ah, bh, r2; madc.hi.u32 r3, ah, bh, r3; mov.b64 %o, {r2, r3}; }"""
    expected = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
    assert execute("", 64, [a, b], body).tolist() == expected


def test_two_integers_in_a_register(rng):
    a, b = awkward_integers(rng, 32), awkward_integers(rng, 32)
    for t, dtype in (("s16x2", np.int16), ("u16x2", np.uint16)):
        for op, f in (("add", np.add), ("min", np.minimum), ("max", np.maximum)):
            got = execute(f"{op}.{t}", 32, [a, b]).view(dtype)
            assert np.array_equal(got, f(a.view(dtype), b.view(dtype)))


def test_minima_without_negative_results(rng):
    a, b = awkward_integers(rng, 32), awkward_integers(rng, 32)
    for t, dtype in (("s32", np.int32), ("s16x2", np.int16)):
        x, y = a.view(dtype), b.view(dtype)
        for op, f in (("min", np.minimum), ("max", np.maximum)):
            got = execute(f"{op}.relu.{t}", 32, [a, b]).view(dtype)
            assert np.array_equal(got, np.maximum(f(x, y), 0))


def test_saturated_sum():
    a, b = np.int32([2**31 - 1, -(2**31), 5, -5]), np.int32([1, -1, 7, 2])
    got = execute("add.sat.s32", 32, [a.view(np.uint32), b.view(np.uint32)]).view(np.int32)
    assert got.tolist() == [2**31 - 1, -(2**31), 12, -3]
    got = execute("sub.sat.s32", 32, [a.view(np.uint32), b.view(np.uint32)]).view(np.int32)
    assert got.tolist() == [2**31 - 2, -(2**31) + 1, -2, -7]


def test_selections(rng):
    a, b, c = (awkward_integers(rng, 32) for _ in range(3))
    chosen = np.where(c.view(np.int32) >= 0, a, b)
    assert np.array_equal(execute("slct.u32.s32", 32, [a, b, c]), chosen)
    assert np.array_equal(execute("", 32, [a, b, c], "setp.lt.s32 %p, %x2, 0; selp.b32 %o, %x1, %x0, %p;"), chosen)


@pytest.mark.parametrize("first", range(0, 256, 64))
def test_every_function_of_three_bits(rng, first):
    operands = [awkward_integers(rng, 32, 8) for _ in range(3)]
    shifts = np.arange(32, dtype=np.uint32)
    x, y, z = ((v[:, None] >> shifts) & np.uint32(1) for v in operands)
    for table in range(first, first + 64):
        bits = np.uint32(table) >> (4 * x + 2 * y + z) & np.uint32(1)
        expected = (bits << shifts).sum(1, dtype=np.uint32)
        assert np.array_equal(execute("lop3.b32", 32, [*operands, str(table)]), expected), table


def permuted(x, y, selector):
    word, r = (y << 32) | x, 0
    for i in range(4):
        pick = selector >> 4 * i & 15
        byte = word >> 8 * (pick & 7) & 255
        r |= (0xFF * (byte >> 7) if pick & 8 else byte) << 8 * i
    return r


def test_byte_permutations(rng):
    a, b, selectors = (awkward_integers(rng, 32) for _ in range(3))
    triples = zip(a.tolist(), b.tolist(), selectors.tolist(), strict=True)
    assert execute("prmt.b32", 32, [a, b, selectors]).tolist() == [permuted(*t) for t in triples]
    for selector in (0x3210, 0x7654, 0x5410, 0x7632, 0x7770, 0x0123, 0xBA98, 0xF2C1, 0x8888):
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        expected = [permuted(*pair, selector) for pair in pairs]
        assert execute("prmt.b32", 32, [a, b, f"{selector:#x}U"]).tolist() == expected


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("side", ["l", "r"])
def test_funnel_shift(rng, side, mode):
    a, b = awkward_integers(rng, 32), awkward_integers(rng, 32)
    n = rng.integers(0, 70, N).astype(np.uint32)

    def shifted(x, y, k):
        k, word = k & 31 if mode == "wrap" else min(k, 32), y << 32 | x
        return (word << k >> 32 if side == "l" else word >> k) & 0xFFFFFFFF

    expected = [shifted(*t) for t in zip(a.tolist(), b.tolist(), n.tolist(), strict=True)]
    assert execute(f"shf.{side}.{mode}.b32", 32, [a, b, n]).tolist() == expected


def extracted(bits, kind, x, position, n):
    sign = 0 if kind == "u" or n == 0 else x >> min(position + n - 1, bits - 1) & 1
    inside = [i < n and position + i < bits for i in range(bits)]
    return sum(((x >> position + i & 1) if inside[i] else sign) << i for i in range(bits))


def inserted(bits, x, y, position, n):
    for i in range(min(n, bits - position)):
        y = y & ~(1 << position + i) | (x >> i & 1) << position + i
    return y


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_fields(rng, bits):
    a, b = awkward_integers(rng, bits), awkward_integers(rng, bits)
    position, n = (rng.integers(0, bits + 8, N).astype(np.uint32) for _ in range(2))
    columns = [x.tolist() for x in (a, b, position, n)]
    for kind in "us":
        field = functools.partial(extracted, bits, kind)
        expected = list(map(field, columns[0], *columns[2:]))
        assert execute(f"bfe.{kind}{bits}", bits, [a, position, n]).tolist() == expected
    expected = list(map(functools.partial(inserted, bits), *columns))
    assert execute(f"bfi.b{bits}", bits, [a, b, position, n]).tolist() == expected


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_counts(rng, bits):
    a = awkward_integers(rng, bits)
    values = a.tolist()
    assert execute(f"popc.b{bits}", 32, [a]).tolist() == [x.bit_count() for x in values]
    assert execute(f"clz.b{bits}", 32, [a]).tolist() == [bits - x.bit_length() for x in values]
    assert execute(f"brev.b{bits}", bits, [a]).tolist() == [int(f"{x:0{bits}b}"[::-1], 2) for x in values]
    assert execute(f"bfind.u{bits}", 32, [a]).tolist() == [(x.bit_length() - 1) % 2**32 for x in values]
    shifts = [bits - x.bit_length() if x else 2**32 - 1 for x in values]
    assert execute(f"bfind.shiftamt.u{bits}", 32, [a]).tolist() == shifts
