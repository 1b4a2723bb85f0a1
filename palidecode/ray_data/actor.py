"""The actor: one block of rows in, and out come its detections, or the shards that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from palidecode.coco.shards import ShardBuilder, read_shard, shard_name
from palidecode.coco.writing import CocoOptions
from palidecode.errors import PalidecodeError
from palidecode.files import unwritten
from palidecode.ray_data.rows import to_table
from palidecode.ray_data.sources import in_folder
from palidecode.runs.answers import batches
from palidecode.runs.finished import Finished, Segment, joined
from palidecode.runs.jobs import Job, Record, Worker
from palidecode.runs.journal import TRIES
from palidecode.runs.local import finished_batch, work
from palidecode.runs.rows import rows_of

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef

_TRIES = 3  # Ray would try an input that kills its worker for ever


@dataclass(frozen=True)
class ShardPlan:
    """Plan of a run that writes shards.

    Attributes
    ----------
    folder : str
        Where they go; all machines see it.
    options : CocoOptions
    finished : ObjectRef of Finished
        Rows that earlier runs have finished.
    """

    folder: str
    options: CocoOptions
    finished: ObjectRef[Finished]


class Actor:
    """Loads once what the job takes, when the first rows come that need it.

    Parameters
    ----------
    job : Job
    threads : int
    cwd : str
        Working directory of the driver, which relative paths start from.
    plan : ShardPlan, optional
        Without it the rows of `palidecode.runs.rows` come out, else one row about each block:
        ``rows``, how many went in; ``kept``, how many of them earlier runs had finished;
        ``segments``, where they are; ``error``, what made it impossible.
    """

    def __init__(
        self, job: Job[Any], threads: int, cwd: str, plan: ShardPlan | None = None
    ) -> None:
        in_folder(cwd)
        cv2.setNumThreads(threads)
        self._job, self._threads, self._plan = job, threads, plan
        self._worker: Worker[Any] | None = None
        self._finished: Finished | None = None
        if plan is not None:
            import ray

            self._finished = ray.get(plan.finished)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return what comes out of one block."""
        wanted = [name for name in self._job.columns if name in table.column_names]
        records = [
            {name: value for name, value in row.items() if value is not None}
            for row in table.select(wanted).to_pylist()
        ]
        if self._plan is None:
            return to_table(self._rows(records))
        import pyarrow as pa

        about: dict[str, Any] = {"rows": len(records), "kept": 0, "segments": [], "error": None}
        try:
            segments, about["kept"] = self._shard(records, self._plan)
            about["segments"] = [segment._asdict() for segment in segments]
        except (PalidecodeError, OSError) as error:
            # Raised here it would come out as a page of Ray's.
            about["error"] = str(error)
        return pa.Table.from_pylist([about], _block_schema())

    def _rows(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for batch in batches(map(self._job.item, records), self._job.batch_size):
            rows += rows_of(self._load()(batch))
        for row, record in zip(rows, records, strict=True):
            row["image"] = row["image"] or record.get("image")
        return rows

    def _shard(self, records: Sequence[Record], plan: ShardPlan) -> tuple[list[Segment], int]:
        """Return where the rows are, once those are written that aren't, and the number kept."""
        found: list[tuple[list[Any], list[bytes], list[Segment] | None]] = []
        for batch in batches(map(self._job.item, records), self._job.batch_size):
            keys = [self._job.key(item) for item in batch]
            found.append((batch, keys, finished_batch(self._job, batch, keys, self._finished)))
        missing = [(batch, keys) for batch, keys, segments in found if segments is None]
        name = shard_name(key for _, keys in missing for key in keys)
        if missing and not self._is_there(Path(plan.folder) / name):
            self._write(missing, plan, Path(plan.folder) / name)
        where: list[Segment] = []
        row, kept = 0, 0
        for batch, _, segments in found:
            if segments is None:
                where.append(Segment(name, row, row + len(batch)))
                row += len(batch)
            else:
                where += segments
                kept += len(batch)
        return joined(where), kept

    def _is_there(self, path: Path) -> bool:
        """Return whether an actor of this run wrote a shard, and died before it could tell."""
        before = self._finished is not None and path.name.encode() in self._finished.shards
        return not before and read_shard(path) is not None

    def _write(
        self, missing: Sequence[tuple[list[Any], list[bytes]]], plan: ShardPlan, path: Path
    ) -> None:
        tries = path.with_suffix(TRIES)
        if tries.exists() and tries.stat().st_size >= _TRIES:
            first, last = missing[0][0][0], missing[-1][0][-1]
            raise PalidecodeError(
                f"something from {_name(first)} to {_name(last)} killed its worker "
                f"{_TRIES} times; find it with a smaller shard size, and take it out"
            )
        try:
            with tries.open("ab") as file:
                file.write(b"1")
        except OSError as error:
            raise unwritten(tries, error) from error
        builder = ShardBuilder(plan.options)
        for batch, keys in missing:
            work(self._load(), batch, keys, builder)
        builder.take().save(path.parent)
        tries.unlink(missing_ok=True)

    def _load(self) -> Worker[Any]:
        if self._worker is None:
            self._worker = self._job.load(self._threads)
        return self._worker


def _name(item: object) -> str:
    """Name an item in a message."""
    name = getattr(item, "name", "") or (isinstance(item, Mapping) and item.get("image"))
    return repr(name or f"line {getattr(item, 'line', '?')}")


def _block_schema() -> pa.Schema:
    import pyarrow as pa

    segment = pa.struct({"shard": pa.string(), "first": pa.int64(), "stop": pa.int64()})
    counts = {"rows": pa.int64(), "kept": pa.int64()}
    return pa.schema({**counts, "segments": pa.list_(segment), "error": pa.string()})
