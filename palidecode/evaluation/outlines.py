"""Masks of a file, checked in bulk before the engine sees them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hotcoco import mask as engine_mask
from pycocotools import mask as coco_mask

from palidecode.evaluation.rows import Outline, RunLengths

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_AT_ONCE = 1000  # masks; their numbers stay in the processor's cache


class Outlines(NamedTuple):
    """Masks as the engine takes them.

    Attributes
    ----------
    masks : list
        RLE dicts with text, or lists of rings; None where there is none or it is damaged.
    missing, damaged, bad_rings : ndarray of bool, shape (N,)
        Rows without a mask, with one that can't be used, and with some rings left out.
    """

    masks: list[Any]
    missing: Bools
    damaged: Bools
    bad_rings: Bools


def sound_outlines(outlines: Sequence[Outline], sizes: Ints) -> Outlines:
    """Check masks against the size of their picture.

    Parameters
    ----------
    outlines : sequence of RunLengths, list of rings, or None
    sizes : ndarray of int64, shape (N, 2)
        Width and height of each mask's picture.
    """
    count = len(outlines)
    masks: list[Any] = [None] * count
    missing, damaged, bad_rings = (np.zeros(count, np.bool_) for _ in range(3))
    rows: list[int] = []
    widths, heights = sizes[:, 0].tolist(), sizes[:, 1].tolist()
    for row, outline in enumerate(outlines):
        if not outline:
            missing[row] = True
        elif isinstance(outline, RunLengths):
            if outline.size != (heights[row], widths[row]):
                damaged[row] = True
            elif isinstance(outline.counts, str):
                if not outline.counts.isascii():
                    damaged[row] = True
                    continue
                rows.append(row)
                masks[row] = {"size": list(outline.size), "counts": outline.counts}
            else:
                masks[row] = _listed(outline)
                damaged[row] = masks[row] is None
        else:
            masks[row] = [r for r in outline if len(r) >= 6 and len(r) % 2 == 0]
            bad_rings[row] = len(masks[row]) < len(outline)
            damaged[row] = not masks[row] or not all(map(isfinite, chain(*masks[row])))
    if rows:
        damaged[np.array(rows)] = ~_fill([masks[row] for row in rows])
    for row in np.flatnonzero(damaged).tolist():
        masks[row] = None
    return Outlines(masks, missing, damaged, bad_rings & ~damaged)


def _listed(outline: RunLengths) -> dict[str, Any] | None:
    """Compressed RLE of run lengths given as a list; None where they don't fill the picture."""
    height, width = outline.size
    counts = outline.counts
    if isinstance(counts, str) or min(counts, default=-1) < 0 or sum(counts) != height * width:
        return None
    return text_rle(
        coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    )


def empty_rle(width: int, height: int) -> dict[str, Any]:
    """A mask without a pixel."""
    counts = {"size": [height, width], "counts": [height * width]}
    return text_rle(coco_mask.frPyObjects(counts, height, width))


def as_rle(mask: Any, width: int, height: int) -> dict[str, Any]:
    """RLE of a sound mask."""
    if isinstance(mask, dict):
        return mask
    return text_rle(coco_mask.merge(coco_mask.frPyObjects(mask, height, width)))


def text_rle(rle: Any) -> dict[str, Any]:
    """pycocotools' bytes as text."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _fill(rles: list[dict[str, Any]]) -> Bools:
    """Whether each compressed RLE is readable, and its runs fill its picture.

    The engine reads them and finds everything but runs that sum up to too little or too much.
    """
    readable = np.ones(len(rles), np.bool_)
    try:
        engine_mask.area(rles)
    except ValueError:
        readable = np.array([_is_readable(rle) for rle in rles])
    out = readable.copy()
    rows = np.flatnonzero(readable)
    for start in range(0, len(rows), _AT_ONCE):
        some = [rles[row] for row in rows[start : start + _AT_ONCE].tolist()]
        pixels = [rle["size"][0] * rle["size"][1] for rle in some]
        out[rows[start : start + _AT_ONCE]] = _totals([rle["counts"] for rle in some]) == pixels
    return out


def _is_readable(rle: dict[str, Any]) -> bool:
    try:
        engine_mask.area([rle])
    except ValueError:
        return False
    return True


def _totals(texts: list[str]) -> Ints:
    """Pixels that the runs of each readable text sum up to.

    A number is written five bits a character, lowest first, its last character below 32. From
    the fourth on it is the difference to the run before the last, so that it counts once for
    itself and once for every second run behind it.
    """
    bits = np.frombuffer("".join(texts).encode("ascii"), np.uint8) - 48
    ends = np.flatnonzero(bits < 32)
    if not len(ends):
        return np.zeros(len(texts), np.int64)
    lengths = np.diff(ends, prepend=-1)
    values = ((bits[ends] & 31).astype(np.int64) ^ 16) - 16
    for back in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > back)
        values[longer] = (values[longer] << 5) + (bits[ends[longer] - back] & 31)
    borders = np.cumsum([0, *map(len, texts)])
    first = np.searchsorted(ends, borders)
    counts = np.diff(first)
    place = np.arange(len(ends)) - np.repeat(first[:-1], counts)
    weights = (np.repeat(counts, counts) - 1 - place) // 2 + 1
    weights[place == 0] = 1
    sums = np.concatenate([[0], np.cumsum(values * weights)])
    totals: Ints = sums[first[1:]] - sums[first[:-1]]
    return totals
