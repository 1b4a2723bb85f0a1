"""Masks of a file, checked in bulk before the engine sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import isfinite
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hotcoco import mask as engine_mask
from pycocotools import mask as coco_mask

from palidecode.coco.reading import RunLengths
from palidecode.geometry.rle import MAX_OUTLINE

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_AT_ONCE = 1000  # masks; their numbers stay in the processor's cache


class Outlines(NamedTuple):
    """Masks as the engine takes them.

    Attributes
    ----------
    masks : list
        RLE dicts with text, or lists of rings; None where there is none or it is damaged.
    missing, damaged, bad_rings : ndarray of bool, shape (N,)
        Rows without a mask, with one that can't be used, and with some rings left out.
    pixels : ndarray of float64, shape (N,)
        Area of each compressed RLE; NaN where it has to be measured yet.
    """

    masks: list[Any]
    missing: Bools
    damaged: Bools
    bad_rings: Bools
    pixels: Floats


def sound_outlines(outlines: Sequence[Any], sizes: Ints) -> Outlines:
    """Check masks against the size of their picture.

    Parameters
    ----------
    outlines : sequence of Outline
    sizes : ndarray of int64, shape (N, 2)
        Width and height of each mask's picture.
    """
    count = len(outlines)
    masks: list[Any] = [None] * count
    missing, damaged, bad_rings = (np.zeros(count, np.bool_) for _ in range(3))
    pixels = np.full(count, np.nan)
    pictured: Bools = sizes.min(axis=1) > 0  # where a picture has no size, no mask can be drawn
    if pictured.all() and _all_rings(outlines, sizes):
        return Outlines(list(outlines), missing, damaged, bad_rings, pixels)
    rows: list[int] = []
    shapes = list(zip(sizes[:, 1].tolist(), sizes[:, 0].tolist(), strict=True))
    odd: Iterable[tuple[int, Any]] = enumerate(outlines)
    if pictured.all() and _all_compressed(outlines, shapes):
        masks = [{"size": outline.size, "counts": outline.counts} for outline in outlines]
        rows, odd = list(range(count)), ()
    for row, outline in odd:
        if not outline:
            missing[row] = True
        elif not pictured[row]:
            damaged[row] = True
        elif isinstance(outline, RunLengths):
            if outline.size != shapes[row]:
                damaged[row] = True
            elif isinstance(outline.counts, str):
                rows.append(row)
                masks[row] = {"size": outline.size, "counts": outline.counts}
            else:
                masks[row] = _listed(outline)
                damaged[row] = masks[row] is None
        else:
            masks[row], bad_rings[row] = _sound_rings(outline, max(shapes[row]))
            damaged[row] = masks[row] is None
    if rows:
        sound, area = _fill([masks[row] for row in rows], sizes[rows].prod(axis=1))
        damaged[rows], pixels[rows] = ~sound, area
    for row in np.flatnonzero(damaged).tolist():
        masks[row] = None
    return Outlines(masks, missing, damaged, bad_rings & ~damaged, pixels)


def _sound_rings(outline: list[list[float]], side: int) -> tuple[list[list[float]] | None, bool]:
    """What is left of some rings, and whether any are gone; None where nothing can be used."""
    rings = [ring for ring in outline if len(ring) >= 6 and len(ring) % 2 == 0]
    usable = _bounded(rings, side) if rings and _finite(rings) else None
    return usable, len(rings) < len(outline)


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


def _all_rings(outlines: Sequence[Any], sizes: Ints) -> bool:
    """Whether all are lists of sound rings, none far away or long: the usual ground truth."""
    if set(map(type, outlines)) != {list} or not all(outlines):
        return False
    rings = list(chain.from_iterable(outlines))
    lengths = np.fromiter(map(len, rings), np.int64, len(rings))
    if not ((lengths >= 6).all() and (lengths % 2 == 0).all() and _finite(rings)):
        return False
    low, high = min(map(min, rings)), max(map(max, rings))
    near = max(-low, high) <= _farthest(int(sizes.max(axis=1).min()))
    return near and bool(lengths.max() * (high - low) <= MAX_OUTLINE)


def _all_compressed(outlines: Sequence[Any], shapes: list[tuple[int, int]]) -> bool:
    """Whether all are RLEs with text, of the size of their pictures: the usual predictions."""
    return (
        set(map(type, outlines)) == {RunLengths}
        and list(map(attrgetter("size"), outlines)) == shapes
        and set(map(type, map(attrgetter("counts"), outlines))) == {str}
    )


def _farthest(side: int) -> int:
    """How far a ring's coordinates are followed in a picture: as `rings_to_rle`."""
    return 4 * side + 64


def _bounded(rings: list[list[float]], side: int) -> list[list[float]] | None:
    """Rings that the engine has memory for; None where one is longer than any outline.

    What is far outside is brought nearer. As `palidecode.geometry.rle.rings_to_rle`, quicker.
    """
    limit = _farthest(side)
    for place, ring in enumerate(rings):
        low, high = min(ring), max(ring)
        if max(-low, high) > limit:
            rings[place] = np.clip(ring, -limit, limit).tolist()
        if len(ring) * min(high - low, 2 * limit) > MAX_OUTLINE:
            points = np.array(rings[place]).reshape(-1, 2)
            if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() > MAX_OUTLINE:
                return None
    return rings


def _finite(rings: list[list[float]]) -> bool:
    # A sum is quick, and finite only if all of it is; large numbers may overflow.
    return isfinite(sum(map(sum, rings))) or all(map(isfinite, chain.from_iterable(rings)))


def _fill(rles: list[dict[str, Any]], pixels: Ints) -> tuple[Bools, Floats]:
    """Whether each compressed RLE is readable and its runs fill its picture, and its area.

    The engine reads them and finds everything but runs that sum up to too little or too much.
    """
    texts = [rle["counts"] for rle in rles]
    sound = np.fromiter(map(str.isascii, texts), np.bool_, len(rles))
    area = np.full(len(rles), np.nan)
    try:
        area[sound] = engine_mask.area([rles[row] for row in np.flatnonzero(sound).tolist()])
    except ValueError:
        for row in np.flatnonzero(sound).tolist():
            try:
                area[row] = engine_mask.area([rles[row]])[0]
            except ValueError:
                sound[row] = False
    rows = np.flatnonzero(sound)
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        background = _backgrounds([texts[row] for row in part.tolist()])
        sound[part] = background + area[part] == pixels[part]
    area[~sound] = np.nan
    return sound, area


def _backgrounds(texts: list[str]) -> Ints:
    """Pixels of background that each readable text counts: the sum of every second run.

    A number is written five bits a character, lowest first, its last character below 32. From
    the third background run on it is the difference to the one before.
    """
    bits = np.frombuffer("".join(texts).encode("ascii"), np.uint8) - np.uint8(48)
    ends = np.flatnonzero(bits < 32)
    borders = np.cumsum([0, *map(len, texts)])
    first = np.searchsorted(ends, borders)
    counts = (np.diff(first) + 1) // 2
    offsets = np.cumsum(counts) - counts
    # Of all numbers, every second one of each text.
    chosen = 2 * np.arange(counts.sum()) + np.repeat(first[:-1] - 2 * offsets, counts)
    lengths = ends[chosen]
    lengths[1:] -= ends[chosen[1:] - 1]
    lengths[:1] += 1
    ends = ends[chosen]
    values = ((bits[ends] & 31) ^ 16).astype(np.int64) - 16
    longer, back = np.flatnonzero(lengths > 1), 1
    while len(longer):
        values[longer] = (values[longer] << 5) + (bits[ends[longer] - back] & 31)
        back += 1
        longer = longer[lengths[longer] > back]
    some = counts > 0
    starts = offsets[some]
    # The first stands for itself, the second is no difference to it.
    alone = values[starts]
    values[starts] = 0
    runs = np.cumsum(values)
    sums = np.add.reduceat(runs, starts) if len(starts) else runs
    totals = np.zeros(len(texts), np.int64)
    totals[some] = sums + alone - (runs[starts] * counts[some])
    return totals
