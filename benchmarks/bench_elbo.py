"""The loss that users train with: `vae_fast.ELBOLoss`, averaged over the batch, against the same written
as usual, of distributions, and pythae's."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bench_bernoulli
import bench_gaussian
import peers
import pytest
import torch
from harness import LATENTS, Case, Inputs, Opponent, each, on_gpu, over
from torch import Tensor

import vae_fast
from vae_fast import reference


def with_latent(inputs: Inputs, latent: int) -> Inputs:
    """The likelihood's inputs, with mu and logvar of q(z|x) after its parameters."""

    def wider(rows: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
        leaves, data = inputs(rows, columns)
        return [*leaves, torch.randn(rows, latent), torch.randn(rows, latent)], data

    return wider


def with_kl(reconstruction):
    """(nll + KL) / B as it is usually written, from a likelihood's eager sum."""

    def loss(*operands: Tensor) -> Tensor:
        *parameters, mu, logvar, x = operands
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return (reconstruction(*parameters, x) + kl) / x.shape[0]

    return loss


def with_loss(likelihood: str):
    loss = vae_fast.ELBOLoss(likelihood)

    def ours(*operands: Tensor) -> Tensor:
        *parameters, mu, logvar, x = operands
        return loss(parameters[0] if len(parameters) == 1 else tuple(parameters), x, mu, logvar)

    return ours


def with_true_kl(truth):
    def loss(outputs: object, *operands: Tensor) -> Tensor:
        *parameters, mu, logvar, x = operands
        return (truth(outputs, *parameters, x) + reference.gaussian_kl(mu, logvar).sum()) / x.shape[0]

    return loss


def elbo(case: Case, likelihood: str, operator: str, of: dict[str, Opponent], latent: int = 16) -> Case:
    """The whole loss in place of a likelihood's case."""
    return replace(
        case,
        operator=operator,
        latent=latent,
        inputs=with_latent(case.inputs, latent),
        eager=with_kl(case.eager),
        ours=with_loss(likelihood),
        truth=with_true_kl(case.truth),
        peers=of,
    )


# a likelihood's case, ELBOLoss's name for it, what to call it, its peers, its shapes in the short grid
BERNOULLI = ("bernoulli", 'ELBOLoss("bernoulli")', peers.elbo("Bernoulli"))
GAUSSIAN = ("gaussian", 'ELBOLoss("gaussian")', peers.elbo("Normal"))
LEARNED = ("gaussian", 'ELBOLoss("gaussian"), (mean, logvar)', peers.elbo("Normal", learned=True))
KINDS = (
    (bench_bernoulli.FLOAT, BERNOULLI, bench_bernoulli.SHAPES),
    (bench_bernoulli.HALF, BERNOULLI, bench_bernoulli.SHAPES),
    (bench_gaussian.FIXED, GAUSSIAN, bench_gaussian.SHAPES),
    (bench_gaussian.FIXED_HALF, GAUSSIAN, ()),
    (bench_gaussian.LEARNED, LEARNED, bench_gaussian.SHAPES),
    (bench_gaussian.LEARNED_HALF, LEARNED, ()),
)


def grid() -> Iterator[Case]:
    """Every likelihood at every shape and latent size; in the short grid 16 latents, and once 512."""
    for case, (likelihood, operator, of), shapes in KINDS:
        for latent in LATENTS:
            chosen = shapes if latent == 16 else [(1024, 784)] if latent == 512 and case is KINDS[0][0] else []
            yield from over(elbo(case, likelihood, operator, of, latent), chosen)


CASES = list(grid())

PEAK = """
import json, sys, torch, vae_fast
def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
def step(*leaves_and_x):
    logits, mu, logvar, x = leaves_and_x
    vae_fast.ELBOLoss()(logits, x, mu, logvar).backward()
def inputs(rows):
    return *(torch.randn(rows, n, requires_grad=True) for n in (784, 16, 16)), torch.rand(rows, 784)
torch.set_num_threads(2)
step(*inputs(128))
operands = inputs(int(sys.argv[1]))
before = status("VmRSS")
assert status("VmHWM") < before + 2**20
step(*operands)
print(json.dumps([status("VmHWM") - before, sum(t.grad.nbytes for t in operands[:3])]))
"""


@each(CASES)
def test_elbo(case, opponent, compared):
    compared(case, opponent)


@pytest.mark.skipif(on_gpu() or not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_peak_resident_memory(quick, tables):
    """The allocator's count, checked from outside: what a process's peak grows by in one training step."""
    rows = 512 if quick else 32768
    done = subprocess.run([sys.executable, "-c", PEAK, str(rows)], capture_output=True, text=True, check=True)
    grown, gradients = json.loads(done.stdout)
    row = {"operator": f"`{CASES[0].operator}`, {rows} rows", "dtype": "float32"}
    row |= {"gradients, MiB": f"{gradients / 2**20:.1f}", "the process grew by": f"{grown / gradients:.3f}"}
    tables.add("Resident", row)
    assert quick or grown < 1.05 * gradients
