"""The figures of a row, as numbers: what pytest-benchmark stores beside the times."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cases import Case, Row
from .opponents import LIMIT_BYTES, LIMITS
from .timing import Measurement


@dataclass
class Results:
    """What has been measured: a record a case and opponent, and rows of tables with columns of their own."""

    about: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, title: str, row: Row) -> None:
        self.tables.setdefault(title, []).append(row)


def quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3


def record(case: Case, name: str, m: Measurement) -> dict[str, Any]:
    """All figures of an opponent in a case."""
    low, median, high = quartiles(m.a_call(name))
    rows, columns = case.shape
    of = {other: statistics.median(m.a_call(other)) for other in m.seconds}
    found: dict[str, Any] = {
        "operator": case.operator,
        "dtype": case.dtype,
        "rows": rows,
        "columns": columns,
        "latent": case.latent,
        "direction": case.direction,
        "table": case.table,
        "opponent": name,
        "seconds": median,
        "quartiles": [low, high],
        "samples_per_second": rows / median,
        "ideal_bytes": m.read + m.written,
        "gigabytes_per_second": (m.read + m.written) / median / 1e9,
        "ratio_to": {other: median / seconds for other, seconds in of.items()},
    }
    if LIMITS[0] in of:
        elements = (m.read + m.written) // LIMIT_BYTES[m.limit]
        found["limit"] = f"{m.limit}, {elements} float32 elements"
        found["percent_of_limit"] = 100 * of[LIMITS[0]] / median
        found["percent_of_limit_out"] = 100 * of[LIMITS[1]] / median if LIMITS[1] in of else None
    if name in m.peaks:
        found |= {"extra_bytes": m.peaks[name], "gradient_bytes": m.gradients, "operations": m.operations[name]}
        found["gradient_error"] = m.errors[name]
    if name in m.gpu:
        gpu = dict(m.gpu[name])
        joules = gpu.pop("joules_a_call")
        found |= {**gpu, "joules_per_million_samples": None if joules is None else joules / rows * 1e6}
    return found


def replay(seconds: Sequence[float]) -> Callable[[], float]:
    """A timer whose readings lie as far apart, two by two, as what was measured before."""
    readings = itertools.chain.from_iterable((0.0, s) for s in seconds)

    def recorded() -> float:
        return next(readings)

    return recorded
