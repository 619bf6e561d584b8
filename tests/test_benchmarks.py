"""The benchmarks work: each runs once at its smallest size, and the harness measures what it says. Nothing is timed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vae_fast
from vae_fast.ops.library import unavailable

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(unavailable("cpp") is not None, reason="no C++ kernels to measure")


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import harness

    return harness


@pytest.fixture
def case(harness):
    def inputs(rows, columns):
        return [torch.randn(rows, columns)], [torch.rand(rows, columns)]

    def ours(logits, x):
        return vae_fast.bernoulli_nll(logits, x).sum()

    def truth(_, logits, x):
        return vae_fast.reference.nll(vae_fast.reference.bernoulli, [logits], x).sum()

    return harness.Case("bernoulli_nll", "float32", (37, 784), inputs, ours, ours, truth, opponents=("ours",))


def test_each_benchmark_runs_once(tmp_path):
    table = tmp_path / "table.md"
    command = [sys.executable, "-m", "pytest", BENCHMARKS, "-q", "--benchmark-disable", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "--table", table], cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = table.read_text()
    assert "NOT a measurement" in text
    for title in ("Speed", "Memory", "Scaling", "Overhead", "Import"):
        assert f"**{title}.**" in text


def test_gate_stops_a_wrong_output_and_a_wrong_gradient(harness, case):
    operands = harness.operands(case)
    harness.gate(case, case.ours, *operands)
    with pytest.raises(AssertionError, match="output off by"):
        harness.gate(case, lambda *args: case.ours(*args) * 1.0001, *operands)
    with pytest.raises(AssertionError, match="gradient off by"):
        harness.gate(case, lambda logits, x: case.ours(logits, x) + 1e-4 * (logits - logits.detach()).sum(), *operands)


def test_rounds_run_every_opponent(harness):
    calls = []
    seconds, iterations = harness.interleave({name: lambda name=name: calls.append(name) for name in "ab"}, quick=True)
    assert sorted(calls[:2]) == sorted(calls[2:]) == ["a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == iterations == {"a": 1, "b": 1}


def test_replayed_times_are_the_recorded_ones(harness):
    timer = harness.replay([0.25, 0.5])
    assert [-(timer() - timer()) for _ in range(2)] == [0.25, 0.5]


def test_peak_memory_counts_what_is_freed_again(harness):
    def call():
        a = torch.empty(1000)
        del a
        torch.empty(250)

    assert harness.peak_memory(call) == 4000


def test_training_holds_no_more_than_its_gradients(harness, case):
    leaves, data = harness.operands(case)
    call = harness.caller("forward + backward", case.ours, leaves, data)
    call()
    leaves[0].grad = None
    assert harness.peak_memory(call) <= leaves[0].nbytes + 16 * len(leaves[0])


def test_tables_are_markdown(harness):
    tables = harness.Tables(quick=False)
    tables.add("Scaling", {"rows": "64", "ours, ns": "0.5"})
    tables.add("Scaling", {"rows": "256"})
    assert tables.markdown().splitlines()[-4:] == [
        "| rows | ours, ns |",
        "| ---- | -------- |",
        "| 64   | 0.5      |",
        "| 256  |          |",
    ]
