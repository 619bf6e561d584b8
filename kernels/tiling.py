"""How rows and columns are cut among programs: a function of shapes and dtypes alone, so that results are too."""

import functools
from dataclasses import dataclass

import triton

THREADS = 128  # of a full tile, each with `vector` neighbours: one 128-bit access of the widest operand
PROGRAMS = 512  # that many programs fill a large GPU
WASTE = 1.0625  # of columns computed to columns there are, at most, where a choice of the tile allows it
ROW_TILES = 4  # that a program samples where there are enough: entering and leaving it costs half a tile
LONG = 8  # tiles of a row that is worth cutting, which takes a second launch


@dataclass(frozen=True)
class Columns:
    """Columns of a tile; then the tile of what is left, 0 if nothing is; and whether the last must be masked."""

    tile: int
    tail: int
    bounded: bool

    def whole(self, width: int) -> int:
        """Tiles that the loop goes through, without the tail."""
        return width // self.tile if self.tail else triton.cdiv(width, self.tile)

    def unroll(self, per_split: int, width: int, vector: int, together: int | None) -> int:
        """Tiles in one turn of the loop: what divides every split's number of tiles, of `together` elements at most."""
        choices = [n for n in ((2, 3) if vector == 8 else (4, 3, 2)) if together is None or n * vector <= together]
        return next((n for n in choices if per_split % n == 0 and self.whole(width) % n == 0), 1)


@dataclass(frozen=True)
class Tiling:
    """rows: of a tile. Programs are groups x splits; a group has `tiles` tiles of rows, one unless `grouped`, and a
    split `per_split` tiles of columns."""

    rows: int
    columns: Columns
    latent_columns: Columns
    groups: int
    tiles: int
    splits: int
    per_split: int
    latent_per_split: int
    grouped: bool
    warps: int


def _computed(width: int, tile: int) -> int:
    """Columns that a row of tiles and its tail compute."""
    rest = width % tile
    return width - rest + (triton.next_power_of_2(rest) if rest else 0)


def _masked(width: int, tile: int) -> Columns:
    """Without a tail: the last tile is masked, the only one too where there are no columns."""
    return Columns(tile, 0, width % tile != 0 or width == 0)


def _columns(width: int, largest: int, least: int) -> Columns:
    """The widest tile that wastes little, else the one that wastes least."""
    widest = min(largest, triton.next_power_of_2(max(1, width)))
    choices = [widest >> k for k in range(widest.bit_length()) if widest >> k >= min(widest, least)]
    frugal = [tile for tile in choices if _computed(width, tile) <= WASTE * width]
    tile = frugal[0] if frugal else min(choices, key=lambda tile: _computed(width, tile))
    rest = width % tile
    if rest == 0 or width < tile:
        return _masked(width, tile)
    tail = triton.next_power_of_2(rest)
    return Columns(tile, tail, rest != tail)


def _rows(rows: int, columns: int, elements: int) -> int:
    """Rows of a tile: as many as fit, while there are enough programs."""
    most = max(1, elements // columns)
    while most > 1 and triton.cdiv(rows, most) < PROGRAMS:
        most //= 2
    return most


def _warps(elements: int, vector: int) -> int:
    return min(THREADS // 32, max(1, elements // (32 * vector)))


@functools.lru_cache(4096)
def tiling_of(rows: int, width: int, latent_width: int, vector: int, shared: bool) -> Tiling:
    """vector: elements of the widest operand in 128 bits. shared: some gradient is summed over rows, by a group of
    tiles of rows for a fixed tile of columns."""
    elements, least = THREADS * vector, 8 * vector  # whose rows are 128 bytes
    columns = _columns(width, elements // _rows(rows, least, elements), least)
    height = _rows(rows, columns.tile, elements)
    latent = _columns(latent_width, max(1, elements // height), least)
    if shared:
        columns, latent = _masked(width, columns.tile), _masked(latent_width, latent.tile)
    row_tiles, column_tiles = triton.cdiv(rows, height), columns.whole(width)
    if shared:
        splits = max(1, column_tiles, latent.whole(latent_width))
        groups = min(row_tiles, max(1, 2 * PROGRAMS // splits))
        per_split, latent_per_split = 1, 1
    else:
        splits = max(1, min(column_tiles, PROGRAMS // max(1, row_tiles))) if column_tiles >= LONG else 1
        per_split, latent_per_split = triton.cdiv(column_tiles, splits), latent.whole(latent_width)
        splits, groups = max(1, triton.cdiv(column_tiles, max(1, per_split))), row_tiles
    tiles = triton.cdiv(row_tiles, groups) if groups else 0
    groups = triton.cdiv(row_tiles, tiles) if tiles else 0
    warps = _warps(height * columns.tile, vector)
    return Tiling(height, columns, latent, groups, tiles, splits, per_split, latent_per_split, shared, warps)


@functools.lru_cache(4096)
def latent_tiling_of(rows: int, width: int) -> Tiling:
    """For kernels that go through rows and columns in plain loops, the last tile of columns masked."""
    elements = THREADS * 8
    tile = min(elements, triton.next_power_of_2(max(1, width)))
    height = _rows(rows, tile, elements)
    columns, row_tiles = _masked(width, tile), triton.cdiv(rows, height)
    parts = columns.whole(width)
    splits = max(1, min(parts, PROGRAMS // max(1, row_tiles)))
    per_split = triton.cdiv(parts, splits)
    splits = max(1, triton.cdiv(parts, max(1, per_split)))
    tiles = max(1, min(ROW_TILES, row_tiles // (2 * PROGRAMS)))
    groups, warps = triton.cdiv(row_tiles, tiles), _warps(height * tile, 8)
    return Tiling(height, columns, columns, groups, tiles, splits, per_split, 0, False, warps)
