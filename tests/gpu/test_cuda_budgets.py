"""What the CUDA C++ kernels may cost, counted in the machine code of the library as it was built: the bars of
test_budgets.py, but where nvcc packs no pairs of float32 operations for sm_100 as Triton's compiler does."""

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import sass
import test_budgets
import torch
from cuda_launches import emulated

import vae_fast
from vae_fast.ops.library import build_record

LIBRARY = Path(vae_fast.__file__).with_name("_C_cuda.so")
ARCHITECTURES = [80, 90, 100]
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")

pytestmark = [
    pytest.mark.skipif(sass.cuobjdump() is None, reason="there is no cuobjdump"),
    pytest.mark.skipif(not LIBRARY.exists(), reason=f"not built: {build_record().get('skipped', {}).get('cuda')}"),
]

# test_budgets.py's names: the kernel here, instructions on sm_80, 90, 100, and MUFU where there are more. Those of
# counts include both sides of their branches: logarithms or not, x = 0 or not. One of Bernoulli's with a gradient keeps
# the digits of small gradients.
BARS = {
    "Bernoulli, bfloat16 and bytes": ("objective<Bernoulli, BFloat16, Intensity, 1, 1>", (18, 18, 18)),
    "Bernoulli, float32": ("objective<Bernoulli, float, float, 1, 1>", (15.25, 15.25, 15.25)),
    "Bernoulli, float32 and bytes": ("objective<Bernoulli, float, Intensity, 1, 1>", (17.5, 17.5, 17.5)),
    "Bernoulli without gradient": ("objective<Bernoulli, BFloat16, Intensity, 0, 1>", (11, 11, 11)),
    "Gaussian, fixed": ("objective<GaussianShared, BFloat16, BFloat16, 1, 2>", (8, 8, 8)),
    "Gaussian, log-variance": ("objective<Gaussian, BFloat16, BFloat16, 3, 2>", (17, 17, 17)),
    "Laplace": ("objective<Laplace, BFloat16, BFloat16, 3, 2>", (17.75, 17.75, 17.75)),
    "Laplace, fixed": ("objective<LaplaceShared, BFloat16, BFloat16, 1, 2>", (8.75, 8.75, 8.75)),
    "continuous Bernoulli, bfloat16 and bytes": (
        "objective<ContinuousBernoulli, BFloat16, Intensity, 1, 1>", (36.5, 36.5, 36.5),
    ),
    "continuous Bernoulli, float32": ("objective<ContinuousBernoulli, float, float, 1, 1>", (33, 33, 33)),
    "discretised logistic, bfloat16 and bytes": (
        "objective<DiscretizedLogistic, BFloat16, unsigned char, 3, 2>", (97, 97, 97),
    ),
    "discretised logistic, float32": ("objective<DiscretizedLogistic, float, float, 3, 2>", (92.5, 92.5, 92.5)),
    "Poisson": ("objective<Poisson, float, float, 1, 1>", (96, 96, 96), 4),
    "negative binomial": ("objective<NegativeBinomial, float, float, 7, 3>", (214, 214, 214.5), 11),
    "negative binomial, one theta a feature": (
        "objective<NegativeBinomial, float, float, 23, 3>",
        (213, 213, 215),
        11,
    ),
    "zero-inflated negative binomial": (
        "objective<ZeroInflatedNegativeBinomial, float, float, 15, 4>",
        (286, 286, 287),
        16,
    ),
    "zero-inflated negative binomial, one theta a feature": (
        "objective<ZeroInflatedNegativeBinomial, float, float, 47, 4>",
        (286, 286, 287),
        16,
    ),
    "reparameterize": ("sample<StandardKl, BFloat16, false, false>", (24.5, 24.5, 24.5)),
    "sample_kl": ("sample<StandardKl, BFloat16, false, true>", (38, 38, 38)),
    "sample_kl backward": ("sample<StandardKl, BFloat16, true, true>", (32.5, 32.5, 32.5)),
}  # fmt: skip


def demangled(names):
    found = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [re.sub(r"(vae_fast|c10)::", "", name).removeprefix("void ") for name in found.splitlines()]


@cache
def kernels(cc):
    """{name: (mangled name, cubin)} of the library's kernels for one architecture."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        sass.run_cuobjdump("-xelf", f"sm_{cc}", LIBRARY, folder=folder)
        for path in Path(folder).glob(f"*.sm_{cc}.cubin"):
            mangled = [match[1] for match in USAGE.finditer(sass.run_cuobjdump("-res-usage", path))]
            cubin = path.read_bytes()
            names = [name.partition("(")[0] for name in demangled(mangled)]
            found |= {name: (of, cubin) for name, of in zip(names, mangled, strict=True)}
    return found


@cache
def loop(name, cc):
    """The first of a kernel's loops by vectors; the other is the latent's."""
    mangled, cubin = kernels(cc)[BARS[name][0]]
    loops = sass.count(cubin, mangled).loops
    return next(body for body in loops if body.nested == 0 and ("LDG", 128) in body.accesses)


@pytest.mark.parametrize("cc", ARCHITECTURES)
@pytest.mark.parametrize("name", BARS)
def test_the_loop(name, cc):
    if str(cc) not in build_record()["architectures"]:
        pytest.skip(f"the library was not built for sm_{cc}")
    _, read, widths, _, mufu = test_budgets.BARS[name]
    mufu = max(mufu, *BARS[name][2:], 0)
    body = loop(name, cc)
    per_element = body.per_element(body.elements(read))
    assert per_element.instructions <= BARS[name][1][ARCHITECTURES.index(cc)]
    assert per_element.mufu <= mufu
    assert per_element.fp64 == 0
    if name == "Bernoulli, bfloat16 and bytes":
        assert per_element.conversions == 0
    assert body.shared_accesses == 0
    if "discretised" not in name:  # of whose elements Triton's threads take fewer at once
        assert {bits for (kind, bits) in body.accesses if kind in ("LDG", "STG")} == widths


@pytest.mark.parametrize("cc", ARCHITECTURES)
def test_the_passes_over_components(cc):
    """Of a mixture's component: its bins, its share's weight, its share; then ten planes in and out of shared memory.

    A component's 80 bytes pay for 770, 710 and 350 instructions on an A100, H100 and B200, of them 96, 89 and 44 on the
    slow unit. So memory binds where a pixel's planes lie apart, issue by a tenth where they are neighbours; on a B200
    issue."""
    if str(cc) not in build_record()["architectures"]:
        pytest.skip(f"the library was not built for sm_{cc}")
    mangled, cubin = kernels(cc)["joint_objective<LogisticMixtureOfColours, float, true, false>"]
    counted = sass.count(cubin, mangled)
    passes = [body.counts for body in counted.loops if body.nested == 0 and body.shared_accesses]
    for mufu, instructions in ((18, 365), (3, 30)):
        assert {c.mufu == mufu and c.instructions <= instructions for c in passes if c.mufu == mufu} == {True}
    moved = [
        b for b in counted.loops if b.nested == 0 and {k for k, _ in b.accesses} & {"LDG", "STG"} and b.shared_accesses
    ]
    planes = [body.counts.instructions / body.shared_accesses for body in moved]
    assert len(planes) >= 4 and max(planes) <= 21 and sorted(planes)[len(planes) // 2 - 1] <= 11
    assert counted.spills == 0


@pytest.mark.parametrize("cc", [int(cc) for cc in build_record().get("architectures", ())])
def test_no_kernel_has_local_memory(cc):
    """No spills, no arrays that leave the registers: in any kernel, for any architecture."""
    with tempfile.TemporaryDirectory() as folder:
        sass.run_cuobjdump("-xelf", f"sm_{cc}", LIBRARY, folder=folder)
        paths = list(Path(folder).glob(f"*.sm_{cc}.cubin"))
        usage = [match for path in paths for match in USAGE.finditer(sass.run_cuobjdump("-res-usage", path))]
    assert len(usage) > 90
    assert [(match[1], match[0]) for match in usage if int(match[3]) or int(match[5])] == []
    assert max(int(match[2]) for match in usage) <= 128


def test_the_whole_bernoulli_kernel():
    """784 pixels, with what runs once a row: the PTX that a thread executes there is the most that SASS can be."""
    executed = {}
    for width in (784, 1040):  # 13 and 17 turns of a team of eight threads
        logits, x = torch.randn(8192, width, dtype=torch.bfloat16), torch.zeros(8192, width, dtype=torch.uint8)
        with emulated(90) as launches:
            torch.ops.vae_fast.bernoulli_nll(logits, x, None, None, 1)
        executed[width] = launches[0].stats.instructions / (8192 * 8)
    a_column = (executed[1040] - executed[784]) / (1040 - 784) * 8
    once = executed[784] - a_column * 784 / 8
    body = loop("Bernoulli, bfloat16 and bytes", 90)
    turns = 13 / (784 / 64)  # the last is a quarter full
    assert turns * body.per_element(body.elements(3)).instructions + once / (784 / 8) <= 22
