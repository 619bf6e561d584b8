"""The images as a LightningDataModule: one tensor in memory, a batch is one indexing of it."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .errors import UserError
from .reading import FEWEST_IMAGES, read_images, split

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


class ImageData(LightningDataModule):
    """Images split into train, validation and test: 80, 10 and 10 percent, shuffled with a fixed seed.

    Args:
        data: "digits" (5,000 of MNIST), a .npy or .npz file, or a folder of images.
            Arrays: uint8, or floats in [0, 1]; [N, H, W], [N, H, W, C], [N, C, H, W] or [N, D],
            with C 1 or 3; D numbers are a square image where D is a square, else one row.
            .npz: images under x, images, data or arr_0; classes, if any, under y, labels or targets.
            Folder: images of one size at any depth; the names of its sub-folders are the classes.
        batch_size: Images in a batch, for each process.
        shift: Training images are shifted at random by up to so many pixels; by default 1 for digits, else 0.
    """

    def __init__(self, data: str = "digits", batch_size: int = 64, shift: int | None = None) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"--batch_size {batch_size}: expected at least 1")
        shift = int(data == "digits") if shift is None else shift
        if shift < 0:
            raise UserError(f"--shift {shift}: expected zero or a positive number")
        self.save_hyperparameters(logger=False)
        self.data, self.batch_size, self.shift = data, batch_size, shift
        self.images = read_images(data)
        count = len(self.images.x)
        if count < FEWEST_IMAGES:
            raise UserError(f"--data {data}: too few images: {count}; expected at least {FEWEST_IMAGES}")
        self.train_rows, self.val_rows, self.test_rows = split(count)

    def train_dataloader(self) -> DataLoader:
        rows = _Rows(self.images.x, self.train_rows, self.shift)
        return DataLoader(rows, self.batch_size, shuffle=True, collate_fn=_as_is)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation(self.val_rows)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation(self.test_rows)

    @property
    def evaluation_batch(self) -> int:
        """Images taken at once where nothing is trained: `batch_size`, or more if they are small."""
        return max(self.batch_size, EVALUATION_VALUES // math.prod(self.images.shape))

    def _evaluation(self, rows: Tensor) -> DataLoader:
        return DataLoader(_Rows(self.images.x, rows), self.evaluation_batch, collate_fn=_as_is)
