"""Windows of a picture: its tiles, and what surrounds a box. Corners are whole pixels."""

from __future__ import annotations

import math
import re
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.geometry.boxes import as_rows

Windows: TypeAlias = npt.NDArray[np.int64]
"""x1, y1, x2, y2 in pixels of the picture, shape (N, 4)."""

AUTO = "auto"
MOST_TILES = 16
"""Tiles of a side, at most."""
MOST_AUTO = 4
"""Tiles of a side that ``auto`` cuts, at most."""

_GRID = re.compile(r"([1-9]\d?)x([1-9]\d?)")


def check_tiles(tiles: str) -> None:
    """Raise `InputError` unless `tiles` is ``auto``, or columns and rows as in ``2x2``."""
    found = _GRID.fullmatch(tiles) if isinstance(tiles, str) else None
    if tiles != AUTO and (found is None or max(map(int, found.groups())) > MOST_TILES):
        raise InputError(
            f"tiles must be {AUTO!r}, or columns and rows up to {MOST_TILES} as '2x2', "
            f"got {tiles!r}"
        )


def check_overlap(overlap: float) -> None:
    """Raise `InputError` unless `overlap` is a share of a tile that leaves it a middle."""
    if not 0 <= overlap <= 0.5:
        raise InputError(f"overlap must be between 0 and 0.5, got {overlap}")


def tile_windows(size: tuple[int, int], tiles: str, overlap: float, side: int) -> Windows:
    """Cut a picture into tiles of equal size, row by row.

    Parameters
    ----------
    size : tuple of 2 int
        Width and height of the picture.
    tiles : str
        Columns and rows as ``2x2``, or ``auto``: as many as give each tile at most `side` pixels
        without overlap, at most `MOST_AUTO` a side.
    overlap : float
        The least share of a tile's side that the next one repeats, up to a pixel.
    side : int
        The model's pixels of a side.

    Returns
    -------
    ndarray of int64, shape (N, 4)
        No tile comes twice, so that a picture of few pixels has fewer; none, if one would be the
        whole picture.
    """
    if tiles == AUTO:
        counts = [min(MOST_AUTO, math.ceil(length / side)) for length in size]
    else:
        counts = [int(number) for number in tiles.split("x")]
    columns, rows = (
        _spans(length, min(count, length), overlap)
        for length, count in zip(size, counts, strict=True)
    )
    if len(columns) == len(rows) == 1:
        return np.zeros((0, 4), np.int64)
    return np.array([[x1, y1, x2, y2] for y1, y2 in rows for x1, x2 in columns], np.int64)


def _spans(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Cut a length into spans of equal size that begin and end with it."""
    size = min(length, math.ceil(length / (count - (count - 1) * overlap)))
    starts = np.rint(np.linspace(0, length - size, count)).astype(np.int64).tolist()
    return [(start, start + size) for start in dict.fromkeys(starts)]


def surroundings(xyxy: npt.ArrayLike, margin: float, size: tuple[int, int]) -> Windows:
    """Return the windows around boxes (N, 4), clipped to the picture.

    `margin` is the share of the box's sides that is added on each side. A window has at least
    one pixel.
    """
    boxes = as_rows(xyxy, 4, "xyxy")
    sides = boxes[:, 2:] - boxes[:, :2]
    limit = np.array(size)
    low = np.clip(np.floor(boxes[:, :2] - margin * sides), 0, limit - 1)
    high = np.clip(np.ceil(boxes[:, 2:] + margin * sides), low + 1, limit)
    return np.concatenate([low, high], axis=1).astype(np.int64)
