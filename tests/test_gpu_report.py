"""The report of a run on a GPU: nothing without one, and what canned results come to."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MACHINE = {"GPU": "A GPU, 80 GiB", "driver": "999.1", "torch": "2.13.0, CUDA 13.0"}
JUNIT = """<testsuites><testsuite><testcase classname="tests.test_a" name="test_one"/>
<testcase classname="tests.test_a" name="test_two[x]"><failure message="AssertionError: off&#10;by one"/></testcase>
<testcase classname="tests.test_a" name="test_three"><skipped message="no second GPU"/></testcase>
<testcase classname="tests.test_b" name="test_four"><error message="failed on setup"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def gpu_report(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_report

    return gpu_report


@pytest.fixture
def results(gpu_report):
    good = gpu_report.Result(0, {"passed": 3, "failed": 0, "skipped": 2}, 61.4, [], {"no second GPU": 2})
    measured = gpu_report.Result(0, {"passed": 9, "failed": 0, "skipped": 0}, 200.0, tables="**Speed.** Figures\n")
    return {"operators": good, "benchmarks": measured}


def test_without_a_gpu_it_says_so_and_writes_nothing(gpu_report, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_report, "run", pytest.fail)
    assert gpu_report.main([], tmp_path / "report.md") == 0
    said = capsys.readouterr().out
    assert said.startswith("No GPU: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_report_has_what_ran_and_says_what_did_not(gpu_report, results):
    text = gpu_report.render(MACHINE, results, "2026-01-02")
    for line in ("Made on 2026-01-02.", "    make gpu\n", "| driver | 999.1 |", "**Speed.** Figures"):
        assert line in text
    assert "**3 passed, 0 failed, 2 skipped** in 61 s (exit status 0)." in text
    assert "- skipped 2: no second GPU" in text
    assert "    python -m pytest tests --device cuda --benchmark-disable\n" in text
    assert text.count("Not run.") == 1 and text.index("Not run.") > text.index("## Every test")
    assert 'make gpu ARGS="operators"' in gpu_report.render(MACHINE, {}, "2026-01-02", ["operators"])


def test_no_figures_without_a_measurement(gpu_report):
    broken = gpu_report.Result(-6, {}, 3.0, tail=f"{gpu_report.ROOT}/x.py\n\x1b[31mAborted\x1b[0m\n")
    text = gpu_report.render(MACHINE, {"benchmarks": broken}, "2026-01-02")
    assert "**Broke off** after 3 s with exit status -6:\n\n```\n./x.py\nAborted\n```" in text
    assert "No figures: nothing was measured." in text


def test_outcomes_are_read_from_pytest(gpu_report, tmp_path):
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    counts, failures, skipped = gpu_report.read(path)
    assert counts == {"passed": 1, "failed": 2, "skipped": 1} and skipped == {"no second GPU": 1}
    assert failures == [
        ("tests.test_a::test_two[x]", "AssertionError: off\nby one"),
        ("tests.test_b::test_four", "failed on setup"),
    ]
    text = gpu_report.render(MACHINE, {"tests": gpu_report.Result(1, counts, 1.0, failures, skipped)}, "2026-01-02")
    assert "- FAILED `tests.test_a::test_two[x]`: AssertionError: off\n" in text


def test_a_part_is_run_and_written_down(gpu_report, monkeypatch, tmp_path, capfd):
    """With this interpreter, on a test that needs no GPU; the report is there after each part."""
    (tmp_path / "test_small.py").write_text("def test_a(): pass\ndef test_b(): assert False, 'no'\n")
    part = gpu_report.Part("Small", (str(tmp_path), "--rootdir", str(tmp_path), "-c", "/dev/null"), "A test.")
    monkeypatch.setattr(gpu_report, "PARTS", {"small": part})
    monkeypatch.setattr(gpu_report, "machine", lambda: MACHINE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_report.main(["small"], tmp_path / "report.md") == 1
    assert "1 failed, 1 passed" in capfd.readouterr().out
    text = (tmp_path / "report.md").read_text()
    assert "**1 passed, 1 failed, 0 skipped**" in text and "test_b`: AssertionError: no" in text


def test_the_command_refuses_a_part_that_is_none(gpu_report, capsys):
    with pytest.raises(SystemExit):
        gpu_report.main(["speed"])
    assert "no such part: speed" in capsys.readouterr().err


def test_machine_is_described_without_a_driver(gpu_report, monkeypatch):
    monkeypatch.setattr(gpu_report, "output_of", lambda *command: "")
    about = gpu_report.machine()
    assert about["driver"].startswith("not known") and about["torch"].startswith(torch.__version__)
    assert sys.prefix not in str(about)
