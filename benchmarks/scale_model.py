"""The ELBO of a training step at sizes that no machine here holds: a million rows, a thousand GPUs. A model.

    python benchmarks/scale_model.py                               the tables of docs/performance.md, in two minutes
    python benchmarks/scale_model.py --batch 65536 --gpus 16 32    for other sizes

The ELBO's part of a step is sampling z, KL and reconstruction with the gradients of logits, mu and logvar: images of
784 bytes, bfloat16 logits, 64 latent dimensions. Each of N GPUs takes B/N rows. Nothing here is typed in that can be
counted: bytes, launches and instructions of ours and of torch.compile are those of `compiled.py`, a GPU's units
and bandwidth those of `tests/gpu/sass.py`, eager PyTorch's bytes those of the operators that it dispatches, the
networks those of `bench_train_step.py`, and a CPU's speed stands in the tables of docs/performance.md.
"""

import argparse
import itertools
import math
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests" / "gpu")]

import bench_train_step  # noqa: E402
from compiled import (  # noqa: E402
    BF16,
    FUNCTIONS,
    LATENT,
    PIXELS,
    ROWS,
    Cost,
    Launch,
    bytes_each,
    latents,
    launch_cost,
    leaves,
    our_elbo,
    program_cost,
    table,
)
from inductor import Input, Program, compile_for  # noqa: E402
from launches import Launch as Recorded  # noqa: E402
from launches import recorded  # noqa: E402
from sass import ARCHITECTURES  # noqa: E402

import vae_fast.ops  # noqa: E402, F401  (defines the operators)
from vae_fast.kernels import latent  # noqa: E402

ELBO, SAMPLING = "elbo_bernoulli, bf16, x uint8", "sampling, bf16"
COLUMNS = {ELBO: PIXELS, SAMPLING: LATENT}  # elements of a row
NETWORK = "MLP 784-1024-512-64"
DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
BATCHES, GPUS = (65_536, 1_000_000), (8, 64, 256, 1024)
LAUNCH = 2e-6  # seconds from launch to launch that a stream takes though a kernel has nothing to do
NODE = 8  # GPUs
NVLINK = {80: 300, 90: 450, 100: 900}  # GB/s of a GPU in one direction
ADAPTERS = {80: 25, 90: 50, 100: 50}  # GB/s of a GPU's own network adapter: HDR, NDR, NDR InfiniBand
HOPS = 1e-6, 5e-6  # seconds to the next GPU of the node, to that of the next node


def strokes(gigabytes: Mapping[int, int], times: int = 1) -> str:
    return "/".join(str(times * each) for each in gigabytes.values())


ASSUMPTIONS = f"""\
- **Time of a launch**: that of its slowest unit at datasheet speed, memory or arithmetic (`sass.ARCHITECTURES`); in
  eager PyTorch that of memory alone. Costs a row are as counted at {ROWS} rows. Caches keep nothing between launches.
- **Launches** run one after another, and each adds {LAUNCH * 1e6:.0f} microseconds: what a CUDA graph comes to. A host
  that calls PyTorch from Python takes longer, most of all in eager PyTorch.
- **Between GPUs**: the ELBO of a row needs no other row. Ranks exchange the networks' gradients and, to log it, one
  number. A ring all-reduce has each GPU send 2 (N-1)/N of the gradients' bytes in 2 (N-1) hops: of
  {HOPS[0] * 1e6:.0f} microsecond inside a node of {NODE}, of {HOPS[1] * 1e6:.0f} to the next; at {strokes(NVLINK)} GB/s
  inside a node (A100/H100/B200: NVLink, one direction), and where {NODE} adapters link nodes at no more than
  {strokes(ADAPTERS, NODE)} GB/s. For gradients as small as these, of `{NETWORK}` in float32, NCCL
  would choose a tree, with fewer hops; part of it would run beside backward. The networks' own time is in no column.
- **Left out of all alike**: that autograd adds what loss and sampling have for mu and logvar, two launches.
- **Memory**, inputs aside: of ours all that the operators return, gradients, z, nll and kl, without a few kilobytes of
  partial sums; of torch.compile all that its kernels write; of eager PyTorch the most that is alive at once.
- **CPU**: time a row is what was measured at that many rows; between two such by the logarithm of rows; beyond the last
  as at the last."""


@dataclass(frozen=True)
class Way:
    """One way to compute a step's ELBO, on one architecture: costs per element, by function, and bytes held a row."""

    costs: Mapping[str, Cost]
    held: float

    @property
    def launches(self) -> int:
        return sum(cost.launches for cost in self.costs.values())

    @property
    def moved(self) -> float:
        """Bytes of memory traffic a row."""
        return sum(COLUMNS[label] * cost.moved for label, cost in self.costs.items())

    def seconds(self, rows: int) -> float:
        busy = sum(COLUMNS[label] * cost.picoseconds for label, cost in self.costs.items()) * rows * 1e-12
        return busy + self.launches * LAUNCH

    def memory(self, rows: int) -> float:
        """Bytes held beyond the inputs."""
        return self.held * rows


def sampling(mu: Tensor, logvar: Tensor) -> Tensor:
    """z as usual, with the arithmetic that autocast would do in float32."""
    z = mu.float() + torch.randn_like(mu, dtype=torch.float32) * torch.exp(0.5 * logvar.float())
    return z.to(mu.dtype)


PARTS: dict[str, tuple[Callable[..., Any], tuple[Input, ...]]] = {
    ELBO: FUNCTIONS[ELBO],
    SAMPLING: (sampling, latents(ROWS)),
}


def our_sampling() -> list[Launch]:
    """reparameterize, for which PyTorch draws the seed, and its backward, which makes the noise again."""
    mu, logvar = (i.on_cpu().detach() for i in latents(ROWS))
    seed = torch.zeros((), dtype=torch.int64)
    with recorded() as launches:
        latent.reparameterize(mu, logvar, seed)
        latent.sample_kl_backward(torch.empty_like(mu), None, mu, logvar, None, None, seed, 3)
    forward, backward = launches
    return [noted(forward, bytes_each(mu, logvar), 2), noted(backward, bytes_each(mu, mu, logvar), 1)]


def noted(launch: Recorded, read: int, launches: int) -> Launch:
    """read: bytes that the main loop loads for an element."""
    elements = ROWS * LATENT
    per_thread = elements / (32 * launch.num_warps * math.prod(launch.grid))
    touched = {t.data_ptr(): t.numel() * t.element_size() for t in leaves(launch.arguments)}
    return Launch(
        SAMPLING,
        lambda arch: launch.compile(arch)[0],
        moved=sum(touched.values()) / elements,
        per_thread=per_thread,
        looped=read * per_thread,
        launches=launches,
    )


def our_launches() -> dict[str, list[Launch]]:
    return {ELBO: our_elbo(ELBO), SAMPLING: our_sampling()}


def ours(arch: int, launches: Mapping[str, Sequence[Launch]]) -> Way:
    costs = {label: sum((launch_cost(arch, one) for one in of), Cost()) for label, of in launches.items()}
    return Way(costs, our_outputs(ROWS) / ROWS)


def our_outputs(rows: int) -> int:
    """Bytes of all that our operators return in a step."""
    operators = torch.ops.vae_fast
    (logits, x, _, _), (mu, logvar) = (on_meta(label, rows) for label in (ELBO, SAMPLING))
    seed = torch.empty((), dtype=torch.int64, device="meta")
    results = (
        operators.elbo_bernoulli(logits, x, mu, logvar, *[None] * 5, 1.0, 1 / rows, True, 0b111),
        operators.reparameterize(mu, logvar, seed),
        operators.sample_kl_backward(mu, None, mu, logvar, None, None, seed, 3),
    )
    return sum(t.nbytes for t in tree_leaves(results))


def on_meta(label: str, rows: int) -> list[Tensor]:
    """A function's inputs, of shapes and dtypes only; none requires a gradient."""
    return [torch.empty(rows, *i.shape[1:], dtype=i.dtype, device="meta") for i in PARTS[label][1]]


def compile_all(arch: int) -> dict[str, Program]:
    return {label: compile_for(*part, arch) for label, part in PARTS.items()}


def torch_compile(programs: Mapping[str, Program]) -> Way:
    written = sum(COLUMNS[label] * sum(k.written for k in program.kernels) for label, program in programs.items())
    return Way({label: program_cost(program) for label, program in programs.items()}, written)


class Dispatched(TorchDispatchMode):
    """Counts what eager PyTorch launches, the bytes that it reads and writes, each tensor once, and those it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.moved, self.launches, self.now, self.peak = 0, 0, 0, 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.binary_cross_entropy_with_logits.default:
            with self:
                return cross_entropy(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        name = func.overloadpacket.__name__
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            return out  # a view
        for t in outputs:
            self._hold(t.untyped_storage())
        if not name.startswith("empty"):
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and not name.endswith("_like")]
            self.moved += sum(map(extent, [*inputs, *outputs]))
            self.launches += 1
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return

        def dropped() -> None:
            self.alive.discard(key)
            self.now -= size

        self.alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, dropped)


def cross_entropy(logits: Tensor, x: Tensor, weight: None, pos_weight: None, reduction: int) -> Tensor:
    """The operators that PyTorch's own is composed of, and calls unseen: ATen/native/Loss.cpp."""
    loss = (1 - x).mul_(logits).sub_(F.logsigmoid(logits))
    return [lambda: loss, loss.mean, loss.sum][reduction]()


def extent(t: Tensor) -> int:
    """Bytes of memory that a tensor's elements lie in; expanded dimensions share theirs."""
    return t.element_size() * math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride)


def dispatched(*labels: str, rows: int = ROWS) -> Dispatched:
    """Functions forward, then backward in the reverse order, as a step has them."""
    operands = [on_meta(label, rows) for label in labels]
    for label, tensors in zip(labels, operands, strict=True):
        for i, t in zip(PARTS[label][1], tensors, strict=True):
            t.requires_grad_(i.requires_grad)
    incoming = torch.empty(rows, LATENT, dtype=BF16, device="meta")
    with Dispatched() as counted:
        outputs = [PARTS[label][0](*tensors) for label, tensors in zip(labels, operands, strict=True)]
        torch.autograd.backward(outputs, [incoming if t.dim() else None for t in outputs])
    return counted


def eager(arch: int) -> Way:
    def cost(label: str) -> Cost:
        counted, elements = dispatched(label), ROWS * COLUMNS[label]
        moved = counted.moved / elements
        return Cost(moved, counted.launches, picoseconds=moved / ARCHITECTURES[arch].bandwidth * 1e3)

    return Way({label: cost(label) for label in PARTS}, dispatched(SAMPLING, ELBO).peak / ROWS)


def gradient_bytes() -> int:
    """Of the networks, in float32."""
    return sum(4 * p.numel() for p in bench_train_step.NETWORKS[NETWORK][0]().parameters())


def ring_seconds(arch: int, gpus: int, size: int) -> float:
    """Of an all-reduce of so many bytes."""
    if gpus == 1:
        return 0.0
    nodes = math.ceil(gpus / NODE)
    bandwidth = NVLINK[arch] if nodes == 1 else min(NVLINK[arch], NODE * ADAPTERS[arch])
    hops = HOPS[0] * (gpus - 1) if nodes == 1 else HOPS[0] * (gpus - nodes) + HOPS[1] * nodes
    return 2 * (gpus - 1) / gpus * size / (bandwidth * 1e9) + 2 * hops


def share(batch: int, gpus: int) -> int:
    """Rows of the GPU that has most."""
    return math.ceil(batch / gpus)


def documented(title: str, text: str | None = None) -> list[dict[str, str]]:
    """Rows of a table of docs/performance.md, which the benchmarks wrote."""
    _, found, rest = (DOCS.read_text() if text is None else text).partition(f"**{title}.**")
    if not found:
        raise LookupError(f"no table {title!r} in docs/performance.md")
    block = re.search(r"(?:^\|.*\|$\n?)+", rest, re.MULTILINE)
    assert block
    head, _, *body = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in block[0].splitlines())
    return [dict(zip(head, row, strict=False)) for row in body]


@dataclass(frozen=True)
class Processor:
    """A CPU by its measurements: nanoseconds an observation by rows, of the likelihood and of torch.add; a latent's."""

    observation: tuple[tuple[int, float], ...]
    limit: tuple[tuple[int, float], ...]
    latent: float

    def seconds(self, rows: int) -> float:
        """Of sampling, KL and likelihood with their gradients."""
        return 1e-9 * rows * (PIXELS * at(self.observation, rows) + LATENT * self.latent)

    def at_limit(self, rows: int) -> float:
        """Of torch.add over three float32 arrays of as many observations, its result in fresh memory."""
        return 1e-9 * rows * PIXELS * at(self.limit, rows)


def at(measured: Iterable[tuple[int, float]], rows: int) -> float:
    """Between two measurements by the logarithm of rows; beyond the last as the last."""
    points = sorted(measured)
    for (low, a), (high, b) in itertools.pairwise(points):
        if rows <= high:
            weight = max(0.0, math.log(rows / low) / math.log(high / low))
            return a + weight * (b - a)
    return points[-1][1]


def processor(text: str | None = None) -> Processor:
    """That of the documentation's tables."""
    rows = [row for row in documented("Scaling", text) if row["columns"] == str(PIXELS)]
    limit = next(name for name in rows[0] if name in ("limit, ns", "torch.add, ns"))
    ours, of_memory = (tuple((int(row["rows"]), float(row[name])) for row in rows) for name in ("ours, ns", limit))
    sampled = [
        (math.prod(map(int, re.findall(r"\d+", row["shape"])[:2])), float(row["ours, ms"]))
        for row in documented("Speed", text)
        if row["operator"].startswith("`sample_kl") and "+" in row["pass"] and row["dtype"] == "float32"
        if re.findall(r"\d+", row["shape"])[1] == str(LATENT)
    ]
    values, ms = max(sampled)
    return Processor(ours, of_memory, ms * 1e6 / values)


WAYS = ("ours", "torch.compile", "eager")
Ways = dict[int, dict[str, Way]]  # by architecture


def all_ways() -> Ways:
    launches = our_launches()
    ways: Ways = {}
    for arch, gpu in ARCHITECTURES.items():
        print(f"compiling for {gpu.name}", file=sys.stderr)
        ways[arch] = {
            "ours": ours(arch, launches),
            "torch.compile": torch_compile(compile_all(arch)),
            "eager": eager(arch),
        }
    return ways


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}"


def row_table(ways: Ways) -> str:
    """What a row of data costs."""
    head = ("GPU", *(f"{what}, {way}" for what in ("bytes a row", "launches", "bytes held a row") for way in WAYS))
    rows = []
    for arch, of in ways.items():
        figures = [f"{getattr(of[way], name):,.0f}" for name in ("moved", "launches", "held") for way in WAYS]
        rows.append([ARCHITECTURES[arch].name, *figures])
    return table(head, rows)


def scale_table(ways: Ways, batches: Sequence[int], gpus: Sequence[int]) -> str:
    head = (
        *("GPU", "GPUs", "batch", "rows a GPU"),
        *(f"{way}, µs" for way in WAYS),
        *(f"{way} / ours" for way in WAYS[1:]),
        *(f"{way}, MiB a GPU" for way in WAYS),
        "all-reduce, µs",
    )
    size = gradient_bytes()
    rows = []
    for arch, of in ways.items():
        for batch in batches:
            for n in gpus:
                each = share(batch, n)
                seconds = {way: of[way].seconds(each) for way in WAYS}
                rows.append(
                    [
                        *(ARCHITECTURES[arch].name, str(n), f"{batch:,}", f"{each:,}"),
                        *(microseconds(s) for s in seconds.values()),
                        *(f"{seconds[way] / seconds['ours']:.1f}" for way in WAYS[1:]),
                        *(f"{of[way].memory(each) / 2**20:,.1f}" for way in WAYS),
                        microseconds(ring_seconds(arch, n, size)),
                    ]
                )
    return table(head, rows)


def processor_table(cpu: Processor, batches: Sequence[int]) -> str:
    head = ("batch", "ours, ms", "torch.add of as many observations into fresh memory, ms")
    return table(head, [[f"{b:,}", f"{cpu.seconds(b) * 1e3:,.1f}", f"{cpu.at_limit(b) * 1e3:,.1f}"] for b in batches])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES, help="rows of a step, over all GPUs")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    options = parser.parse_args(arguments)
    ways = all_ways()
    print("**Counted.** In what is compiled and dispatched: the ELBO of one row, with its gradients.\n")
    print(row_table(ways))
    print("\n**Model.** Every column: the ELBO's part of a step on one of N GPUs. Measured on none.\n")
    print(scale_table(ways, options.batch, options.gpus))
    print("\n**Model from measurements.** Every column: the same on the CPU of the tables above, in float32.\n")
    print(processor_table(processor(), [4096, *options.batch]))
    print("\nAssumptions:\n\n" + ASSUMPTIONS)


if __name__ == "__main__":
    main()
