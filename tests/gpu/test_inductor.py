"""torch.compile's kernels, generated and counted without a GPU, by `benchmarks/inductor.py` and `compiled.py`."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sass
import torch

triton = pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import compiled  # noqa: E402
from inductor import Kernel, Program, compile_for  # noqa: E402

pytestmark = [
    pytest.mark.skipif(sass.cuobjdump() is None, reason="no cuobjdump"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="Triton interprets its kernels"),
]
LABEL = "bernoulli_nll, bf16, x uint8"


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_for(*compiled.FUNCTIONS[LABEL], 90)


def kernel(program: Program, backward: bool) -> Kernel:
    """The one that goes through all elements."""
    (found,) = (k for k in program.kernels if k.backward == backward and k.elements == program.elements)
    return found


def test_bytes_and_launches(program: Program) -> None:
    assert program.elements == compiled.ROWS * compiled.PIXELS
    forward, backward = kernel(program, False), kernel(program, True)
    assert forward.read == 3 and forward.written == pytest.approx(4 / compiled.PIXELS)  # a float32 each row
    assert backward.read == pytest.approx(3 + 4 / compiled.PIXELS) and backward.written == 2
    assert forward.kind.endswith("reduction") and backward.kind == "pointwise"
    assert program.launches == 2 and program.library_calls == 0
    assert program.moved == pytest.approx(8, abs=0.02)


def test_every_variant_is_compiled(program: Program) -> None:
    for kernel in program.kernels:
        assert f"def {kernel.name}(" in kernel.source
        assert kernel.variants
        for variant in kernel.variants:
            assert sass.count(variant.cubin).arch == 90
            assert 0.5 < variant.useful <= 1 and variant.tile % 32 == 0 and variant.trips >= 1


def test_instructions(program: Program) -> None:
    """One exponential and a logarithm without MUFU forward, exponential and reciprocal backward."""
    backward = compiled.kernel_cost(program, kernel(program, True))
    forward = compiled.kernel_cost(program, kernel(program, False))
    assert backward.mufu == 2
    assert forward.mufu >= 1 / kernel(program, False).variants[0].useful
    assert forward.instructions > backward.instructions > 10
    assert compiled.program_cost(program) == forward + backward


def test_all_of_a_kernel_counts(program: Program) -> None:
    """A loop's instructions as often as it turns, the others once; in both programs the same."""
    forward = kernel(program, False)
    variant = forward.variants[0]
    code = compiled.counted(variant.cubin)
    threads = 32 * variant.warps * forward.elements / (variant.tile * variant.useful * variant.trips)
    of_theirs = compiled.instructions(program, forward, variant)
    turns = variant.trips / compiled.tiles(code.body, forward.read, variant) if code.body.is_loop else 1
    once = code.whole.counts.instructions - code.body.counts.instructions if code.body.is_loop else 0
    per_thread = once + turns * code.body.counts.instructions
    assert of_theirs.instructions == pytest.approx(per_thread * threads / program.elements)
    binary = SimpleNamespace(asm={"cubin": variant.cubin}, metadata=SimpleNamespace(shared=0))
    mine = compiled.Launch(
        LABEL, lambda arch: binary, 3, program.elements / threads, looped=turns * code.body.bytes_loaded
    )
    assert compiled.launch_cost(90, mine).instructions == pytest.approx(of_theirs.instructions)


# Bytes of an element: what is read and written once; of a row, with its latents; and launches, PyTorch's among them
IDEAL = {
    "elbo_bernoulli, bf16, x uint8": (2 + 1 + 2, 8 * 64 + 8, 3),
    "elbo_bernoulli, fp32": (4 + 4 + 4, 16 * 64 + 8, 3),
    "elbo_gaussian, bf16": (2 + 2 + 2, 8 * 64 + 8, 4),
    "elbo_gaussian, bf16, log-variance": (2 + 2 + 2 + 2 + 2, 8 * 64 + 8, 3),
    "bernoulli_nll, bf16, x uint8": (2 + 1 + 2 + 2 * 2, 4 + 4, 2),  # the gradient is scaled in place
    "bernoulli_nll, bf16, x uint8, no_grad": (2 + 1, 4, 1),
    "sample_kl, bf16": (2 + 2 + 2 + 2 * 5, 4 + 4, 3),
}


def test_ours_move_the_ideal_bytes() -> None:
    assert IDEAL.keys() == compiled.FUNCTIONS.keys()
    launches = compiled.ours()
    for label, (each, of_row, number) in IDEAL.items():
        mine = [launch for launch in launches if launch.label == label]
        width = compiled.FUNCTIONS[label][1][0].shape[1]
        assert sum(launch.moved for launch in mine) == pytest.approx(each + of_row / width, abs=0.002), label
        assert sum(launch.launches for launch in mine) == number


def test_a_row_of_the_table(program: Program) -> None:
    """With torch.compile's backward in the place of ours."""
    theirs = kernel(program, True)
    binary = SimpleNamespace(asm={"cubin": theirs.variants[0].cubin}, metadata=SimpleNamespace(shared=0))
    launch = compiled.Launch(LABEL, lambda arch: binary, moved=5, per_thread=4)
    figures = compiled.our_figures(LABEL, [launch, launch])
    assert figures[90].moved == 10 and figures[90].launches == 2
    row = compiled.row(LABEL, figures, compiled.their_figures({arch: program for arch in figures}))
    assert len(row) == len(compiled.HEADER)
    assert row[1:5] == ["10.00", "8.01", "2", "2"]
    without = compiled.row(LABEL, compiled.our_figures("nothing", [launch]), compiled.their_figures({90: program}))
    assert without[1] == without[-1] == ""


def test_this_process_is_left_alone(program: Program) -> None:
    assert torch.cuda.is_available.__module__ == "torch.cuda"
    assert torch.cuda.get_device_properties.__module__ == "torch.cuda"
