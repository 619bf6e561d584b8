"""Matrices of counts from .npy, .npz (dense, or sparse as SciPy writes them) and .h5ad. Nothing is unpickled."""

import importlib
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import UserError
from .reading import LABEL_KEYS, Observations, as_tensor, load_arrays, numbered_classes

COUNT_KEYS = ("x", "counts", "X", "data", "arr_0")
OBSERVATION_LABELS = ("cell_type", "celltype", "cell_types", *LABEL_KEYS, "louvain", "leiden")
EXPECTED = "expected a matrix of counts [N, D]: a .npy, a .npz or an AnnData .h5ad"
SMALLEST_FIRST = (np.uint8, np.uint16, np.int32)


def read_counts(source: str, layer: str | None = None, labels: str | None = None) -> Observations:
    """Counts [N, D] of a .npy, .npz or .h5ad file, in the smallest of uint8, uint16 and int32 that holds them.

    **Raises** UserError in one line that names the file and what was expected.
    """
    path = Path(source).expanduser()
    if source == "digits" and not path.exists():
        raise UserError(f"--data {source}, the default, are images; --likelihood is one of counts: {EXPECTED}")
    if path.suffix not in (".npy", ".npz", ".h5ad"):
        raise UserError(f"--data {source}: {EXPECTED}")
    if not path.is_file():
        raise UserError(f"--data {source}: no such file; {EXPECTED}")
    if layer is not None and path.suffix != ".h5ad":
        raise UserError(f"--layer {layer}: only a .h5ad file has layers, got {source}")
    if labels is not None and path.suffix == ".npy":
        raise UserError(f"--labels {labels}: only .npz and .h5ad files have classes, got {source}")
    matrix, classes = _annotated(path, layer, labels) if path.suffix == ".h5ad" else _array_file(path, labels)
    if isinstance(matrix, _Sparse):
        x = matrix._replace(values=_counts(path, matrix.values)).dense()
    else:
        x = _counts(path, _two_axes(path, matrix))
    return Observations(as_tensor(x), *numbered_classes(classes, str(path), len(x)))


class _Sparse(NamedTuple):
    """values at (rows, columns) of a matrix; the rest is 0."""

    values: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    shape: tuple[int, int]

    def dense(self) -> np.ndarray:
        x = np.zeros(self.shape, self.values.dtype)
        x[self.rows, self.columns] = self.values
        return x


def _array_file(path: Path, labels: str | None) -> tuple[np.ndarray | _Sparse, np.ndarray | None]:
    found = load_arrays(path, lambda archive: _members(path, archive, labels))
    return (found, None) if isinstance(found, np.ndarray) else found


def _members(
    path: Path, arrays: np.lib.npyio.NpzFile, labels: str | None
) -> tuple[np.ndarray | _Sparse, np.ndarray | None]:
    if "format" in arrays and "shape" in arrays:
        if labels is not None:
            raise UserError(f"--labels {labels}: SciPy's sparse .npz files have no classes, got {path}")
        return _scipy_matrix(path, arrays), None
    found = [key for key in COUNT_KEYS if key in arrays]
    if not found:
        raise UserError(f"{path}: expected counts under one of {', '.join(COUNT_KEYS)}; got {', '.join(arrays)}")
    if labels is not None and labels not in arrays:
        raise UserError(f"--labels {labels}: {path} has {', '.join(arrays)}")
    keys = [key for key in (LABEL_KEYS if labels is None else (labels,)) if key in arrays]
    return arrays[found[0]], arrays[keys[0]] if keys else None


def _scipy_matrix(path: Path, arrays: np.lib.npyio.NpzFile) -> _Sparse:
    """What scipy.sparse.save_npz wrote: compressed rows or columns, or coordinates."""
    kind = arrays["format"].item()
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)
    needed = {"csr": ("indices", "indptr"), "csc": ("indices", "indptr"), "coo": ("row", "col")}.get(kind)
    if needed is None:
        raise UserError(f"{path}: a sparse matrix of format {kind}; expected csr, csc or coo")
    missing = [key for key in ("data", *needed) if key not in arrays]
    if missing:
        raise UserError(f"{path}: no {missing[0]} in it; expected a matrix saved by scipy.sparse.save_npz")
    return _coordinates(path, kind, arrays["data"], arrays[needed[0]], arrays[needed[1]], arrays["shape"])


def _coordinates(
    path: Path, kind: str, values: np.ndarray, first: np.ndarray, second: np.ndarray, shape: Any
) -> _Sparse:
    """The matrix by its coordinates, those that stand twice added. csr and csc: indices, indptr; coo: rows, columns."""
    shape = tuple(int(side) for side in np.ravel(shape))
    damaged = UserError(f"{path}: is damaged: its indices do not fit its shape {list(shape)}")
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{path}: got shape {list(shape)}; {EXPECTED}")
    if not all(a.ndim == 1 and (a.dtype.kind in "iu" or a.size == 0) for a in (first, second)) or values.ndim != 1:
        raise damaged
    if kind != "coo":
        lengths: np.ndarray = np.diff(second.astype(np.int64))
        if len(lengths) != shape[kind == "csc"] or (lengths < 0).any() or lengths.sum() != len(first):
            raise damaged
        first, second = np.repeat(np.arange(len(lengths)), lengths), first
        first, second = (second, first) if kind == "csc" else (first, second)
    if not len(values) == len(first) == len(second):
        raise damaged
    rows, columns = first.astype(np.int64), second.astype(np.int64)
    if any(len(at) and not 0 <= at.min() <= at.max() < side for at, side in zip((rows, columns), shape, strict=True)):
        raise damaged
    flat, inverse = np.unique(rows * shape[1] + columns, return_inverse=True)
    if len(flat) < len(values):
        values = np.bincount(inverse, values.astype(np.float64))
        rows, columns = np.divmod(flat, shape[1])
    return _Sparse(values, rows, columns, shape)


def _annotated(path: Path, layer: str | None, labels: str | None) -> tuple[np.ndarray | _Sparse, np.ndarray | None]:
    """X, a layer or "raw" of an AnnData file, and a column of its observations."""
    try:
        anndata = importlib.import_module("anndata")
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading .h5ad needs anndata: pip install 'vae_fast[anndata]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old files and of names that are not unique, which matter not here
            table = anndata.read_h5ad(path)
    except Exception as error:  # whatever anndata and h5py raise for a damaged file
        raise UserError(
            f"{path}: anndata can't read it ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error
    return _plain(path, _layer(path, table, layer)), _column(path, table.obs, labels)


def _layer(path: Path, table: Any, layer: str | None) -> Any:
    if layer is None:
        matrix = table.X
    elif layer == "raw":
        matrix = None if table.raw is None else table.raw.X
    else:
        matrix = table.layers[layer] if layer in table.layers else None
    if matrix is None:
        there = [*(["raw"] if table.raw is not None else []), *table.layers]
        what = "X" if layer is None else f"layer {layer}"
        raise UserError(f"{path}: has no {what}; --layer may be one of {', '.join(there) or 'none'}")
    return matrix


def _plain(path: Path, matrix: Any) -> np.ndarray | _Sparse:
    """An array as it is; a sparse matrix of SciPy's as coordinates."""
    if not hasattr(matrix, "tocoo"):
        return np.asarray(matrix)
    entries = matrix.tocoo()
    return _coordinates(path, "coo", entries.data, entries.row, entries.col, matrix.shape)


def _column(path: Path, observations: Any, labels: str | None) -> np.ndarray | None:
    columns = [str(name) for name in observations.columns]
    if labels is not None and labels not in columns:
        raise UserError(f"--labels {labels}: the observations of {path} have {', '.join(columns) or 'no columns'}")
    found = [name for name in (OBSERVATION_LABELS if labels is None else (labels,)) if name in columns]
    return np.asarray(observations[found[0]].astype(str)) if found else None


def _two_axes(path: Path, x: np.ndarray) -> np.ndarray:
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(f"{path}: got shape {list(x.shape)}; {EXPECTED}")
    return x


def _counts(path: Path, x: np.ndarray) -> np.ndarray:
    """x in the smallest of uint8, uint16 and int32 that holds it, if it holds counts."""
    if x.dtype.kind not in "biuf":
        raise UserError(f"{path}: got values of type {x.dtype}; expected counts, 0, 1, 2, ...")
    low, high = (x.min(), x.max()) if x.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{path}: holds NaN or infinite values; expected counts, 0, 1, 2, ...")
    if low < 0:
        raise UserError(f"{path}: values from {low:g} to {high:g}; expected counts, 0, 1, 2, ...")
    if x.dtype.kind == "f" and (x != np.rint(x)).any():
        raise UserError(
            f"{path}: holds numbers that are no counts, {x[x != np.rint(x)][0]:g} among them; expected 0, 1, 2, ...: "
            "not normalised, not logarithms (a .h5ad file may have the counts in another --layer, or in raw)"
        )
    fitting = [dtype for dtype in SMALLEST_FIRST if high <= np.iinfo(dtype).max]
    if not fitting:
        raise UserError(f"{path}: values up to {high:g}; expected counts below 2^31")
    return x.astype(fitting[0])
