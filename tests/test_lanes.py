"""Numbers as they are stored, to floats and back, in registers, by the code for each kind of processor."""

import ctypes
from pathlib import Path

import native
import numpy
import pytest
import torch

PROGRAM = """
#include "cpu/lanes.h"
#if defined(VAE_FAST_TARGET)
using namespace vae_fast;
template <class FROM, class P>
struct Widen {
  static inline __attribute__((always_inline)) void run(const char* from, char* to, long n) {
    const auto* stored = reinterpret_cast<const Stored<P, FROM>*>(from);
    auto* floats = reinterpret_cast<float*>(to);
    for (long i = 0; i < n; i += 16) widen_lanes(stored + i, floats + i);
  }
};
template <class TO, class P>
struct Narrow {
  static inline __attribute__((always_inline)) void run(const char* from, char* to, long n) {
    const auto* floats = reinterpret_cast<const float*>(from);
    auto* stored = reinterpret_cast<Stored<P, TO>*>(to);
    for (long i = 0; i < n; i += 16) narrow_lanes(floats + i, stored + i);
  }
};
#define EACH(name, CODE, S, P) \\
  extern "C" void name##P(const char* from, char* to, long n) { P::run<CODE<S, P>>(from, to, n); }
#define ALL(name, CODE, S) EACH(name, CODE, S, Avx2) EACH(name, CODE, S, Avx512) EACH(name, CODE, S, Avx512Bf16)
ALL(widen_float, Widen, float) ALL(widen_half, Widen, BFloat16) ALL(widen_count, Widen, uint8_t)
ALL(widen_intensity, Widen, Intensity) ALL(widen_truth, Widen, Truth)
ALL(narrow_float, Narrow, float) ALL(narrow_half, Narrow, BFloat16)
#endif
"""
CPU = Path("/proc/cpuinfo")
FLAGS = set(CPU.read_text().split()) if CPU.exists() else set()
AVX512 = {"avx512bw", "avx512cd", "avx512dq", "avx512vl"}
NEEDED = {
    "Avx2": {"avx2", "fma", "f16c", "movbe", "bmi2"},
    "Avx512": AVX512,
    "Avx512Bf16": AVX512 | {"avx512_bf16"},
}

pytestmark = pytest.mark.parametrize(
    "processor",
    [
        pytest.param(name, marks=pytest.mark.skipif(not flags <= FLAGS, reason=f"a processor without {name}"))
        for name, flags in NEEDED.items()
    ],
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    library = native.library(tmp_path_factory.mktemp("lanes"), PROGRAM)
    if not hasattr(library, "widen_floatAvx2"):
        pytest.skip("a compiler without code for other processors than its own")
    return library


def run(library, name: str, given: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    to = torch.empty(given.shape, dtype=dtype)
    getattr(library, name)(native.pointer(given), native.pointer(to), ctypes.c_long(given.numel()))
    return to


def bits(values: numpy.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(values).view(dtype)


def test_all_bytes(library, processor):
    given = torch.arange(256, dtype=torch.uint8)
    expected = {
        "count": given.float(),
        "intensity": given.float() * torch.tensor(1 / 255),
        "truth": (given != 0).float(),
    }
    for name, floats in expected.items():
        assert torch.equal(run(library, f"widen_{name}{processor}", given, torch.float32), floats)


def test_all_halves(library, processor):
    """There and back; NaN stays NaN. AVX-512's instruction takes subnormal numbers for 0."""
    given = bits(numpy.arange(2**16, dtype=numpy.uint16), torch.bfloat16)
    floats = run(library, f"widen_half{processor}", given, torch.float32)
    assert torch.equal(floats.nan_to_num(7e7), given.float().nan_to_num(7e7))
    back = run(library, f"narrow_half{processor}", floats, torch.bfloat16)
    subnormal = (floats.abs() < torch.finfo(torch.float32).tiny) & (processor == "Avx512Bf16")
    same = (back.view(torch.int16) == given.view(torch.int16)) | (back.isnan() & given.isnan())
    assert (same | (subnormal & (back == 0))).all()


def test_floats(library, processor):
    """Rounded as torch rounds, ties and infinities among them; in place of float32, as they are."""
    rng = numpy.random.default_rng(0)
    given = rng.integers(0, 2**32, 2**20, dtype=numpy.uint32)
    given[::3] &= 0xFFFF8000  # ties
    given[::7] |= 0x7F800000
    floats = bits(given, torch.float32)
    for name in ("widen_float", "narrow_float"):
        found = run(library, name + processor, floats, torch.float32)
        assert torch.equal(found.view(torch.int32), floats.view(torch.int32))
    found, expected = run(library, f"narrow_half{processor}", floats, torch.bfloat16), floats.bfloat16()
    subnormal = (floats.abs() < torch.finfo(torch.float32).tiny) & (processor == "Avx512Bf16")
    assert torch.equal(found.isnan(), expected.isnan()) and expected.isnan().sum() > 1000
    same = found.view(torch.int16) == expected.view(torch.int16)
    assert (same | expected.isnan() | (subnormal & (found == 0))).all()
