"""The pictures of a run: samples, reconstructions, loss curves, the latent space; of counts, what was predicted."""

import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from vae_fast import VAE

from .data import VAEData
from .errors import write_whole
from .module import VAEModule
from .reading import Observations

SAMPLES = 64
RECONSTRUCTIONS = 10
LATENT_POINTS = 2000
CLASS_LIMIT = 20
GAP = 2
GRID_SIDE = 900
DPI = 150
STYLE = {"train": ("#8c8c8c", "train"), "val": ("#0b5fa5", "validation")}
TERMS = {"neg_elbo": "−ELBO", "reconstruction": "Reconstruction", "kl": "KL to the prior"}


def tile(x: Tensor, columns: int) -> np.ndarray:
    """x in [0, 1], [N, C, H, W] -> one picture [rows (H + gap) - gap, ..., C], with white gaps."""
    count, channels, height, width = x.shape
    rows = math.ceil(count / columns)
    sheet = np.ones((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), np.float32)
    for index, image in enumerate(x.permute(0, 2, 3, 1).numpy()):
        top, left = (place * (side + GAP) for place, side in zip(divmod(index, columns), (height, width), strict=True))
        sheet[top : top + height, left : left + width] = image
    return sheet


def _without_grey_axis(sheet: np.ndarray) -> np.ndarray:
    return sheet[..., 0] if sheet.shape[-1] == 1 else sheet


def grid_png(x: Tensor) -> bytes:
    """A near-square grid of images in [0, 1], [N, C, H, W], small ones enlarged without smoothing."""
    columns = math.ceil(math.sqrt(len(x) * x.shape[2] / x.shape[3]))
    sheet = Image.fromarray(np.rint(_without_grey_axis(tile(x, min(columns, len(x)))) * 255).astype(np.uint8))
    factor = max(1, round(GRID_SIDE / max(sheet.size)))
    buffer = io.BytesIO()
    sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()


def reconstructions(model: VAEModule, x: Tensor) -> Figure:
    """Originals above their reconstructions (the mean of p(x|z) at z = mu); x is what the encoder takes."""
    mean = model.pixels(model.vae.reconstruct(x)).cpu()
    pairs = torch.stack([model.pixels(x).cpu(), mean]).flatten(0, 1)
    sheet = tile(pairs, len(x))
    figure = Figure(figsize=(10, 9 * sheet.shape[0] / sheet.shape[1] + 0.2), layout="constrained")
    ax = figure.subplots()
    ax.imshow(_without_grey_axis(sheet), cmap="gray", vmin=0, vmax=1)
    middle = (x.shape[2] - 1) / 2
    ax.set_yticks([middle, middle + x.shape[2] + GAP], ["original", "reconstruction"])
    ax.tick_params(length=0)
    ax.set_xticks([])
    ax.spines[:].set_visible(False)
    return figure


def curves(rows: list[dict[str, float]], unit: str = "image") -> Figure:
    """-ELBO, reconstruction and KL by epoch, train and validation, in nats per observation."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    epochs = [row["epoch"] + 1 for row in rows]
    for ax, (term, title) in zip(axes, TERMS.items(), strict=True):
        for stage, (colour, label) in STYLE.items():
            values = [row.get(f"{stage}_{term}", math.nan) for row in rows]
            marker = "o" if len(rows) == 1 else None
            ax.plot(epochs, values, color=colour, label=label, linewidth=1.8, marker=marker)
        ax.set(title=title, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_ylim(*_visible_range(rows, term))
    axes[0].set_ylabel(f"nats per {unit}")
    axes[0].legend(frameon=False)
    return figure


def _visible_range(rows: list[dict[str, float]], term: str) -> tuple[float | None, float | None]:
    """Where the curves settle: the first epochs, far off, may leave the picture at the top or the bottom."""
    values = [row[key] for row in rows[len(rows) // 10 :] for stage in STYLE if (key := f"{stage}_{term}") in row]
    if not values or max(values) == min(values):
        return None, None
    margin = 0.05 * (max(values) - min(values))
    return min(values) - margin, max(values) + margin


def latent(mu: Tensor, data: Observations, y: Tensor | None) -> Figure:
    """mu [N, Z] in the plane, coloured by class y [N]; with Z > 2 its two principal components."""
    points, title, names = _plane(mu)
    figure = Figure(figsize=(7, 6), layout="constrained")
    ax = figure.subplots()
    if y is not None and 1 < len(data.classes) <= CLASS_LIMIT:
        _scatter_classes(ax, points, y, data.classes)
    else:
        ax.scatter(points[:, 0], points[:, 1], s=9, color=STYLE["val"][0], alpha=0.5, linewidths=0)
    ax.set(title=title, xlabel=names[0], ylabel=names[1])
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _scatter_classes(ax: Axes, points: Tensor, y: Tensor, classes: tuple[str, ...]) -> None:
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"](range(len(classes)))
    for number, name in enumerate(classes):
        chosen = points[y == number]
        ax.scatter(chosen[:, 0], chosen[:, 1], s=11, color=palette[number], alpha=0.75, linewidths=0, label=name)
    ax.legend(title="class", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)


def _plane(mu: Tensor) -> tuple[Tensor, str, tuple[str, str]]:
    if mu.shape[1] == 1:
        return torch.cat([mu, torch.zeros_like(mu)], 1), "Latent space: mean mu of q(z|x)", ("mu", "")
    if mu.shape[1] == 2:
        return mu, "Latent space: mean mu of q(z|x)", ("mu 1", "mu 2")
    centred = mu - mu.mean(0)
    _, scale, directions = torch.linalg.svd(centred, full_matrices=False)
    share = scale.square() / scale.square().sum().clamp(min=torch.finfo(scale.dtype).tiny)
    title = f"Latent space: PCA of mu, 2 of {mu.shape[1]} dimensions"
    names = tuple(f"component {i + 1} ({share[i]:.0%} of the variance)" for i in range(2))
    return centred @ directions[:2].T, title, (names[0], names[1])


def predicted_counts(vae: VAE, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Of each column the mean and the fraction of zeros, [D]: observed, and as p(x|z) at z = mu(x) predicts them."""
    entry, options = vae.objective.entry, vae.objective.options
    sums: dict[str, Tensor] = {}
    rows = 0
    for x in batches:
        values, parameters = x.float(), vae.reconstruction_parameters(x)
        terms = {
            "mean": values,
            "zeros": values == 0,
            "predicted mean": entry.mean(*parameters, **options),
            "predicted zeros": torch.exp(-entry.elementwise(*parameters, torch.zeros_like(values), **options)),
        }
        sums = {name: term.double().sum(0).cpu() + sums.get(name, 0) for name, term in terms.items()}
        rows += len(x)
    return {name: total / rows for name, total in sums.items()}


def counts(columns: dict[str, Tensor]) -> Figure:
    """Predicted against observed, a point a column: its mean, and its fraction of zeros."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots(1, 2)
    titles = {"mean": "Mean count", "zeros": "Fraction of zeros"}
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        observed, predicted = columns[name], columns[f"predicted {name}"]
        ax.scatter(observed, predicted, s=9, color=STYLE["val"][0], alpha=0.5, linewidths=0)
        ends = [min(observed.min(), predicted.min()), max(observed.max(), predicted.max())]
        ax.plot(ends, ends, color=STYLE["train"][0], linewidth=1, zorder=0)
        ax.set(title=f"{title} of each column", xlabel="observed", ylabel="predicted")
        ax.spines[["top", "right"]].set_visible(False)
    if columns["mean"].any():
        axes[0].set(xscale="log", yscale="log")
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


@torch.inference_mode()
def write_pictures(folder: Path, model: VAEModule, data: VAEData, history: list[dict[str, float]]) -> list[str]:
    """Pictures of held-out observations, into the run's folder; their names.

    curves.png and latent.png; of images samples.png and reconstructions.png too, of counts counts.png.
    """
    vae, device, observations = model.vae, model.device, data.observations
    some = torch.cat([data.test_rows, data.val_rows])[:LATENT_POINTS]
    batches = [x.to(device) for x in observations.x[some].split(data.evaluation_batch)]
    mu = torch.cat([vae.encode(x)[0].float().cpu() for x in batches])
    y = None if observations.y is None else observations.y[some]
    pictures: dict[str, Callable[[], bytes]] = {}
    if data.counts:
        pictures["counts.png"] = lambda: _png(counts(predicted_counts(vae, batches)))
    else:
        shown = observations.x[data.test_rows[:RECONSTRUCTIONS]].to(device)
        generator = torch.Generator(device).manual_seed(0)
        pictures["samples.png"] = lambda: grid_png(model.pixels(vae.sample(SAMPLES, generator=generator)).cpu())
        pictures["reconstructions.png"] = lambda: _png(reconstructions(model, shown))
    pictures["curves.png"] = lambda: _png(curves(history, data.unit))
    pictures["latent.png"] = lambda: _png(latent(mu, observations, y))
    for name, draw in pictures.items():
        write_whole(folder / name, draw())
    return list(pictures)
