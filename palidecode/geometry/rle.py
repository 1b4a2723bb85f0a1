"""Masks of a crop to COCO's run-length encoding of the whole image, and back.

The image itself is never built: the runs of the crop are moved to where they lie in the
image. COCO counts pixels column by column, the first run being background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.errors import InputError
from palidecode.files import MAX_PIXELS
from palidecode.geometry.masks import MaskCrop, rounded_corners

# COCO's C code counts in 32 bits and reads longer numbers wrongly: six characters of five bits
# hold every run of an image of up to `MAX_PIXELS`.
_MAX_CHARACTERS = 6
# COCO's C code makes five points, of eight bytes each, of every pixel of an outline, and doesn't
# look whether it got the memory. No outline that somebody drew is as long.
MAX_OUTLINE = 1 << 22


Ints: TypeAlias = npt.NDArray[np.int64]


class Rle(TypedDict):
    """COCO's compressed RLE: ``size`` is height, width; ``counts`` is ASCII text."""

    size: list[int]
    counts: str


def crop_to_rle(crop: MaskCrop, size: tuple[int, int]) -> Rle:
    """A crop to the RLE of its image.

    Parameters
    ----------
    crop : MaskCrop
        Lies inside the image.
    size : tuple of int
        Width and height of the image.

    Returns
    -------
    Rle
        Byte for byte what ``pycocotools.mask.encode`` gives for the whole image.

    Raises
    ------
    InputError
        If the crop reaches out of the image.
    """
    width, height = size
    h, w = crop.mask.shape
    if crop.x0 < 0 or crop.y0 < 0 or crop.x0 + w > width or crop.y0 + h > height:
        raise InputError(f"the crop at {crop.x0}, {crop.y0} of {w}×{h} leaves its image {size}")
    starts, ends = _runs(crop.mask)
    if h < height:
        starts = _place(starts, crop, height)
        ends = _place(ends - 1, crop, height) + 1
    else:
        starts, ends = starts + crop.x0 * height, ends + crop.x0 * height
    return _compress(_counts(starts, ends, width * height), size)


def _runs(mask: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Where the runs of a crop start and end, counted down its columns.

    A run that reaches from the bottom of one column to the top of the next is cut there,
    unless the crop is as high as the image: then it goes on, and the caller says so by
    not cutting. Both need the same list, so cuts are added here and merged in `_counts`.
    """
    h, w = mask.shape
    # A row of background above each column makes every run end inside its column.
    columns = np.zeros((w, h + 1), np.uint8)
    columns[:, 1:] = mask.T
    flat = columns.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    if len(edges) % 2:  # the last run reaches the last pixel
        edges = np.append(edges, w * (h + 1) - 1)
    # Place p of the padded column c is place p - c - 1 of the plain one; edges are one early.
    starts, ends = edges[0::2], edges[1::2]
    return starts - starts // (h + 1), ends - (ends - 1) // (h + 1)


def _place(flat: Ints, crop: MaskCrop, height: int) -> Ints:
    """Places in the crop to places in the image, both counted down the columns."""
    x, y = np.divmod(flat, crop.mask.shape[0])
    out: Ints = (x + crop.x0) * height + y + crop.y0
    return out


def _counts(starts: Ints, ends: Ints, total: int) -> Ints:
    """Run lengths, background first, from the places where mask starts and ends."""
    if len(starts) > 1:
        apart = starts[1:] != ends[:-1]
        if not apart.all():
            starts = np.concatenate([starts[:1], starts[1:][apart]])
            ends = np.concatenate([ends[:-1][apart], ends[-1:]])
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, starts, ends, total
    counts = np.diff(edges)
    # pycocotools ends with the mask's run where the mask reaches the last pixel.
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def _compress(counts: Ints, size: tuple[int, int]) -> Rle:
    width, height = size
    packed = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    return Rle(size=[height, width], counts=packed["counts"].decode("ascii"))


def rings_to_rle(rings: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Polygons, as COCO has them, to the RLE of all of them together.

    Parameters
    ----------
    rings : sequence of flat x, y, x, y, … in pixels
        What lies far outside the image is brought nearer.
    size : tuple of int
        Width and height of the image.

    Raises
    ------
    InputError
        For rings that aren't three finite points or more, or are longer than any outline, and
        for images of more than 2²⁹ pixels.
    """
    width, height = size
    if min(size) < 1 or width * height > MAX_PIXELS:
        raise InputError(f"an image of {width}×{height} can't have masks")
    # Far coordinates cost memory, and beyond 32 bits they are others.
    limit = farthest(max(width, height))
    clipped: list[list[float]] = []
    for ring in rings:
        try:
            values = np.asarray(ring, np.float64)
        except OverflowError:  # a number of hundreds of digits
            values = np.empty(0)
        if values.ndim != 1 or len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
            raise InputError("a polygon must be a flat list of at least three x, y pairs")
        points = np.clip(values, -limit, limit).reshape(-1, 2)
        if np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() > MAX_OUTLINE:
            raise InputError(f"a polygon's outline is longer than {MAX_OUTLINE} pixels")
        clipped.append(points.ravel().tolist())
    return draw_rings(clipped, size)


def farthest(side: int) -> int:
    """Return the limit of a ring's coordinates in a picture with this longer side."""
    return 4 * side + 64


def draw_rings(rings: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """`rings_to_rle` of rings that are known to be sound and near the image."""
    width, height = size
    merged = coco_mask.merge(coco_mask.frPyObjects(rings, height, width))
    return Rle(size=[height, width], counts=merged["counts"].decode("ascii"))


def union(rles: Sequence[Rle], size: tuple[int, int]) -> Rle:
    """Merge the masks of one image; an empty mask if there are none."""
    width, height = size
    if not rles:
        return _compress(np.array([width * height]), size)
    if len(rles) == 1:
        return rles[0]
    merged = coco_mask.merge(list(rles))
    return Rle(size=[height, width], counts=merged["counts"].decode("ascii"))


def check_rle(rle: object, what: str = "segmentation") -> Rle:
    """A sound compressed RLE from compressed or uncompressed input.

    COCO's C code trusts its input and reads out of bounds when counts and size disagree;
    here the counts are summed first.

    Parameters
    ----------
    rle : dict
        ``size`` (height, width) and ``counts``: str, bytes, or a list of run lengths.
    what : str
        Its name in error messages.

    Raises
    ------
    InputError
        For missing keys, counts that can't be read, or that don't fill ``size``, and for
        images of more than 2²⁹ pixels.
    """
    return _checked(rle, what)[0]


def _checked(rle: object, what: str) -> tuple[Rle, Ints]:
    """`check_rle`, and the run lengths."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise InputError(f"{what}: an RLE needs 'size' and 'counts'")
    try:
        height, width = (int(side) for side in rle["size"])
    except (TypeError, ValueError, OverflowError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError(f"{what}: an RLE's size must be [height, width], got {rle['size']!r}")
    if height * width > MAX_PIXELS:
        raise InputError(f"{what}: {width}×{height} is more than an RLE's {MAX_PIXELS} pixels")
    counts = rle["counts"]
    if isinstance(counts, list):
        runs = _listed(counts, what)
        if (runs < 0).any():
            raise InputError(f"{what}: a run of {int(runs.min())} pixels; the file is damaged")
        # In Python's integers: hostile runs overflow an int64.
        _check_total(sum(runs.tolist()), height, width, what)
        return _compress(runs, (width, height)), runs
    if not isinstance(counts, (str, bytes)):
        raise InputError(f"{what}: counts must be ASCII text or a list of integers")
    text = counts if isinstance(counts, str) else counts.decode("latin-1")
    checked = Rle(size=[height, width], counts=text)
    return checked, read_runs([checked], what)[0].ravel()


def _listed(counts: list[object], what: str) -> Ints:
    """Run lengths given as a list."""
    if not all(isinstance(run, (int, np.integer)) for run in counts):
        raise InputError(f"{what}: counts must be ASCII text or a list of integers")
    try:
        return np.asarray(counts, np.int64)
    except OverflowError as error:
        raise InputError(f"{what}: a run is longer than any image") from error


def _check_total(total: int, height: int, width: int, what: str) -> None:
    if total != height * width:
        raise InputError(
            f"{what}: the counts sum to {total}, but {width}×{height} pixels "
            f"are {height * width}; the file is damaged or the size is another picture's"
        )


def read_runs(rles: Sequence[Rle], what: str = "segmentation") -> tuple[Ints, Ints]:
    """Run lengths of compressed RLEs, decoded together.

    Parameters
    ----------
    rles : sequence of N Rle
    what : str
        Their name in error messages.

    Returns
    -------
    runs : ndarray of int64, shape (R, 2)
        Pairs of a run of background and a run of mask, of one RLE after the other.
    ends : ndarray of int64, shape (N,)
        Where the pairs of each RLE end.

    Raises
    ------
    InputError
        Naming what is wrong with the first RLE whose counts can't be read or don't fill its size.
    """
    try:
        numbers, counts = _uncompress([rle["counts"] for rle in rles])
    except _DamagedRle as damage:
        raise InputError(f"{what}: {damage}") from None
    runs, ends = _without_differences(numbers, counts)
    if runs.min(initial=0) < 0:
        raise InputError(f"{what}: a run of {int(runs.min())} pixels; the file is damaged")
    totals = _steps(np.concatenate([[0], np.cumsum(runs)[1::2]])[ends])
    for total, rle in zip(totals.tolist(), rles, strict=True):
        height, width = rle["size"]
        if total != height * width:
            _check_total(total, height, width, what)
    return runs, ends


class _DamagedRle(Exception):
    """Text that isn't COCO's RLE."""


def _uncompress(texts: Sequence[str]) -> tuple[Ints, Ints]:
    """The numbers that COCO's texts hold, and how many each text has.

    Five bits are one character, from "0" on; the lowest come first, and all characters of a number
    but its last one have a sixth bit. The fifth bit of the last one is the sign.
    """
    text = "".join(texts)
    if not text.isascii():
        raise _DamagedRle("counts must be ASCII text or a list of integers")
    bits = np.frombuffer(text.encode("ascii"), np.uint8) - np.uint8(48)  # wraps below "0"
    if bits.max(initial=0) >= 64:
        character = text[int((bits >= 64).argmax())]
        raise _DamagedRle(f"the character {character!r} is not of COCO's RLE alphabet")
    lasts = np.flatnonzero(bits < 32)
    text_ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    ends = np.searchsorted(lasts, text_ends)
    complete = np.concatenate([[-1], lasts])[ends] == text_ends - 1
    if not (complete | (_steps(text_ends) == 0)).all():
        raise _DamagedRle("the counts end in the middle of a number")
    lengths = _steps(lasts + 1)
    longest = int(lengths.max(initial=0))
    if longest > _MAX_CHARACTERS:
        raise _DamagedRle("the counts hold a number of more than six characters")
    numbers = ((bits[lasts] & 31) ^ 16).astype(np.int64) - 16
    for back in range(1, longest):
        longer = np.flatnonzero(lengths > back)
        numbers[longer] = (numbers[longer] << 5) + (bits[lasts[longer] - back] & 31)
    return numbers, _steps(ends)


def _steps(ends: Ints) -> Ints:
    """Differences to the number before, the first to 0."""
    steps = ends.copy()
    steps[1:] -= ends[:-1]
    return steps


def _without_differences(numbers: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Pairs of runs; from the fourth run on COCO writes the difference to the run before last."""
    odd = (counts & 1).astype(np.bool_)
    # A text of an odd number of runs ends with background: it gets an empty run of mask.
    runs = np.insert(numbers, np.cumsum(counts)[odd], 0).reshape(-1, 2)
    pairs = (counts + 1) >> 1
    ends = np.cumsum(pairs)
    some = pairs > 0
    firsts = (ends - pairs)[some]
    alone = runs[firsts, 0]  # the first run of background is part of no difference
    runs[firsts, 0] = 0
    sums = np.cumsum(runs, axis=0)
    sums -= np.repeat(sums[firsts] - runs[firsts], pairs[some], axis=0)
    sums[firsts, 0] = alone
    sums[ends[odd] - 1, 1] = 0
    return sums, ends


def rle_to_crop(rle: Rle) -> MaskCrop:
    """The mask inside its own tight box, without building the image.

    Returns
    -------
    MaskCrop
        Empty at 0, 0 where the RLE has no mask pixel.
    """
    checked, runs = _checked(rle, "segmentation")
    height = checked["size"][0]
    edges = np.cumsum(runs)
    starts, ends = edges[0::2][: len(edges) // 2], edges[1::2]
    long = ends > starts
    starts, ends = starts[long], ends[long]
    if len(starts) == 0:
        return MaskCrop(0, 0, np.zeros((0, 0), np.bool_))
    first, last = starts // height, (ends - 1) // height
    x0, x1 = int(first[0]), int(last[-1]) + 1
    whole = first != last
    y0 = 0 if whole.any() else int((starts % height).min())
    y1 = height if whole.any() else int(((ends - 1) % height).max()) + 1
    columns = _columns(edges, height, x0, x1)[:, y0:y1]
    rows = np.flatnonzero(columns.any(axis=0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return MaskCrop(x0, y0 + top, np.ascontiguousarray(columns[:, top:bottom].T))


def rle_to_window(rle: Rle, xyxy: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """The mask inside a box, its corners rounded to pixels, without building the image.

    Parameters
    ----------
    rle : Rle
    xyxy : array_like of float, shape (4,)
        In pixels; what lies outside the image is clipped.

    Returns
    -------
    ndarray of bool, shape (h, w)
        What `crop_masks` would resize; h or w is 0 where the rounded box is empty.
    """
    checked, runs = _checked(rle, "segmentation")
    height, width = checked["size"]
    return runs_in_window(runs, height, rounded_corners(xyxy, (width, height)))


def runs_in_window(
    runs: Ints, height: int, corners: tuple[int, int, int, int]
) -> npt.NDArray[np.bool_]:
    """The mask inside a box of whole pixels of its image, from its runs, background first.

    Shape (y2 - y1, x2 - x1); (0, 0) where the box is empty.
    """
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        return np.zeros((0, 0), np.bool_)
    return _columns(np.cumsum(runs), height, x1, x2)[:, y1:y2].T


def _columns(edges: Ints, height: int, x1: int, x2: int) -> npt.NDArray[np.bool_]:
    """Columns x1 … x2 of the image, shape (x2 - x1, height), from the ends of its runs."""
    inside = np.clip(edges, x1 * height, x2 * height)
    values = np.zeros(len(edges), np.bool_)
    values[1::2] = True
    return np.repeat(values, np.diff(inside, prepend=x1 * height)).reshape(x2 - x1, height)
