"""How many pixels a pasted field shares with a mask, counted on runs.

A field that is enlarged bilinearly is linear between two of its rows, so along a column of
pixels the mask begins and ends where the line crosses the threshold. These crossings are all
that is needed: the area is a sum of their places, and the intersection is a sum over them of
how much of the true mask lies before each. No mask is made, neither of the image nor of the
crop, and many samples are counted in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.decoding.masks import paste
from palidecode.decoding.rle import Rle
from palidecode.errors import InputError
from palidecode.vocab import MASK_SIDE

Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

# Nearer to the threshold than this share of the largest value, Pillow's rounding to float32
# decides on which side a pixel falls, and only Pillow's own resize knows.
_ROUNDING = 1e-6
_COLUMNS = 1 << 14
CHUNK = 64  # samples at a time for `overlaps`: what it works on stays in the processor's cache


class Runs(NamedTuple):
    """Runs of many images' masks, their pixels counted on and on, column by column.

    Attributes
    ----------
    starts, ends : ndarray of int64, shape (R,)
        Where the runs lie; those of image ``i`` between ``offsets[i]`` and ``offsets[i + 1]``.
    before : ndarray of int64, shape (R,)
        Mask pixels in earlier runs.
    offsets : ndarray of int64, shape (N + 1,)
        The number of every image's first pixel.
    """

    starts: Ints
    ends: Ints
    before: Ints
    offsets: Ints

    def covered(self, places: Ints) -> Ints:
        """Mask pixels before each place."""
        run = np.searchsorted(self.ends, places, side="right")
        run = np.minimum(run, len(self.ends) - 1)
        inside = np.clip(places - self.starts[run], 0, self.ends[run] - self.starts[run])
        covered: Ints = self.before[run] + inside
        return covered

    def areas(self) -> Ints:
        """Mask pixels of every image."""
        return np.diff(self.covered(self.offsets))


def read_runs(rles: Sequence[Rle]) -> Runs:
    """The runs of many compressed RLEs at once.

    Raises
    ------
    InputError
        If any of them is unsound; `check_rle` says which, and what is wrong.
    """
    if not rles:
        nothing = np.zeros(0, np.int64)
        return Runs(nothing, nothing, nothing, np.zeros(1, np.int64))
    sizes = np.array([rle["size"] for rle in rles], np.int64)
    pixels = sizes.prod(axis=1)
    offsets = np.concatenate([[0], np.cumsum(pixels)])
    try:
        texts = [rle["counts"].encode("ascii") for rle in rles]
    except UnicodeEncodeError as error:
        raise InputError(f"an RLE's counts are no ASCII text: {error}") from error
    lengths = np.array([len(text) for text in texts], np.int64)
    bits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int32) - 48
    text_ends = np.cumsum(lengths)
    if (
        (lengths == 0).any()
        or ((bits < 0) | (bits >= 64)).any()
        or (bits[text_ends - 1] > 31).any()
    ):
        raise InputError("an RLE's counts are damaged")
    deltas, numbers = _numbers(bits, text_ends)
    background, mask = _undelta(deltas, numbers)
    last = np.cumsum((numbers + 1) // 2)
    ends = np.cumsum(background + mask)
    if (background < 0).any() or (mask < 0).any() or (ends[last - 1] != offsets[1:]).any():
        raise InputError("an RLE's counts don't fill its size")
    return Runs(ends - mask, ends, np.cumsum(mask) - mask, offsets)


def _numbers(bits: npt.NDArray[np.int32], text_ends: Ints) -> tuple[Ints, Ints]:
    """The numbers that all texts spell, and how many each text has."""
    lasts = np.flatnonzero(bits < 32)
    starts = np.concatenate([[0], lasts[:-1] + 1])
    lengths = lasts + 1 - starts
    if lengths.max() > 6:
        raise InputError("an RLE's counts hold a number of more than six characters")
    # Six characters of five bits: 32 are enough until they are summed.
    place = np.arange(len(bits), dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths)
    values = np.add.reduceat((bits & 31) << (5 * place), starts).astype(np.int64)
    values -= (bits[lasts] & 16).astype(np.int64) << (5 * lengths - 4)
    counts = np.diff(np.searchsorted(lasts, text_ends), prepend=0)
    return values, counts


def _undelta(deltas: Ints, numbers: Ints) -> tuple[Ints, Ints]:
    """Runs of background and of mask in pairs, from COCO's differences to the run before last."""
    pairs = (numbers + 1) // 2
    firsts = np.cumsum(pairs) - pairs
    # A text of an odd count ends with background: an empty run of mask is put after it.
    padded = np.zeros(2 * int(pairs.sum()), np.int64)
    fill = np.arange(len(deltas)) + np.repeat(2 * firsts - (np.cumsum(numbers) - numbers), numbers)
    padded[fill] = deltas
    background, mask = padded[0::2].copy(), padded[1::2].copy()
    # The first background stands alone: no later one is a difference to it.
    alone = background[firsts]
    background[firsts] = 0
    for values in (background, mask):
        summed = np.cumsum(values)
        values[:] = summed - np.repeat(summed[firsts] - values[firsts], pairs)
    background[firsts] = alone
    mask[(firsts + pairs - 1)[numbers % 2 == 1]] = 0
    return background, mask


def overlaps(
    fields: npt.NDArray[np.float32],
    corners: Ints,
    rles: Sequence[Rle],
    runs: Runs,
    *,
    threshold: float = 0.0,
) -> tuple[Ints, Ints]:
    """Pixels that pasted fields share with true masks, and pixels of the pasted fields.

    Parameters
    ----------
    fields : ndarray of float32, shape (N, 64, 64)
    corners : ndarray of int64, shape (N, 4)
        x1, y1, x2, y2 in whole pixels inside the image. Where a box is empty its field counts
        as nothing.
    rles : list of Rle, length N
        The true masks, of the whole image, and with them
    runs : Runs
        what `read_runs` makes of them.
    threshold : float
        A pixel is mask where the resized field is above it.

    Returns
    -------
    intersection, predicted : ndarray of int64, shape (N,)
        What `paste` and a mask of the whole image would give, to the pixel.
    """
    predicted = np.zeros(len(rles), np.int64)
    both = predicted.copy()
    heights = np.array([rle["size"][0] for rle in rles], np.int64)
    origins = runs.offsets[:-1] + corners[:, 0] * heights + corners[:, 1]
    sides = corners[:, 2:] - corners[:, :2]
    # Where a side shrinks Pillow averages, and there is no line from row to row.
    enlarged = np.logical_and.reduce(sides >= MASK_SIDE, axis=1)
    slow: Flags = np.logical_and.reduce(sides > 0, axis=1) & ~enlarged
    for part in _parts(np.flatnonzero(enlarged), sides[:, 0]):
        found = _crossings(fields[part], sides[part], threshold)
        places = origins[part][found.sample] + found.column * heights[part][found.sample]
        covered = runs.covered(places + found.pixel)
        predicted[part] = _sums(found.sample, found.sign * found.pixel, len(part))
        both[part] = _sums(found.sample, found.sign * covered, len(part))
        slow[part[found.unsure]] = True
    for row in np.flatnonzero(slow).tolist():
        size = rles[row]["size"][1], rles[row]["size"][0]
        mask = paste(fields[row], corners[row], size, threshold=threshold).mask
        # Below each column a row of background, so that what begins in it ends in it.
        height, width = mask.shape
        columns = np.zeros((width, height + 2), np.int8)
        columns[:, 1:-1] = mask.T
        change = np.diff(columns, axis=1).ravel()
        edges = np.flatnonzero(change)
        column, pixel = np.divmod(edges, height + 1)
        covered = runs.covered(origins[row] + column * heights[row] + pixel)
        predicted[row] = np.count_nonzero(mask)
        both[row] = -int(change[edges] @ covered)
    return both, predicted


def _parts(rows: Ints, widths: Ints) -> list[Ints]:
    """Rows in groups of some `_COLUMNS` columns of pixels, so that large pictures take no more."""
    group = np.cumsum(widths[rows]) // _COLUMNS
    return [part for part in np.split(rows, np.flatnonzero(np.diff(group)) + 1) if len(part)]


class _Crossings(NamedTuple):
    """Where the columns of pasted fields enter the mask and leave it.

    Attributes
    ----------
    sample, column, pixel : ndarray of int64, shape (M,)
        Which field, which column of its box, and the first pixel on the other side.
    sign : ndarray of int64, shape (M,)
        1 where the mask ends, -1 where it begins.
    unsure : ndarray of bool, shape (N,)
        Fields with a pixel that rounding decides.
    """

    sample: Ints
    column: Ints
    pixel: Ints
    sign: Ints
    unsure: Flags


def _crossings(fields: npt.NDArray[np.float32], sides: Ints, threshold: float) -> _Crossings:
    """Crossings of fields that are enlarged to boxes of these widths and heights."""
    levels = fields.astype(np.float64) - threshold
    near = _ROUNDING * max(1.0, float(np.abs(fields).max()))
    above = levels > 0
    unsure: Flags = np.logical_or.reduce(np.abs(levels) < near, axis=(1, 2))
    firsts = _first_columns(sides[:, 0])
    # Cells between four values: where all have one sign, so has everything between them.
    changes = above[:, :, 1:] != above[:, :, :-1]
    mixed = changes[:, 1:] | changes[:, :-1] | (above[:, 1:, 1:] != above[:, :-1, 1:])
    sample, row, left = _places(mixed)
    cell, column, share = _columns_of(sample, left, firsts, sides[:, 0])
    upper, rise = _between(levels, sample, row, left)
    lower, fall = _between(levels, sample, row + 1, left)
    here, there = upper[cell] + rise[cell] * share, lower[cell] + fall[cell] * share
    faint = np.flatnonzero(np.minimum(np.abs(here), np.abs(there)) < near)
    unsure[sample[cell[faint]]] = True
    crossing = np.flatnonzero((here > 0) != (there > 0))
    cell, column, here, there = cell[crossing], column[crossing], here[crossing], there[crossing]
    sample = sample[cell]
    height = sides[sample, 1]
    place = (row[cell] + 0.5 + here / (here - there)) * height / MASK_SIDE - 0.5
    pixel = np.floor(place).astype(np.int64) + 1
    # The values at the two pixels beside the crossing.
    beside = np.minimum(pixel - place, place + 1 - pixel) * MASK_SIDE / height
    unsure[sample[np.abs(here - there) * beside < near]] = True
    sign = np.where(here > 0, 1, -1)
    # A column that begins in the mask enters it at 0; one that ends in it leaves it at its end.
    first_sample, first_column, first_near = _inside(levels, above, 0, firsts, sides[:, 0], near)
    last_sample, last_column, last_near = _inside(levels, above, -1, firsts, sides[:, 0], near)
    unsure[first_near] = True
    unsure[last_near] = True
    pieces = (
        (sample, column, pixel, sign),
        (first_sample, first_column, np.zeros_like(first_column), -np.ones_like(first_column)),
        (last_sample, last_column, sides[last_sample, 1], np.ones_like(last_column)),
    )
    sample, column, pixel, sign = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
    return _Crossings(sample, column, pixel, sign, unsure)


def _places(mixed: Flags) -> tuple[Ints, Ints, Ints]:
    """`np.nonzero` of three dimensions, ten times as fast."""
    rest, left = np.divmod(np.flatnonzero(mixed), mixed.shape[2])
    sample, row = np.divmod(rest, mixed.shape[1])
    return sample, row, left


def _first_columns(widths: Ints) -> Ints:
    """Which column of pixels is the first right of each of a field's columns, shape (N, 64)."""
    middles = (np.arange(MASK_SIDE) + 0.5) * widths[:, None] / MASK_SIDE - 0.5
    firsts = np.ceil(middles).astype(np.int64)
    firsts[:, 0], firsts[:, -1] = 0, widths  # beyond the outer columns their value goes on
    return firsts


def _columns_of(
    sample: Ints, left: Ints, firsts: Ints, widths: Ints
) -> tuple[Ints, Ints, npt.NDArray[np.float64]]:
    """The columns of pixels of some cells: number of the cell, column, and how far to its right."""
    begin = firsts[sample, left]
    counts = firsts[sample, left + 1] - begin
    cell = np.repeat(np.arange(len(sample)), counts)
    column = np.arange(len(cell)) + np.repeat(begin - (np.cumsum(counts) - counts), counts)
    step = MASK_SIDE / widths[sample]
    share = (column + 0.5) * step[cell] - (0.5 + left)[cell]
    return cell, column, np.clip(share, 0, 1)


def _between(
    levels: npt.NDArray[np.float64], sample: Ints, row: Ints, left: Ints
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A cell's left value in one row, and how much is added up to its right one."""
    flat, place = levels.ravel(), (sample * MASK_SIDE + row) * MASK_SIDE + left
    value = flat[place]
    return value, flat[place + 1] - value


def _inside(
    levels: npt.NDArray[np.float64],
    above: Flags,
    row: int,
    firsts: Ints,
    widths: Ints,
    near: float,
) -> tuple[Ints, Ints, Ints]:
    """Columns of pixels whose first (or last) value is mask, and samples where that is unsure."""
    touched = above[:, row, 1:] | above[:, row, :-1]
    sample, left = np.divmod(np.flatnonzero(touched), MASK_SIDE - 1)
    value, rise = _between(levels, sample, np.full_like(sample, row % MASK_SIDE), left)
    cell, column, share = _columns_of(sample, left, firsts, widths)
    found = value[cell] + rise[cell] * share
    inside, close = np.flatnonzero(found > 0), np.flatnonzero(np.abs(found) < near)
    return sample[cell[inside]], column[inside], sample[cell[close]]


def _sums(sample: Ints, values: Ints, count: int) -> Ints:
    """Sums of whole numbers by sample, exact up to 2⁵³."""
    return np.bincount(sample, weights=values, minlength=count).astype(np.int64)
