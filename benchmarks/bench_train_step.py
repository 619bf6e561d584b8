"""Whole training steps: zero_grad, networks, loss, backward and Adam, of two MLPs and a convolutional VAE.

All opponents start from the same weights, see the same images and train with the same optimiser. No figure is shown
before an opponent's loss and the gradient of every parameter agree with float64 for the noise that it drew. pythae's
model runs its own code around these networks, where `pip install pythae` has been run.

    python -m pytest benchmarks/bench_train_step.py -q                4096 images a step; the first network 256 too
    python -m pytest benchmarks/bench_train_step.py -q --grid full    256, 1024, 4096 and 16384
"""

import copy
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import bench_latent
import peers
import pytest
import tables as markdown
import torch
import torch.nn.functional as F
from harness import Results, Row, Settings, interleave, on_gpu
from harness.opponents import compiled
from harness.profiled import events_of, operations, peak_memory
from harness.report import quartiles
from torch import Tensor, nn

import vae_fast
from vae_fast import reference

PIXELS = 784
BATCHES = (256, 1024, 4096, 16384)
GATED = 1024  # rows that the float64 network sees at a time
LOSS_TOLERANCE = 1e-5  # relative: float32 sums of millions of terms
GRADIENT_TOLERANCE = 4  # times what float32 costs eager PyTorch, or a plain sum over the batch
EAGER_TOLERANCE = 1e-4, 1e-2  # of a parameter's largest gradient; on a GPU, where cuDNN convolves in TF32
ROUNDS = 7  # of steps that are taken apart
# Dynamo looks at the .grad of what it is handed, logits too
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
Forward = Callable[["VAE", Tensor], tuple[Tensor, Tensor]]


class VAE(nn.Module):
    """x -> (mu, logvar) by two heads, as in pytorch/examples, and z -> logits."""

    def __init__(self, trunk: nn.Module, features: int, latent: int, decoder: nn.Module) -> None:
        super().__init__()
        self.trunk, self.decoder = trunk, decoder
        self.mu, self.logvar = nn.Linear(features, latent), nn.Linear(features, latent)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.mu(h), self.logvar(h)


def mlp(*widths: int) -> VAE:
    """Of 784 pixels, hidden layers, and latent dimensions, which come last."""

    def layers(sizes: tuple[int, ...]) -> list[nn.Module]:
        return [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]

    *hidden, latent = widths
    encoder, decoder = layers((PIXELS, *hidden)), layers((latent, *hidden[::-1], PIXELS))
    return VAE(nn.Sequential(*encoder), hidden[-1], latent, nn.Sequential(*decoder[:-1]))


def conv(first: int, second: int, latent: int) -> VAE:
    """Of 28 x 28 pixels: two convolutions of stride 2 down to 7 x 7, and the same up."""
    features = second * 7 * 7
    trunk = [nn.Conv2d(1, first, 3, 2, 1), nn.SiLU(), nn.Conv2d(first, second, 3, 2, 1), nn.SiLU(), nn.Flatten()]
    up = [nn.ConvTranspose2d(second, first, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(first, 1, 4, 2, 1)]
    decoder = [nn.Linear(latent, features), nn.SiLU(), nn.Unflatten(1, (second, 7, 7)), *up]
    return VAE(nn.Sequential(*trunk), features, latent, nn.Sequential(*decoder))


# name -> (the network, an image's shape)
NETWORKS: dict[str, tuple[Callable[[], VAE], tuple[int, ...]]] = {
    "MLP 784-400-20": (lambda: mlp(400, 20), (PIXELS,)),
    "MLP 784-1024-512-64": (lambda: mlp(1024, 512, 64), (PIXELS,)),
    "conv 16-32-20": (lambda: conv(16, 32, 20), (1, 28, 28)),
}


@dataclass(frozen=True)
class Parts:
    """What an opponent puts around the networks: (mu, logvar) -> z, and (logits, x, mu, logvar) -> the loss."""

    sample: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def forward(self, model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, z)."""
        mu, logvar = model.encode(x)
        z = self.sample(mu, logvar)
        return self.loss(model.decoder(z), x, mu, logvar), z


def usual_sample(mu: Tensor, logvar: Tensor) -> Tensor:
    return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)


def usual_loss(logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return (bce + kl) / x.shape[0]


USUAL = Parts(usual_sample, usual_loss)
OURS = Parts(vae_fast.reparameterize, vae_fast.ELBOLoss("bernoulli"))


def backend(quick: bool) -> str:
    return "eager" if quick else "inductor"


def pythae_forward(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """pythae's VAE around the networks; its decoders return probabilities."""
    output = around(model)({"data": x})
    return output.loss, output.z


@functools.lru_cache(1)
def around(model: VAE) -> nn.Module:
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, x: Tensor) -> Any:
            mu, logvar = model.encode(x)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=torch.sigmoid(model.decoder(z)))

    config = peers.pythae.VAEConfig(input_dim=(PIXELS,), latent_dim=model.mu.out_features, reconstruction_loss="bce")
    found: nn.Module = peers.pythae.VAE(config, Encoder(), Decoder())
    return found


# name -> quick -> (model, x) -> (loss, z)
OPPONENTS: dict[str, Callable[[bool], Forward]] = {
    "eager": lambda quick: USUAL.forward,
    "loss compiled": lambda quick: replace(USUAL, loss=compiled(usual_loss, backend=backend(quick))).forward,
    "all compiled": lambda quick: compiled(USUAL.forward, backend=backend(quick)),
    "ours": lambda quick: OURS.forward,
    "ours, all compiled": lambda quick: compiled(OURS.forward, backend=backend(quick)),
}
if peers.pythae:
    OPPONENTS["pythae"] = lambda quick: pythae_forward
APART = {"eager": USUAL, "all compiled": None, "ours": OURS, "ours, all compiled": None}  # None: whole passes only


@dataclass(frozen=True)
class Training:
    """A network and its batch."""

    network: str
    batch: int

    def __str__(self) -> str:
        return f"{self.network} x{self.batch}"

    def start(self) -> tuple[VAE, Tensor]:
        """The network with its first weights, and the images: the same at every call."""
        make, shape = NETWORKS[self.network]
        torch.manual_seed(0)
        return make(), torch.rand(self.batch, *shape)


@dataclass
class Measurement:
    """By opponent: seconds of each round, steps a round; the median seconds of each stage of a step; peak bytes beyond
    what a step finds, and the operators or kernels that it starts."""

    seconds: dict[str, list[float]]
    iterations: dict[str, int]
    stages: dict[str, dict[str, float]]
    peaks: dict[str, int]
    operations: dict[str, int]

    def a_step(self, name: str) -> list[float]:
        """Quartiles of a step's seconds."""
        return [s / self.iterations[name] for s in quartiles(self.seconds[name])]

    def median(self, name: str) -> float:
        return self.a_step(name)[1]


def errors(forward: Forward, model: VAE, x: Tensor) -> tuple[float, list[float]]:
    """Relative error of the loss, and each parameter's largest error of the gradient over its largest gradient."""
    loss, z = forward(model, x)
    found = torch.autograd.grad(loss, list(model.parameters()))
    expected, truths = truth(model, x, z.detach())
    worst = [
        ((got.double() - want).abs().max() / want.abs().max()).item() for got, want in zip(found, truths, strict=True)
    ]
    return abs(loss.item() / expected - 1), worst


def truth(model: VAE, x: Tensor, z: Tensor) -> tuple[float, list[Tensor]]:
    """Loss and gradients in float64 for the noise that led to z, which must be standard normal."""
    wide = copy.deepcopy(model).double()
    parameters, total = list(wide.parameters()), 0.0
    gradients = [torch.zeros_like(p) for p in parameters]
    for rows, drawn in zip(x.double().split(GATED), z.double().split(GATED), strict=True):
        mu, logvar = wide.encode(rows)
        again, kl = bench_latent.truth((drawn,), mu, logvar)
        nll = reference.nll(reference.bernoulli, [wide.decoder(again).flatten(1)], rows.flatten(1))
        loss = (nll + kl).sum() / len(x)
        total += loss.item()
        gradients = [a + b for a, b in zip(gradients, torch.autograd.grad(loss, parameters), strict=True)]
    return total, gradients


def gate(training: Training, name: str, forward: Forward, allowed: float) -> None:
    """Raises AssertionError unless loss and gradients agree with float64."""
    model, x = training.start()
    loss, gradients = errors(forward, model, x)
    assert loss <= LOSS_TOLERANCE, f"{training}, {name}: loss off by {loss:.3g} of its value"
    for (parameter, _), error in zip(model.named_parameters(), gradients, strict=True):
        assert error <= allowed, f"{training}, {name}: gradient of {parameter} off by {error:.3g} > {allowed:.3g}"


def tolerance(training: Training) -> float:
    """Of a gradient, in units of its parameter's largest."""
    of_eager = max(errors(USUAL.forward, *training.start())[1])
    assert of_eager <= EAGER_TOLERANCE[on_gpu()], f"{training}: eager PyTorch's gradients are off by {of_eager:.3g}"
    return GRADIENT_TOLERANCE * max(of_eager, torch.finfo().eps / 2 * training.batch**0.5)


def trained(forward: Forward, model: VAE, x: Tensor) -> Iterator[str]:
    """A training step in its passes; yields the name of each when it is done."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        optimiser.zero_grad()
        loss, _ = forward(model, x)
        yield "forward"
        loss.backward()
        yield "backward"
        optimiser.step()
        yield "Adam"


def trained_apart(parts: Parts, model: VAE, x: Tensor) -> Iterator[str]:
    """The same step, with the graph cut where the networks end and the loss begins."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        optimiser.zero_grad()
        outputs = model.encode(x)
        yield "networks, forward"
        mu, logvar = cut(*outputs)
        sample = parts.sample(mu, logvar)
        yield "loss, forward"
        (z,) = cut(sample)
        output = model.decoder(z)
        yield "networks, forward"
        (logits,) = cut(output)
        loss = parts.loss(logits, x, mu, logvar)
        yield "loss, forward"
        loss.backward()
        yield "loss, backward"
        output.backward(logits.grad)
        yield "networks, backward"
        sample.backward(z.grad)
        yield "loss, backward"
        torch.autograd.backward(outputs, [mu.grad, logvar.grad])
        yield "networks, backward"
        optimiser.step()
        yield "Adam"


def cut(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


def stepper(forward: Forward, model: VAE, x: Tensor) -> Callable[[], None]:
    passes = trained(forward, model, x)

    def step() -> None:
        while next(passes) != "Adam":
            pass

    return step


def one_step(passes: Iterator[str]) -> dict[str, float]:
    """Seconds of each stage of the next step."""
    seconds: dict[str, float] = {}
    name = ""
    while name != "Adam":
        start = now()
        name = next(passes)
        seconds[name] = seconds.get(name, 0) + now() - start
    return seconds


def now() -> float:
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()


def taken_apart(training: Training, forwards: Mapping[str, Forward], quick: bool) -> dict[str, dict[str, float]]:
    """Median seconds of each stage, by opponent, these in turn."""
    passes = {}
    for name in (name for name in APART if name in forwards):
        parts = APART[name]
        passes[name] = trained_apart(parts, *training.start()) if parts else trained(forwards[name], *training.start())
        one_step(passes[name])
    rounds = [{name: one_step(steps) for name, steps in passes.items()} for _ in range(1 if quick else ROUNDS)]
    return {
        name: {stage: statistics.median(r[name][stage] for r in rounds) for stage in rounds[0][name]} for name in passes
    }


def measure(training: Training, settings: Settings) -> Measurement:
    """Gates, then times all opponents' steps, whole and taken apart."""
    quick = settings.quick
    forwards = {name: make(quick) for name, make in OPPONENTS.items()}
    allowed = tolerance(training)
    steps, peaks, launched = {}, dict[str, int](), dict[str, int]()
    for name, forward in forwards.items():
        gate(training, name, forward, allowed)
        torch.compiler.reset()  # what the gate compiled: the loops of a step are counted when it is compiled anew
        steps[name] = stepper(forward, *training.start())
        peaks[name], launched[name] = counted(steps[name])
    seconds, iterations = interleave(steps, settings)
    stages = taken_apart(training, forwards, quick)
    torch.compiler.reset()
    return Measurement(seconds, iterations, stages, peaks, launched)


def counted(step: Callable[[], None]) -> tuple[int, int]:
    """Peak bytes of a step beyond what it finds, and the operators or kernels that it starts; the first step, which
    compiles and makes the optimiser's state, left out."""
    from torch._inductor import metrics

    metrics.reset()
    step()
    for _ in range(3):  # PyTorch's profiler may lose events of memory, and a step that only frees is none
        events = events_of(step)
        if (peak := peak_memory(step, events)) > 0:
            break
    return peak, operations(events, on_gpu()) + (0 if on_gpu() else metrics.generated_kernel_count)


def speed_row(training: Training, m: Measurement) -> Row:
    rates = {f"{name}, samples/s": f"{training.batch / m.median(name):,.0f}" for name in m.seconds}
    pairs = (("eager", "ours"), ("all compiled", "ours"), ("all compiled", "ours, all compiled"))
    ratios = {f"{a} / {b}": f"{m.median(a) / m.median(b):.2f}" for a, b in pairs}
    return {"network": training.network, "batch": str(training.batch), **rates, **ratios}


def step_row(training: Training, name: str, m: Measurement) -> Row:
    """An opponent's step: its time with the spread, what it holds and starts."""
    low, median, high = m.a_step(name)
    return {
        "network": training.network,
        "batch": str(training.batch),
        "opponent": name,
        "ms": f"{markdown.ms(median)} ({markdown.ms(low)} to {markdown.ms(high)})",
        "peak, MiB": f"{m.peaks[name] / 2**20:.4g}",
        "kernels" if on_gpu() else "operators": str(m.operations[name]),
    }


def stage_row(training: Training, name: str, stages: dict[str, float]) -> Row:
    """Milliseconds; the parts of a pass only where it was taken apart."""
    of = {
        way: stages.get(way, stages.get(f"networks, {way}", 0) + stages.get(f"loss, {way}", 0))
        for way in ("forward", "backward")
    }
    total = sum(stages.values())
    row = {"network": training.network, "batch": str(training.batch), "opponent": name}
    row |= {f"{stage}, ms": markdown.ms(s) for stage, s in {**of, "Adam": stages["Adam"]}.items()}
    if "loss, forward" in stages:
        loss = {stage: stages[stage] for stage in ("loss, forward", "loss, backward")}
        row |= {f"of it {stage}, ms": markdown.ms(s) for stage, s in loss.items()}
        row |= {"loss's share": f"{sum(loss.values()) / total:.1%}"}
    return row


def selected(full: bool, quick: bool) -> list[Training]:
    """What to train: all, or a short selection, or, to see that they work, each network once."""
    if full and not quick:
        return [Training(network, batch) for network in NETWORKS for batch in BATCHES]
    short = [Training(network, 4096) for network in NETWORKS]
    return short if quick else [replace(short[0], batch=256), *short]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "training" not in metafunc.fixturenames:
        return
    option = metafunc.config.option
    trainings = selected(option.grid == "full", option.benchmark_disable)
    pairs = [pytest.param(t, name, id=f"{t} {name}") for t in trainings for name in OPPONENTS]
    metafunc.parametrize(("training", "opponent"), pairs)


@pytest.fixture(scope="module")
def steps(pytestconfig: pytest.Config, quick: bool, tables: Results) -> Callable[[Training], Measurement]:
    """training -> its measurement, taken at the first call, with its rows in the tables."""
    settings = Settings(quick, pytestconfig.option.seconds)

    @functools.cache
    def of(training: Training) -> Measurement:
        run = replace(training, batch=8) if quick else training
        m = measure(run, settings)
        tables.add("Training step", speed_row(run, m))
        for name in m.seconds:
            tables.add("Training steps one by one", step_row(run, name, m))
        for name, stages in m.stages.items():
            tables.add("Where a training step's time goes", stage_row(run, name, stages))
        return m

    return of


def test_training_step(training, opponent, steps, recorded):
    m = steps(training)
    recorded(str(training), opponent, m.seconds[opponent], m.iterations[opponent])
