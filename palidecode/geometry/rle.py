"""COCO's run-length encoding of masks: encode crops, decode to crops, check.

The image is never built: the runs of a crop are shifted to their positions in the image. COCO
counts pixels column by column, and the first run is background.
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

# COCO's C code counts in 32 bits and misreads longer numbers. Six characters of five bits are
# enough for every run of an image of up to `MAX_PIXELS`.
_MAX_CHARACTERS = 6
# COCO's C code allocates forty bytes for each pixel of an outline without checking for success.
MAX_OUTLINE = 1 << 22  # pixels, more than any real outline has

Ints: TypeAlias = npt.NDArray[np.int64]


class Rle(TypedDict):
    """COCO's compressed RLE: ``size`` is height, width; ``counts`` is ASCII text."""

    size: list[int]
    counts: str


def crop_to_rle(crop: MaskCrop, size: tuple[int, int]) -> Rle:
    """Encode a crop as the RLE of its image, whose `size` is width and height.

    Equals ``pycocotools.mask.encode`` of the whole image, byte for byte.
    """
    width, height = size
    h, w = crop.mask.shape
    if crop.x0 < 0 or crop.y0 < 0 or crop.x0 + w > width or crop.y0 + h > height:
        raise InputError(f"the crop at {crop.x0}, {crop.y0} of {w}×{h} leaves its image {size}")
    starts, ends = _runs(crop.mask)
    if h < height:
        starts = _in_image(starts, crop, height)
        ends = _in_image(ends - 1, crop, height) + 1
    else:
        starts, ends = starts + crop.x0 * height, ends + crop.x0 * height
    return _compress(_counts(starts, ends, width * height), size)


def _runs(mask: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Find the starts and ends of a crop's runs, counted down its columns.

    A run that continues from one column to the next is cut between them; `_counts` merges the
    parts again if they are adjacent in the image.
    """
    h, w = mask.shape
    # A row of background above each column makes every run end inside its column.
    columns = np.zeros((w, h + 1), np.uint8)
    columns[:, 1:] = mask.T
    flat = columns.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    if len(edges) % 2:  # the last run reaches the last pixel
        edges = np.append(edges, w * (h + 1) - 1)
    # Index p in padded column c is index p - c - 1 without padding; edges are one early.
    starts, ends = edges[0::2], edges[1::2]
    return starts - starts // (h + 1), ends - (ends - 1) // (h + 1)


def _in_image(flat: Ints, crop: MaskCrop, height: int) -> Ints:
    """Convert pixel indices in the crop to the image's, both counted down the columns."""
    x, y = np.divmod(flat, crop.mask.shape[0])
    out: Ints = (x + crop.x0) * height + y + crop.y0
    return out


def _counts(starts: Ints, ends: Ints, total: int) -> Ints:
    """Compute run lengths, background first, from starts and ends of the mask's runs."""
    if len(starts) > 1:
        apart = starts[1:] != ends[:-1]
        if not apart.all():
            starts = np.concatenate([starts[:1], starts[1:][apart]])
            ends = np.concatenate([ends[:-1][apart], ends[-1:]])
    edges = np.empty(2 * len(starts) + 2, np.int64)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, starts, ends, total
    counts = np.diff(edges)
    # pycocotools writes no empty last run.
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def _compress(counts: Ints, size: tuple[int, int]) -> Rle:
    width, height = size
    packed = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    return Rle(size=[height, width], counts=packed["counts"].decode("ascii"))


def rings_to_rle(rings: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Encode COCO's polygons of one object, flat x, y, x, y, … in pixels, as a single RLE.

    Points far outside the image, whose `size` is width and height, are moved closer to it.
    """
    width, height = size
    if min(size) < 1 or width * height > MAX_PIXELS:
        raise InputError(f"an image of {width}×{height} can't have masks")
    # Far coordinates cost memory, and overflow beyond 32 bits.
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
    """Largest absolute coordinate of a ring in an image with this longer side."""
    return 4 * side + 64


def draw_rings(rings: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Encode rings that are known to be sound and near the image; see `rings_to_rle`."""
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


def check_rle(rle: object) -> Rle:
    """Check a compressed or uncompressed RLE, and return it compressed.

    COCO's C code trusts its input and reads out of bounds if counts and size disagree, so the
    counts are summed first.
    """
    return _checked(rle)[0]


def _checked(rle: object) -> tuple[Rle, Ints]:
    """Check an RLE as `check_rle` does; return also its run lengths."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise InputError("an RLE needs 'size' and 'counts'")
    try:
        height, width = (int(side) for side in rle["size"])
    except (TypeError, ValueError, OverflowError):
        height = width = 0
    if height < 1 or width < 1:
        raise InputError(f"an RLE's size must be [height, width], got {rle['size']!r}")
    if height * width > MAX_PIXELS:
        raise InputError(f"{width}×{height} is more than an RLE's {MAX_PIXELS} pixels")
    counts = rle["counts"]
    if isinstance(counts, list):
        runs = _listed(counts)
        if (runs < 0).any():
            raise InputError(f"an RLE has a run of {int(runs.min())} pixels; the file is damaged")
        # Python's integers, as hostile runs overflow an int64.
        _check_total(sum(runs.tolist()), height, width)
        return _compress(runs, (width, height)), runs
    if not isinstance(counts, (str, bytes)):
        raise InputError("an RLE's counts must be ASCII text or a list of integers")
    text = counts if isinstance(counts, str) else counts.decode("latin-1")
    checked = Rle(size=[height, width], counts=text)
    return checked, read_runs([checked])[0].ravel()


def _listed(counts: list[object]) -> Ints:
    """Convert a list of run lengths to an array."""
    if not all(isinstance(run, (int, np.integer)) for run in counts):
        raise InputError("an RLE's counts must be ASCII text or a list of integers")
    try:
        return np.asarray(counts, np.int64)
    except OverflowError as error:
        raise InputError("a run of an RLE is longer than any image") from error


def _check_total(total: int, height: int, width: int) -> None:
    if total != height * width:
        raise InputError(
            f"the counts of an RLE sum to {total}, but {width}×{height} pixels "
            f"are {height * width}; the file is damaged or the size is another picture's"
        )


def read_runs(rles: Sequence[Rle]) -> tuple[Ints, Ints]:
    """Decode the run lengths of N compressed RLEs together.

    Returns int64 (R, 2), pairs of a background run and a mask run, one RLE after the other, and
    the end of each RLE's pairs (N,).
    """
    numbers, counts = _uncompress([rle["counts"] for rle in rles])
    runs, ends = _without_differences(numbers, counts)
    if runs.min(initial=0) < 0:
        raise InputError(f"an RLE has a run of {int(runs.min())} pixels; the file is damaged")
    totals = [int(runs.sum())]
    if len(rles) != 1:
        totals = _steps(np.concatenate([[0], np.cumsum(runs)[1::2]])[ends]).tolist()
    for total, rle in zip(totals, rles, strict=True):
        height, width = rle["size"]
        if total != height * width:
            _check_total(total, height, width)
    return runs, ends


def _uncompress(texts: Sequence[str]) -> tuple[Ints, Ints]:
    """Decode COCO's texts to numbers; return also how many each text has.

    Each character, from "0" on, holds five bits, the lowest first. All characters of a number but
    the last have a sixth bit set. The fifth bit of the last one is the sign.
    """
    text = "".join(texts)
    if not text.isascii():
        raise InputError("an RLE's counts must be ASCII text or a list of integers")
    bits = np.frombuffer(text.encode("ascii"), np.uint8) - np.uint8(48)  # wraps below "0"
    if bits.max(initial=0) >= 64:
        character = text[int((bits >= 64).argmax())]
        raise InputError(f"the character {character!r} is not of COCO's RLE alphabet")
    lasts = np.flatnonzero(bits < 32)
    if len(texts) == 1:
        counts, complete = np.array([len(lasts)]), text == "" or bits[-1] < 32
    else:
        text_ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        ends = np.searchsorted(lasts, text_ends)
        is_last = np.concatenate([[-1], lasts])[ends] == text_ends - 1
        counts, complete = _steps(ends), (is_last | (_steps(text_ends) == 0)).all()
    if not complete:
        raise InputError("the counts of an RLE end in the middle of a number")
    lengths = _steps(lasts + 1)
    longest = int(lengths.max(initial=0))
    if longest > _MAX_CHARACTERS:
        raise InputError("the counts of an RLE hold a number of more than six characters")
    numbers = ((bits[lasts] & 31) ^ 16).astype(np.int64) - 16
    for back in range(1, longest):
        longer = np.flatnonzero(lengths > back)
        numbers[longer] = (numbers[longer] << 5) + (bits[lasts[longer] - back] & 31)
    return numbers, counts


def _steps(ends: Ints) -> Ints:
    """Subtract from each number the one before; the first stays."""
    steps = ends.copy()
    steps[1:] -= ends[:-1]
    return steps


def _without_differences(numbers: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Undo COCO's differences: from the fourth run on, a number is relative to two runs before.

    Returns pairs of runs, and the end of each text's pairs.
    """
    if len(counts) == 1:  # the same, quicker
        flat = np.zeros(len(numbers) + (len(numbers) & 1), np.int64)
        flat[: len(numbers)] = numbers
        flat[1 : len(numbers) : 2] = numbers[1::2].cumsum()
        flat[2 : len(numbers) : 2] = numbers[2::2].cumsum()
        return flat.reshape(-1, 2), np.array([len(flat) // 2])
    odd = (counts & 1).astype(np.bool_)
    # A text with an odd number of runs ends with background; add an empty run of mask.
    runs = np.insert(numbers, np.cumsum(counts)[odd], 0).reshape(-1, 2)
    pairs = (counts + 1) >> 1
    ends = np.cumsum(pairs)
    some = pairs > 0
    firsts = (ends - pairs)[some]
    alone = runs[firsts, 0]  # no difference refers to the first run
    runs[firsts, 0] = 0
    sums = np.cumsum(runs, axis=0)
    sums -= np.repeat(sums[firsts] - runs[firsts], pairs[some], axis=0)
    sums[firsts, 0] = alone
    sums[ends[odd] - 1, 1] = 0
    return sums, ends


def rle_to_crop(rle: Rle) -> MaskCrop:
    """Decode the mask within its own tight box, without building the image; empty at 0, 0."""
    checked, runs = _checked(rle)
    height = checked["size"][0]
    edges = np.cumsum(runs)
    starts, ends = edges[0::2][: len(edges) // 2], edges[1::2]
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
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
    """Decode the mask within a box in pixels, without building the image.

    The box is clipped to the image and rounded, as in `crop_masks`; the window (h, w) may be
    empty.
    """
    checked, runs = _checked(rle)
    height, width = checked["size"]
    return runs_in_window(runs, height, rounded_corners(xyxy, (width, height)))


def runs_in_window(
    runs: Ints, height: int, corners: tuple[int, int, int, int]
) -> npt.NDArray[np.bool_]:
    """Decode runs, background first, within a box of whole pixels inside the image.

    Returns an array of shape (y2 - y1, x2 - x1), or (0, 0) if the box is empty.
    """
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        return np.zeros((0, 0), np.bool_)
    return _columns(np.cumsum(runs), height, x1, x2)[:, y1:y2].T


def _columns(edges: Ints, height: int, x1: int, x2: int) -> npt.NDArray[np.bool_]:
    """Decode columns x1 … x2 of the image, (x2 - x1, height), from the ends of its runs."""
    inside = np.clip(edges, x1 * height, x2 * height)
    values = np.zeros(len(edges), np.bool_)
    values[1::2] = True
    return np.repeat(values, np.diff(inside, prepend=x1 * height)).reshape(x2 - x1, height)
