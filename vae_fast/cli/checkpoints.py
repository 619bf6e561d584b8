"""Checkpoints: written whole or not at all, read without unpickling, found when none is named."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from .callbacks import BEST
from .data import ImageData
from .errors import UserError, write_whole
from .module import VAEModule

RUNS = "runs/vae"
NEEDED = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, then renames; loads with weights_only=True whatever was asked."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's tensors and plain values.

    **Raises** UserError naming the file: not there, corrupt, in need of unpickling, of another program.
    """
    if not path.is_file():
        raise UserError(f"--ckpt_path {path}: no such file; expected a checkpoint written by vae-fast fit")
    with path.open("rb") as file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"--ckpt_path {path}: {_why_unreadable(path, error)}") from error
    missing = [key for key in NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(
            f"--ckpt_path {path}: no {missing[0]} in it; expected a checkpoint written by vae-fast fit"
        )
    return checkpoint


def _why_unreadable(path: Path, error: Exception) -> str:
    if zipfile.is_zipfile(path) and "Unsupported" in str(error):
        return "holds more than tensors and plain values: it would need unpickling, which is refused"
    return "is corrupt, or no checkpoint; expected a checkpoint written by vae-fast fit"


def newest_checkpoint(runs: Path) -> Path:
    """Of the run in `runs` written to last: its best.ckpt, or its newest checkpoint if it has no best."""
    written = sorted(runs.glob("version_*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not written:
        raise UserError(f"no checkpoint in {runs}: train one with vae-fast fit, or name one with --ckpt_path")
    best = written[-1].with_name(f"{BEST}.ckpt")
    return best if best.is_file() else written[-1]


def load_model(path: Path, checkpoint: dict[str, Any]) -> VAEModule:
    """The trained module, in evaluation mode."""
    try:
        module = VAEModule(**checkpoint["hyper_parameters"])
        module.load_state_dict(checkpoint["state_dict"])
    except (TypeError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"--ckpt_path {path}: its options and its weights do not fit this vae-fast"
        ) from error
    return module.eval()


def load_data(checkpoint: dict[str, Any], **options: Any) -> ImageData:
    """The data the checkpoint was trained on, or what `options` name instead."""
    given = {name: value for name, value in options.items() if value is not None}
    images = ImageData(**{**checkpoint["datamodule_hyper_parameters"], **given})
    check_shape(images, checkpoint)
    return images


def check_shape(images: ImageData, checkpoint: dict[str, Any]) -> None:
    """**Raises** UserError where the images are not of the shape that the checkpoint was trained on."""
    expected = tuple(checkpoint["hyper_parameters"]["shape"])
    if images.images.shape != expected:
        raise UserError(
            f"--data {images.data}: images of shape {list(images.images.shape)}; "
            f"the checkpoint was trained on {list(expected)} (channels, height, width)"
        )
