"""Small images, a small network and ways to run the command, for the tests of vae_fast.cli."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import vae_fast
from vae_fast.cli.main import main

SMALL = ("--widths", "[4,8,16]", "--latent_dim", "4", "--batch_size", "16", "--trainer.accelerator", "cpu")


def bars(count: int = 100, height: int = 12, width: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [N, H, W] of one horizontal bar each; the class [N] is the bar's place."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % 3
    x = np.zeros((count, height, width), np.uint8)
    for image, place in zip(x, y, strict=True):
        image[place * height // 3 : (place + 1) * height // 3] = rng.integers(128, 256)
    return x, y


def write_bars(folder: Path, count: int = 100) -> str:
    """The path of an .npz with `bars`."""
    x, y = bars(count)
    path = folder / "bars.npz"
    np.savez(path, x=x, y=y)
    return str(path)


def command(*args: object) -> int:
    """The exit code of `vae-fast ARGS`, run in this process."""
    return main([str(arg) for arg in args])


def package_path() -> dict[str, str]:
    """The environment in which another process imports the package under test."""
    path = os.pathsep.join([str(Path(vae_fast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def started(folder: Path, *args: object) -> subprocess.Popen:
    """`vae-fast ARGS` in a process of its own."""
    words = [sys.executable, "-m", "vae_fast.cli", *map(str, args)]
    return subprocess.Popen(
        words, cwd=folder, env=package_path(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv."""
    with open(run / "metrics.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
