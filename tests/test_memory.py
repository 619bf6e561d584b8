"""Where the results of the CPU kernels lie: large ones in memory that earlier ones have left."""

import copy
import ctypes
import io
import mmap
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import vae_fast

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE = 2**20  # bytes, from which on memory is kept
ROWS = 2048  # of 784 float32: 6 MiB

pytestmark = pytest.mark.skipif("cpp        cpu   available" not in vae_fast.report(), reason="no C++")


@pytest.fixture(autouse=True)
def nothing_kept():
    vae_fast.empty_cache()
    yield
    vae_fast.empty_cache()


def kept() -> int:
    return torch.ops.vae_fast_memory.cached_bytes()


def gradient(rows: int = ROWS, seed: int = 0, columns: int = 784) -> torch.Tensor:
    torch.manual_seed(seed)
    logits, x = torch.randn(rows, columns, requires_grad=True), torch.rand(rows, columns)
    vae_fast.bernoulli_nll(logits, x).sum().backward()
    return logits.grad


def expected(rows: int = ROWS, seed: int = 0, columns: int = 784) -> torch.Tensor:
    torch.manual_seed(seed)
    logits, x = torch.randn(rows, columns), torch.rand(rows, columns)
    return torch.sigmoid(logits) - x


def mapping_says(address: int, key: str) -> list[str]:
    """What /proc says under `key` of the mapping that an address is in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(mapping[1], 16) <= address < int(mapping[2], 16)
        elif inside and line.startswith(f"{key}:"):
            return line.split()[1:]
    return []


def huge_kilobytes(address: int) -> int:
    return int(mapping_says(address, "AnonHugePages")[0])


def huge_pages_left(size: int) -> bool:
    """Whether the system gives huge pages, enough for `size` bytes, to whoever asks."""
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.write(bytes(size))
        view = ctypes.c_char.from_buffer(memory)
        found = huge_kilobytes(ctypes.addressof(view) + size // 2)
        del view
    return found >= 0.9 * size / 1024


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="the system has no huge pages")
def test_large_gradients_come_in_huge_pages():
    """They ask for them, always; and get them, where one who asks just before and just after does."""
    refused = 0
    while refused < 5:
        vae_fast.empty_cache()
        before = huge_pages_left(64 * 2**20)
        found = gradient(16_384)  # 48 MiB, which the C library would map anew each time
        middle = found.data_ptr() + found.nbytes // 2
        assert "hg" in mapping_says(middle, "VmFlags")
        if huge_kilobytes(middle) >= 8 * 1024 or not before or not huge_pages_left(64 * 2**20):
            return
        refused += 1  # nobody is promised one: those left may have gone to others meanwhile
    pytest.fail(f"in {refused} times, no huge pages for a gradient, and some for a mapping of this test's")


def test_the_memory_of_a_dropped_result_serves_the_next():
    first = gradient()
    place, size = first.data_ptr(), first.nbytes
    assert kept() == 0 and place % 4096 == 0
    del first
    assert kept() == size
    again = gradient(seed=1)
    assert again.data_ptr() == place and kept() == 0
    torch.testing.assert_close(again, expected(seed=1))


@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted"])
def test_gradients_computed_again_lie_where_the_first_did(weighted):
    """Rows that share a parameter, in a mean, and with weights of their own, for which backward computes again."""
    mu, theta = torch.rand(ROWS, 784, requires_grad=True), torch.rand(784, requires_grad=True)
    nll = vae_fast.negative_binomial_nll(mu, theta, torch.ones(ROWS, 784))
    (nll * torch.rand(ROWS) if weighted else nll).mean().backward()
    mu.grad = None
    assert kept() == mu.nbytes


def test_small_results_are_torchs():
    for columns in (2, 784):
        gradient(LARGE // 4 // columns - 1, columns=columns)
    assert kept() == 0
    gradient(LARGE // 8, columns=2)
    assert kept() == LARGE


@pytest.mark.parametrize(
    "hold",
    [
        lambda t: t,
        lambda t: t.detach(),
        lambda t: t[5:],
        lambda t: t.view(-1),
        lambda t: t.untyped_storage(),
        lambda t: t.numpy(),
        lambda t: torch.utils.dlpack.from_dlpack(t),
    ],
    ids=["tensor", "detached", "rows", "view", "storage", "numpy", "dlpack"],
)
def test_nothing_changes_that_anyone_holds(hold):
    found = gradient()
    place = found.data_ptr()
    held = hold(found)
    del found
    later = gradient(seed=1)
    assert later.data_ptr() != place
    size = later.nbytes
    del later
    storage = isinstance(held, torch.UntypedStorage)
    values = torch.empty(0).set_(held) if storage else torch.as_tensor(held).reshape(-1)
    torch.testing.assert_close(values, expected().reshape(-1)[-len(values) :])
    del held, values
    assert kept() == 2 * size


def test_no_more_is_kept_and_in_use_than_was_in_use_at_once():
    sizes = [ROWS, 2 * ROWS, 3 * ROWS, 2 * ROWS, ROWS]
    for rows in sizes:
        gradient(rows)
        assert kept() <= 3 * ROWS * 784 * 4
    assert kept() >= ROWS * 784 * 4
    both = [gradient(ROWS), gradient(ROWS)]
    del both
    assert kept() <= 3 * ROWS * 784 * 4


def test_a_result_that_memory_does_not_hold_changes_nothing():
    gradient()
    size = kept()
    seed = torch.tensor(1)
    for rows, columns, dtype in ((2**24, 2**24, torch.float32), (2**21, 2**40 + 1, torch.float64)):
        one = torch.ones(1, 1, dtype=dtype).expand(rows, columns)  # more bytes than there are; more than int64 counts
        with pytest.raises(RuntimeError):
            torch.ops.vae_fast.reparameterize(one, one, seed)
    vae_fast.empty_cache()
    for rows in (ROWS, 2 * ROWS, 4 * ROWS):
        gradient(rows)
    assert kept() <= 4 * size


def test_what_finds_no_use_is_given_back():
    gradient(4 * ROWS)
    size = gradient().nbytes
    for _ in range(64):
        gradient()
    assert kept() == size


def test_a_block_serves_results_an_eighth_smaller_and_no_others():
    rows = 8 * 256
    gradient(rows)
    size = kept()
    gradient(rows - rows // 10)
    assert kept() == size
    smaller = rows // 8 * 7 - 1
    gradient(smaller)
    assert kept() == smaller * 784 * 4


def test_empty_cache():
    gradient()
    held = gradient()
    vae_fast.empty_cache()
    assert kept() == 0
    torch.testing.assert_close(held, expected())
    del held
    assert kept() > 0


def test_second_backward_passes_and_samples_stay_apart():
    logits = torch.randn(ROWS, 784, requires_grad=True)
    loss = vae_fast.bernoulli_nll(logits, torch.rand(ROWS, 784)).sum()
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (twice,) = torch.autograd.grad(2 * loss, logits)
    torch.testing.assert_close(twice, 2 * once)
    mu, logvar = torch.zeros(ROWS, 784), torch.zeros(ROWS, 784)
    samples = [vae_fast.reparameterize(mu, logvar, seed=seed) for seed in range(3)]
    assert len({z.data_ptr() for z in samples}) == 3
    for seed, z in enumerate(samples):
        assert z.equal(vae_fast.reparameterize(mu, logvar, seed=seed))


def test_results_are_tensors_like_any_other():
    found = gradient()
    assert found.device == torch.device("cpu") and found.is_contiguous() and found.storage_offset() == 0
    assert found.untyped_storage().nbytes() == found.nbytes
    assert copy.deepcopy(found).equal(found)
    torch.save(found, file := io.BytesIO())
    file.seek(0)
    assert torch.load(file, weights_only=True).equal(found)
    shared = found.clone()
    assert found.share_memory_().is_shared() and found.equal(shared)
    with pytest.raises(RuntimeError, match="not resizable"):  # but for this
        gradient().resize_(ROWS + 1, 784)
    planes = torch.randn(16, 8, 100, 100).to(memory_format=torch.channels_last).requires_grad_()
    vae_fast.categorical_nll(planes, torch.randint(8, (16, 100, 100))).sum().backward()
    assert planes.grad.is_contiguous(memory_format=torch.channels_last)


def test_threads():
    """Each gets its own values, whatever the others drop meanwhile."""
    wrong = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(10):
            logits = torch.randn(ROWS, 784, generator=generator).requires_grad_()
            x = torch.rand(ROWS, 784, generator=generator)
            vae_fast.bernoulli_nll(logits, x).sum().backward()
            if not torch.allclose(logits.grad, torch.sigmoid(logits.detach()) - x, atol=1e-6):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def _in_child(done) -> None:
    torch.set_num_threads(1)
    done.put(bool(torch.allclose(gradient(seed=2), expected(seed=2), atol=1e-6)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_processes():
    held = gradient()
    gradient(seed=1)
    context = multiprocessing.get_context("fork")
    done = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(done,))
    child.start()
    child.join(60)
    assert child.exitcode == 0 and done.get()
    torch.testing.assert_close(held, expected())


def test_the_profiler_sees_it():
    """As much as is allocated, which is the result and a page."""
    with torch.profiler.profile(profile_memory=True) as seen:
        found = gradient()
    events = [e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert found.nbytes + 4096 in events


def test_it_can_be_switched_off():
    code = (
        "import torch, vae_fast\n"
        "for _ in range(2):\n"
        "    l = torch.randn(2048, 784, requires_grad=True)\n"
        "    vae_fast.bernoulli_nll(l, torch.rand(2048, 784)).sum().backward()\n"
        "    del l\n"
        "    print(torch.ops.vae_fast_memory.cached_bytes())"
    )
    for setting, expected_kept in (("0", 0), ("1", 2048 * 784 * 4)):
        environment = {**os.environ, "VAE_FAST_KEEP_MEMORY": setting}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.split() == [str(expected_kept)] * 2
