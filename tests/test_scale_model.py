"""The model of sizes that no machine here holds: what it counts, and how it scales."""

import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ARCHITECTURES = (80, 90, 100)


@pytest.fixture(scope="module")
def model(pytestconfig):
    pytestconfig.addinivalue_line("markers", "cases(cases): what a benchmark compares")  # its conftest.py isn't here
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        import scale_model

        yield scale_model


@pytest.fixture(scope="module")
def eager(model):
    return {arch: model.eager(arch) for arch in ARCHITECTURES}


@pytest.fixture(scope="module")
def ours(model):
    import sass

    if sass.cuobjdump() is None:
        pytest.skip("there is no cuobjdump")
    launches = model.our_launches()
    return {arch: model.ours(arch, launches) for arch in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def arch(request):
    return request.param


def counted(model, function, *tensors):
    with model.Dispatched() as found:
        outputs = function(*tensors)
    return found, outputs


def test_ours_is_what_performance_md_counts(model, ours, arch):
    """5.66 bytes an observation and 3 launches; sampling reads and writes each tensor once, forward and backward."""
    import compiled

    elbo, sampling = (ours[arch].costs[label] for label in (model.ELBO, model.SAMPLING))
    assert elbo == compiled.our_figures(model.ELBO, compiled.our_elbo(model.ELBO))[arch]
    assert f"{elbo.moved:.2f}" == "5.66" and elbo.launches == 3
    assert sampling.moved == pytest.approx(6 + 10, abs=1e-3) and sampling.launches == 3
    assert ours[arch].moved == pytest.approx(model.PIXELS * elbo.moved + model.LATENT * sampling.moved)


def test_torch_compile_is_what_performance_md_counts(model):
    import sass

    if sass.cuobjdump() is None:
        pytest.skip("there is no cuobjdump")
    way = model.torch_compile({model.ELBO: model.compile_for(*model.PARTS[model.ELBO], 90)})
    assert f"{way.costs[model.ELBO].moved:.2f}" == "8.98" and way.launches == 7
    gradients = 2 * model.PIXELS + 2 * 2 * model.LATENT
    assert gradients < way.held < 1.1 * gradients


def test_dispatched_counts_bytes_launches_and_what_is_alive(model):
    a, b = (torch.empty(100, 10, device="meta") for _ in range(2))
    found, _ = counted(model, lambda a, b: (a + b).exp_().t().sum(0), a, b)
    assert found.launches == 3  # a view is none
    assert found.moved == 4 * (3 * 1000 + 2 * 1000 + 1000 + 100)
    assert found.peak == 4 * (1000 + 100)


def test_dispatched_counts_expanded_tensors_once(model):
    a = torch.empty(100, 10, device="meta")
    assert counted(model, torch.add, a, torch.empty(10, device="meta").expand(100, 10))[0].moved == 4 * 2010


def test_what_is_dropped_is_no_longer_alive(model):
    found, _ = counted(model, lambda: [torch.zeros(250, device="meta").sum() for _ in range(4)])
    assert found.peak <= 4 * (250 + 4)


def test_cross_entropy_is_pytorchs(model):
    logits, x = torch.randn(5, 7), torch.rand(5, 7)
    for number, reduction in enumerate(("none", "mean", "sum")):
        want = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction=reduction)
        torch.testing.assert_close(model.cross_entropy(logits, x, None, None, number), want)


def test_eager_moves_what_its_operators_read_and_write(model):
    """97 bytes an observation: the loss of bfloat16 logits and bytes, operator by operator."""
    import compiled

    function, inputs = compiled.FUNCTIONS["bernoulli_nll, bf16, x uint8"]
    tensors = [torch.empty(i.shape, dtype=i.dtype, device="meta", requires_grad=i.requires_grad) for i in inputs]
    incoming = torch.empty(model.ROWS, device="meta")
    found, _ = counted(model, lambda *t: function(*t).backward(incoming), *tensors)
    observation = [6, 5, 8, 8, 12, 8, 12, 4, 8, 12, 8, 6]
    assert found.launches == len(observation)
    assert round(found.moved / (model.ROWS * model.PIXELS)) == sum(observation)


def test_eager_holds_what_pytorch_allocates(model, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from harness import peak_memory

    rows = 512
    function, inputs = model.PARTS[model.ELBO]
    shapes = [(rows, *i.shape[1:]) for i in inputs]
    tensors = [
        torch.zeros(s, dtype=i.dtype).requires_grad_(i.requires_grad) for s, i in zip(shapes, inputs, strict=True)
    ]
    peak = peak_memory(lambda: function(*tensors).backward())
    assert model.dispatched(model.ELBO, rows=rows).peak == pytest.approx(peak, rel=0.03)


def test_ours_holds_the_gradients_and_what_is_stated(model):
    """Gradients of logits, mu and logvar; z; those of mu and logvar again, from sampling; nll, kl; the loss."""
    rows = 37
    gradients = rows * 2 * (model.PIXELS + 2 * model.LATENT)
    sampling = rows * 2 * (1 + 2) * model.LATENT
    assert model.our_outputs(rows) == gradients + sampling + rows * 2 * 4 + 4


def test_time_is_memorys_or_arithmetics_and_the_launches(model, ours, eager, arch):
    bandwidth = model.ARCHITECTURES[arch].bandwidth * 1e9
    for way in (ours[arch], eager[arch]):
        assert way.seconds(0) == way.launches * model.LAUNCH
        assert way.seconds(10**6) - way.seconds(0) >= 10**6 * way.moved / bandwidth * (1 - 1e-9)
    assert eager[arch].seconds(1) - eager[arch].seconds(0) == pytest.approx(eager[arch].moved / bandwidth)


def test_time_and_memory_grow_with_the_rows_and_shrink_with_the_gpus(model, ours, eager, arch):
    for way in (ours[arch], eager[arch]):
        for of in (way.seconds, way.memory):
            by_batch = [of(model.share(batch, 8)) for batch in (10**3, 10**4, 10**5, 10**6)]
            by_gpus = [of(model.share(10**6, n)) for n in (1, 8, 64, 256, 1024)]
            assert by_batch == sorted(by_batch) and by_gpus == sorted(by_gpus, reverse=True)
        assert way.seconds(2000) - way.seconds(1000) == pytest.approx(way.seconds(1000) - way.seconds(0))
        assert way.memory(2000) == 2 * way.memory(1000)


def test_faster_gpus_take_less_time(ours, eager):
    for ways in (ours, eager):
        times = [ways[arch].seconds(10**5) for arch in ARCHITECTURES]
        assert times == sorted(times, reverse=True)


def test_the_rows_of_a_gpu(model):
    assert [model.share(1_000_000, n) for n in (1, 8, 1024)] == [1_000_000, 125_000, 977]


def test_a_ring(model, arch):
    size = 10**9
    assert model.ring_seconds(arch, 1, size) == 0
    inside = 2 * 7 / 8 * size / (model.NVLINK[arch] * 1e9) + 14 * model.HOPS[0]
    assert model.ring_seconds(arch, 8, size) == pytest.approx(inside)
    times = [model.ring_seconds(arch, n, size) for n in (1, 2, 8, 16, 64, 256, 1024)]
    assert times == sorted(times)
    latency = model.ring_seconds(arch, 1024, 0)
    assert latency == pytest.approx(2 * (896 * model.HOPS[0] + 128 * model.HOPS[1]))
    slowest = min(model.NVLINK[arch], 8 * model.ADAPTERS[arch]) * 1e9
    assert times[-1] - latency == pytest.approx(2 * 1023 / 1024 * size / slowest)


def test_gradients_of_the_networks(model):
    layers = ((784, 1024), (1024, 512), (512, 64), (512, 64), (64, 512), (512, 1024), (1024, 784))
    assert model.gradient_bytes() == 4 * sum((i + 1) * o for i, o in layers)


TABLES = """
**Speed.** As measured.

| operator                | shape     | dtype    | pass               | ours, ms |
| ----------------------- | --------- | -------- | ------------------ | -------- |
| `sample_kl(mu, logvar)` | 10 × 64   | float32  | forward            | 9.00     |
| `sample_kl(mu, logvar)` | 10 × 64   | float32  | forward + backward | 0.00064  |
| `sample_kl(mu, logvar)` | 10 × 64   | bfloat16 | forward + backward | 5.00     |
| `sample_kl(mu, logvar)` | 100 × 512 | float32  | forward + backward | 7.00     |

**Scaling.** An element.

| operator | rows | columns | ours, ns | torch.add, ns |
| -------- | ---- | ------- | -------- | ------------- |
| `nll`    | 100  | 784     | 2.0      | 1.0           |
| `nll`    | 1    | 784     | 8.0      | 1.0           |
| `nll`    | 7    | 12      | 90.0     | 90.0          |

After it.
"""


def test_a_processor_is_read_from_the_tables(model):
    cpu = model.processor(TABLES)
    assert cpu.latent == pytest.approx(1.0)
    assert cpu.seconds(100) == pytest.approx(1e-9 * 100 * (784 * 2 + 64))
    assert cpu.seconds(10) == pytest.approx(1e-9 * 10 * (784 * 5 + 64))
    assert cpu.seconds(10**6) == pytest.approx(10**4 * cpu.seconds(100))
    assert cpu.at_limit(100) == pytest.approx(1e-9 * 100 * 784)
    with pytest.raises(LookupError, match="no table 'Memory'"):
        model.documented("Memory", TABLES)


def test_the_documented_processor_takes_longer_for_more(model):
    cpu = model.processor()
    times = [cpu.seconds(rows) for rows in (64, 10**3, 10**4, 10**5, 10**6)]
    assert times == sorted(times) and all(math.isfinite(t) for t in times)
    assert cpu.seconds(10**3) > cpu.at_limit(10**3)  # in the cache; further on torch.add's fresh memory costs more


def test_tables_have_a_row_for_each_size(model, ours, eager):
    ways = {arch: {"ours": ours[arch], "torch.compile": eager[arch], "eager": eager[arch]} for arch in ARCHITECTURES}
    assert len(model.scale_table(ways, (1000, 2000), (8, 16, 32)).splitlines()) == 2 + 3 * 2 * 3
    assert len(model.row_table(ways).splitlines()) == 2 + 3
    assert len(model.processor_table(model.processor(TABLES), (1, 2)).splitlines()) == 2 + 2


def test_the_documentation_shows_the_model(model, ours, eager):
    """The columns that need no Inductor: ours, eager PyTorch's, the all-reduce."""
    names = {gpu.name: arch for arch, gpu in model.ARCHITECTURES.items()}
    for row in model.documented("Counted"):
        arch = names[row["GPU"]]
        for name, way in (("ours", ours[arch]), ("eager", eager[arch])):
            found = [row[f"{what}, {name}"] for what in ("bytes a row", "launches", "bytes held a row")]
            assert found == [f"{figure:,.0f}" for figure in (way.moved, way.launches, way.held)]
    shown = model.documented("Model")
    assert {int(row["GPUs"]) for row in shown} == set(model.GPUS)
    for row in shown:
        arch, gpus, rows = names[row["GPU"]], int(row["GPUs"]), int(row["rows a GPU"].replace(",", ""))
        assert rows == model.share(int(row["batch"].replace(",", "")), gpus)
        for name, way in (("ours", ours[arch]), ("eager", eager[arch])):
            assert row[f"{name}, µs"] == model.microseconds(way.seconds(rows))
        assert row["all-reduce, µs"] == model.microseconds(model.ring_seconds(arch, gpus, model.gradient_bytes()))
