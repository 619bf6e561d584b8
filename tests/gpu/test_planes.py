"""Joint likelihoods on GPUs, in Triton and in CUDA C++, executed in the emulator: numbers, bytes, accesses."""

from contextlib import contextmanager

import cuda_launches
import joint_cases as cases
import launches
import pytest
import sass
import torch
from joint_cases import BF16, CASES, F16, F32
from ptx_emulator import never_written

pytestmark = pytest.mark.filterwarnings("ignore:vae_fast. the plain PyTorch reference runs on cpu")  # in float64
NO_NVCC = cuda_launches.unavailable()
TRITON = [pytest.param(("triton", cc), id=f"triton sm_{cc}") for cc in (80, 90, 100)]
CUDA = pytest.param(("cuda", 90), id="cuda", marks=pytest.mark.skipif(NO_NVCC is not None, reason=str(NO_NVCC)))
LAYOUTS = pytest.mark.parametrize("last", [False, True], ids=["planes", "channels last"])
ONE_OF_EACH = pytest.mark.parametrize("backend", [TRITON[1], CUDA])


@contextmanager
def on(backend, **emulation):
    """(operators, launches) of a backend."""
    kind, cc = backend
    if kind == "triton":
        with launches.emulated(cc, **emulation) as made:
            yield launches.OPERATORS, made
    else:
        with cuda_launches.emulated(cc, **emulation) as made:
            yield torch.ops.vae_fast, made


@pytest.mark.parametrize("backend", [*TRITON, CUDA])
@LAYOUTS
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_numbers(name, dtype, last, backend, poisoned):
    if backend[0] == "triton" and dtype != {80: F16, 90: F32, 100: BF16}[backend[1]]:
        pytest.skip("another architecture's")
    with on(backend, racecheck=True) as (operators, made):
        CASES[name](dtype, last).check(operators)
    for launch in made:
        if backend[0] == "cuda":
            assert never_written(launch.ptx, launch.kernel) == []


@ONE_OF_EACH
@LAYOUTS
@pytest.mark.parametrize("name", ["categorical", "categorical, few, one a row", "mixture", "mixture, one pixel a row"])
def test_what_is_masked_or_of_weight_zero_is_not_used(name, last, backend, poisoned):
    case = cases.selected(CASES[name](F32, last))
    with on(backend) as (operators, _):
        value, gradient = case.check(operators)
    assert value.isfinite().all() and gradient.isfinite().all()


@ONE_OF_EACH
@pytest.mark.parametrize("options", [{}, {"prior": True, "reduce": False}, {"factor": 0.5}, {"factor": 0.0}], ids=str)
@pytest.mark.parametrize("name", ["categorical", "categorical, few, one a row", "mixture"])
def test_elbo(name, options, backend, poisoned):
    with on(backend) as (operators, _):
        cases.elbo(CASES[name](F32, True), **options).check(operators)
        if options:
            cases.elbo(cases.selected(CASES[name](F32, False)), **options).check(operators)


@ONE_OF_EACH
def test_as_many_classes_as_shared_memory_holds(backend):
    with on(backend) as (operators, made):
        for classes in (6144, 12272):
            cases.categorical(1, 1, F32, True, classes).check(operators)
    assert len(made) == 2


@ONE_OF_EACH
@LAYOUTS
def test_a_class_that_is_not_there_gives_nan(last, backend):
    for classes, width in ((7, 40), (1000, 1)):
        case = cases.categorical(3, width, F32, last, classes)
        case.arguments[1][1, width - 1], case.arguments[1][2, 0] = classes, -1
        with on(backend) as (operators, _):
            value, gradient = case.check(operators)
        assert value.isnan().tolist() == [False, True, True]
        assert gradient[1, :, width - 1].isnan().all() and not gradient[0].isnan().any()


@ONE_OF_EACH
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: cases.mixture(2, 512, dtype),
        lambda dtype: cases.mixture(2, 512, dtype, True),
        lambda dtype: cases.categorical(2, 512, dtype, False, 32),
        lambda dtype: cases.categorical(2, 512, dtype, True, 64),
        lambda dtype: cases.categorical(32, 1, dtype, True, 1024),
    ],
    ids=["mixture", "mixture, channels last", "planes of classes", "classes last", "one a row"],
)
def test_each_parameter_is_read_once_and_each_gradient_written_once(make, dtype, backend, request):
    case = make(dtype)
    with on(backend) as (operators, made):
        outputs = case.run(operators)
    launch = made[0]
    size = case.parameters.numel() * case.parameters.element_size()
    if backend[0] == "triton":
        place = next(k for k, a in enumerate(launch.runtime) if isinstance(a, torch.Tensor) and a is case.parameters)
        traffic = launch.stats.traffic[place]
    else:
        traffic = launch.stats.traffic[cuda_launches.address(case.parameters)]
    assert traffic.loaded == size
    written = launch.stats.bytes["st"] - size
    assert 0 <= written <= 0.01 * size  # values
    # Triton's tiles of 10 components take a sector's elements in several accesses where pixels lie apart
    if backend[0] == "cuda" or "channels last" not in request.node.name:
        assert launch.stats.coalescing("st") >= 0.95
    assert len(outputs) == 2


@pytest.mark.skipif(sass.cuobjdump() is None, reason="there is no cuobjdump")
@pytest.mark.parametrize("cc", [80, 90, 100])
@LAYOUTS
def test_what_a_component_costs_in_triton(last, cc):
    """A thread has one component of a pixel: three bins, in a tile of 16 for 10. Its 80 bytes pay for 770, 710 and 350
    instructions on an A100, H100 and B200 (sass.ARCHITECTURES), of them 96, 89 and 44 on the slow unit: on an H100
    memory and the issue of instructions take about as long, with the idle sixths; on a B200 the issue binds."""
    case = cases.mixture(16, 1024, F32, last)
    with launches.recorded() as made:
        case.run(launches.OPERATORS)
    counted = sass.count(made[0].compile(cc)[0])
    assert counted.whole.counts.instructions <= 740 and counted.whole.counts.mufu <= 23
    assert counted.spills == 0 and counted.registers <= 96
