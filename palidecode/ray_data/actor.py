"""The actor: one shard in, its rows out, or its COCO file in the run's folder."""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.coco.shards import CocoShard, read_shard
from palidecode.errors import PalidecodeError
from palidecode.files import unwritten
from palidecode.ray_data.jobs import Job, Loaded
from palidecode.ray_data.rows import to_table
from palidecode.ray_data.sources import in_folder

if TYPE_CHECKING:
    import pyarrow as pa


TRIES = ".tries"
"""Beside a shard while it is made: as long as it was begun often."""
_TRIES = 3  # Ray would try an input that kills its worker for ever


@dataclass(frozen=True)
class ShardPlan:
    """Where shards are written, and how.

    Attributes
    ----------
    folder : str
        That all machines see.
    writing : mapping
        Options of `CocoShard`.
    """

    folder: str
    writing: Mapping[str, Any]


class Actor:
    """Loads once what the job takes, when the first shard comes.

    Parameters
    ----------
    job : Job
    threads : int
    cwd : str
        The driver's folder, that relative paths start from.
    plan : ShardPlan, optional
        Without it the objects' rows come out, else one row about each shard: ``shard``, its
        file; ``rows``, how many went in; ``images`` and ``failed``; ``kept``, whether it had
        been written before; ``error``, what made it impossible.
    """

    def __init__(self, job: Job, threads: int, cwd: str, plan: ShardPlan | None = None) -> None:
        import cv2

        in_folder(cwd)
        cv2.setNumThreads(threads)
        self._job, self._threads, self._plan = job, threads, plan
        self._loaded: Loaded | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """What comes out of one shard."""
        wanted = [name for name in self._job.columns if name in table.column_names]
        records = [
            {name: value for name, value in row.items() if value is not None}
            for row in table.select(wanted).to_pylist()
        ]
        if self._plan is None:
            return to_table(self._work().rows(records))
        import pyarrow as pa

        said: dict[str, Any] = {"rows": len(records), "error": None}
        try:
            said |= self._shard(records, self._plan)
        except (PalidecodeError, OSError) as error:
            # Raised here it would come out as a page of Ray's.
            said["error"] = str(error)
        return pa.Table.from_pylist([said], _summary_schema())

    def _shard(self, records: Sequence[Mapping[str, Any]], plan: ShardPlan) -> dict[str, Any]:
        name = f"{digest(records)}.json"
        path = Path(plan.folder) / name
        there = read_shard(path)
        if there is not None:
            failed = there.said["failed"]
            if not failed or not self._work().mended(records, failed):
                return _summary(name, len(there.images), len(failed), kept=True)
        tries = path.with_suffix(TRIES)
        if tries.exists() and tries.stat().st_size >= _TRIES:
            raise PalidecodeError(
                f"something from {_name(records[0])} to {_name(records[-1])} killed its worker "
                f"{_TRIES} times; find it with a smaller shard size, and take it out"
            )
        try:
            with tries.open("ab") as file:
                file.write(b"1")
        except OSError as error:
            raise unwritten(tries, error) from error
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shard = CocoShard(**plan.writing)
            with shard:
                said = self._work().write(records, shard)
                told = dict.fromkeys((item.category.__name__, str(item.message)) for item in caught)
                relative = not all("line" in record for record in records)
                shard.note(relative=relative, warnings=list(told), **said)
        shard.save(path)
        tries.unlink(missing_ok=True)
        return _summary(name, shard.report.images, len(said["failed"]), kept=False)

    def _work(self) -> Loaded:
        if self._loaded is None:
            self._loaded = self._job.load(self._threads)
        return self._loaded


def _name(record: Mapping[str, Any]) -> str:
    return repr(record.get("image") or record.get("path") or f"line {record.get('line', '?')}")


def digest(records: Sequence[Mapping[str, Any]]) -> str:
    """What a shard is known by: all that its rows say, of pictures' contents the checksum."""
    found = hashlib.sha256()
    for record in records:
        data = record.get("bytes")
        said = record if data is None else {**record, "bytes": zlib.crc32(data)}
        found.update(json.dumps(said, sort_keys=True).encode())
    return found.hexdigest()[:32]


def _summary(name: str, images: int, failed: int, *, kept: bool) -> dict[str, Any]:
    return {"shard": name, "images": images, "failed": failed, "kept": kept}


def _summary_schema() -> pa.Schema:
    import pyarrow as pa

    counts = dict.fromkeys(("rows", "images", "failed"), pa.int64())
    return pa.schema({"shard": pa.string(), **counts, "kept": pa.bool_(), "error": pa.string()})
