"""pytest's part of the benchmarks: options, threads, the report.

    python -m pytest benchmarks -q                       the short grid, and the tables
    python -m pytest benchmarks -q --grid full           B, D, Z and dtypes in full: many hours
    python -m pytest benchmarks -q --table PATH          the tables written to PATH too, as markdown
    python -m pytest benchmarks -q --benchmark-json PATH everything measured, for render.py and compare.py
    python -m pytest benchmarks -q --cache cold          buffers in turn that are larger than the last cache together
    python -m pytest benchmarks -q --device cuda         on a GPU; with --graphs every call replayed from a CUDA graph
    python -m pytest benchmarks -q --benchmark-disable   each once at its smallest size: do they work?

A case is measured once a session, its opponents in turn. Each opponent is a test that hands its times to
pytest-benchmark, so that --benchmark-json and --benchmark-compare serve as usual.
"""

import functools
import os
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvml
import pytest
import tables as markdown
import torch
from harness import Case, Measurement, Results, Settings, about, measure, on_gpu, opponents_of, record, replay, selected

RESULTS = pytest.StashKey[Results]()
Report = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vae_fast")
    group.addoption("--table", metavar="PATH", type=Path, help="write the benchmarks' tables to PATH")
    group.addoption("--grid", choices=("short", "full"), default="short", help="which shapes and dtypes to compare at")
    group.addoption("--seconds", type=float, default=1.0, help="of rounds, a case (default: 1)")
    group.addoption(
        "--cache", choices=("warm", "cold"), default="warm", help="the same buffers again, or others in turn"
    )
    group.addoption("--graphs", action="store_true", help="replay every call from a CUDA graph")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    if config.option.graphs and not on_gpu():
        raise pytest.UsageError("--graphs are CUDA's: they need --device cuda")
    config.addinivalue_line("markers", "cases(cases): what a benchmark compares; see harness.each")
    # torch 2.13's inductor uses what torch.jit has deprecated
    config.addinivalue_line("filterwarnings", r"ignore:`torch\.jit\.:DeprecationWarning")
    option = config.option
    partial = bool(option.keyword or option.markexpr or any(".py" in str(path) for path in config.args))
    config.stash[RESULTS] = Results(about(option.benchmark_disable, command(config)) | {"partial": partial})
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "min", "rounds", "iterations"]


def command(config: pytest.Config) -> str:
    """What was typed, less where its results go."""
    words = [str(word) for word in config.invocation_params.args]
    to_files = {
        i + shift for i, word in enumerate(words) for shift in (0, 1) if word in ("--table", "--benchmark-json")
    }
    kept = [w for i, w in enumerate(words) if i not in to_files and not w.startswith(("--table=", "--benchmark-json="))]
    return shlex.join(["python", "-m", "pytest", *(Path(w).name if Path(w).is_absolute() else w for w in kept)])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("cases")
    if marker is None:
        return
    option = metafunc.config.option
    cases = selected(marker.args[0], option.grid == "full", option.benchmark_disable)
    pairs = [pytest.param(case, name, id=f"{case} {name}") for case in cases for name in opponents_of(case)]
    metafunc.parametrize(("case", "opponent"), pairs)


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether to run everything once and small, for the sake of running it."""
    return pytestconfig.option.benchmark_disable


@pytest.fixture(scope="session")
def tables(pytestconfig: pytest.Config) -> Results:
    """Where rows go of tables that have columns of their own: `tables.add(title, row)`."""
    return pytestconfig.stash[RESULTS]


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config, quick: bool, tables: Results) -> Callable[[Case], dict[str, Any]]:
    """case -> its measurement and records by opponent, taken at the first call, when the tables get them too."""
    option = pytestconfig.option
    watch = nvml.watch() if on_gpu() else None
    settings = Settings(quick, option.seconds, option.cache == "cold", option.graphs, watch)

    @functools.cache
    def outcome(case: Case) -> tuple[Measurement, dict[str, dict[str, Any]]] | Exception:
        try:
            return taken(case)
        except Exception as error:  # once a case, not once an opponent
            return error

    def of(case: Case) -> tuple[Measurement, dict[str, dict[str, Any]]]:
        found = outcome(case)
        if isinstance(found, Exception):
            raise found
        return found

    def taken(case: Case) -> tuple[Measurement, dict[str, dict[str, Any]]]:
        run = case.smallest() if quick else case
        m = measure(run, settings)
        records = {name: record(run, name, m) for name in opponents_of(run)}
        if run.row:
            tables.add(run.table, run.row(run, {name: statistics.median(m.a_call(name)) for name in m.seconds}))
        tables.records += records.values()
        return m, records

    return of


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Report:
    """(group, name, seconds of each round, calls a round, figures) -> reports them through pytest-benchmark."""

    def report(
        group: str, name: str, seconds: list[float], iterations: int = 1, figures: dict[str, Any] | None = None
    ) -> None:
        request.node.add_marker(pytest.mark.benchmark(group=group, timer=replay(seconds)))
        benchmark = request.getfixturevalue("benchmark")
        benchmark.extra_info.update(figures or {"opponent": name})
        benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=iterations)

    return report


@pytest.fixture
def compared(measured: Callable[[Case], Any], recorded: Report) -> Callable[[Case, str], None]:
    """(case, opponent) -> measures the case and reports the opponent's times and figures."""

    def report(case: Case, opponent: str) -> None:
        m, records = measured(case)
        recorded(str(case), opponent, m.seconds[opponent], m.iterations[opponent], records[opponent])

    return report


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Beside pytest-benchmark's own: what it ran on, and the tables that aren't made of records."""
    results = config.stash[RESULTS]
    output_json["vae_fast"] = {"about": results.about, "tables": results.tables}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    if not (results.tables or results.records):
        return
    text = markdown.render(results.about, results.records, results.tables)
    terminalreporter.write_line("\n" + text)
    if path := config.getoption("table"):
        path.write_text(text)
