"""The observations as a LightningDataModule: one tensor in memory, a batch is one indexing of it."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .counts import read_counts
from .errors import UserError
from .reading import FEWEST, Observations, read_images, split

EVALUATION_VALUES = 500 * 28 * 28


class _Rows(Dataset):
    """Some rows of x. DataLoader gives `__getitems__` all indices of a batch: it is gathered at once.

    Each batch is shifted by a random number of pixels, at most `shift`, up or down and left or right.
    """

    def __init__(self, x: Tensor, rows: Tensor, shift: int = 0) -> None:
        self.x = x
        self.rows = rows
        self.shift = shift

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> Tensor:
        batch = self.x[self.rows[indices]]
        if self.shift == 0:
            return batch
        down, right = torch.randint(-self.shift, self.shift + 1, (2,)).tolist()
        return shifted(batch, down, right)


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """Images [N, C, H, W] moved by whole pixels; the edge is repeated where they left."""
    rows = (torch.arange(x.shape[2]) - down).clamp(0, x.shape[2] - 1)
    columns = (torch.arange(x.shape[3]) - right).clamp(0, x.shape[3] - 1)
    return x[:, :, rows[:, None], columns]


def _as_is(batch: Any) -> Any:
    return batch


def quantised(x: Tensor, levels: int) -> Tensor:
    """uint8, or floats in [0, 1], as the numbers of `levels` bins of equal width, uint8."""
    if x.dtype == torch.uint8:
        return x if levels == 256 else (x.to(torch.int32) * levels // 256).to(torch.uint8)
    return (x * levels).floor().clamp(max=levels - 1).to(torch.uint8)


class VAEData(LightningDataModule):
    """Images or counts split into train, validation and test: 80, 10 and 10 percent, shuffled with a fixed seed.

    Args:
        data: "digits" (5,000 of MNIST), a .npy or .npz file, or a folder of images.
            Arrays: uint8, or floats in [0, 1]; [N, H, W], [N, H, W, C], [N, C, H, W] or [N, D],
            with C 1 or 3; D numbers are a square image where D is a square, else one row.
            .npz: images under x, images, data or arr_0; classes, if any, under y, labels or targets.
            Folder: images of one size at any depth; the names of its sub-folders are the classes.
            For a likelihood of counts, [N, D] whole numbers: .npy, .npz (counts under x, counts, X, data or arr_0;
            or a sparse matrix as scipy.sparse.save_npz writes it), or AnnData's .h5ad (needs vae_fast[anndata]).
        batch_size: Images or rows of counts in a batch, for each process.
        shift: Training images are shifted at random by up to so many pixels; by default 1 for digits, else 0.
        layer: Of a .h5ad file, where the counts are: a layer, or raw; by default X.
        labels: Where the classes of counts are: in a .h5ad file a column of obs, in .npz a key.
            By default cell_type or the like, if there is one.
        counts: Whether to read counts.
        quantise: How many grey levels, at most 256, to cut images into; None leaves them as they are.
    """

    def __init__(
        self,
        data: str = "digits",
        batch_size: int = 64,
        shift: int | None = None,
        layer: str | None = None,
        labels: str | None = None,
        counts: bool = False,
        quantise: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"--batch_size {batch_size}: expected at least 1")
        shift = int(data == "digits" and not counts) if shift is None else shift
        if shift < 0:
            raise UserError(f"--shift {shift}: expected zero or a positive number")
        for name, value in {"layer": layer, "labels": labels}.items():
            if value is not None and not counts:
                raise UserError(f"--{name} {value}: is for counts; --likelihood is one of images")
        if counts and shift:
            raise UserError(f"--shift {shift}: is for images; --likelihood is one of counts")
        self.save_hyperparameters(logger=False)
        self.data, self.batch_size, self.shift, self.counts = data, batch_size, shift, counts
        self.observations: Observations = read_counts(data, layer, labels) if counts else read_images(data)
        if quantise is not None:
            self.observations.x = quantised(self.observations.x, quantise)
        count = len(self.observations.x)
        if count < FEWEST:
            raise UserError(f"--data {data}: too few {self.unit}s: {count}; expected at least {FEWEST}")
        self.train_rows, self.val_rows, self.test_rows = split(count)

    @property
    def unit(self) -> str:
        """What one observation is called."""
        return "observation" if self.counts else "image"

    @property
    def library(self) -> float | None:
        """The median total of the training rows, of counts."""
        if not self.counts:
            return None
        return max(1.0, self.observations.x[self.train_rows].sum(1, dtype=torch.float32).median().item())

    def train_dataloader(self) -> DataLoader:
        rows = _Rows(self.observations.x, self.train_rows, self.shift)
        return DataLoader(rows, self.batch_size, shuffle=True, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(self.val_rows)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation(self.test_rows)

    @property
    def evaluation_batch(self) -> int:
        """Observations taken at once where nothing is trained: `batch_size`, or more if they are small."""
        return max(self.batch_size, EVALUATION_VALUES // math.prod(self.observations.shape))

    def _evaluation(self, rows: Tensor) -> DataLoader:
        return DataLoader(_Rows(self.observations.x, rows), self.evaluation_batch, collate_fn=_as_is)
