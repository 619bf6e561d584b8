"""Floating-point instructions of the PTX emulator against exact fractions, rounded by hand."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from ptx_emulator.snippets import awkward_integers, execute

N = 256
FORMATS = {"f16": (11, -14, 16), "bf16": (8, -126, 16), "f32": (24, -126, 32), "f64": (53, -1022, 64)}
UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}
ROUNDINGS = ("rn", "rz", "rm", "rp")
EPS = 2.0**-23


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def to_fraction(bits, name):
    p, least, width = FORMATS[name]
    bits = int(bits)
    exponent, mantissa = bits >> (p - 1) & ((1 << (width - p)) - 1), bits & ((1 << (p - 1)) - 1)
    assert exponent != (1 << (width - p)) - 1
    if exponent:
        mantissa |= 1 << (p - 1)
    value = Fraction(mantissa) * Fraction(2) ** (max(exponent, 1) - 1 + least - p + 1)
    return -value if bits >> (width - 1) else value


def round_fraction(x, name, mode="rn"):
    """The bits of the rounded number; None for zeros, whose sign depends on the operands."""
    p, least, width = FORMATS[name]
    if x == 0:
        return None
    negative, x = x < 0, abs(x)
    exponent = max(least, x.numerator.bit_length() - x.denominator.bit_length() - 1)
    while x >= Fraction(2) ** (exponent + 1):
        exponent += 1
    ulp = Fraction(2) ** (exponent - p + 1)
    q, r = divmod(x, ulp)
    nearest_is_up = r * 2 > ulp or (r * 2 == ulp and q & 1)
    q += {"rn": nearest_is_up, "rz": False, "rm": negative and r > 0, "rp": not negative and r > 0}[mode]
    bits = int(q) if q < 1 << (p - 1) else ((exponent - least + 1) << (p - 1)) + int(q) - (1 << (p - 1))
    infinity = ((1 << (width - p)) - 1) << (p - 1)
    if bits >= infinity:
        bits = infinity if mode == "rn" or mode == ("rm" if negative else "rp") else infinity - 1
    return bits | (int(negative) << (width - 1))


def awkward_floats(rng, name, n=N):
    """Finite values: random bits, few exponents with sparse mantissas, subnormals."""
    p, _, width = FORMATS[name]
    bias, top = (1 << (width - p - 1)) - 1, (1 << (width - p)) - 2
    out = []
    for k in range(n):
        low, high = [(1, top), (bias - 3, bias + 4), (bias - 3, bias + 4), (0, 3)][k % 4]
        mantissa = int(rng.integers(0, 1 << (p - 1)))
        if k % 8 == 2:
            mantissa = (1 << int(rng.integers(0, p))) - 1
        elif k % 8 == 6:
            mantissa = 1 << int(rng.integers(0, p - 1))
        sign = int(rng.integers(0, 2)) << (width - 1)
        out.append(sign | int(rng.integers(low, high)) << (p - 1) | mantissa & ((1 << (p - 1)) - 1))
    rng.shuffle(out)
    return np.array(out, UNSIGNED[width])


def assert_bits(got, expected, width):
    """None among the expected is a zero of either sign."""
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        g = int(g)
        assert (g & ~(1 << (width - 1))) == 0 if e is None else g == e, (i, hex(g), e and hex(e))


def cancelling(rng, name, a, b, c, narrow=None):
    """c, with half of it changed to cancel most of a b (of type `narrow`) or to sit half an ulp away from it."""
    p, _, width = FORMATS[name]
    infinity = ((1 << (width - p)) - 1) << (p - 1)
    out = []
    for i, (x, y, z) in enumerate(zip(a, b, c, strict=True)):
        off = 1 + Fraction(int(rng.integers(-3, 4)), 2**p)
        product = to_fraction(x, narrow or name) * to_fraction(y, narrow or name)
        near = round_fraction(-product * off, name) or 0
        out.append(near if i % 2 and (near & infinity) != infinity else int(z))
    return np.array(out, UNSIGNED[width])


def far_from_limits(x):
    """float64 with exponents away from over- and underflow, near which its fma isn't claimed to be exact."""
    fine = (x >> np.uint64(52) & np.uint64(0x7FF)) - np.uint64(800) < 400
    return np.where(fine, x, x & np.uint64(0x800FFFFFFFFFFFFF) | np.uint64(1020 << 52))


EXACT = {
    "add": lambda x, y, _=0: x + y,
    "sub": lambda x, y, _=0: x - y,
    "mul": lambda x, y, _=0: x * y,
    "fma": lambda x, y, z: x * y + z,
}
CASES = [("f32", mode) for mode in ROUNDINGS] + [(name, "rn") for name in ("f16", "bf16", "f64")]


@pytest.mark.parametrize(("name", "mode"), CASES)
@pytest.mark.parametrize("op", EXACT)
def test_arithmetic_rounds_once(rng, op, name, mode):
    width = FORMATS[name][2]
    for _ in range(4):
        operands = [awkward_floats(rng, name) for _ in range(3)]
        if op == "fma":
            operands[2] = cancelling(rng, name, *operands)
        if name == "f64":
            operands = [far_from_limits(x) for x in operands]
        values = [[to_fraction(x, name) for x in v] for v in operands]
        expected = [round_fraction(EXACT[op](*xyz), name, mode) for xyz in zip(*values, strict=True)]
        assert_bits(execute(f"{op}.{mode}.{name}", width, operands[: 3 if op == "fma" else 2]), expected, width)


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("narrow", ["f16", "bf16"])
@pytest.mark.parametrize(("op", "count"), [("add", 1), ("sub", 1), ("fma", 2)])
def test_mixed_precision_widens_all_but_the_last_operand(rng, op, count, narrow, mode):
    for _ in range(2):
        operands = [awkward_floats(rng, narrow) for _ in range(count)] + [awkward_floats(rng, "f32")]
        if op == "fma":
            operands[2] = cancelling(rng, "f32", *operands, narrow=narrow)
        types = [narrow] * count + ["f32"]
        values = [[to_fraction(x, t) for x in v] for v, t in zip(operands, types, strict=True)]
        expected = [round_fraction(EXACT[op](*xyz), "f32", mode) for xyz in zip(*values, strict=True)]
        assert_bits(execute(f"{op}.{mode}.f32.{narrow}", 32, operands), expected, 32)


def test_mixed_precision_saturates():
    """The sum of a wide and a narrow number, and NaN as 0."""
    a, b = np.float16([0.25, 0.75, -2, np.nan, 1]), np.float32([0.25 + EPS, 0.5, 1, 1, -1])
    raw = [a.view(np.uint16), b.view(np.uint32)]
    got = execute("add.sat.f32.f16", 32, raw).view(np.float32)
    assert got.tolist() == [0.5 + EPS, 1, 0, 0, 0]
    assert execute("sub.sat.f32.f16", 32, raw).view(np.float32).tolist() == [0, 0.25, 0, 0, 1]
    product = execute("fma.rn.sat.f32.f16", 32, [raw[0], raw[0], raw[1]]).view(np.float32)
    assert product.tolist() == [0.3125 + EPS, 1, 1, 0, 0]


def assert_fma_is_better_than_float64(a, b, c):
    """The sum rounded once, where float64 arithmetic with one more rounding goes wrong."""
    raw = [x.astype(np.float32).view(np.uint32) for x in (a, b, c)]
    x, y, z = ([to_fraction(v, "f32") for v in r] for r in raw)
    expected = [round_fraction(p * q + r, "f32") for p, q, r in zip(x, y, z, strict=True)]
    naive = (a.astype(float) * b + c).astype(np.float32).view(np.uint32)
    assert any(int(n) != e for n, e in zip(naive, expected, strict=True))
    assert_bits(execute("fma.rn.f32", 32, raw), expected, 32)


def test_fma_f32_at_midpoints():
    signs = np.repeat(np.float32([1, -1]), 4)
    one = signs * np.float32(1 + EPS) * np.float32(2.0**-24)
    c = signs * np.float32(1 + np.tile(np.arange(4), 2) * EPS)
    small = np.float32([1 + EPS, 1 + 3 * EPS, 1 + EPS, -1 - EPS]) * np.float32(2.0**-80)
    other = np.float32([1 - EPS, 1 - EPS, 1 + EPS, 1 - EPS]) * np.float32(2.0**-70)
    least = np.float32([2.0**-149, 3 * 2.0**-149, 2.0**-149, -(2.0**-149)])
    a, b = np.r_[one, small], np.r_[np.full(8, np.float32(1 - EPS)), other]
    assert_fma_is_better_than_float64(a, b, np.r_[c, least])


def test_fma_f32_at_subnormal_midpoints():
    """a b = 2**-150 (1 - 2**-46) is a remainder below float64's precision of the sum."""
    a, b = (np.full(64, np.float32(f) * np.float32(2.0**-75)) for f in (1 + EPS, 1 - EPS))
    assert_fma_is_better_than_float64(a, b, (np.arange(1, 65) * 2.0**-133 + 2.0**-149).astype(np.float32))


@pytest.mark.parametrize("sign", [1, -1])
def test_fma_f64_just_below_half_an_ulp(sign):
    eps, k = 2.0**-52, np.arange(64)
    a, b = np.full(64, (1 + eps) * 2.0**-53), np.full(64, 1 - eps)
    raw = [x.view(np.uint64) for x in (a, b, (1 + k * eps) * np.where(k % 3 == 0, -1, 1) * sign)]
    x, y, z = ([to_fraction(v, "f64") for v in r] for r in raw)
    expected = [round_fraction(p * q + r, "f64") for p, q, r in zip(x, y, z, strict=True)]
    assert_bits(execute("fma.rn.f64", 64, raw), expected, 64)


NARROWING = [("f16", "f32", "rn"), ("f16", "f64", "rn"), ("bf16", "f32", "rn"), ("bf16", "f32", "rz")]
WIDENING = [("f32", "f16", ""), ("f32", "bf16", ""), ("f64", "f32", "")]


@pytest.mark.parametrize(("to", "source", "mode"), [("f32", "f64", mode) for mode in ROUNDINGS] + NARROWING + WIDENING)
def test_float_to_float(rng, to, source, mode):
    a = awkward_floats(rng, source)
    if source == "f64":
        exponent = rng.integers(1023 - 155, 1023 + 130, N).astype(np.uint64)
        a = a & np.uint64(0x800FFFFFFFFFFFFF) | (exponent << np.uint64(52))
        a[::3] &= np.uint64(0xFFFFFFFFF0000000)
    got = execute(f"cvt.{mode}{'.' if mode else ''}{to}.{source}", FORMATS[to][2], [a])
    assert_bits(got, [round_fraction(to_fraction(x, source), to, mode or "rn") for x in a], FORMATS[to][2])


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_two_floats_pack_with_the_first_above(rng, name):
    a, b = awkward_floats(rng, "f32"), awkward_floats(rng, "f32")
    got = execute(f"cvt.rn.{name}x2.f32", 32, [a, b])
    for x, half in ((a, got >> 16), (b, got & 0xFFFF)):
        assert_bits(half, [round_fraction(to_fraction(v, "f32"), name) for v in x], 16)


def test_tf32_rounds_halves_away_from_zero():
    x = np.float32([1 + 2.0**-11, 1 + 2.0**-11 - EPS, -1 - 2.0**-11, np.inf])
    got = execute("cvt.rna.tf32.f32", 32, [x.view(np.uint32)]).view(np.float32)
    assert got.tolist() == [1 + 2.0**-10, 1, -1 - 2.0**-10, np.inf]


def signed(v, bits):
    return v - (1 << bits) if v >> (bits - 1) & 1 else v


INT_TO_FLOAT = list(itertools.product(["s32", "u32"], [("f32", "rn"), ("f32", "rz"), ("f64", "rn"), ("f16", "rn")]))
INT_TO_FLOAT += itertools.product(["s64", "u64"], [("f32", "rn"), ("f64", "rn")])


@pytest.mark.parametrize(("source", "to"), INT_TO_FLOAT)
def test_int_to_float(rng, source, to):
    (to, mode), bits = to, int(source[1:])
    a = awkward_integers(rng, bits)
    values = [Fraction(signed(int(x), bits) if source[0] == "s" else int(x)) for x in a]
    expected = [round_fraction(x, to, mode) for x in values]
    assert_bits(execute(f"cvt.{mode}.{to}.{source}", FORMATS[to][2], [a]), expected, FORMATS[to][2])


WHOLE = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
LIMITS = [np.inf, -np.inf, np.nan, 2.0**31, -(2.0**31), 2.0**63, 2.0**64, -(2.0**63)]


@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize(("source", "mode"), [*(("f32", mode) for mode in WHOLE), ("f64", "rzi")])
def test_float_to_int(rng, source, mode, to):
    bits, width = int(to[1:]), FORMATS[source][2]
    wide, halves = rng.standard_normal(120) * 10.0 ** rng.integers(-2, 22, 120), rng.integers(-300, 300, 128) / 2
    values = np.r_[wide, halves, LIMITS].astype(np.float32 if width == 32 else np.float64)
    got = execute(f"cvt.{mode}.{to}.{source}", max(16, bits), [values.view(UNSIGNED[width])])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if to[0] == "s" else (0, (1 << bits) - 1)
    for v, g in zip(values, got, strict=True):
        if math.isnan(v):
            expected = 1 << (bits - 1) if bits == 64 or source == "f64" else 0
        elif math.isinf(v):
            expected = high if v > 0 else low
        else:
            expected = min(max(WHOLE[mode](float(v)), low), high)
        assert (int(g) - expected) % (1 << bits) == 0, (v, g, expected)


def test_narrow_results_widen_into_the_register():
    floats, bytes_ = np.float32([-3, 200, 1000, -1000]), np.uint32([0x180, 0x7F, 0xFF, 0])
    assert execute("cvt.rzi.s8.f32", 32, [floats.view(np.uint32)]).view(np.int32).tolist() == [-3, 127, 127, -128]
    assert execute("cvt.s32.s8", 32, [bytes_]).view(np.int32).tolist() == [-128, 127, -1, 0]
    assert execute("cvt.u32.u8", 32, [bytes_]).tolist() == [128, 127, 255, 0]
    clamped = execute("cvt.sat.u8.s32", 32, [np.int32([-5, 300, 7, 255]).view(np.uint32)])
    assert clamped.tolist() == [0, 255, 7, 255]


@pytest.fixture
def special():
    """All pairs of special values, as float32 and as bits."""
    values = np.float32([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40])
    a, b = (x.ravel() for x in np.meshgrid(values, values))
    return a, b, [a.view(np.uint32), b.view(np.uint32)]


@pytest.mark.parametrize("op", [min, max])
def test_minima_order_zeros_and_drop_nan(special, op):
    a, b, raw = special
    got = execute(f"{op.__name__}.f32", 32, raw).view(np.float32)
    for x, y, g in zip(a, b, got, strict=True):
        if np.isnan(x) and np.isnan(y):
            assert np.isnan(g)
            continue
        pair = [(float(v), math.copysign(1, v)) for v in (x, y) if not np.isnan(v)]
        assert (float(g), math.copysign(1, g)) == op(pair)
    poisoned = execute(f"{op.__name__}.NaN.f32", 32, raw).view(np.float32)
    assert np.array_equal(np.isnan(poisoned), np.isnan(a) | np.isnan(b))


def test_min_of_magnitudes_with_the_product_of_signs(rng):
    raw = [awkward_floats(rng, "f32") for _ in range(2)]
    x, y = (r.view(np.float32) for r in raw)
    expected = np.minimum(abs(x), abs(y)) * np.sign(x) * np.sign(y)
    assert np.array_equal(execute("min.xorsign.abs.f32", 32, raw).view(np.float32), expected)


def test_comparisons_of_special_values(special):
    a, b, raw = special
    nan = np.isnan(a) | np.isnan(b)
    ordered = {"eq": a == b, "ne": (a != b) & ~nan, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    results = {"num": ~nan, "nan": nan} | ordered | {f"{name}u": holds | nan for name, holds in ordered.items()}
    for name, holds in results.items():
        compare = f"setp.{name}.f32 %p|%q, %x0, %x1;"
        got = execute("", 32, raw, f"{compare} selp.b32 %o, 1, 0, %p; @%q add.u32 %o, %o, 2;")
        assert np.array_equal(got, np.where(holds, 1, 2)), name
        assert np.array_equal(execute(f"set.{name}.u32.f32", 32, raw), np.where(holds, 0xFFFFFFFF, 0)), name
    combined = "setp.gt.u32 %q, %x0, 5; setp.lt.and.f32 %p, %x0, %x1, !%q; selp.b32 %o, 1, 0, %p;"
    assert np.array_equal(execute("", 32, raw, combined), (a < b) & ~(raw[0] > 5))


def test_comparison_with_two_results_combines_both(special):
    a, b, raw = special
    body = ".reg .pred %c; setp.gt.u32 %c, %x0, 5; setp.lt.or.f32 %p|%q, %x0, %x1, %c; "
    got = execute("", 32, raw, body + "selp.b32 %o, 1, 0, %p; @%q add.u32 %o, %o, 2;")
    assert np.array_equal(got, ((a < b) | (raw[0] > 5)) + 2 * (~(a < b) | (raw[0] > 5)))


def test_subnormals_are_flushed_with_their_sign():
    x = np.float32([1e-40, -1e-40, 2.0**-126, -1e-39, 0, -0.0, 1, -1])
    zero = np.full(8, -0.0, np.float32)
    got = execute("add.ftz.f32", 32, [x.view(np.uint32), zero.view(np.uint32)]).view(np.float32)
    expected = np.float32([0, -0.0, 2.0**-126, -0.0, 0, -0.0, 1, -1])
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))
    half = np.full(8, 0.5, np.float32)
    assert execute("mul.ftz.f32", 32, [x.view(np.uint32), half.view(np.uint32)])[2] == 0


def small_halves():
    return np.float16([2.0**-15, -(2.0**-15), 2.0**-14, -(2.0**-24), 1, np.inf])


def test_subnormal_halves_are_flushed_where_asked():
    x, zero = small_halves(), np.full(6, -0.0, np.float16)
    flushed = np.float16([0, -0.0, 2.0**-14, -0.0, 1, np.inf])
    raw = [x.view(np.uint16), zero.view(np.uint16)]
    one = np.full(6, 1, np.float16).view(np.uint16)
    assert np.array_equal(execute("add.ftz.f16", 16, raw), flushed.view(np.uint16))
    assert np.array_equal(execute("add.f16", 16, raw), raw[0])
    assert np.array_equal(execute("mul.ftz.f16", 16, [raw[0], one]), flushed.view(np.uint16))
    assert np.array_equal(execute("fma.rn.ftz.f16", 16, [raw[0], one, raw[1]]), flushed.view(np.uint16))
    assert np.array_equal(execute("neg.ftz.f16", 16, raw[:1]), (-flushed).view(np.uint16))
    assert execute("max.ftz.f16", 16, raw).view(np.float16).tolist() == [0, 0, 2.0**-14, 0, 1, np.inf]
    compare = "setp.ne.{}f16 %p, %x0, %x1; selp.b32 %o, 1, 0, %p;"
    assert execute("", 32, raw, compare.format("ftz.")).tolist() == [0, 0, 1, 0, 1, 1]
    assert execute("", 32, raw, compare.format("")).tolist() == [1] * 6


def test_half_results_are_flushed_after_rounding():
    x, half = np.float16([2.0**-14, 2.0**-13]), np.full(2, 0.5, np.float16)
    raw = [v.view(np.uint16) for v in (x, half)]
    assert execute("mul.ftz.f16", 16, raw).view(np.float16).tolist() == [0, 2.0**-14]
    assert execute("mul.f16", 16, raw).view(np.float16).tolist() == [2.0**-15, 2.0**-14]


def test_other_subnormals_are_flushed():
    """The condition of slct, the operand of ex2 for bfloat16 and of the approximate functions of float64."""
    c = np.float32([-1e-40, 1e-40, -1.0, np.nan])
    a, b = np.full(4, 7, np.uint32), np.full(4, 9, np.uint32)
    assert execute("slct.f32.f32", 32, [a, b, c.view(np.uint32)]).tolist() == [9, 7, 9, 9]
    assert execute("slct.ftz.f32.f32", 32, [a, b, c.view(np.uint32)]).tolist() == [7, 7, 9, 9]
    exponents = np.float32([-127, -126, 1]).view(np.uint32) >> 16
    got = execute("ex2.approx.ftz.bf16", 16, [exponents.astype(np.uint16)])
    assert got.tolist() == [0, 0x80, 0x4000]
    x = np.float64([2.0**-1023, 2.0**1023, 4]).view(np.uint64)
    assert execute("rcp.approx.ftz.f64", 64, [x]).view(np.float64).tolist() == [np.inf, 0, 0.25]
    assert execute("rsqrt.approx.f64", 64, [x[2:]]).view(np.float64).tolist() == [0.5]


def test_conversions_flush_float32_alone():
    x = small_halves()[:3].view(np.uint16)
    assert execute("cvt.ftz.f32.f16", 32, [x]).view(np.float32).tolist() == [2.0**-15, -(2.0**-15), 2.0**-14]
    y = np.float32([1e-40, 1]).view(np.uint32)
    assert execute("cvt.ftz.f64.f32", 64, [y]).view(np.float64).tolist() == [0, 1]


def test_negative_results_become_zero_and_nan_stays():
    a, one = np.float16([-2, 2, np.nan, -0.0]), np.full(4, 1, np.float16)
    raw = [v.view(np.uint16) for v in (a, one, np.zeros(4, np.float16))]
    got = execute("fma.rn.relu.f16", 16, raw).view(np.float16)
    assert np.array_equal(got, [0, 2, np.nan, 0], equal_nan=True) and not np.signbit(got[3])
    x = np.float32([-2, 2, np.nan, -0.0]).view(np.uint32)
    halves = execute("cvt.rn.relu.bf16x2.f32", 32, [x, x])
    assert (halves & 0xFFFF).tolist() == (halves >> 16).tolist() == [0, 0x4000, 0x7FFF, 0]


def test_integers_saturate_as_floats():
    x = np.int32([-3, 0, 1, 2**24 + 1]).view(np.uint32)
    for to, raw in (("f32", np.float32), ("f16", np.float16)):
        got = execute(f"cvt.rn.sat.{to}.s32", raw().itemsize * 8, [x]).view(raw)
        assert got.tolist() == [0, 0, 1, 1]


CLASSES = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda x: ~np.isnan(x),
    "notanumber": np.isnan,
    "normal": lambda x: np.isfinite(x) & (abs(x) >= 2.0**-126),
    "subnormal": lambda x: (abs(x) < 2.0**-126) & (x != 0),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes(special, name):
    a, _, raw = special
    got = execute("", 32, raw[:1], f"testp.{name}.f32 %p, %x0; selp.b32 %o, 1, 0, %p;")
    assert np.array_equal(got, CLASSES[name](a))


FUNCTIONS = {
    "ex2.approx": np.exp2,
    "lg2.approx": np.log2,
    "sin.approx": np.sin,
    "cos.approx": np.cos,
    "tanh.approx": np.tanh,
    "sqrt.rn": np.sqrt,
    "rsqrt.approx": lambda x: 1 / np.sqrt(x),
    "rcp.rn": lambda x: 1 / x,
}


@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions_are_rounded_from_float64(rng, op):
    x = (rng.random(N) * 8 + 0.01).astype(np.float32)
    expected = FUNCTIONS[op](x.astype(np.float64)).astype(np.float32)
    assert np.array_equal(execute(f"{op}.f32", 32, [x.view(np.uint32)]), expected.view(np.uint32))


def test_signs(rng):
    x, y = (rng.standard_normal(N).astype(np.float32) for _ in range(2))
    raw = [v.view(np.uint32) for v in (x, y)]
    assert np.array_equal(execute("copysign.f32", 32, raw).view(np.float32), np.copysign(y, x))
    half = raw[0].astype(np.uint16)
    assert np.array_equal(execute("neg.bf16", 16, [half]), half ^ 0x8000)
    assert np.array_equal(execute("abs.bf16", 16, [half]), half & 0x7FFF)
    assert np.array_equal(execute("neg.f32", 32, raw[:1]).view(np.float32), -x)
    assert np.array_equal(execute("div.rn.f32", 32, raw).view(np.float32), x / y)
