"""Index of finished rows: which shard holds the row with a key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from palidecode.coco.shards import KEY_SIZE, read_keys

_KEY = np.dtype((np.bytes_, KEY_SIZE))


class Segment(NamedTuple):
    """Consecutive rows of a shard: the shard's name, the first row, and the one after the last."""

    shard: str
    first: int
    stop: int


@dataclass(frozen=True)
class Finished:
    """Rows of a run's shards, in arrays, so that ten million take 250 MB and go to every actor.

    Attributes
    ----------
    shards : ndarray of bytes
        Names of the shards.
    keys : ndarray of bytes
        Sorted; of rows with the same key those that didn't fail come first, then the newest.
    shard : ndarray of int32
        Index of each row's shard.
    row : ndarray of int32
        Its row there.
    failed : ndarray of bool
        Rows that could not be used.
    """

    shards: npt.NDArray[np.bytes_]
    keys: npt.NDArray[np.bytes_]
    shard: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    failed: npt.NDArray[np.bool_]

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Finished:
        """Read the keys of shards; damaged ones are passed over."""
        files = sorted(paths, key=lambda path: -path.stat().st_mtime_ns)
        names: list[bytes] = []
        keys: list[npt.NDArray[np.bytes_]] = []
        failed: list[npt.NDArray[np.bool_]] = []
        with ThreadPoolExecutor(max_workers=4) as pool:
            read = map if len(files) == 1 else pool.map  # a thread costs more than one file
            for path, found in zip(files, read(read_keys, files), strict=True):
                if found is None:
                    continue
                names.append(path.name.encode())
                keys.append(np.frombuffer(found[0], _KEY))
                failed.append(np.zeros(len(keys[-1]), np.bool_))
                failed[-1][found[1]] = True
        counts = [len(part) for part in keys]
        every = np.concatenate([np.zeros(0, _KEY), *keys])
        bad = np.concatenate([np.zeros(0, np.bool_), *failed])
        order = np.argsort(bad, kind="stable")
        order = order[np.argsort(every[order], kind="stable")]
        rows = np.concatenate(
            [np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in counts)]
        )
        return cls(
            np.array(names, np.bytes_),
            every[order],
            np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order],
            rows[order],
            bad[order],
        )

    def __len__(self) -> int:
        """Return the number of different rows that didn't fail."""
        keys = self.keys[~self.failed]
        return int(len(keys) > 0) + int((keys[1:] != keys[:-1]).sum())

    def find(self, keys: Sequence[bytes]) -> tuple[list[Segment], list[int]] | None:
        """Find rows that are finished, all of them.

        Returns
        -------
        tuple of (list of Segment, list of int), or None
            The rows in order, and which of them failed; None where a row is missing.
        """
        if not len(self.keys):
            return None
        wanted = np.array(keys, _KEY)
        found = np.searchsorted(self.keys, wanted)
        if found.max() == len(self.keys) or (self.keys[found] != wanted).any():
            return None
        rows = zip(self.shard[found].tolist(), self.row[found].tolist(), strict=True)
        segments = joined(Segment(self.shards[shard].decode(), row, row + 1) for shard, row in rows)
        return segments, np.flatnonzero(self.failed[found]).tolist()


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """Join segments that follow each other in a shard."""
    found: list[Segment] = []
    for segment in segments:
        if found and found[-1].shard == segment.shard and found[-1].stop == segment.first:
            found[-1] = found[-1]._replace(stop=segment.stop)
        else:
            found.append(segment)
    return found
