"""Checkpoints: written whole or not at all, read without unpickling, found when none is named."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from .callbacks import BEST
from .data import VAEData
from .errors import UserError, write_whole
from .module import VAEModule

RUNS = "runs/vae"
NEEDED = {"state_dict": dict, "hyper_parameters": dict, "datamodule_hyper_parameters": dict}
TO_RESUME = {**NEEDED, "callbacks": dict, "loops": dict, "optimizer_states": list, "lr_schedulers": list}


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, then renames; loads with weights_only=True whatever was asked."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path, needed: Mapping[str, type] = NEEDED) -> dict[str, Any]:
    """The checkpoint's tensors and plain values, among them those that are needed.

    **Raises** UserError naming the file: not there, corrupt, in need of unpickling, of another program.
    """
    if not path.is_file():
        raise UserError(f"--ckpt_path {path}: no such file; expected a checkpoint written by vae-fast fit")
    with path.open("rb") as file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"--ckpt_path {path}: {_why_unreadable(path, error)}") from error
    found = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [key for key, kind in needed.items() if not isinstance(found.get(key), kind)]
    if missing:
        raise UserError(f"--ckpt_path {path}: no {missing[0]} in it; expected a checkpoint written by vae-fast fit")
    return checkpoint


def _why_unreadable(path: Path, error: Exception) -> str:
    if zipfile.is_zipfile(path) and "Unsupported" in str(error):
        return "holds more than tensors and plain values: it would need unpickling, which is refused"
    return "is corrupt, or no checkpoint; expected a checkpoint written by vae-fast fit"


def find_checkpoint(named: str | None, runs: str) -> Path:
    """The one named; else of the run in `runs` written to last its best.ckpt, or its newest if it has no best."""
    if named is not None:
        return Path(named)
    written = Path(runs).glob("version_*/checkpoints/*.ckpt")
    newest = max(written, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise UserError(f"no checkpoint in {runs}: train one with vae-fast fit, or name one with --ckpt_path")
    best = newest.with_name(f"{BEST}.ckpt")
    return best if best.is_file() else newest


def load_model(path: Path, checkpoint: dict[str, Any]) -> VAEModule:
    """The trained module, in evaluation mode."""
    try:
        module = VAEModule(**checkpoint["hyper_parameters"])
        module.load_state_dict(checkpoint["state_dict"])
    except (TypeError, LookupError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"--ckpt_path {path}: its options and its weights do not fit this vae-fast") from error
    return module.eval()


def load_data(path: Path, checkpoint: dict[str, Any], **options: Any) -> VAEData:
    """The data the checkpoint was trained on, or what `options` name instead; other data has layers of its own."""
    given = {name: value for name, value in options.items() if value is not None}
    if "data" in given:
        given = {"layer": None, "labels": None, **given}
    try:
        observations = VAEData(**{**checkpoint["datamodule_hyper_parameters"], **given})
    except TypeError as error:
        raise UserError(f"--ckpt_path {path}: its options do not fit this vae-fast") from error
    check_shape(observations, checkpoint)
    return observations


def check_shape(given: VAEData, checkpoint: dict[str, Any]) -> None:
    """**Raises** UserError where the observations are not of the shape that the checkpoint was trained on."""
    expected, shape = tuple(checkpoint["hyper_parameters"]["shape"]), given.observations.shape
    if shape == expected:
        return
    if given.counts:
        raise UserError(f"--data {given.data}: {shape[0]} columns; the checkpoint was trained on {expected[0]}")
    raise UserError(
        f"--data {given.data}: images of shape {list(shape)}; "
        f"the checkpoint was trained on {list(expected)} (channels, height, width)"
    )
