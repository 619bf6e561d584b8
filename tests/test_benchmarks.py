"""The benchmarks work: each runs once at its smallest size, and the harness measures what it says. Nothing is timed."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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


def pytest_on(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=BENCHMARKS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_each_benchmark_runs_once(tmp_path):
    table = tmp_path / "table.md"
    pytest_on(BENCHMARKS, "--benchmark-disable", "--table", table)
    text = table.read_text()
    assert "NOT a measurement" in text
    for title in ("Speed", "Times", "Memory", "Operations", "Scaling", "Overhead", "Resident", "Import"):
        assert f"**{title}.**" in text
    assert "Throttled" not in text and "**GPU.**" not in text


# the grid


def test_grid_is_whole_in_full_and_small_by_default(harness, case):
    cases = harness.both(harness.over(case, [(64, 784), (16384, 784)]), forward_at=[(64, 784)])
    full = {(c.shape, c.direction) for c in harness.selected(cases, full=True, quick=False)}
    assert len(full) == len(cases) == 2 * len(harness.BATCHES) * len(harness.PIXELS)
    short = [(c.shape, c.direction) for c in harness.selected(cases, full=False, quick=False)]
    assert short == [((64, 784), "forward"), ((64, 784), "forward + backward"), ((16384, 784), "forward + backward")]
    quick = [(c.shape, c.direction) for c in harness.selected(cases, full=False, quick=True)]
    assert quick == [((64, 784), "forward"), ((64, 784), "forward + backward")]


def test_a_shape_that_memory_does_not_hold_is_skipped(harness, case):
    with pytest.raises(pytest.skip.Exception, match="GiB of memory"):
        harness.measure(replace(case, shape=(2**30, 2**20)), harness.Settings())


# the gate


def test_gate_stops_a_wrong_output_and_a_wrong_gradient(harness, case):
    def gate(function, name="ours", case=case):
        return harness.Gate(case, *harness.operands(case))(name, harness.Opponent(function))

    def a_little_wrong(logits, x):
        return case.ours(logits, x) + 1e-4 * (logits - logits.detach()).sum()

    assert gate(case.ours) < 1e-6
    with pytest.raises(AssertionError, match="ours's output off by"):
        gate(lambda *args: case.ours(*args) * 1.0001)
    with pytest.raises(AssertionError, match="eager's gradient off by"):
        gate(a_little_wrong, "eager")
    tolerant = replace(case, usual_error=1e-3)
    assert 5e-5 < gate(a_little_wrong, "eager", tolerant) < 2e-4
    with pytest.raises(AssertionError, match="ours's gradient off by"):
        gate(a_little_wrong, "ours", tolerant)
    with pytest.raises(AssertionError, match="output of shape"):
        gate(lambda logits, x: case.ours(logits, x)[None])


def test_gate_takes_a_peer_at_its_word(harness, case):
    """Its arguments in another form, its value without a constant, and still right or wrong."""
    peer = harness.Opponent(
        lambda logits, x: case.ours(logits.squeeze(2), x) - 5,
        arrange=lambda leaves: [t.unsqueeze(2) for t in leaves],
        shift=lambda shape: 5.0,
    )
    gate = harness.Gate(case, *harness.operands(case))
    gate("peer", peer)
    with pytest.raises(AssertionError, match="output off by"):
        gate("peer", replace(peer, shift=lambda shape: 6.0))


def test_the_reference_runs_once_a_case_and_for_each_sample(harness, case):
    runs = []

    def counted(*args):
        runs.append(1)
        return case.truth(*args)

    def passed(case):
        runs.clear()
        gate = harness.Gate(case, *harness.operands(case))
        for name in ("eager", "ours"):
            gate(name, harness.Opponent(case.ours))
        return len(runs)

    assert passed(replace(case, truth=counted)) == 1
    drawn = replace(case, truth=counted, slack=lambda outputs, incoming: [torch.zeros(case.shape)])
    assert passed(drawn) == 2


def test_each_opponent_drops_gradients_of_its_own(harness, case):
    """Nobody pays for memory that another's gradient gives back to the system."""
    leaves, _ = harness.operands(replace(case, shape=(3, 5)))
    first, second = (harness.arranged(harness.Opponent(case.ours), leaves) for _ in range(2))
    first[0].grad = torch.ones(3, 5)
    assert second[0].grad is None and leaves[0].grad is None
    assert first[0].data_ptr() == second[0].data_ptr() == leaves[0].data_ptr()
    assert first[0].requires_grad and first[0].is_leaf


def test_peers_that_are_not_installed_are_absent(harness):
    import peers

    assert peers.installed("torch.distributions") is torch.distributions
    assert peers.installed("no_such_library") is None


# the measurement


def test_rounds_run_every_opponent(harness):
    calls = []
    run = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds, iterations = harness.interleave(run, harness.Settings(quick=True), lambda: calls.append("round"))
    assert sorted(calls[:2]) == sorted(calls[2:4]) == ["a", "b"] and calls[4:] == ["round"]
    assert {name: len(times) for name, times in seconds.items()} == iterations == {"a": 1, "b": 1}


def test_replayed_times_are_the_recorded_ones(harness):
    timer = harness.replay([0.25, 0.5])
    assert [-(timer() - timer()) for _ in range(2)] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("read", "written", "operation"),
    [(8, 0, "torch.sum"), (8, 4, "torch.add"), (3, 2, "torch.add"), (12, 12, "torch.clone")],
)
def test_the_limit_moves_as_many_bytes_in_like_proportion(harness, read, written, operation):
    from harness.opponents import LIMIT_BYTES, limit_for, limits

    assert limit_for(read, written) == operation
    fresh, _ = limits(operation, 2400).values()
    assert 2400 / LIMIT_BYTES[operation] * 4 == (harness.peak_memory(fresh) if operation != "torch.sum" else 2400)


def test_ideal_bytes_are_each_tensor_once(harness, case):
    from harness.timing import ideal

    size = 4 * 37 * 784
    assert ideal(case, *harness.operands(case)) == (2 * size, size + 4)
    assert ideal(replace(case, direction="forward"), *harness.operands(case)) == (2 * size, 4)


def test_cold_buffers_take_turns_until_the_cache_has_forgotten_them(harness):
    assert harness.sets_beyond(cache=100, size=50) == 5
    assert harness.sets_beyond(cache=100, size=1000) == 2
    calls = []
    turn = harness.rotated([lambda i=i: calls.append(i) for i in range(3)])
    for _ in range(4):
        turn()
    assert calls == [0, 1, 2, 0]
    cold = replace(harness.Settings(quick=True), cold=True)
    assert harness.sets_beyond(0, 1) == 1 and cold.cold


def test_a_graph_is_warmed_up_aside_and_replayed(harness):
    done = []
    stream = SimpleNamespace(wait_stream=lambda other: done.append("wait"))
    cuda = SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda s: nullcontext(),
        graph=lambda g: nullcontext(done.append("capture")),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: done.append("replay")),
    )
    replay = harness.graphed(lambda: done.append("call"), cuda)
    replay()
    assert done == ["wait", *["call"] * 3, "wait", "capture", "call", "replay"]


# memory and operators


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


def test_operators_inside_others_are_not_counted(harness):
    from harness.profiled import events_of

    a = torch.randn(3)
    assert harness.operations(events_of(lambda: torch.ones_like(a).add_(a)), kernels=False) == 2


def test_launches_are_the_kernels(harness):
    events = [SimpleNamespace(activity_type=lambda kind=kind: kind) for kind in ("kernel", "cpu_op", "gpu_memcpy")]
    assert harness.operations(events, kernels=True) == 1


# the GPU's own readings


class Nvml:
    """As much of pynvml as is asked for: at 300 W, 5 J a reading of the counter, capped from the second reading on."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", "temperature"
    nvmlClocksThrottleReasonSwPowerCap, nvmlClocksThrottleReasonHwSlowdown = 4, 8
    nvmlClocksThrottleReasonSwThermalSlowdown, nvmlClocksThrottleReasonHwThermalSlowdown = 32, 64
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128
    NVMLError = type("NVMLError", (Exception,), {})

    def __init__(self, there=True):
        self.there, self.readings, self.joules = there, 0, 0

    def nvmlInit(self):
        if not self.there:
            raise self.NVMLError

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1"
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {"sm": 1500, "memory": 2600}[kind]

    def nvmlDeviceGetTemperature(self, handle, kind):
        return 50 + self.readings

    def nvmlDeviceGetPowerUsage(self, handle):
        return 300_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self.readings += 1
        return 4 if self.readings > 2 else 1

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self.joules += 5
        return self.joules * 1000


def test_readings_of_the_gpu(harness):
    import nvml

    watch = nvml.watch(Nvml(), "1")
    watch.read()
    assert watch.readings() == {"sm_mhz": 1500, "memory_mhz": 2600, "watts": 300, "celsius": 51, "throttled": []}
    assert watch.readings()["throttled"] == ["SwPowerCap"]
    assert watch.energy(lambda: None, 0.0, lambda: None) == (5, 1)


def test_without_a_gpu_or_its_library_nothing_is_read(harness, monkeypatch):
    import nvml

    assert nvml.watch(Nvml(there=False), "1") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.watch() is None


# tables, plots, comparison


def stored(harness, path, records, **more):
    about = harness.about(quick=False, command="COMMAND") | {"load": 0.0} | more
    run = {"benchmarks": [{"extra_info": r} for r in records], "vae_fast": {"about": about, "tables": {}}}
    path.write_text(json.dumps(run))
    return path


@pytest.fixture
def records(harness, case):
    run = replace(case, shape=(64, 784), opponents=("eager", "ours", "limit", "limit, out="))
    m = harness.measure(run, harness.Settings(quick=True))
    return [harness.record(run, name, m) for name in run.opponents]


def test_a_record_has_every_figure(harness, records):
    ours = next(r for r in records if r["opponent"] == "ours")
    assert ours["ideal_bytes"] == 3 * 4 * 64 * 784 + 4
    assert ours["samples_per_second"] == 64 / ours["seconds"]
    assert ours["percent_of_limit"] == pytest.approx(100 / ours["ratio_to"]["limit"])
    assert ours["limit"] == "torch.add, 50176 float32 elements"
    assert ours["extra_bytes"] < 1.01 * ours["gradient_bytes"] and 0 < ours["operations"] < 10


def test_a_stored_run_is_rendered(harness, records, tmp_path):
    import render

    page = tmp_path / "performance.md"
    page.write_text(f"before\n{render.START}\nstale\n{render.END}\nafter\n")
    render.main([str(stored(harness, tmp_path / "run.json", records)), "--docs", str(tmp_path)])
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "stale" not in text
    assert "    COMMAND\n" in text and torch.__version__ in text and "Mistrust" not in text
    assert "| ours, ms |" in " ".join(text.split()) and "eager / ours" in text
    for name in render.PLOTS:
        assert f"({name})" in text and "COMMAND" in (tmp_path / name).read_text()


def test_throttled_rows_and_busy_machines_are_named(harness, records):
    import tables

    gpu = {"sm_mhz": 1.0, "memory_mhz": 1.0, "watts": 1.0, "celsius": 1.0, "joules_per_million_samples": 2.0}
    text = tables.render(
        harness.about(quick=False, command="") | {"load": 3.0, "gpu": True},
        [r | gpu | {"throttled": ["SwPowerCap"]} for r in records],
        {"Own": [{"rows": "64", "ours, ns": "0.5"}, {"rows": "256"}]},
    )
    assert "**Throttled** (SwPowerCap): `bernoulli_nll` 64 × 784" in text and "J / million samples" in text
    assert "load of 3.0" in text and "**Launches.**" in text
    own = ["| rows | ours, ns |", "| ---- | -------- |", "| 64   | 0.5      |", "| 256  |          |"]
    assert "\n".join(own) in text


def run_with(path, **seconds):
    """A stored run: by opponent, the median, the quartiles 2% around it."""
    made = [
        {
            "fullname": name,
            "extra_info": {"opponent": name},
            "stats": {"median": s, "q1": s * 0.98, "q3": s * 1.02},
        }
        for name, s in seconds.items()
    ]
    path.write_text(json.dumps({"benchmarks": made}))
    return str(path)


def test_what_became_slower_is_named(harness, tmp_path, capsys):
    import compare

    old = run_with(tmp_path / "old", ours=1.0, eager=1.0, gone=1.0)
    assert compare.main([old, run_with(tmp_path / "a", ours=1.09, eager=1.5)]) == 0
    assert "SLOWER     eager" in capsys.readouterr().out
    assert compare.main([old, run_with(tmp_path / "b", ours=1.2, eager=0.5), "--changed"]) == 1
    shown = capsys.readouterr().out
    assert "SLOWER     ours" in shown and "faster     eager" in shown and "only in A  gone" in shown


def test_a_difference_within_the_spread_is_none(harness, tmp_path):
    import compare

    wide = {"median": 1.3, "q1": 1.0, "q3": 1.6}
    old = run_with(tmp_path / "old", ours=1.0)
    new = {"benchmarks": [{"fullname": "ours", "extra_info": {"opponent": "ours"}, "stats": wide}]}
    (tmp_path / "new").write_text(json.dumps(new))
    assert compare.main([old, str(tmp_path / "new")]) == 0


def test_pytest_stores_what_render_and_compare_read(harness, tmp_path):
    import compare
    import render

    path = tmp_path / "run.json"
    pytest_on(BENCHMARKS / "bench_bernoulli.py", "-k", "scaling and 64x784", "--seconds", "0", "--benchmark-json", path)
    about, records, tables = render.load(path)
    assert about["command"].endswith("--seconds 0") and list(tables) == ["Scaling"]
    assert [r["opponent"] for r in records] == ["ours", "limit"]
    assert compare.main([str(path), str(path)]) == 0


def test_figures_by_hand(harness, case):
    """Ratios in their direction, a call's share of its rounds, GB/s over the fewest bytes, the limit's share."""
    import tables

    m = harness.Measurement(read=2 * 10**9, written=10**9, gradients=1, limit="torch.add")
    m.seconds = {"ours": [2.0, 4.0, 6.0], "eager": [6.0] * 3, "limit": [1.0] * 3, "limit, out=": [0.5] * 3}
    m.iterations = {"ours": 2, "eager": 1, "limit": 1, "limit, out=": 1}
    run = replace(case, shape=(100, 784), opponents=("ours", "eager", "limit", "limit, out="))
    records = {name: harness.record(run, name, m) for name in run.opponents}
    row = tables.speed(records, ["ours", "eager"])
    assert (row["ours, ms"], row["IQR"], row["samples/s"], row["GB/s"]) == ("2000", "1000", "50", "1.5")
    assert (row["of it, fresh"], row["of it, out="], row["eager / ours"]) == ("50%", "25%", "3.00")
