"""The headers that kernels on every device share: each compiles alone, with warnings as errors, on host and device."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from vae_fast.likelihoods import LIKELIHOODS

CSRC = Path(__file__).parents[1] / "csrc"
INCLUDED = ("-I", str(CSRC), "-isystem", str(Path(torch.__file__).parent / "include"))
HEADERS = sorted(path.relative_to(CSRC).as_posix() for path in [*CSRC.glob("*.h"), *CSRC.glob("likelihoods/*.h")])
COMPILERS = ("g++", "clang++")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wdouble-promotion", "-Werror")
ACCUMULATOR = re.compile(r"struct (\w+)(?: : [^{]+)? \{\n  static constexpr int kParameters")
KERNELS = """
// options; in: parameters, x and scale of two observations; out: gradients, and the value
template <class A, class T>
__global__ void run(const T* options, const T* in, T* out) {
  constexpr int K = A::kParameters;
  A state = vae_fast::start<A, T>(options, in[K - 1]);
  for (int lane = 0; lane < 2; ++lane) {
    T parameters[K], gradients[K];
    for (int k = 0; k < K; ++k) parameters[k] = in[lane * (K + 2) + k];
    const T x = in[lane * (K + 2) + K], scale = in[lane * (K + 2) + K + 1];
    if constexpr (A::kWhole) state.whole(lane, parameters, x, scale, gradients);
    if constexpr (A::kParts == 1) state.step(lane, parameters, x, scale, gradients);
    if constexpr (A::kSparse) state.rest(lane, parameters, x, T(1), gradients);
    for (int k = 0; k < K; ++k) out[lane * K + k] = gradients[k];
  }
  state.join(0, 1);
  out[2 * K] = state.finish(state.sum(0), T(2));
}
"""
NOISE = """
template <class W, class T>
{kind} void noise(uint64_t seed, T* out) {{
  W words[4] = {{1, 2, 3, 4}};
  vae_fast::philox(words, vae_fast::PhiloxKeys<W>(seed));
  vae_fast::box_muller(static_cast<uint32_t>(words[0]), static_cast<uint32_t>(words[1]), out[0], out[1]);
}}
"""
ELEMENTS = """
template <class T>
__global__ void elements(const T* in, T* out) {
  using namespace vae_fast;
  const T v = in[0], e = vae_fast::exp(v);
  out[0] = vae_fast::log(e), out[1] = vae_fast::log1p(v), out[2] = exp_finite(v), out[3] = exp_nonpositive(-v);
  out[4] = expm1_minus(v, e), out[5] = square_root(magnitude(v)), out[6] = decay_deficit(e), out[7] = nearest(v);
}
"""


def accumulators(header: str) -> list[str]:
    return ACCUMULATOR.findall((CSRC / header).read_text())


def needs(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")


def compiles(source: Path, *command: str) -> None:
    done = subprocess.run([*command, *INCLUDED, str(source)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def device_code(header: str, kind: str) -> str:
    """Kernels of `kind`, float or double, that use what the header defines."""
    kernels = [
        f"run<vae_fast::{name}<{kind}, 2>, {kind}>(const {kind}*, const {kind}*, {kind}*)"
        for name in accumulators(header)
    ]
    code = KERNELS
    if header == "philox.h":
        code += NOISE.format(kind="__global__")
        kernels += [f"noise<{word}, {kind}>(uint64_t, {kind}*)" for word in ("uint32_t", "uint64_t")]
    if header == "math.h":
        code += ELEMENTS
        kernels.append(f"elements<{kind}>(const {kind}*, {kind}*)")
    code += "".join(f"template __global__ void {kernel};\n" for kernel in kernels)
    return f'#include "{header}"\n#include <type_traits>\n{code}'


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_every_likelihood_is_registered_with_accumulators_that_are_found(folder):
    sources = [path.read_text() for path in (CSRC / folder / "likelihoods").iterdir()]
    registered = re.findall(r"VAE_FAST_(LIKELIHOOD|JOINT)\((\w+), (\w+), (\w+)\)", "".join(sources))
    found = {name for header in HEADERS for name in accumulators(header)}
    assert {name for _, name, *_ in registered} == set(LIKELIHOODS)
    assert {name for kind, _, *pair in registered if kind == "LIKELIHOOD" for name in pair} <= found


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("header", HEADERS)
def test_alone_on_the_host(header, compiler, tmp_path):
    """Twice over, with every member of its accumulators."""
    needs(compiler)
    lines = [f'#include "{header}"'] * 2
    for name in accumulators(header):
        lines += [f"template struct vae_fast::{name}<{kind}>;" for kind in ("float, 16", "double, 16", "float, 1")]
    if header == "philox.h":
        lines.append(NOISE.format(kind=""))
        lines += [
            f"template void noise<uint{bits}_t>(uint64_t, {t}*);" for bits in (32, 64) for t in ("float", "double")
        ]
    source = tmp_path / "alone.cpp"
    source.write_text("\n".join([*lines, ""]))
    compiles(source, compiler, "-std=c++17", *WARNINGS, "-fsyntax-only")


@pytest.mark.parametrize("header", HEADERS)
def test_alone_on_the_device(header, tmp_path):
    """Code for float computes nothing in double, which most GPUs do 64 times slower."""
    needs("nvcc")
    needs("g++")  # nvcc calls it
    for kind in ("float", "double"):
        source, ptx = tmp_path / f"{kind}.cu", tmp_path / f"{kind}.ptx"
        source.write_text(device_code(header, kind))
        flags = ("-std=c++17", "-arch=compute_80", "--ptx", "-Werror", "all-warnings", "-o", str(ptx))
        compiles(source, "nvcc", *flags)
        assert ptx.read_text().count(".entry") == source.read_text().count("template __global__")
        assert kind == "double" or ".f64" not in ptx.read_text()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize("flags", ["", "-march=nocona -mtune=haswell", "-march=haswell", "-march=native"])
def test_words_for_any_processor(flags, tmp_path):
    """CXXFLAGS may name a processor, as conda's do: instructions are then chosen among all the same."""
    needs("g++")
    source, target = tmp_path / "words.cpp", tmp_path / "words.o"
    source.write_text(
        '#include "cpu/words.h"\n'
        "void fill(uint64_t seed, vae_fast::Words& words) {\n"
        "  vae_fast::random_words(vae_fast::PhiloxKeys<uint64_t>(seed), 0, 16, words, vae_fast::Fetched());\n"
        "}\n"
    )
    version = "-DTORCH_TARGET_VERSION=0x020b000000000000"
    compiles(source, "g++", "-std=c++17", "-O3", version, *flags.split(), "-c", "-o", str(target))
