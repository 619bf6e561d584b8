"""vae-fast sample: images drawn from a trained VAE."""

import io
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from .checkpoints import RUNS, find_checkpoint, load_model, read_checkpoint
from .errors import UserError, refusals, write_whole
from .plots import grid_png
from .test import aligned

CHUNK = 256


def sample(out: str, n: int = 64, ckpt_path: str | None = None, run_dir: str = RUNS, seed: int = 0) -> None:
    """Draws z ~ N(0, I) and writes the mean of p(x|z).

    Args:
        out: Where to write: a .png (a grid) or a .npy (float32 in [0, 1], [N, C, H, W]).
        n: How many images.
        ckpt_path: Checkpoint to sample from; by default the best of the newest run.
        run_dir: Where to look for the newest run.
        seed: Seed of z.
    """
    target = Path(out).expanduser()
    if target.suffix.lower() not in (".png", ".npy"):
        raise UserError(f"{out}: expected a name ending in .png or .npy")
    if n < 1:
        raise UserError(f"--n {n}: expected at least 1")
    path = find_checkpoint(ckpt_path, run_dir)
    vae = load_model(path, read_checkpoint(path)).vae
    with refusals():
        generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        chunks = [vae.sample(min(CHUNK, n - start), generator=generator) for start in range(0, n, CHUNK)]
    x = torch.cat(chunks).float().clamp(0, 1)
    write_whole(target, _npy(x) if target.suffix.lower() == ".npy" else grid_png(x))
    print(aligned({"checkpoint": path, "samples": f"{target}  ({n} images)"}))


def _npy(x: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x.numpy(), allow_pickle=False)
    return buffer.getvalue()


def run(args: list[str]) -> None:
    auto_cli(sample, args=args, prog="vae-fast sample", exit_on_error=False)
