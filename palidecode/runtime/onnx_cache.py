"""The key/value cache of the ONNX engine: prefixes that stay in place, and answers that grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnxruntime import OrtValue

from palidecode.runtime.engine import Ids

Floats = npt.NDArray[np.float32]

PREFIX, PAST = "prefix", "past"
_COLUMNS = 32  # that may be padding: prefixes get a multiple of it, answers as many more
_FREE = 1 / 8  # of the places, at most; the model reads them for nothing


class OnnxCache:
    """Keys and values of a batch: of pictures and prompts, and of what was read of the answers.

    A new token copies the short part alone, the answers. A row that leaves frees its place in the
    arrays, which one that joins takes; `slots` says where each row of the batch is. All other
    arrays have the order of the places.

    Parameters
    ----------
    names : sequence of str
        Keys and values of every layer.
    lengths : ndarray of int64, shape (B,)
        Tokens of each row's prefix.
    prefixes : sequence of ndarray of float32, shape (B, kv heads, P, head size)
        One for each name.

    Attributes
    ----------
    slots : ndarray of int64, shape (rows,)
    lengths : ndarray of int64, shape (B,)
    read : ndarray of int64, shape (B,)
        Tokens read of each answer.
    """

    def __init__(self, names: Sequence[str], lengths: Ids, prefixes: Sequence[Floats]) -> None:
        self._names, self._prefixes = names, list(prefixes)
        batch, heads, _, size = prefixes[0].shape
        self.slots, self.lengths = np.arange(batch), lengths
        self.read = np.zeros(batch, np.int64)
        self._answered = np.zeros((batch, 0), np.int64)  # positions, −1 for padding
        empty = OrtValue.ortvalue_from_numpy(np.zeros((batch, heads, 0, size), np.float32))
        self._answers = [empty] * len(names)
        self._given: dict[str, OrtValue] = {}

    @property
    def known(self) -> Ids:
        """Positions of all tokens, (B, P + A), −1 for padding."""
        column = np.arange(self._prefixes[0].shape[2])
        prefixes = np.where(column < self.lengths[:, None], column, -1)
        return np.concatenate([prefixes, self._answered], axis=1)

    def feeds(self) -> Mapping[str, OrtValue]:
        """Return the graph's inputs."""
        if not self._given:
            self._given = {
                f"{PREFIX}.{name}": OrtValue.ortvalue_from_numpy(array[: len(self.lengths)])
                for name, array in zip(self._names, self._prefixes, strict=True)
            }
        past = zip(self._names, self._answers, strict=True)
        return {**self._given, **{f"{PAST}.{name}": value for name, value in past}}

    def grow(self, position: Ids, answers: Sequence[OrtValue]) -> None:
        """Take the answers with the tokens at `position` (B, T), as the graph returns them."""
        self.read = self.read + position.shape[1]
        self._answered = np.concatenate([self._answered, position], axis=1)
        self._answers = list(answers)

    def keep_rows(self, rows: Ids) -> None:
        """Keep only these rows; see `Batch.keep_rows`."""
        self.slots = self.slots[rows]
        twice = len(np.unique(self.slots)) < len(rows)
        if twice or len(rows) < (1 - _FREE) * len(self.lengths):
            self._pack()

    def join(self, other: OnnxCache) -> None:
        """Append the rows of another batch, of whose answers nothing was read."""
        more = max(0, len(self.slots) + len(other.slots) - len(self.lengths))
        places = np.arange(len(self.lengths) + more)
        free = np.setdiff1d(places, self.slots)
        longest = max(self.lengths[self.slots].max(), other.lengths.max())
        columns = -(-int(longest) // _COLUMNS) * _COLUMNS
        used = int(self.read[self.slots].max())
        if (
            more
            or columns != self._prefixes[0].shape[2]
            or self._answered.shape[1] > used + _COLUMNS
        ):
            self._arrange(np.where(np.isin(places, free), -1, places), columns)
        taken = free[: len(other.slots)]
        for array, new in zip(self._prefixes, other._prefixes, strict=True):
            both = min(array.shape[2], new.shape[2])
            for slot, its in zip(taken.tolist(), other.slots.tolist(), strict=True):
                array[slot, :, :both] = new[its, :, :both]
        self.lengths[taken], self.read[taken] = other.lengths[other.slots], 0
        self._answered[taken] = -1
        self.slots = np.append(self.slots, taken)

    def _pack(self) -> None:
        """Give as many places as there are rows; a row stays where it can."""
        slots, count = self.slots, len(self.slots)
        source, self.slots = np.full(count, -1), np.full(count, -1)
        for row, slot in enumerate(slots.tolist()):
            if slot < count and source[slot] < 0:
                source[slot] = self.slots[row] = slot
        moved, free = np.flatnonzero(self.slots < 0), np.flatnonzero(source < 0)
        self.slots[moved], source[free] = free, slots[moved]
        self._arrange(source, self._prefixes[0].shape[2])

    def _arrange(self, source: Ids, columns: int) -> None:
        """Fill each place with what is in place `source`, or nothing (−1); pad prefixes anew.

        Answers move to the left in every row, so that padding doesn't grow with each join.
        """
        self._make_room(len(source), columns)
        moved = [n for n in np.flatnonzero(source >= 0).tolist() if source[n] != n]
        for array in self._prefixes:
            for place in moved:
                array[place] = array[source[place]]
        kept = np.where(source < 0, 0, source)
        self.lengths, self.read = self.lengths[kept], self.read[kept]
        answered = np.where(source[:, None] < 0, -1, self._answered[kept])
        used = int((answered >= 0).sum(1).max())
        order = np.argsort(answered < 0, axis=1, kind="stable")[:, :used]
        self._answered = np.take_along_axis(answered, order, 1)
        taken = list(zip(kept.tolist(), order, strict=True))
        self._answers = [
            OrtValue.ortvalue_from_numpy(np.stack([answers[place][:, its] for place, its in taken]))
            for answers in (value.numpy() for value in self._answers)
        ]

    def _make_room(self, rows: int, columns: int) -> None:
        """Give prefixes so many columns, and room for so many rows; it grows at least twofold."""
        self._given = {}
        room, heads, width, size = self._prefixes[0].shape
        if rows <= room and columns == width:
            return
        room = room if rows <= room else max(rows, 2 * room)
        used, both = len(self.lengths), min(columns, width)
        for number, array in enumerate(self._prefixes):  # one at a time is in memory twice
            larger = np.zeros((room, heads, columns, size), np.float32)
            larger[:used, :, :both] = array[:used, :, :both]
            self._prefixes[number] = larger
