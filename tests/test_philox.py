"""The generator: the published known answers, in the reference and in the C++ that the kernels are made of."""

import ctypes
from pathlib import Path

import mpmath
import native
import numpy
import pytest
import torch

from vae_fast import reference

KNOWN_ANSWERS = [  # Random123 1.14, kat_vectors: philox4x32 10, counter, key, result
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
FROZEN = [
    0.9701897319046768,
    -0.19401940943794055,
    1.2356194264025588,
    -1.9239276178366784,
    0.07318148441718061,
    -0.13913757586211492,
]
PROGRAM = """
#include "philox.h"
extern "C" {
void philox_words(uint32_t* c, uint64_t seed) {
  uint32_t words[4] = {c[0], c[1], c[2], c[3]};
  vae_fast::philox(words, vae_fast::PhiloxKeys<uint32_t>(seed));
  for (int i = 0; i < 4; ++i) c[i] = words[i];
}
static float log_decay_ratio(float v) {
  float sum = 0.f, product = 1.f;
  vae_fast::add_log_decay_ratio(v, vae_fast::exp_nonpositive(-v), sum, product);
  return sum + vae_fast::log(product);
}
static float quarter(float v, bool cosine) {
  float of[2];
  vae_fast::sine_and_cosine(v, of[0], of[1]);
  return of[cosine];
}
#define EACH(name, expression) \\
  void name(const float* in, float* out, long n) { \\
    for (long i = 0; i < n; ++i) { const float v = in[i]; out[i] = expression; } \\
  }
EACH(exp_, vae_fast::exp(v))
EACH(exp_nonpositive_, vae_fast::exp_nonpositive(v))
EACH(exp_minus_magnitude_, vae_fast::exp_minus_magnitude(v))
EACH(rough_exp_minus_magnitude_, vae_fast::rough_exp_minus_magnitude(v))
EACH(exp_finite_, vae_fast::exp_finite(v))
EACH(exp_bounded_, vae_fast::exp_bounded(v))
EACH(log_, vae_fast::log(v))
EACH(log1p_, vae_fast::log1p(v))
EACH(expm1_minus_, vae_fast::expm1_minus(v, vae_fast::exp(v)))
static float excess(float v) {
  float of;
  vae_fast::sigma_and_excess(v, of);
  return of;
}
static float sigma(float v) {
  float unused;
  return vae_fast::sigma_and_excess(v, unused);
}
EACH(excess_, excess(v))
EACH(sigma_, sigma(v))
EACH(half_sigma_, vae_fast::half_sigma(v))
EACH(sine_, quarter(v, false))
EACH(cosine_, quarter(v, true))
EACH(decay_deficit_, 1.f - vae_fast::decay_deficit(v))
EACH(nearest_, vae_fast::nearest(v))
EACH(log_decay_ratio_, log_decay_ratio(v))
EACH(decay_mean_, vae_fast::decay_mean(v, vae_fast::exp_nonpositive(-v)))
EACH(times_sign_, vae_fast::times_sign(-2.f, v))
}
"""


CPU = Path("/proc/cpuinfo")
FUSED = pytest.param(
    "fused",
    marks=pytest.mark.skipif(
        not CPU.exists() or "fma" not in CPU.read_text().split(), reason="no FMA that a compiler must be told of"
    ),
)


@pytest.fixture(scope="module", params=["by default", FUSED])
def elements(request, tmp_path_factory):
    """csrc/math.h and csrc/philox.h as a library of their own: a x b + c as compilers have it, and rounded once."""
    fused = request.param == "fused"
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
    library = native.library(tmp_path_factory.mktemp("elements"), PROGRAM, *["-mfma"] * fused, *warnings)
    library.is_fused = fused
    return library


@pytest.mark.parametrize("counter, key, words", KNOWN_ANSWERS)
def test_reference_gives_the_known_answers(counter, key, words):
    seed = torch.tensor((key[1] << 32 | key[0]) - (2**64 if key[1] >> 31 else 0))
    got = reference.philox(tuple(torch.tensor(c) for c in counter), seed)
    assert [w.item() for w in got] == words


@pytest.mark.parametrize("counter, key, words", KNOWN_ANSWERS)
def test_kernels_give_the_known_answers(elements, counter, key, words):
    buffer = (ctypes.c_uint32 * 4)(*counter)
    elements.philox_words(buffer, ctypes.c_uint64(key[1] << 32 | key[0]))
    assert list(buffer) == words


def test_normals_start_like_this():
    """A frozen sample: a replayed seed means the same noise in every version."""
    noise = reference.normals((6,), torch.tensor(42), torch.float64)
    assert noise.tolist() == pytest.approx(FROZEN, abs=1e-12)


# Whose argument is reduced by ln 2 in one part: in units of the last place that adds a twentieth of the exponent's
# magnitude where a x b + c is rounded once, else the magnitude
REDUCED_AT_ONCE = {"exp_nonpositive_", "exp_minus_magnitude_", "rough_exp_minus_magnitude_"}
FUNCTIONS = {  # name: (exact, from, to, error in units of the last place)
    "exp_": (mpmath.exp, -85, 88.7, 1.5),
    "exp_nonpositive_": (mpmath.exp, -86, 0, 1.5),
    "exp_minus_magnitude_": (lambda v: mpmath.exp(-abs(v)), -86, 86, 1.5),
    "rough_exp_minus_magnitude_": (lambda v: mpmath.exp(-abs(v)), -86, 86, 3),
    "exp_finite_": (mpmath.exp, -85, 88.7, 1.5),
    "exp_bounded_": (mpmath.exp, -86, 69, 1.5),
    "log_": (mpmath.log, 1e-30, 3, 1.5),
    "log1p_": (mpmath.log1p, -0.99, 5, 2),
    "expm1_minus_": (lambda v: mpmath.expm1(v) - v, -3, 3, 5),
    "excess_": (lambda v: mpmath.expm1(v) - v, -88, 88, 6),
    "sigma_": (lambda v: mpmath.exp(v / 2), -170, 177, 1.5),
    "half_sigma_": (lambda v: mpmath.exp(v / 2) / 2, -170, 178, 1.5),
    "sine_": (lambda v: mpmath.sin(mpmath.pi / 2 * v), -0.5, 0.5, 2),
    "cosine_": (lambda v: mpmath.cos(mpmath.pi / 2 * v), -0.5, 0.5, 2),
    "decay_deficit_": (lambda v: -mpmath.expm1(-v) / v if v else mpmath.mpf(1), 0, 0.5, 2.5),
    "nearest_": (mpmath.nint, -1000, 1000, 0),
    "log_decay_ratio_": (lambda v: mpmath.log(-mpmath.expm1(-v) / v) if v else mpmath.mpf(0), 0, 20, 4),
    "decay_mean_": (lambda v: 1 / v - 1 / mpmath.expm1(v) if v else mpmath.mpf(0.5), 0, 20, 4),
    "times_sign_": (lambda v: -2 * mpmath.sign(v), -3, 3, 0),
}


def evaluate(elements, name, values):
    inputs = numpy.asarray(values, dtype=numpy.float32)
    outputs = numpy.empty_like(inputs)
    pointers = [a.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for a in (inputs, outputs)]
    getattr(elements, name)(*pointers, ctypes.c_long(inputs.size))
    return inputs, outputs


@pytest.mark.parametrize("name", FUNCTIONS)
def test_element_functions(elements, name):
    exact, low, high, allowed = FUNCTIONS[name]
    mpmath.mp.prec = 100
    grid = numpy.concatenate([numpy.linspace(low, high, 3001), numpy.linspace(max(low, -1e-3), min(high, 1e-3), 301)])
    inputs, outputs = evaluate(elements, name, grid[grid > 0] if name == "log_" else grid)
    for v, got in zip(inputs, outputs, strict=True):
        true = exact(mpmath.mpf(float(v)))
        ulp = numpy.spacing(max(abs(numpy.float32(float(true))), numpy.float32(1.2e-38)))
        reduction = abs(float(v)) * (0.05 if elements.is_fused else 1) if name in REDUCED_AT_ONCE else 0
        error = abs(mpmath.mpf(float(got)) - true) / float(ulp)
        assert error <= allowed + reduction, f"{name}({v}) = {got}, true {true}"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("sine_", "cosine_", "decay_deficit_")])
def test_nan_and_infinity(elements, name):
    _, (nan, high, low) = evaluate(elements, name, [numpy.nan, numpy.inf, -numpy.inf])
    if "minus_magnitude" in name:  # where NaN counts as infinity
        assert 0 <= nan == high == low < 1e-37
        return
    assert numpy.isnan(nan)
    if name == "exp_finite_":
        assert high == pytest.approx(numpy.finfo(numpy.float32).max, rel=1e-5)
    elif name == "exp_bounded_":
        assert high == pytest.approx(float(mpmath.exp(69)), rel=1e-6)
    elif name in ("exp_", "log_", "log1p_"):
        assert high == numpy.inf
    if name.startswith("exp_"):
        assert 0 <= low < 1e-37
