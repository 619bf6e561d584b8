"""vae-fast sample: images or counts drawn from a trained VAE."""

import io
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from .checkpoints import RUNS, find_checkpoint, load_model, read_checkpoint
from .errors import UserError, refusals, write_whole
from .module import VAEModule
from .plots import grid_png
from .test import aligned

CHUNK = 256


def sample(
    out: str, n: int = 64, ckpt_path: str | None = None, run_dir: str = RUNS, seed: int = 0, mean: bool | None = None
) -> None:
    """Draws z ~ N(0, I) and writes the mean of p(x|z), or a draw of x.

    Args:
        out: Where to write: a .npy (images: float32 in [0, 1], [N, C, H, W]; counts: int32, means float32, [N, D])
            or, of images, a .png (a grid).
        n: How many images or rows of counts.
        ckpt_path: Checkpoint to sample from; by default the best of the newest run.
        run_dir: Where to look for the newest run.
        seed: Seed of all draws.
        mean: The mean of p(x|z) (of categorical the likeliest level; green's and blue's of a mixture approximately),
            not a draw; by default so for images, not for counts.
    """
    target = Path(out).expanduser()
    if target.suffix.lower() not in (".png", ".npy"):
        raise UserError(f"{out}: expected a name ending in .png or .npy")
    if n < 1:
        raise UserError(f"--n {n}: expected at least 1")
    path = find_checkpoint(ckpt_path, run_dir)
    model = load_model(path, read_checkpoint(path))
    if model.counts and target.suffix.lower() == ".png":
        raise UserError(f"{out}: the model is one of counts; expected a name ending in .npy")
    with refusals():
        generator = torch.Generator().manual_seed(seed)
    mean = not model.counts if mean is None else mean
    with torch.inference_mode():
        chunks = [
            model.vae.sample(min(CHUNK, n - start), mean=mean, generator=generator) for start in range(0, n, CHUNK)
        ]
    x = _as_written(model, torch.cat(chunks), mean)
    write_whole(target, _npy(x) if target.suffix.lower() == ".npy" else grid_png(x))
    print(aligned({"checkpoint": path, "samples": f"{target}  ({n} {'rows of counts' if model.counts else 'images'})"}))


def _as_written(model: VAEModule, x: Tensor, mean: bool) -> Tensor:
    if not model.counts:
        return model.pixels(x)
    return x.float() if mean else x.to(torch.int32)


def _npy(x: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x.numpy(), allow_pickle=False)
    return buffer.getvalue()


def run(args: list[str]) -> None:
    auto_cli(sample, args=args, prog="vae-fast sample", exit_on_error=False)
