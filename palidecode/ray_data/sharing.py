"""Batches of a source as shards: full ones, and smaller ones at the end of the source."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator

from palidecode.ray_data.sources import Part

_MOMENT = 0.1  # seconds


class Shares:
    """Shards of a source, which workers take as they get free.

    A shard at the end is a part of the rest that shrinks with it: workers finish together, and
    a source of few shards has one for each of them.

    Parameters
    ----------
    batches : generator
        Rows that are worked on together; see `Source.shards`.
    most : int
        Batches in a full shard.
    """

    def __init__(self, batches: Generator[list[Part] | None], most: int) -> None:
        self._batches, self._most = batches, most
        self._ahead: deque[list[Part]] = deque()
        self._all_read = False

    @property
    def ended(self) -> bool:
        """True when no shard is left."""
        return self._all_read and not self._ahead

    def take(self, workers: int) -> list[Part] | None:
        """Return the rows of the next shard; None at the end, and where the source is slow."""
        self._read(workers)
        count = self._most
        if self._all_read:
            count = min(count, -(-len(self._ahead) // (2 * workers)))
        elif len(self._ahead) < count:
            return None
        return [part for _ in range(count) for part in self._ahead.popleft()] or None

    def close(self) -> None:
        """Close the source."""
        self._batches.close()

    def _read(self, workers: int) -> None:
        """Read ahead a shard for each worker, for a moment at a time."""
        began = time.monotonic()
        while not self._all_read and len(self._ahead) <= workers * self._most:
            if len(self._ahead) > self._most and time.monotonic() - began > _MOMENT:
                return
            batch = next(self._batches, ())
            if batch is None:  # the source is slow
                return
            if isinstance(batch, tuple):
                self._all_read = True
            else:
                self._ahead.append(batch)
