"""Sets of threads."""

from __future__ import annotations

import numpy as np


class Active:
    """Some threads: everyone (mask None), many (use the mask) or few (use idx to gather and scatter)."""

    __slots__ = ("_indices", "idx", "mask", "n", "total")

    def __init__(self, mask: np.ndarray):
        self.total, self.n = len(mask), int(np.count_nonzero(mask))
        self.mask = None if self.n == self.total else mask
        self.idx = self._indices = np.flatnonzero(mask) if 4 * self.n < self.total else None

    @property
    def where(self) -> np.ndarray | bool:
        """For NumPy's `where` arguments."""
        return True if self.mask is None else self.mask

    def full_mask(self) -> np.ndarray:
        return np.ones(self.total, np.bool_) if self.mask is None else self.mask

    def first(self) -> int:
        return int(np.argmax(self.full_mask()))

    def indices(self) -> np.ndarray | None:
        """The threads' numbers in rising order; None for everyone."""
        if self.mask is not None and self._indices is None:
            self._indices = np.flatnonzero(self.mask)
        return self._indices
