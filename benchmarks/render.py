"""Shows a stored run of the benchmarks.

    python benchmarks/render.py PATH             writes tables and plots into docs/, between performance.md's markers
    python benchmarks/render.py PATH --print     prints the tables alone

PATH: of `python -m pytest benchmarks -q --benchmark-json PATH`. `make bench` does both.
"""

import argparse
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tables
from tables import LIMITS, Record

DOCS = Path(__file__).resolve().parents[1] / "docs"
START, END = "<!-- tables: written by `make bench` -->", "<!-- end of tables -->"
COLOURS = {
    "ours": "C3",
    "eager": "C0",
    "compile": "C1",
    "max-autotune": "C4",
    "torch.distributions": "C2",
    "pyro": "C5",
    "pythae": "C6",
    "diffusers": "C8",
    "limit": "0.6",
    "limit, out=": "0.8",
}


def over_ours(r: Record) -> float:
    return float(r["ratio_to"]["ours"])


def of_limit(r: Record) -> float:
    return float(r["percent_of_limit"])


def in_gradients(r: Record) -> float | None:
    return r["extra_bytes"] / r["gradient_bytes"] if "extra_bytes" in r else None


# file name: (figure of a record, its axis, whether logarithmic)
PLOTS: dict[str, tuple[Callable[[Record], float | None], str, bool]] = {
    "performance-ratio.svg": (over_ours, "time / vae_fast's", True),
    "performance-limit.svg": (of_limit, "% of the limit's speed", False),
    "performance-memory.svg": (in_gradients, "memory held / gradients", True),
}


def load(path: Path) -> tuple[dict[str, Any], list[Record], dict[str, list[tables.Row]]]:
    """(what it ran on, records, tables with columns of their own) of a stored run."""
    stored = json.loads(path.read_text())
    if "vae_fast" not in stored:
        raise SystemExit(f"{path}: not a run of these benchmarks")
    about = stored["vae_fast"]["about"]
    if commit := stored.get("commit_info", {}).get("id"):
        changed = " and changes" if stored["commit_info"].get("dirty") else ""
        about["versions"]["vae_fast"] = (
            f"{about['versions'].get('vae_fast', '')} (commit {commit[:7]}{changed})".strip()
        )
    return about, [b["extra_info"] for b in stored["benchmarks"]], stored["vae_fast"]["tables"]


def plot(about: dict[str, Any], records: Sequence[Record], name: str, path: Path) -> bool:
    """A panel for each operator of several sizes: a line an opponent and dtype, over the number of elements; and one
    for all the others, by rows. False with nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure_of, label, logarithmic = PLOTS[name]
    scale = "log" if logarithmic else "linear"
    shown = [r for case in tables.grouped(records) for r in case.values() if r["direction"] == "forward + backward"]
    of = {r["operator"]: [other for other in shown if other["operator"] == r["operator"]] for r in shown}
    several = [operator for operator, some in of.items() if len({elements(r) for r in some}) > 1]
    rows = [operator for operator in of if operator not in several]
    if not of:
        return False
    across = max(1, min(3, len(several)))
    down = -(-len(several) // across)
    heights = [2.6 * down] * bool(several) + [0.3 * len(rows) + 0.6] * bool(rows)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8}):
        figure = plt.figure(figsize=(4 * across, sum(heights) + 0.8), layout="constrained")
        parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]  # margins of their own
        lines: dict[str, Any] = {}
        for i, operator in enumerate(several):
            panel = parts[0].add_subplot(down, across, i + 1)
            lines |= draw(panel, of[operator], figure_of)
            panel.set(title=textwrap.fill(operator, 40), xscale="log", yscale=scale, ylabel=label)
        if rows:
            panel = parts[-1].add_subplot()
            lines |= draw_rows(panel, {operator: of[operator] for operator in rows}, figure_of)
            panel.set(xscale=scale, xlabel=label)
        figure.supxlabel("lines: over elements; solid: float32, dashed: bfloat16")
        legend = tables.in_order(lines)
        figure.legend([lines[n] for n in legend], legend, loc="outside upper center", ncols=len(legend), frameon=False)
        caption = textwrap.fill(" ".join(tables.setting(about).split()), 200)
        figure.text(0.5, -0.01, caption, ha="center", va="top", fontsize=6)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, bbox_inches="tight")
        plt.close(figure)
    return True


def elements(r: Record) -> int:
    return int(r["rows"] * r["columns"])


def draw(panel: Any, records: Sequence[Record], figure_of: Callable[[Record], float | None]) -> dict[str, Any]:
    """One operator's lines; a line for each name, for the legend."""
    found = {}
    for name, dtype in dict.fromkeys((r["opponent"], r["dtype"]) for r in records if r["opponent"] != LIMITS[1]):
        points: dict[int, float] = {}
        for r in records:  # of several shapes with as many elements, the first
            if (r["opponent"], r["dtype"]) == (name, dtype) and (value := figure_of(r)) is not None:
                points.setdefault(elements(r), value)
        if points:
            style = {"color": COLOURS.get(name), "linestyle": "-" if dtype == "float32" else "--", "marker": "."}
            (found[name],) = panel.plot(*zip(*sorted(points.items()), strict=True), label=name, **style)
    return found


def draw_rows(panel: Any, of: dict[str, list[Record]], figure_of: Callable[[Record], float | None]) -> dict[str, Any]:
    """A row an operator, a dot an opponent; a dot for each name, for the legend."""
    found = {}
    names = [f"{operator} {some[0]['rows']} x {some[0]['columns']}" for operator, some in of.items()]
    for row, some in enumerate(of.values()):
        for r in some:
            name = r["opponent"]
            if name != LIMITS[1] and (value := figure_of(r)) is not None:
                (found[name],) = panel.plot(value, row, marker="o", linestyle="", color=COLOURS.get(name), label=name)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.grid(axis="y", alpha=0.3)
    return found


def write(path: Path, docs: Path = DOCS) -> None:
    """Tables between the page's markers, plots beside it."""
    about, records, own = load(path)
    if about["gpu"] or about.get("partial"):
        raise SystemExit(f"{path}: not a whole run on a CPU, which the page shows: see --print")
    page = docs / "performance.md"
    before, start, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"{page}: no markers for the tables")
    plots = [name for name in PLOTS if plot(about, records, name, docs / name)]
    pictures = "\n".join(f"![{PLOTS[name][1]}, by size]({name})\n" for name in plots)
    page.write_text(f"{before}{START}\n{tables.render(about, records, own)}\n{pictures}{END}{after}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder of performance.md")
    chosen = parser.parse_args(arguments)
    if chosen.print:
        print(tables.render(*load(chosen.path)))
    else:
        write(chosen.path, chosen.docs)


if __name__ == "__main__":
    main()
