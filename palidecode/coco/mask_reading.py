"""Read segmentations of COCO files: polygons and RLE to sound masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.coco.reading import Outline, RunLengths
from palidecode.errors import InputError
from palidecode.geometry.rle import (
    MAX_OUTLINE,
    Rle,
    check_rle,
    draw_rings,
    farthest,
    read_runs,
    rings_to_rle,
    union,
)

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = Rle | list[list[float]]
"""A sound mask: RLE, or rings that need no change."""

_AT_ONCE = 1000  # masks; their numbers stay in the processor's cache


def read_mask(outline: Outline, size: tuple[int, int]) -> tuple[Rle | None, int]:
    """Read a segmentation; return its RLE or None, and the number of skipped rings.

    Rings of fewer than three points are skipped. `size` is the picture's width and height.
    """
    if outline is None or is_none(outline):
        return None, 0
    width, height = size
    if isinstance(outline, RunLengths):
        if outline.size != (height, width):
            raise InputError(
                f"an RLE of size {list(outline.size)} in an image of {[height, width]}"
            )
        return check_rle({"size": list(outline.size), "counts": outline.counts}), 0
    rings = [ring for ring in outline if len(ring) >= 6 and len(ring) % 2 == 0]
    return rings_to_rle(rings or outline, size), len(outline) - len(rings)


class Masks(NamedTuple):
    """Masks as evaluators take them.

    Attributes
    ----------
    masks : list of (Mask or None)
        None if there is none or it is damaged.
    missing, damaged, bad_rings : ndarray of bool, shape (N,)
        Rows without a mask, with one that can't be used, and with some rings skipped.
    pixels : ndarray of float64, shape (N,)
        Area of compressed RLEs; NaN where it is not known yet.
    """

    masks: list[Mask | None]
    missing: Bools
    damaged: Bools
    bad_rings: Bools
    pixels: Floats


def read_masks(outlines: Sequence[Outline], sizes: Ints) -> Masks:
    """Read many segmentations; as `read_mask`, but rings that need no change stay rings."""
    count = len(outlines)
    missing, damaged, bad_rings = np.zeros((3, count), np.bool_)
    read = Masks([None] * count, missing, damaged, bad_rings, np.full(count, np.nan))
    shapes = list(map(tuple, sizes[:, ::-1].tolist()))
    compressed: list[int] = []
    rings: list[int] = []
    odd: list[int] = []
    for row, (outline, shape) in enumerate(zip(outlines, shapes, strict=True)):
        if type(outline) is RunLengths and outline.size == shape and type(outline.counts) is str:
            read.masks[row] = {"size": [*shape], "counts": outline.counts}
            compressed.append(row)
        elif type(outline) is list and any(outline):
            read.masks[row] = outline
            rings.append(row)
        elif not is_none(outline):
            odd.append(row)
        else:
            missing[row] = True
    if sizes.min(initial=1) < 1:
        odd += [row for row in compressed if not min(shapes[row])]
        compressed = [row for row in compressed if min(shapes[row])]
    for start in range(0, len(compressed), _AT_ONCE):
        odd += _damaged(compressed[start : start + _AT_ONCE], read)
    if not _all_sound([read.masks[row] for row in rings], sizes[rings]):
        odd += [row for row in rings if not _all_sound([read.masks[row]], sizes[[row]])]
    for row in odd:
        height, width = shapes[row]
        try:
            read.masks[row], skipped = read_mask(outlines[row], (width, height))
            bad_rings[row] = skipped > 0
        except InputError:
            read.masks[row], damaged[row] = None, True
    return read


def _damaged(rows: list[int], read: Masks) -> list[int]:
    """Measure the compressed RLEs of some rows; return the rows whose RLE is damaged."""
    rles: list[Any] = [read.masks[row] for row in rows]
    try:
        runs, ends = read_runs(rles)
    except InputError:
        half = len(rows) // 2
        return _damaged(rows[:half], read) + _damaged(rows[half:], read) if half else rows
    read.pixels[rows] = np.diff(np.append(0, np.cumsum(runs[:, 1]))[ends], prepend=0)
    return []


def is_none(outline: Outline) -> bool:
    """Return True for "no segmentation": None, no ring, or empty rings only."""
    return not outline or (isinstance(outline, list) and not any(outline))


def as_rle(mask: Mask, width: int, height: int) -> Rle:
    """Return the RLE of a sound mask."""
    return mask if isinstance(mask, dict) else draw_rings(mask, (width, height))


def empty_rle(width: int, height: int) -> Rle:
    """Return the RLE of a mask without a pixel."""
    return union([], (width, height))


def _all_sound(masks: Sequence[Any], sizes: Ints) -> bool:
    """Return True if `rings_to_rle` takes all rings as they are: the usual ground truth."""
    if sizes.min(initial=1) < 1:
        return False
    rings: list[list[float]] = list(chain.from_iterable(masks))
    lengths = np.fromiter(map(len, rings), np.int64, len(rings))
    if not (rings and (lengths >= 6).all() and (lengths % 2 == 0).all()):
        return False
    if not _all_finite(rings):
        return False
    low, high = min(map(min, rings)), max(map(max, rings))
    near = max(-low, high) <= farthest(int(sizes.max(axis=1).min()))
    return near and bool(lengths.max() * (high - low) <= MAX_OUTLINE)


def _all_finite(rings: list[list[float]]) -> bool:
    # A sum is quick, and finite only if all of it is; large numbers may overflow.
    return isfinite(sum(map(sum, rings))) or all(map(isfinite, chain.from_iterable(rings)))
