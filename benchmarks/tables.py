"""Results as markdown: from a session's records, or from what one stored (see render.py)."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, str]
Record = dict[str, Any]

LIMITS = ("limit", "limit, out=")
FIRST = ("ours", "eager", "compile", "max-autotune", "torch.distributions")  # then other libraries, then the limits
CAPTIONS = {
    "Speed": "vae_fast; then the time of each opponent over ours. GB/s: over the bytes that must be moved, inputs and "
    "incoming gradients read once, outputs and gradients written once. Limit: the operation named moves as many bytes; "
    "its time over ours, its result in fresh memory, as gradients are, or in memory used before (out=). Incoming "
    "gradients are 1, for which our backward finds nothing to do; any other, of a mean of `bernoulli_nll` or "
    "`gaussian_nll` or of a loss scaler, costs another pass over the gradients.",
    "Times": "Medians and quartiles, ms. Limit: an operation of PyTorch's that moves as many bytes, on float32 arrays; "
    "its result fresh, as gradients are, or with out= in memory used before.",
    "Accuracy": "The largest error of a gradient over the largest gradient, held against the float64 reference; in "
    "half precision the rounding of the gradient itself, up to 3.9e-3 in bfloat16, is in it.",
    "Memory": "The most that a call holds beyond its inputs, MiB, with outputs and gradients.",
    "Operations": "Operators of PyTorch's dispatched in a call, those inside others left out, with the loops that "
    "Inductor wrote.",
    "Launches": "Kernels launched in a call.",
    "GPU": "What the GPU said of itself while ours ran, with the others in turn; joules: ours alone for half a second.",
    "Scaling": "Forward + backward, an element; incoming gradients of 1.",
    "Training step": "zero_grad, forward, backward and Adam, float32, samples/s; then times, one over another. Loss "
    "compiled, all compiled: torch.compile of the usual loss, and of networks, sampling and loss together; ours, all "
    "compiled: vae_fast inside torch.compile. pythae: its VAE around the same networks, where installed.",
    "Training steps one by one": "Medians and quartiles; the most that a step holds beyond what it finds; operators of "
    "PyTorch's dispatched, with the loops that Inductor wrote.",
    "Where a training step's time goes": "The same steps, timed pass by pass. The loss, sampling included, is told "
    "from the networks by cutting the graph between them; what torch.compile makes of networks and loss together can't "
    "be cut.",
    "Overhead": "One call on tensors of a few elements, on one thread. Recorded: forward with the graph for backward.",
    "Resident": "What a process's resident memory grew by at most in one training step, in units of the gradients.",
    "Import": "In a fresh process, the files in the page cache.",
}


def render(about: dict[str, Any], records: Sequence[Record], tables: dict[str, list[Row]]) -> str:
    """The whole report."""
    cases = grouped(records)
    names = in_order(name for case in cases for name in case)
    counted = "Launches" if about["gpu"] else "Operations"
    found = {
        "Speed": [speed(case, names) for case in cases],
        "Times": [times(case, names) for case in cases],
        "Accuracy": [by_opponent(case, names, "gradient_error", 1, "{:.1e}") for case in cases if backward(case)],
        "Memory": [by_opponent(case, names, "extra_bytes", 2**20, "{:.4g}") for case in cases],
        counted: [by_opponent(case, names, "operations", 1, "{:.0f}") for case in cases],
        "GPU": [row for case in cases if (row := gpu(case))],
    }
    parts = [setting(about), *(table(title, rows) for title, rows in (found | tables).items() if rows)]
    parts += warnings(about, records)
    return "\n\n".join(parts) + "\n"


def setting(about: dict[str, Any]) -> str:
    """Machine, versions, command."""
    if about["quick"]:
        return "Run once, at the smallest size: NOT a measurement."
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['processor']}, {about['threads']} threads; Python {about['python']}, {versions}. Medians of 7 to 400 "
        f"rounds in one process, in each of which every opponent runs.\n\n    {about['command']}"
    )


def warnings(about: dict[str, Any], records: Iterable[Record]) -> list[str]:
    """What to hold against these figures."""
    found = []
    if about["load"] > 0.5 and not about["quick"]:
        found.append(f"**Mistrust these**: the machine had a load of {about['load']:.1f} before the start.")
    for case in grouped(records):
        first = next(iter(case.values()))
        if first.get("throttled"):
            found.append(f"**Throttled** ({', '.join(first['throttled'])}): {' '.join(head(first).values())}.")
    return found


def grouped(records: Iterable[Record]) -> list[dict[str, Record]]:
    """Records of the usual columns, by opponent, a dict a case."""
    cases: dict[tuple[Any, ...], dict[str, Record]] = {}
    for r in records:
        if r.get("table") == "Speed":
            key = tuple(r[name] for name in ("operator", "dtype", "rows", "columns", "latent", "direction"))
            cases.setdefault(key, {})[r["opponent"]] = r
    return [*cases.values()]


def backward(case: dict[str, Record]) -> bool:
    return all(r["direction"] == "forward + backward" for r in case.values())


def in_order(names: Iterable[str]) -> list[str]:
    """Opponents' names in the order of the columns."""
    rank = {name: i for i, name in enumerate(FIRST)} | {name: 100 + i for i, name in enumerate(LIMITS)}
    return sorted(set(names), key=lambda name: (rank.get(name, 50), name))


def head(r: Record) -> Row:
    size = f"{r['rows']} × {r['columns']}" + (f", Z {r['latent']}" if r["latent"] else "")
    return {"operator": f"`{r['operator']}`", "shape": size, "dtype": r["dtype"], "pass": r["direction"]}


def speed(case: dict[str, Record], names: Sequence[str]) -> Row:
    if "ours" not in case:
        return head(next(iter(case.values())))
    ours = case["ours"]
    low, high = ours["quartiles"]
    others = [name for name in names if name not in ("ours", *LIMITS)]
    ratios = {f"{n} / ours": f"{1 / ours['ratio_to'][n]:.2f}" if n in ours["ratio_to"] else "" for n in others}
    found = {
        "ours, ms": ms(ours["seconds"]),
        "IQR": ms(high - low),
        "samples/s": f"{ours['samples_per_second']:.3g}",
        "GB/s": f"{ours['gigabytes_per_second']:.3g}",
    }
    if "limit" in ours:
        found["limit"] = ours["limit"].partition(",")[0]
        found["of it, fresh"] = f"{ours['percent_of_limit']:.0f}%"
        found["of it, out="] = f"{100 / ours['ratio_to'][LIMITS[1]]:.0f}%" if LIMITS[1] in ours["ratio_to"] else ""
    return {**head(ours), **found, **ratios}


def times(case: dict[str, Record], names: Sequence[str]) -> Row:
    def cell(r: Record) -> str:
        return f"{ms(r['seconds'])} ({' to '.join(map(ms, r['quartiles']))})"

    cells = {name: cell(case[name]) if name in case else "" for name in names}
    return {**head(next(iter(case.values()))), **cells}


def by_opponent(case: dict[str, Record], names: Sequence[str], figure: str, unit: int, form: str) -> Row:
    found = {name: case.get(name, {}).get(figure) for name in names if name not in LIMITS}
    cells = {name: "" if value is None else form.format(value / unit) for name, value in found.items()}
    return {**head(next(iter(case.values()))), **cells}


def gpu(case: dict[str, Record]) -> Row:
    """Clocks, power, temperature, energy; nothing where the GPU wasn't asked."""
    if "watts" not in (r := case.get("ours", {})):
        return {}
    joules = r["joules_per_million_samples"]
    return {
        **head(r),
        "SM, MHz": f"{r['sm_mhz']:.0f}",
        "memory, MHz": f"{r['memory_mhz']:.0f}",
        "W": f"{r['watts']:.0f}",
        "°C": f"{r['celsius']:.0f}",
        "J / million samples": "" if joules is None else f"{joules:.3g}",
        "throttled": ", ".join(r["throttled"]),
    }


def ms(seconds: float) -> str:
    """Milliseconds, in three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def table(title: str, rows: list[Row]) -> str:
    heads = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    body = [[row.get(name, "") for name in heads] for row in rows]
    widths = [max(len(line[i]) for line in [heads, *body]) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *body]
    cells = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    caption = f"**{title}.** {CAPTIONS[title]}" if title in CAPTIONS else f"**{title}.**"
    return f"{caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells)
