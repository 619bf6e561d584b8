"""pytest's part of the benchmarks: options, threads, the report.

    python -m pytest benchmarks -q                       every benchmark, and the tables
    python -m pytest benchmarks -q --table PATH          the tables written to PATH too, as markdown
    python -m pytest benchmarks -q --device cuda         the same on a GPU
    python -m pytest benchmarks -q --benchmark-disable   each once at its smallest size: do they work?

A case is measured once a session, its opponents in turn. Each opponent is a test that hands its times to
pytest-benchmark, so that --benchmark-json and --benchmark-compare serve as usual.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import Case, Measurement, Tables, measure, memory_row, replay

TABLES = pytest.StashKey[Tables]()
LOAD = pytest.StashKey[float]()
Report = Callable[[str, str, list[float], int], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", metavar="PATH", type=Path, help="write the benchmarks' tables to PATH")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    config.stash[LOAD] = os.getloadavg()[0]
    config.stash[TABLES] = Tables(quick=config.option.benchmark_disable)
    # torch 2.13's inductor uses what torch.jit has deprecated
    config.addinivalue_line("filterwarnings", r"ignore:`torch\.jit\.:DeprecationWarning")
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "min", "rounds", "iterations"]


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether to run everything once and small, for the sake of running it."""
    return pytestconfig.option.benchmark_disable


@pytest.fixture(scope="session")
def tables(pytestconfig: pytest.Config) -> Tables:
    return pytestconfig.stash[TABLES]


@pytest.fixture(scope="session")
def measured(quick: bool, tables: Tables) -> Callable[[Case], Measurement]:
    """case -> its measurement, taken at the first call, with a row in the tables."""

    @functools.cache
    def of(case: Case) -> Measurement:
        run = case.smallest() if quick else case
        m = measure(run, quick)
        tables.add(case.table, case.row(run, {name: m.median(name) for name in case.opponents}))
        if m.peaks and case.table == "Speed":
            tables.add("Memory", memory_row(run, m))
        return m

    return of


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Report:
    """(group, name, seconds of each round, calls a round) -> reports times through pytest-benchmark."""

    def report(group: str, name: str, seconds: list[float], iterations: int = 1) -> None:
        request.node.add_marker(pytest.mark.benchmark(group=group, timer=replay(seconds)))
        benchmark = request.getfixturevalue("benchmark")
        benchmark.extra_info["opponent"] = name
        benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=iterations)

    return report


@pytest.fixture
def compared(measured: Callable[[Case], Measurement], recorded: Report) -> Callable[[Case, str], None]:
    """(case, opponent) -> measures the case and reports the opponent's times."""

    def report(case: Case, opponent: str) -> None:
        m = measured(case)
        recorded(str(case), opponent, m.seconds[opponent], m.iterations[opponent])

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tables = config.stash[TABLES]
    if not tables.rows:
        return
    terminalreporter.write_line("\n" + tables.markdown())
    if (load := config.stash[LOAD]) > 0.5:
        terminalreporter.write_line(f"Mistrust these: the machine had a load of {load:.1f} before the start.")
    if path := config.getoption("table"):
        path.write_text(tables.markdown())
