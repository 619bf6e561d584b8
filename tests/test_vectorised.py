"""The compiled loops use vectors: one branch too many in an element function makes them 20 times slower."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import vae_fast

LIBRARY = Path(vae_fast.__file__).parent / "_C_cpu.so"
STORED = {  # those that have code of their own for bfloat16 and bytes
    **{"Bernoulli": 1, "BernoulliProbs": 1, "Gaussian": 2, "Laplace": 2},
    **{"ContinuousBernoulli": 1, "DiscretizedLogistic": 2},
}
# By processor: vectors of sixteen floats, and the instructions that widen what is stored as something else
ZMM = (1, {"vpmovzxbd": r"Intensity|unsigned char", "vpmovzxwd": "c10::BFloat16", "vptestmb": "Truth"})
YMM = (2, {"vpmovzxbd": r"Intensity|unsigned char|Truth", "vpmovzxwd": "c10::BFloat16", "vpcmpgtd": "Truth"})
WIDENED = {"Avx512": ZMM, "Avx512Bf16": ZMM, "Avx2": YMM}
ROUNDS = {"Avx512": "vpmovdw", "Avx512Bf16": "vcvtneps2bf16", "Avx2": "vpackusdw"}
# With gradients and without, by dtypes of parameters and x; where rounding is by an instruction, bfloat16's gradients
KINDS = {"Avx512": 2 * 6, "Avx512Bf16": 4, "Avx2": 2 * 6}
IN_PARTS = ("DiscretizedLogistic",)
FOR_AVX2 = ("Bernoulli", "Gaussian", "Laplace", "GaussianShared", "LaplaceShared", *IN_PARTS)  # those that have it, too
PARAMETERS = {**STORED, "Poisson": 1, "NegativeBinomial": 3, "ZeroInflatedNegativeBinomial": 4}
RUNS = ("run_block", "run_wide_block")  # by planes
# Loops by lanes, with how many scalar operations they may have beside half the packed ones; of a row's, by how many
# gradients they have
BY_LANES = {
    **{f"run_block<vae_fast::{name}, float, {n}, {n}>": 0 for name, n in PARAMETERS.items()},
    **{f"run_block<vae_fast::{name}, float, 0, {n}>": 0 for name, n in PARAMETERS.items()},
    "run_block<vae_fast::StandardKl, float, 2, 2>": 0,
    "run_block<vae_fast::GaussianKl, float, 4, 4>": 0,
    "run_block<vae_fast::LogRatio, float, 5, 5>": 0,
    # One exponential a row; and the last lanes of Gaussian's
    "run_block<vae_fast::GaussianShared, float, 2, 2>": 30,
    "run_block<vae_fast::GaussianShared, float, 1, 2>": 40,
    "run_block<vae_fast::LaplaceShared, float, 2, 2>": 30,
    "run_block<vae_fast::LaplaceShared, float, 1, 2>": 30,
    **{f"{run}<vae_fast::LogisticMixtureOf{x}, float, true": 0 for run in RUNS for x in ("Colours", "Greys")},
    # Sums of lanes
    **{f"{run}<vae_fast::Categorical, float, {asked}": 50 for run in RUNS for asked in ("true", "false")},
}
FEWEST = {"run_block<vae_fast::LaplaceShared, float, 1, 2>": 9}  # packed operations; of all others ten
# Loops that compilers follow by a scalar one, for the rest
FLAT = [
    "make_normals<float>",
    "sample<float, 4",  # one code for 2 and 4: neither reads a prior
    "sample_gradients<vae_fast::StandardKl<float, 1>, true",
    "sample_with_terms<vae_fast::StandardKl<float, 1>",
    "sample_with_terms<vae_fast::GaussianKl<float, 1>",
]
OPERATION = r"\tv(?:fn?m(?:add|sub)\w+|mul|add|sub)"


@pytest.fixture(scope="module")
def functions():
    """name -> instructions of each function of the library built for AVX-512, and of what is stored for AVX2."""
    objdump = shutil.which("objdump")
    if objdump is None or not LIBRARY.exists():
        pytest.skip("needs objdump and the compiled library")
    command = [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", str(LIBRARY)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    blocks = re.split(r"\n[0-9a-f]+ <(.+)>:\n", listing)[1:]
    clones = {
        name: code
        for name, code in zip(blocks[::2], blocks[1::2], strict=True)
        if re.search(r"x86_64_v4|\.avx512f|_wide_|::(Avx512|Avx512Bf16|Avx2)::run<", name)
    }
    if not clones:
        pytest.skip("this library was not built for x86-64-v4")
    return clones


def operations(functions, loop):
    """(packed, scalar) float operations of the functions that the loop's name fits."""
    codes = [code for name, code in functions.items() if loop in name]
    assert codes
    return tuple(sum(len(re.findall(OPERATION + kind, code)) for code in codes) for kind in (r"ps\s.*%[yz]mm", r"ss\s"))


@pytest.mark.parametrize("loop", BY_LANES)
def test_loops_by_lanes(functions, loop):
    packed, scalar = operations(functions, loop)
    assert packed >= FEWEST.get(loop, 10) and scalar <= packed // 2 + BY_LANES[loop]


@pytest.mark.parametrize("processor", WIDENED)
@pytest.mark.parametrize("name", [*STORED, "GaussianShared", "LaplaceShared"])
def test_stored_numbers_are_widened_and_rounded_in_registers(functions, name, processor):
    """Sixteen at a time: in the loop, in the one between questions to memory and in that of the last lanes; of steps in
    parts, which always ask memory, in the latter two, and x in the first part alone."""
    named = f"{processor}::run<vae_fast::StoredBlock<vae_fast::{name}, "
    codes = {function: code for function, code in functions.items() if named in function}
    assert len(codes) == (KINDS[processor] if processor != "Avx2" or name in FOR_AVX2 else 0)
    vectors, by_dtype = WIDENED[processor]
    register = "zmm" if vectors == 1 else "ymm"
    for function, code in codes.items():
        halves = "c10::BFloat16" in function
        for instruction, dtype in by_dtype.items():
            places = 2 if name in IN_PARTS and dtype != "c10::BFloat16" else 3
            assert code.count(f"\t{instruction} ") >= places * vectors * bool(re.search(dtype, function))
        assert processor == "Avx512Bf16" or not re.search(r"\tv\w*bf16", code)
        assert code.count(f"\t{ROUNDS[processor]} ") >= 3 * (halves and f"{name}, 0," not in function)
        packed, scalar = (len(re.findall(OPERATION + kind, code)) for kind in (rf"ps\s.*%{register}", r"ss\s"))
        assert packed >= 6 and scalar <= packed // 2 + 40  # an exponential of a shared scale; the last lanes' sums


@pytest.mark.parametrize("processor, rounds", ROUNDS.items())
def test_stored_gradients_are_scaled_in_registers(functions, processor, rounds):
    [code] = [code for function, code in functions.items() if f"ScaleStored<vae_fast::{processor}>" in function]
    assert all(instruction in code for instruction in ("vpmovzxwd", rounds)) and "mulss" not in code


@pytest.mark.parametrize("loop", FLAT)
def test_flat_loops(functions, loop):
    packed, scalar = operations(functions, loop)
    assert packed >= 20 and scalar <= 5 * packed


def test_words_are_made_by_the_short_multiplication(functions):
    """Of 32 x 32 -> 64 bits: the full one of 64-bit lanes takes longer, without AVX-512 3.5 times as long."""
    codes = [code for name, code in functions.items() if "random_words" in name]
    assert codes and all(re.search(r"\tvpmuludq\s.*%zmm", code) and "vpmullq" not in code for code in codes)


@pytest.mark.parametrize(
    "loop", ["Categorical, float, true", "LogisticMixtureOfColours, float, true", "Gaussian, float, 2"]
)
def test_memory_is_asked_for_what_comes_next(functions, loop):
    """GCC leaves out the call of a function that does nothing else, unless it is inlined at once."""
    hint = "prefetcht0" if loop.startswith("Gaussian") else "prefetcht1"
    codes = [code for name, code in functions.items() if f"block<vae_fast::{loop}" in name]
    assert codes and all(hint in code for code in codes)


@pytest.mark.parametrize("name", ["Categorical", "LogisticMixtureOfColours"])
def test_sixteen_observations_are_transposed_at_once(functions, name):
    """In long vectors, of their quarters."""
    [code] = [
        code for function, code in functions.items() if f"run_wide_block<vae_fast::{name}, float, true" in function
    ]
    for instruction in ("vshuff32x4", "vunpcklps", "vunpckhps"):
        assert len(re.findall(rf"\t{instruction}\s.*%zmm", code)) >= 4, instruction


@pytest.mark.parametrize(
    "name, processor", [(name, "Avx512") for name in STORED] + [(name, "Avx2") for name in FOR_AVX2 if name in STORED]
)
def test_large_gradients_are_streamed(functions, name, processor):
    """Between the steps, and not behind them: there they would all wait for memory at once."""
    loops = (
        f"run_block<vae_fast::{name}, float, {PARAMETERS[name]}",
        f"StoredBlock<vae_fast::{name}, {PARAMETERS[name]}, vae_fast::Stored<vae_fast::{processor}, float>",
    )
    codes = [code for function, code in functions.items() if any(loop in function for loop in loops)]
    assert len(codes) == 1 + 2 and all(len(re.findall(r"\tv?movntdq", code)) >= 8 for code in codes)
