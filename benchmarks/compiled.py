"""Ours against torch.compile, compiled for A100, H100 and B200 without any of them.

    python benchmarks/compiled.py                 prints a table of every function, in about five minutes
    python benchmarks/compiled.py elbo            of those whose names contain that
    python benchmarks/compiled.py --kernels       torch.compile's kernels too, one by one

Bytes, launches and machine instructions are counted in what Triton and Inductor compile, forward and backward together.

- Instructions are what a thread executes from entry to exit, times the threads launched, over the function's elements:
  each instruction of the kernel once, those of its main loop as often as the loop turns at this shape. So prologues,
  tails, reductions and idle lanes count, for both sides alike. In torch.compile's kernels other loops than the main one
  count as if they turned once. Predicated instructions count, and so does code that a branch may skip, except in the
  one launch of ours whose threads all leave at once: backward of a loss, where the incoming gradient is 1.
- Bytes: each launch reads and writes each of its tensors once.
- Launches of PyTorch's own kernels, such as those that draw a seed, count as launches and as nothing else.
- Times are a model's: for each launch the slowest of memory, instruction issue and arithmetic units at their peaks,
  launches one after another. It knows no launch latency, no cache between kernels and no stall. Where Inductor would
  choose among configurations by measuring, the one that is best in the model stands.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_fast.kernels import elbo as kernels
from vae_fast.kernels import latent, scale

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests" / "gpu")]

from inductor import Input, Kernel, Program, Variant, compile_for  # noqa: E402
from launches import Launch as Recorded  # noqa: E402
from launches import recorded  # noqa: E402
from sass import ARCHITECTURES, GLOBAL_LOADS, Body, Counts, Sass, count  # noqa: E402

ROWS, PIXELS = 8192, 784
SAMPLES, LATENT = 65536, 64
Figures = dict[int, "Cost"]  # by architecture
SPILLED = 16  # words: Inductor does not choose a configuration that spills more


@functools.cache
def counted(cubin: bytes) -> Sass:
    return count(cubin)


def intensities(x: Tensor) -> Tensor:
    """From bytes, as ours reads them."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def nll(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), intensities(x), reduction="none").sum(1)


def divergence(mu: Tensor, logvar: Tensor, *dim: int) -> Tensor:
    return -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim or None)


def elbo(logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """The loss of many scripts."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), intensities(x), reduction="sum")
    return (bce + divergence(mu.float(), logvar.float())) / len(x)


def elbo_gaussian(mean: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    mse = F.mse_loss(mean.float(), x.float(), reduction="sum")
    return (0.5 * mse + divergence(mu.float(), logvar.float())) / len(x)


def elbo_gaussian_logvar(mean: Tensor, log_sigma2: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    mean, log_sigma2, x = mean.float(), log_sigma2.float(), x.float()
    nll = 0.5 * torch.sum(log_sigma2 + (x - mean).pow(2) * torch.exp(-log_sigma2))
    return (nll + divergence(mu.float(), logvar.float())) / len(x)


def sample_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    dtype, mu, logvar = mu.dtype, mu.float(), logvar.float()
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    return z.to(dtype), divergence(mu, logvar, 1)


def pixels(dtype: torch.dtype, trained: bool = False) -> Input:
    return Input((ROWS, PIXELS), dtype, trained)


def latents(rows: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Input, Input]:
    return (Input((rows, LATENT), dtype, True),) * 2


BF16, FP32, U8 = torch.bfloat16, torch.float32, torch.uint8
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Input, ...]]] = {
    "elbo_bernoulli, bf16, x uint8": (elbo, (pixels(BF16, True), pixels(U8), *latents(ROWS))),
    "elbo_bernoulli, fp32": (elbo, (pixels(FP32, True), pixels(FP32), *latents(ROWS, FP32))),
    "elbo_gaussian, bf16": (elbo_gaussian, (pixels(BF16, True), pixels(BF16), *latents(ROWS))),
    "elbo_gaussian, bf16, log-variance": (
        elbo_gaussian_logvar,
        (pixels(BF16, True), pixels(BF16, True), pixels(BF16), *latents(ROWS)),
    ),
    "bernoulli_nll, bf16, x uint8": (nll, (pixels(BF16, True), pixels(U8))),
    "bernoulli_nll, bf16, x uint8, no_grad": (nll, (pixels(BF16), pixels(U8))),
    "sample_kl, bf16": (sample_kl, latents(SAMPLES)),
}


@dataclass(frozen=True)
class Launch:
    """One of our launches. Bytes are per element of the function; launches of one function share its label."""

    label: str  # a key of FUNCTIONS
    compile: Callable[[int], Any]  # for an architecture, as triton.compile returns it
    moved: float  # bytes per element, read and written
    per_thread: float  # elements of the function for each thread of the grid
    looped: float = 0  # bytes that a thread loads in the main loop
    leaves: bool = False  # as soon as it has loaded a number that says that nothing is to be done
    launches: int = 1  # with those of PyTorch that belong to it


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
    """Every launch of our operators behind FUNCTIONS, compiled when it is asked for."""
    launches_of = {"elbo": our_elbo, "bernoulli": our_nll, "sample": our_sample_kl}
    return [launch for label in FUNCTIONS for launch in launches_of[label.split("_")[0]](label)]


def our_elbo(label: str) -> list[Launch]:
    """Forward with all gradients, the sum of the blocks' losses, and backward, where the incoming gradient is 1."""
    *parameters, x, mu, logvar = tensors_of(label)
    name = label.split(",")[0].removeprefix("elbo_")
    fixed = name == "gaussian" and len(parameters) == 1
    recon = [*parameters, torch.zeros(1, 1)] if fixed else parameters
    asked = 0b1101 if fixed else (1 << len(parameters) + 2) - 1
    with recorded() as launches:
        outputs = kernels.elbo(name, *recon, x, mu, logvar, *[None] * 5, 1.0, 1 / ROWS, True, asked)
        scale.scale_rows_([t for t in outputs[3:] if t.numel()], torch.ones(()))
    main, fold, backward = launches
    return [
        noted(label, main, read=bytes_each(*parameters, x), launches=1 + fixed),  # PyTorch fills the variance
        noted(label, fold),
        noted(label, backward, moved=0, leaves=True),
    ]


def our_nll(label: str) -> list[Launch]:
    """Forward with the gradient of the rows' sum, and backward, which scales rows by their incoming gradients."""
    logits, x = tensors_of(label)
    trained = FUNCTIONS[label][1][0].requires_grad
    with recorded() as launches:
        gradient = kernels.nll("bernoulli", logits, x, None, None, int(trained))[1]
        if trained:
            scale.scale_rows_([gradient], torch.empty(ROWS))
    forward = noted(label, launches[0], read=bytes_each(logits, x))
    if not trained:
        return [forward]
    moved = (2 * gradient.numel() * gradient.element_size() + 4 * ROWS) / gradient.numel()  # in place
    return [forward, noted(label, launches[1], read=bytes_each(gradient) + 4, moved=moved)]  # a factor each element


def our_sample_kl(label: str) -> list[Launch]:
    """Forward, for which PyTorch draws the seed, and backward, which makes the noise again."""
    mu, logvar = tensors_of(label)
    seed = torch.zeros((), dtype=torch.int64)
    with recorded() as launches:
        latent.sample_kl(mu, logvar, None, None, seed)
        latent.sample_kl_backward(torch.empty_like(mu), torch.empty(SAMPLES), mu, logvar, None, None, seed, 3)
    forward, backward = launches
    return [
        noted(label, forward, read=bytes_each(mu, logvar), launches=2),
        noted(label, backward, read=bytes_each(mu, logvar, mu)),
    ]


def tensors_of(label: str) -> list[Tensor]:
    return [i.on_cpu().detach() for i in FUNCTIONS[label][1]]


def bytes_each(*operands: Tensor) -> int:
    return sum(t.element_size() for t in operands)


def noted(label: str, launch: Recorded, read: float = 0, **figures: Any) -> Launch:
    """read: bytes that the main loop loads for an element, 0 where it turns once."""
    elements = max(math.prod(i.shape) for i in FUNCTIONS[label][1])
    per_thread = elements / (32 * launch.num_warps * math.prod(launch.grid))
    touched = {t.data_ptr(): t.numel() * t.element_size() for t in leaves(launch.arguments)}
    figures.setdefault("moved", sum(touched.values()) / elements)
    shape = dict(zip(launch.kernel.arg_names, launch.arguments, strict=True)).get("SHAPE")
    whole = 1 - PIXELS % shape[1] / PIXELS if shape else 1  # the tail is behind the loop
    return Launch(
        label, lambda arch: launch.compile(arch)[0], per_thread=per_thread, looped=read * per_thread * whole, **figures
    )


def leaves(arguments: Any) -> Iterator[Tensor]:
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, tuple):
        for part in arguments:
            yield from leaves(part)


def our_figures(label: str, launches: Sequence[Launch]) -> Figures:
    """Empty where we have no kernel."""
    mine = [launch for launch in launches if launch.label == label]
    return {arch: sum((launch_cost(arch, launch) for launch in mine), Cost()) for arch in ARCHITECTURES if mine}


def launch_cost(arch: int, launch: Launch) -> Cost:
    code = counted(launch.compile(arch).asm["cubin"])
    if launch.leaves:
        executed = until_it_leaves(code)
    else:
        executed = code.executed(max(1, launch.looped / code.body.bytes_loaded))
    return cost(arch, executed / launch.per_thread, launch.moved, launch.launches)


def until_it_leaves(code: Sass) -> Counts:
    """What is executed up to the first exit that depends on what was loaded."""
    listing = code.whole.instructions
    load = next(k for k, i in enumerate(listing) if i.opcode in GLOBAL_LOADS)
    leave = next(k for k, i in enumerate(listing) if k > load and i.opcode == "EXIT" and i.predicate)
    return Counts.of(listing[: leave + 1])


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
    """Per element of the function."""
    code = counted(variant.cubin)
    share = kernel.elements / program.elements
    turns = variant.trips / tiles(code.body, kernel.read / share, variant)
    return code.executed(turns) * (share / (variant.elements * variant.trips))


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
