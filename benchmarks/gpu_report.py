"""`python benchmarks/gpu_report.py` runs all tests and benchmarks on this machine's GPU and writes docs/gpu-report.md.

`make gpu` does the same in an environment of its own. Where torch is there already and nothing can be downloaded,
`VAE_FAST_BUILD=auto pip install --no-deps --no-build-isolation -e .` comes first. Names of parts as arguments run
those alone. The report is written anew after each part, and says which have not run. Without a GPU nothing happens.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "gpu-report.md"
TAIL = 40  # lines of output shown of a run that didn't come to its end


@dataclass(frozen=True)
class Part:
    """title: its heading. arguments: of pytest. what: it shows."""

    title: str
    arguments: tuple[str, ...]
    what: str


PARTS = {
    "operators": Part(
        "Operators on the GPU",
        ("tests", "--device", "cuda", "--benchmark-disable"),
        "The tests of the operators, gradients, losses and models, on tensors of the GPU, against the float64 "
        "reference; and those that only a GPU can run: graphs, streams, synchronisation, memory, launches.",
    ),
    "benchmarks": Part(
        "Benchmarks on the GPU",
        ("benchmarks", "--device", "cuda"),
        "No figure is shown before outputs and gradients agree with the float64 reference.",
    ),
    "tests": Part(
        "Every test", ("tests", "--benchmark-disable"), "What `make test` runs, on this machine: most of it on the CPU."
    ),
}


@dataclass(frozen=True)
class Result:
    """What a part came to. tables: of the benchmarks, as markdown. tail: of the output, if it broke off."""

    code: int
    counts: dict[str, int]
    seconds: float
    failures: list[tuple[str, str]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    tables: str = ""
    tail: str = ""


def words(part: Part) -> str:
    """The command of a part, as one types it."""
    return " ".join(["python -m pytest", *part.arguments])


def run(part: Part) -> Result:
    """Runs a part, showing its output as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        record, tables = Path(folder, "junit.xml"), Path(folder, "tables.md")
        command = [sys.executable, "-m", "pytest", *part.arguments, "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={record}", *(["--table", str(tables)] if "benchmarks" in part.arguments else [])]
        start = time.monotonic()
        lines: list[str] = []
        with subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        ) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        counts, failures, skipped = read(record) if record.exists() else ({}, [], {})
        return Result(
            process.returncode,
            counts,
            time.monotonic() - start,
            failures,
            skipped,
            tables.read_text() if tables.exists() else "",
            "" if counts else "".join(lines[-TAIL:]),
        )


def read(record: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Counts of outcomes, (test, message) of failures, and how many tests were skipped for which reason."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    failures: list[tuple[str, str]] = []
    skipped: dict[str, int] = {}
    for case in ElementTree.parse(record).iter("testcase"):
        found = {child.tag: child.get("message", "") for child in case}
        if message := found.get("failure") or found.get("error"):
            counts["failed"] += 1
            failures.append((f"{case.get('classname', '')}::{case.get('name', '')}", message))
        elif "skipped" in found:
            counts["skipped"] += 1
            skipped[found["skipped"]] = skipped.get(found["skipped"], 0) + 1
        else:
            counts["passed"] += 1
    return counts, failures, skipped


def output_of(*command: str) -> str:
    """What a command prints, empty if there is none such or it fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
    """What everything ran on."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    commit, changes = output_of("git", "rev-parse", "--short", "HEAD"), output_of("git", "status", "--porcelain")
    platform_of = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return {
        "GPU": "; ".join(
            f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute capability {p.major}.{p.minor}" for p in gpus
        ),
        "driver": driver[0] if driver else "not known: no nvidia-smi",
        "torch": f"{torch.__version__}, {platform_of}",
        "triton": version("triton"),
        "vae_fast": version("vae_fast") + (f", commit {commit}" if commit else "") + (", changed" if changes else ""),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


def render(machine: dict[str, str], results: dict[str, Result], date: str, parts: Sequence[str] = ()) -> str:
    """The report as markdown: what ran and what came of it, and which parts did not run. parts: those asked for."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in machine.items())
    command = f'make gpu ARGS="{" ".join(parts)}"' if parts else "make gpu"
    head = f"# On a GPU\n\nMade on {date}. One command makes it again:\n\n    {command}\n\n"
    head += f"| | |\n| --- | --- |\n{rows}\n"
    return head + "".join(f"\n{section(part, results.get(name))}" for name, part in PARTS.items())


def section(part: Part, result: Result | None) -> str:
    """A part of the report."""
    lines = [f"## {part.title}", "", part.what, "", f"    {words(part)}", ""]
    if result is None:
        return "\n".join([*lines, "Not run.", ""])
    if result.counts:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in result.counts.items())
        lines += [f"**{counts}** in {result.seconds:.0f} s (exit status {result.code}).", ""]
    else:
        lines += [f"**Broke off** after {result.seconds:.0f} s with exit status {result.code}:", ""]
        lines += ["```", *clean(result.tail).splitlines(), "```", ""]
    lines += [f"- FAILED `{clean(name)}`: {clean(message.partition(chr(10))[0])}" for name, message in result.failures]
    lines += [f"- skipped {count}: {clean(reason)}" for reason, count in sorted(result.skipped.items())]
    lines += [""] if result.failures or result.skipped else []
    if result.tables:
        lines += [result.tables]
    elif "benchmarks" in part.arguments:
        lines += ["No figures: nothing was measured.", ""]
    return "\n".join(lines)


def clean(text: str) -> str:
    """Without this machine's folders, colours and what would break a line of markdown."""
    for folder, name in ((str(ROOT), "."), (sys.prefix, "PYTHON"), (str(Path.home()), "~")):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def main(arguments: Sequence[str] | None = None, report: Path = REPORT) -> int:
    """The exit status: 0 without a GPU, or if all that ran passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parts = parser.parse_args(arguments).parts
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        print(f"No GPU: torch {torch.__version__} sees none, so nothing was run and no report written.")
        return 0
    about, date = machine(), datetime.date.today().isoformat()
    results: dict[str, Result] = {}
    for name in parts or PARTS:
        results[name] = run(PARTS[name])
        report.write_text(render(about, results, date, parts))
    print(f"Written: {report.name}")
    return max(int(result.code != 0) for result in results.values())


if __name__ == "__main__":
    sys.exit(main())
