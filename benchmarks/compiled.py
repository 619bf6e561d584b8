"""Ours against torch.compile, compiled for A100, H100 and B200 without any of them.

    python benchmarks/compiled.py                 prints a table of every function, in about four minutes
    python benchmarks/compiled.py bernoulli       of those whose names contain that
    python benchmarks/compiled.py --kernels       torch.compile's kernels too, one by one

Bytes, launches and machine instructions are counted in what Triton and Inductor compile. Times are a model's: for each
launch the slowest of memory, instruction issue and arithmetic units at their peaks, launches one after another. The
model knows no launch latency, no cache between kernels and no stall. Instructions are those of the main loop, or of the
whole kernel where there is none: what surrounds a loop, once a block, is not in. Where Inductor would choose among
configurations by measuring, the one that is best in the model stands.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests" / "gpu")]

from inductor import Input, Kernel, Program, Variant, compile_for  # noqa: E402
from sass import ARCHITECTURES, Body, Counts, Sass, count  # noqa: E402

ROWS, PIXELS = 8192, 784
SAMPLES, LATENT = 65536, 64
Figures = dict[int, "Cost"]  # by architecture
SPILLED = 16  # words: Inductor does not choose a configuration that spills more


@functools.cache
def counted(cubin: bytes) -> Sass:
    return count(cubin)


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Intensities are bytes, as ours reads them."""
    nll = F.binary_cross_entropy_with_logits(logits.float(), x.float() / 255, reduction="none")
    return nll.sum(1).mean()


def bernoulli_float32(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1).mean()


def gaussian(mean: Tensor, x: Tensor) -> Tensor:
    return (0.5 * F.mse_loss(mean.float(), x.float(), reduction="none")).sum(1).mean()


def gaussian_logvar(mean: Tensor, logvar: Tensor, x: Tensor) -> Tensor:
    mean, logvar, x = mean.float(), logvar.float(), x.float()
    return (0.5 * (logvar + (x - mean).pow(2) * torch.exp(-logvar))).sum(1).mean()


def sample_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    dtype, mu, logvar = mu.dtype, mu.float(), logvar.float()
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), 1)
    return z.to(dtype), kl.mean()


def elbo(logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The loss of many scripts."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), x.float() / 255, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar.float() - mu.float().pow(2) - logvar.float().exp())
    return (bce + kl) / len(x)


def pixels(dtype: torch.dtype, trained: bool = False) -> Input:
    return Input((ROWS, PIXELS), dtype, trained)


def latents(rows: int) -> Input:
    return Input((rows, LATENT), torch.bfloat16, True)


BF16, FP32, U8 = torch.bfloat16, torch.float32, torch.uint8
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Input, ...]]] = {
    "bernoulli, bf16, x uint8": (bernoulli, (pixels(BF16, True), pixels(U8))),
    "bernoulli, fp32": (bernoulli_float32, (pixels(FP32, True), pixels(FP32))),
    "bernoulli, bf16, x uint8, no_grad": (bernoulli, (pixels(BF16), pixels(U8))),
    "gaussian, bf16": (gaussian, (pixels(BF16, True), pixels(BF16))),
    "gaussian_logvar, bf16": (gaussian_logvar, (pixels(BF16, True), pixels(BF16, True), pixels(BF16))),
    "sample_kl, bf16": (sample_kl, (latents(SAMPLES), latents(SAMPLES))),
    "elbo, bf16, x uint8": (elbo, (pixels(BF16, True), pixels(U8), latents(ROWS), latents(ROWS))),
}


@dataclass(frozen=True)
class Launch:
    """One of our kernels, compiled. Bytes are per element of the function; launches of one function share its label."""

    label: str  # a key of FUNCTIONS
    compiled: Mapping[int, Any]  # what triton.compile returned, by architecture
    read: float  # bytes per element, and so the elements of an iteration are known
    moved: float  # bytes per element, read and written
    launches: int = 1


@dataclass(frozen=True)
class Cost:
    """Of one function on one architecture, per element, forward and backward together."""

    moved: float = 0
    launches: int = 0
    instructions: float = 0
    mufu: float = 0
    picoseconds: float = 0  # the model's

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def cost(arch: int, per_element: Counts, moved: float, launches: int = 1) -> Cost:
    """What launches that run these instructions cost."""
    time = ARCHITECTURES[arch].picoseconds(per_element, moved)
    return Cost(moved, launches, per_element.instructions, per_element.mufu, time)


def ours() -> list[Launch]:
    """Every launch of our operators behind FUNCTIONS."""
    return []


def our_figures(label: str, launches: Sequence[Launch]) -> Figures:
    """Empty where we have no kernel."""
    mine = [launch for launch in launches if launch.label == label]
    return {arch: sum((launch_cost(arch, launch) for launch in mine), Cost()) for arch in ARCHITECTURES if mine}


def launch_cost(arch: int, launch: Launch) -> Cost:
    body = counted(launch.compiled[arch].asm["cubin"]).body
    per_element = body.per_element(body.elements(launch.read))
    return cost(arch, per_element, launch.moved, launch.launches)


def their_figures(programs: Mapping[int, Program]) -> Figures:
    return {arch: program_cost(program) for arch, program in programs.items()}


def program_cost(program: Program) -> Cost:
    costs = (kernel_cost(program, kernel) for kernel in program.kernels)
    return sum(costs, Cost(launches=program.library_calls))


def kernel_cost(program: Program, kernel: Kernel) -> Cost:
    """In the configuration that the model finds best, of those that Inductor would not refuse for their spills."""
    moved = kernel.read + kernel.written
    fit = [v for v in kernel.variants if counted(v.cubin).stack <= 4 * SPILLED] or kernel.variants
    costs = [cost(program.arch, instructions(program, kernel, v), moved) for v in fit]
    return min(costs, key=lambda c: (c.picoseconds, c.instructions))


def instructions(program: Program, kernel: Kernel, variant: Variant) -> Counts:
    """Per element of the function. Without a loop all of the kernel's instructions count, else those of the loop."""
    body = counted(variant.cubin).body
    share = kernel.elements / program.elements
    return body.per_element(variant.elements * tiles(body, kernel.read / share, variant) / share)


def tiles(body: Body, read: float, variant: Variant) -> int:
    """How many tiles the counted instructions handle: ptxas may have unrolled the loop over them, in part or whole."""
    if not body.is_loop:
        return variant.trips
    loads = body.bytes_loaded / (read * variant.tile / (32 * variant.warps))
    return min(max(round(loads), 1), variant.trips)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


HEADER = (
    "function, with its gradients",
    *("bytes/element, ours", "torch.compile", "launches, ours", "torch.compile"),
    *("instructions/element, ours", "torch.compile", "MUFU/element, ours", "torch.compile"),
    "model of time, torch.compile / ours",
)


def row(label: str, mine: Figures, theirs: Figures) -> list[str]:
    """Figures of the three architectures with a stroke between them; bytes and launches are the same for all."""
    cells = [
        cell
        for pattern, name in (("{:.2f}", "moved"), ("{}", "launches"), ("{:.1f}", "instructions"), ("{:.2f}", "mufu"))
        for cell in (strokes(pattern, mine, name), strokes(pattern, theirs, name))
    ]
    ratios = [theirs[arch].picoseconds / mine[arch].picoseconds for arch in mine]
    return [f"`{label}`", *cells, "/".join(f"{ratio:.2f}" for ratio in ratios)]


def strokes(pattern: str, figures: Figures, name: str) -> str:
    cells = [pattern.format(getattr(figure, name)) for figure in figures.values()]
    return cells[0] if len(set(cells)) == 1 else "/".join(cells)


def kernel_rows(label: str, programs: Mapping[int, Program]) -> list[list[str]]:
    """torch.compile's kernels of a function, as they stand on sm_90; those that move next to nothing are left out."""
    large = {arch: [k for k in p.kernels if k.read + k.written > 0.01 * p.moved] for arch, p in programs.items()}
    rows = []
    for n, kernel in enumerate(large[90]):
        costs = {arch: kernel_cost(programs[arch], kernels[n]) for arch, kernels in large.items() if n < len(kernels)}
        direction = "backward" if kernel.backward else "forward"
        cells = (f"{kernel.read:.2f}", f"{kernel.written:.2f}", strokes("{:.1f}", costs, "instructions"))
        rows.append([f"`{label}`", direction, kernel.kind, *cells, strokes("{:.2f}", costs, "mufu")])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="", help="part of the functions' names")
    parser.add_argument("--kernels", action="store_true", help="list torch.compile's kernels too")
    options = parser.parse_args()
    launches = ours()
    rows, kernels = [], []
    for label in (label for label in FUNCTIONS if options.name in label):
        print(label, file=sys.stderr)
        programs = {arch: compile_for(*FUNCTIONS[label], arch) for arch in ARCHITECTURES}
        rows.append(row(label, our_figures(label, launches), their_figures(programs)))
        kernels += kernel_rows(label, programs)
    gpus = ", ".join(f"{a.name} (sm_{arch})" for arch, a in ARCHITECTURES.items())
    print(f"Ours against torch.compile {torch.__version__}, compiled for {gpus}. Not measured on any.\n")
    print(table(HEADER, rows))
    if options.kernels:
        header = ("function", "pass", "kind", "bytes read", "written", "instructions/element", "MUFU/element")
        print("\n" + table(header, kernels))


if __name__ == "__main__":
    main()
