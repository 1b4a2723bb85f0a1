"""How many pixels a pasted field shares with a mask, counted on runs.

A field that is enlarged bilinearly is linear between two of its rows, so along a column of
pixels the mask begins and ends where the line crosses the threshold. These crossings are all
that is needed: the area is a sum of their places, and the intersection is a sum over them of
how much of the true mask lies before each. No mask is made, neither of the image nor of the
crop, and many samples are counted in one go. Along a side that shrinks there is one value for
each pixel instead, which Pillow averages from several.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.geometry.masks import paste
from palidecode.geometry.rle import Rle
from palidecode.vocab import MASK_SIDE

Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]

# Nearer to the threshold than this share of the largest value, Pillow's rounding to float32, once
# for each direction, decides on which side a pixel falls, and only its own resize knows.
_ROUNDING = 2.5e-7
_COLUMNS = 1 << 14
_STEPS = 4  # runs that a search goes on by itself
CHUNK = 64  # samples at a time for `overlaps`: what it works on stays in the processor's cache


class Runs(NamedTuple):
    """Runs of many images' masks, their pixels counted on and on, column by column.

    Attributes
    ----------
    starts, ends : ndarray of int64, shape (R + 1,)
        Where the runs lie; the last one is empty and beyond all pixels.
    before : ndarray of int64, shape (R + 1,)
        Mask pixels in earlier runs.
    offsets : ndarray of int64, shape (N + 1,)
        The number of every image's first pixel.
    """

    starts: Ints
    ends: Ints
    before: Ints
    offsets: Ints

    def covered(self, places: Ints, known: Ints | None = None) -> Ints:
        """Mask pixels before each place.

        Parameters
        ----------
        places : ndarray of int64
        known : ndarray of int64, optional
            For each place a run that is the one it lies in or before, or an earlier one, as `at`
            says: the search begins there. It is written over.
        """
        if known is None:
            run = self.at(places)
        else:
            run = known
            late = np.flatnonzero(self.ends[run] <= places)
            for _ in range(_STEPS):
                run[late] += 1
                late = late[self.ends[run[late]] <= places[late]]
            run[late] = self.at(places[late])
        covered: Ints = self.before[run] + np.maximum(places - self.starts[run], 0)
        return covered

    def at(self, places: Ints) -> Ints:
        """The first run that ends behind each place."""
        return np.searchsorted(self.ends, places, side="right")

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
    sizes = np.array([rle["size"] for rle in rles], np.int64).reshape(-1, 2)
    offsets = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))])
    try:
        text = "".join([rle["counts"] for rle in rles]).encode("ascii")
    except UnicodeEncodeError as error:
        raise InputError(f"an RLE's counts are no ASCII text: {error}") from error
    bits = np.frombuffer(text, np.uint8) - np.uint8(48)  # what is below 48 becomes large
    text_ends = np.cumsum(np.array([len(rle["counts"]) for rle in rles], np.int64))
    if (
        (np.diff(text_ends, prepend=0) == 0).any()
        or (bits >= 64).any()
        or (bits[text_ends - 1] > 31).any()
    ):
        raise InputError("an RLE's counts are damaged")
    lasts = np.flatnonzero(bits < 32)
    numbers = np.diff(np.searchsorted(lasts, text_ends), prepend=0)
    background, mask = _undelta(_spelled(bits, lasts), numbers)
    last = np.cumsum((numbers + 1) // 2)
    ends = np.cumsum(background + mask)
    if (background < 0).any() or (mask < 0).any() or (ends[last - 1] != offsets[1:]).any():
        raise InputError("an RLE's counts don't fill its size")
    before = np.cumsum(np.append(mask, 0)) - np.append(mask, 0)
    beyond = np.iinfo(np.int64).max
    return Runs(np.append(ends - mask, beyond), np.append(ends, beyond), before, offsets)


def _spelled(bits: npt.NDArray[np.uint8], lasts: Ints) -> Ints:
    """The numbers of some texts: five bits a character, the lowest first, the last below 32."""
    lengths = np.diff(lasts, prepend=-1)
    if lengths.max(initial=0) > 6:
        raise InputError("an RLE's counts hold a number of more than six characters")
    # The highest bit says whether the number is negative.
    values = ((bits[lasts] & 31) ^ 16).astype(np.int64) - 16
    longer, back = np.flatnonzero(lengths > 1), 1
    while len(longer):
        values[longer] = (values[longer] << 5) + (bits[lasts[longer] - back] & 31)
        back += 1
        longer = longer[lengths[longer] > back]
    return values


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
    unsure: list[int] = []
    for part in _parts(np.flatnonzero((sides > 0).all(axis=1)), sides[:, 0]):
        columns = _columns(sides[part, 0], origins[part], heights[part])
        found = _crossings(_shrunk(fields[part], sides[part]), sides[part], columns, threshold)
        begins = columns.begins[found.column]
        covered = runs.covered(begins + found.pixel, runs.at(columns.begins)[found.column])
        sample = columns.sample[found.column]
        sign = np.where(found.leaves, 1.0, -1.0)
        predicted[part] = _sums(sample, sign * found.pixel, len(part))
        both[part] = _sums(sample, sign * covered, len(part))
        unsure += part[found.unsure].tolist()
    for row in unsure:
        size = rles[row]["size"][1], rles[row]["size"][0]
        mask = paste(fields[row], corners[row], size, threshold=threshold).mask
        # Below each column a row of background, so that what begins in it ends in it.
        height, width = mask.shape
        padded = np.zeros((width, height + 2), np.int8)
        padded[:, 1:-1] = mask.T
        change = np.diff(padded, axis=1).ravel()
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


class _Columns(NamedTuple):
    """The columns of pixels of some boxes, one after another.

    Attributes
    ----------
    sample, left : ndarray of int64, shape (C,)
        Which box, and which of the field's columns is the last left of it.
    share : ndarray of float64, shape (C,)
        How far it lies to the next one, in [0, 1].
    begins : ndarray of int64, shape (C,)
        The number of its first pixel inside the box.
    firsts : ndarray of int64, shape (64 · N,)
        Where the columns right of each of the fields' columns begin.
    """

    sample: Ints
    left: Ints
    share: Floats
    begins: Ints
    firsts: Ints


def _columns(widths: Ints, origins: Ints, heights: Ints) -> _Columns:
    """The columns of boxes of these widths that begin at these pixels of their images."""
    offsets = np.cumsum(widths) - widths
    sample = np.repeat(np.arange(len(widths)), widths)
    column: Ints = np.arange(len(sample)) - offsets[sample]
    place = (column + 0.5) * (np.minimum(widths, MASK_SIDE) / widths)[sample] - 0.5
    left: Ints = np.clip(place.astype(np.int64), 0, MASK_SIDE - 2)
    share: Floats = np.clip(place - left, 0.0, 1.0)
    begins = origins[sample] + column * heights[sample]
    firsts = np.searchsorted(sample * MASK_SIDE + left, np.arange(len(widths) * MASK_SIDE))
    return _Columns(sample, left, share, begins, firsts)


def _shrunk(fields: npt.NDArray[np.float32], sides: Ints) -> npt.NDArray[np.float32]:
    """Fields, in place, as Pillow averages them along sides of fewer pixels than they have values.

    What is left stands first, one value for each pixel; the last is repeated up to the end.
    """
    for axis in (0, 1):
        rows = np.flatnonzero(sides[:, axis] < MASK_SIDE)
        if len(rows):
            weights = np.stack([_averages(side) for side in sides[rows, axis].tolist()])
            values = fields[rows].astype(np.float64)
            fields[rows] = weights @ values if axis else values @ weights.transpose(0, 2, 1)
    return fields


@lru_cache(maxsize=MASK_SIDE)
def _averages(side: int) -> Floats:
    """What Pillow's bilinear filter makes 64 values into fewer with, shape (64, 64).

    A triangle that is as wide as two pixels; the last row is repeated up to the end.
    """
    wide = MASK_SIDE / side
    middles = (np.minimum(np.arange(MASK_SIDE), side - 1) + 0.5) * wide
    away = np.abs(np.arange(MASK_SIDE) + 0.5 - middles[:, None])
    weights: Floats = np.maximum(1 - away / wide, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


class _Crossings(NamedTuple):
    """Where the columns of pasted fields enter the mask and leave it.

    Attributes
    ----------
    column, pixel : ndarray of int64, shape (M,)
        Which of `_Columns`, and the first pixel on the other side.
    leaves : ndarray of bool, shape (M,)
        Whether the mask ends there, or else begins.
    unsure : ndarray of int64
        Fields with a pixel that rounding decides.
    """

    column: Ints
    pixel: Ints
    leaves: Flags
    unsure: Ints


def _crossings(
    fields: npt.NDArray[np.float32], sides: Ints, columns: _Columns, threshold: float
) -> _Crossings:
    """Crossings of fields that are pasted into boxes of these widths and heights."""
    levels = fields - np.float32(threshold) if threshold else fields
    largest = max(1.0, float(fields.max()), -float(fields.min())) + abs(threshold)
    near = _ROUNDING * largest
    # What Pillow averages is known up to rounding alone; what it only puts lines through, exactly.
    averaged = np.flatnonzero((sides < MASK_SIDE).any(axis=1))
    unsure = [averaged[(np.abs(levels[averaged]) < near).any(axis=(1, 2))]]
    heights = sides[:, 1]
    scale = heights / np.minimum(heights, MASK_SIDE)
    flat = levels.ravel()
    place = _mixed(levels > 0)
    sample, row = place >> 12, (place >> 6) & 63
    key = sample * MASK_SIDE + (place & 63)
    begin = columns.firsts[key]
    counts = columns.firsts[key + 1] - begin
    cell = np.repeat(np.arange(len(place)), counts)
    column = np.arange(len(cell)) + (begin - (np.cumsum(counts) - counts))[cell]
    share = columns.share[column]
    here = _between(flat, place, cell, share)
    there = _between(flat, place + MASK_SIDE, cell, share)
    faint = np.flatnonzero(np.minimum(np.abs(here), np.abs(there)) < near)
    unsure.append(sample[cell[faint]])
    crossing = np.flatnonzero(here * there < 0)
    cell, column, here, there = cell[crossing], column[crossing], here[crossing], there[crossing]
    stretched = scale[sample]
    drop = here - there
    stretch = stretched[cell]
    exact = ((row + 0.5) * stretched - 0.5)[cell] + here / drop * stretch
    pixel = np.ceil(exact)
    # The values at the two pixels beside the crossing.
    beside = pixel - exact
    beside = np.minimum(beside, 1 - beside)
    close = np.flatnonzero(np.abs(drop) * beside < near * stretch)
    unsure.append(sample[cell[close]])
    # A column that begins in the mask enters it at 0; one that ends in it leaves it at its end.
    pieces = [(column, pixel.astype(np.int64), here > 0)]
    for edge in (0, MASK_SIDE - 1):
        place = (columns.sample * MASK_SIDE + edge) * MASK_SIDE + columns.left
        value = _between(flat, place, slice(None), columns.share)
        unsure.append(columns.sample[np.abs(value) < near])
        inside = np.flatnonzero(value > 0)
        ends = heights[columns.sample[inside]] if edge else np.zeros_like(inside)
        pieces.append((inside, ends, np.full(len(inside), edge > 0)))
    column, pixel, leaves = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
    return _Crossings(column, pixel, leaves, np.unique(np.concatenate(unsure)))


def _mixed(above: Flags) -> Ints:
    """Where the upper left values of cells stand that have both signs, in flat (N, 64, 64).

    A row is one number of 64 bits. Where all four values of a cell have one sign, so has
    everything between them.
    """
    rows = np.packbits(above, axis=2, bitorder="little").view("<u8")[:, :, 0]
    changes = rows ^ (rows >> np.uint64(1))
    mixed = np.zeros_like(rows)
    mixed[:, :-1] = changes[:, 1:] | changes[:, :-1] | (rows[:, 1:] ^ rows[:, :-1])
    mixed &= np.uint64((1 << (MASK_SIDE - 1)) - 1)
    return np.flatnonzero(np.unpackbits(mixed.view(np.uint8), bitorder="little").view(np.bool_))


def _between(levels: npt.NDArray[np.float32], place: Ints, cell: Any, share: Floats) -> Floats:
    """Values between those at each cell's place and their right neighbours."""
    value, right = levels[place].astype(np.float64), levels[place + 1]
    between: Floats = value[cell] + (right - value)[cell] * share
    return between


def _sums(sample: Ints, values: Ints, count: int) -> Ints:
    """Sums of whole numbers by sample, exact up to 2⁵³."""
    return np.bincount(sample, weights=values, minlength=count).astype(np.int64)
