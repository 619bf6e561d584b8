"""Regressions between two stored runs of the benchmarks: `python benchmarks/compare.py A B`, or `make bench-compare`.

A row that takes over 10% longer in B, with no overlap of the two interquartile ranges, is slower. The exit status is 1
if any of ours is; other rows show what the machine did meanwhile. pytest-benchmark's own comparison knows no spread.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TOLERATED = 1.1


def rows(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, str, float, str]]:
    """(benchmark, opponent, time in B over that in A, verdict) of all that both have measured."""
    for name in [*a, *(name for name in b if name not in a)]:
        opponent = str((a.get(name) or b[name])["extra_info"].get("opponent", ""))
        if name not in a or name not in b:
            yield name, opponent, float("nan"), "only in " + ("A" if name in a else "B")
            continue
        old, new = a[name]["stats"], b[name]["stats"]
        ratio = new["median"] / old["median"]
        slower = ratio > TOLERATED and new["q1"] > old["q3"]
        faster = ratio < 1 / TOLERATED and new["q3"] < old["q1"]
        yield name, opponent, ratio, "SLOWER" if slower else "faster" if faster else ""


def load(path: Path) -> dict[str, Any]:
    """Benchmarks by name."""
    return {b["fullname"]: b for b in json.loads(path.read_text())["benchmarks"]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("a", metavar="A", type=Path)
    parser.add_argument("b", metavar="B", type=Path)
    parser.add_argument("--changed", action="store_true", help="only rows that are slower, faster or in one run alone")
    chosen = parser.parse_args(arguments)
    a, b = (json.loads(path.read_text()).get("vae_fast", {}).get("about", {}) for path in (chosen.a, chosen.b))
    for what in ("processor", "gpu", "threads", "versions", "quick"):
        if a.get(what) != b.get(what):
            print(f"Mistrust this: {what} differs: {a.get(what)} in A, {b.get(what)} in B")
    found = list(rows(load(chosen.a), load(chosen.b)))
    for name, _, ratio, verdict in found:
        if verdict or not chosen.changed:
            print(f"{ratio:6.2f}  {verdict:9}  {name}")
    worse = [name for name, opponent, _, verdict in found if verdict == "SLOWER" and opponent.startswith("ours")]
    of_ours = sum(opponent.startswith("ours") for _, opponent, *_ in found)
    print(f"{len(worse)} of ours slower, of {of_ours}; ratio: B / A")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
