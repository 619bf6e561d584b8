"""The benchmark of training steps: its gate stops what is wrong, its stages are a step's. Nothing is timed."""

import copy
from pathlib import Path

import pytest
import torch

import vae_fast
from vae_fast.ops.library import unavailable

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(unavailable("cpp") is not None, reason="no C++ kernels to measure")


@pytest.fixture
def bench(monkeypatch, pytestconfig):
    pytestconfig.addinivalue_line("markers", "cases(cases): what a benchmark compares")  # its conftest.py isn't here
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_train_step

    return bench_train_step


@pytest.fixture(params=["MLP 784-400-20", "conv 16-32-20"])
def training(bench, request):
    return bench.Training(request.param, 8)


def gated(bench, training, **changed):
    parts = bench.replace(bench.OURS, **changed)
    bench.gate(training, "ours", parts.forward, bench.tolerance(training))


def test_the_gate_lets_right_ones_pass(bench, training):
    for name in ("eager", "ours"):
        bench.gate(training, name, bench.OPPONENTS[name](True), bench.tolerance(training))


def test_the_gate_stops_a_wrong_loss(bench, training):
    with pytest.raises(AssertionError, match="loss off by"):
        gated(bench, training, loss=lambda *args: 1.0001 * vae_fast.ELBOLoss()(*args))


def test_the_gate_stops_a_wrong_gradient(bench, training):
    def loss(logits, x, mu, logvar):
        return vae_fast.ELBOLoss()(logits, x, mu, logvar) + 1e-4 * (logvar - logvar.detach()).sum()

    with pytest.raises(AssertionError, match=r"gradient of .* off by"):
        gated(bench, training, loss=loss)


def test_the_gate_stops_noise_that_is_not_normal(bench, training):
    with pytest.raises(AssertionError, match="the noise's moment"):
        gated(bench, training, sample=lambda mu, logvar: mu)


def test_the_float64_network_may_see_the_rows_in_parts(bench, training, monkeypatch):
    model, x = training.start()
    z = bench.OURS.forward(model, x)[1].detach()
    whole = bench.truth(model, x, z)
    monkeypatch.setattr(bench, "GATED", 3)
    torch.testing.assert_close(bench.truth(model, x, z), whole)


def test_a_step_taken_apart_is_the_step(bench, training):
    """The same weights after two of them, with the same noise."""
    models = []
    for make in (
        lambda *start: bench.trained(bench.OURS.forward, *start),
        lambda *start: bench.trained_apart(bench.OURS, *start),
    ):
        model, x = training.start()
        first = copy.deepcopy(model)
        passes = make(model, x)
        torch.manual_seed(1)
        seconds = [bench.one_step(passes) for _ in range(2)]
        assert all(stage > 0 for step in seconds for stage in step.values())
        assert not torch.equal(model.mu.weight, first.mu.weight)
        models.append(model)
    for whole, apart in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(apart, whole, rtol=0, atol=1e-6)


def test_all_start_alike(bench, training):
    (model, x), (again, same) = training.start(), training.start()
    assert torch.equal(x, same)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_shares_are_of_the_whole_step(bench, training):
    stages = {"networks, forward": 0.3, "loss, forward": 0.1, "loss, backward": 0.1, "networks, backward": 0.4}
    row = bench.stage_row(training, "ours", {**stages, "Adam": 0.1})
    assert row["forward, ms"] == "400" and row["backward, ms"] == "500" and row["loss's share"] == "20.0%"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_row_has_spread_memory_and_operators(bench, training):
    m = bench.measure(training, bench.Settings(quick=True))
    assert m.peaks["ours"] > 0 and m.operations["eager"] > m.operations["ours"] > 0
    m.seconds["ours"], m.iterations["ours"] = [0.6, 0.2, 0.4], 2
    row = bench.step_row(training, "ours", m)
    assert row["ms"] == "200 (150 to 250)" and float(row["peak, MiB"]) > 0 and int(row["operators"]) > 0


def test_each_network_trains_with_4096(bench):
    full, short, quick = (bench.selected(*options) for options in ((True, False), (False, False), (False, True)))
    assert len(full) == 4 * len(bench.NETWORKS) and {t.batch for t in full} == {256, 1024, 4096, 16384}
    assert {t.network for t in short if t.batch == 4096} == set(bench.NETWORKS)
    assert set(quick) <= set(short) <= set(full) and len(quick) == len(bench.NETWORKS)
