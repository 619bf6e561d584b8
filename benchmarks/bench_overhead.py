"""What a call costs beside the work: operators on tensors of a few elements, and `import vae_fast`."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import bench_bernoulli
import bench_elbo
import bench_latent
import pytest
import torch
import torch.nn.functional as F
from harness import Case, Results, Row, each
from torch import Tensor

import vae_fast
from vae_fast import reference

IMPORT = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import vae_fast
print(json.dumps([middle - start, time.perf_counter() - middle]))
"""
IMPORTS = "import torch", "import vae_fast"


def row(case: Case, seconds: dict[str, float]) -> Row:
    times = {f"{name}, µs": f"{s * 1e6:.1f}" for name, s in seconds.items()}
    size = "{} × {}".format(*case.shape)
    return {"operator": f"`{case.operator}`", "shape": size, "pass": case.direction, **times}


def eager(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def truth(_: object, logits: Tensor, x: Tensor) -> Tensor:
    return reference.nll(reference.bernoulli, [logits], x)


def tiny(case: Case) -> list[Case]:
    case = replace(case, shape=(4, 8), opponents=("eager", "compile", "ours"), full=False, table="Overhead", row=row)
    return [replace(case, direction=way) for way in ("forward", "forward, recorded", "forward + backward")]


NLL = replace(bench_bernoulli.FLOAT, operator="bernoulli_nll(logits, x)")
NLL = replace(NLL, eager=eager, ours=vae_fast.bernoulli_nll, truth=truth)
CASES = [case for whole in (NLL, bench_latent.CASE, bench_elbo.CASES[0]) for case in tiny(whole)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Some of eager's operators wake all threads even for a few elements; that isn't the question here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@each(CASES)
def test_overhead(case, opponent, compared, one_thread):
    compared(case, opponent)


@pytest.fixture(scope="module")
def import_seconds(quick: bool, tables: Results) -> dict[str, list[float]]:
    """Seconds of `import torch` and of `import vae_fast` after it, of several processes."""
    runs = [import_once() for _ in range(1 if quick else 6)]
    seconds = dict(zip(IMPORTS, map(list, zip(*runs, strict=True)), strict=True))
    in_ms = [f"{statistics.median(some) * 1e3:.0f}" for some in seconds.values()]
    columns = "import torch, ms", "import vae_fast adds, ms"
    tables.add("Import", dict(zip(columns, in_ms, strict=True)))
    return seconds


def import_once() -> list[float]:
    # Compiled modules are kept, as they are by default: those of torch, which an installer compiles, always are
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", IMPORTS)
def test_import(name, import_seconds, recorded):
    recorded("import", name, import_seconds[name])
