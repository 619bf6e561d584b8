"""Host code that nvcc compiled, and its launches in the emulator: the operators of toy_kernels.cu, and their errors."""

from pathlib import Path

import cuda_launches
import pytest
import torch
from cuda_launches import Library, address, emulated, recorded
from ptx_emulator import EmulatorError, MemoryFault

pytestmark = pytest.mark.skipif(cuda_launches.unavailable() is not None, reason=str(cuda_launches.unavailable()))
B, D = 5, 37


@pytest.fixture(scope="module")
def toy():
    return Library([Path(__file__).with_name("toy_kernels.cu")], "vae_fast_toy")


@pytest.fixture
def x():
    """Rows of a wider matrix, with a column before and some after them."""
    return torch.randn(B, D + 5).bfloat16()[:, 1 : D + 1]


def exponentials(x, *arguments):
    return torch.ops.vae_fast_toy.exponentials(x, *arguments)


def count(words, n):
    torch.ops.vae_fast_toy.count(words, n)


@pytest.mark.parametrize("threads", [32, 128])
def test_numbers_and_launches(toy, x, threads):
    with emulated(of=toy, racecheck=True) as launches:
        y, sums = exponentials(x, 0.5, 0, threads)
    expected = 0.5 * torch.exp2(x.double())
    assert ((y.double() - expected).abs() <= 2**-8 * expected).all()
    torch.testing.assert_close(sums, expected.sum(1).float())
    (launch,) = launches
    assert launch.name.startswith(f"void (anonymous namespace)::exponentials<{threads}>(")
    assert (launch.grid, launch.block, launch.dynamic_shared) == ((B, 1, 1), (threads, 1, 1), threads // 8)
    assert launch.stats.traffic[address(x)] == (2 * B * D, 0)
    assert launch.stats.traffic[address(y)] == (0, 2 * B * D)


def test_recorded_launches_do_not_run(toy, x):
    with recorded(of=toy, cc=80, multiprocessors=7) as launches:
        assert all(output.isnan().all() for output in exponentials(x))
        count(words := torch.ones(40, 4, dtype=torch.int32), 3)
    assert [launch.block[0] for launch in launches] == [128, 7]
    assert launches[1].arguments == [address(words).to_bytes(8, "little"), (3).to_bytes(4, "little")]
    assert launches[0].stats is None
    assert not words.any()  # the host's memset is no launch


def test_the_device_as_it_was_asked_for(toy):
    words = torch.ones(40, 4, dtype=torch.int32)
    with emulated(of=toy, multiprocessors=9):
        count(words, 20)
    assert words[:, 1].tolist() == [*range(9), *[0] * 31]
    assert not words[:, ::2].any()


def test_one_element_too_many(toy, x):
    with emulated(of=toy) as launches:
        with pytest.raises(MemoryFault, match=r"2-byte load outside every global buffer: .*toy_kernels\.cu"):
            exponentials(x, 1.0, 1)
        with pytest.raises(MemoryFault, match="16-byte store outside"):
            count(torch.ones(40, 4, dtype=torch.int32)[:12], 13)
        assert not launches
        exponentials(x)  # the error is over
    assert len(launches) == 1


def test_a_pointer_means_nothing_after_its_operator(toy, x):
    with recorded(of=toy) as launches:
        y, _ = exponentials(x)
    (launch,) = launches
    with pytest.raises(MemoryFault, match=f"{address(x):#x}"):
        cuda_launches.execute(launch, {address(y): y.view(torch.uint8)})


def test_what_a_gpu_would_not_launch(toy, x):
    with emulated(of=toy):
        with pytest.raises(RuntimeError, match=r"cudaErrorInvalidConfiguration at .*toy_kernels\.cu"):
            exponentials(x, 1.0, 0, 2048)
        with pytest.raises(RuntimeError, match="cudaErrorInvalidConfiguration"):
            exponentials(x[:0])
        with pytest.raises(EmulatorError, match="takes at most 128 threads"):
            exponentials(x, 1.0, 0, 256)


def test_an_error_of_the_one_who_looks_on(toy, x):
    def receive(launch, memory):
        raise KeyboardInterrupt

    with toy.serving_cpu(receive, cc=90, multiprocessors=132), pytest.raises(KeyboardInterrupt):
        exponentials(x)


def test_outside_the_operators_are_those_of_the_cpu(toy, x):
    with emulated(of=toy):
        exponentials(x)
    with pytest.raises(NotImplementedError, match="'CPU' backend"):
        exponentials(x)


def test_a_second_build_is_the_first(toy):
    source = Path(__file__).with_name("toy_kernels.cu")
    assert cuda_launches.linked([source]) == cuda_launches.linked([source])
