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
LABEL = "bernoulli, bf16, x uint8"


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
    assert backward.read == pytest.approx(3, abs=1e-5) and backward.written == 2
    assert forward.kind.endswith("reduction") and backward.kind == "pointwise"
    assert program.launches == 3 and program.library_calls == 0  # the third averages over the rows
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
    assert forward.mufu == pytest.approx(1 / kernel(program, False).variants[0].useful)
    assert forward.instructions > backward.instructions > 10
    total = compiled.program_cost(program)
    assert total.picoseconds == pytest.approx(forward.picoseconds + backward.picoseconds, rel=0.01)
    assert total.launches == 3


def test_a_row_of_the_table(program: Program) -> None:
    """With torch.compile's backward in the place of ours."""
    theirs = kernel(program, True)
    binary = SimpleNamespace(asm={"cubin": theirs.variants[0].cubin}, metadata=SimpleNamespace(shared=0))
    launch = compiled.Launch(LABEL, dict.fromkeys(sass.ARCHITECTURES, binary), read=3, moved=5)
    figures = compiled.our_figures(LABEL, [launch, launch])
    assert figures[90].moved == 10 and figures[90].launches == 2
    row = compiled.row(LABEL, figures, compiled.their_figures({arch: program for arch in figures}))
    assert len(row) == len(compiled.HEADER)
    assert row[1:5] == ["10.00", "8.01", "2", "3"]
    without = compiled.row(LABEL, compiled.our_figures("nothing", [launch]), compiled.their_figures({90: program}))
    assert without[1] == without[-1] == ""


def test_this_process_is_left_alone(program: Program) -> None:
    assert torch.cuda.is_available.__module__ == "torch.cuda"
    assert torch.cuda.get_device_properties.__module__ == "torch.cuda"
