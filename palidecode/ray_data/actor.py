"""The actor: rows in, and out come their detections, or the shards that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2

from palidecode.coco.shards import ShardBuilder, read_shard, shard_name
from palidecode.coco.writing import CocoOptions
from palidecode.errors import PalidecodeError, ServerError
from palidecode.ray_data.rows import to_table
from palidecode.ray_data.sources import Part, in_folder, records_of
from palidecode.runs.answers import batches
from palidecode.runs.finished import Finished, Segment, joined
from palidecode.runs.jobs import Job, Record, Worker
from palidecode.runs.local import KEPT, finished_batch, work
from palidecode.runs.rows import rows_of

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef


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


class Done(NamedTuple):
    """Report about rows that went to an actor.

    Attributes
    ----------
    rows, kept : int
        Number of rows, and of those that earlier runs had finished.
    segments : list of Segment
        Where they are.
    error : str
        Why the run must end, or "".
    """

    rows: int = 0
    kept: int = 0
    segments: Sequence[Segment] = ()
    error: str = ""


class Actor:
    """Loads once what the job takes, when the first rows come that need it.

    Parameters
    ----------
    job : Job
    threads : int
    cwd : str
        Working directory of the driver, which relative paths start from.
    plan : ShardPlan, optional
        Needed for `write`.
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
        """Return the rows of `palidecode.runs.rows` for a block of a Dataset."""
        wanted = [name for name in self._job.columns if name in table.column_names]
        return to_table(self._rows(records_of([table.select(wanted)])))

    def ready(self) -> None:
        """Return once the actor has started."""

    def write(self, parts: Sequence[Part]) -> Done:
        """Write a shard of the rows that earlier runs haven't finished."""
        try:
            return self._shard(records_of(parts))
        except ServerError as error:
            return Done(error=f"{error}; {KEPT}")
        except (PalidecodeError, OSError) as error:
            # Raised here it would come out as a page of Ray's.
            return Done(error=str(error))

    def _rows(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for batch in batches(map(self._job.item, records), self._job.batch_size):
            rows += rows_of(self._load()(batch))
        for row, record in zip(rows, records, strict=True):
            row["image"] = row["image"] or record.get("image")
        return rows

    def _shard(self, records: Sequence[Record]) -> Done:
        assert self._plan is not None
        found: list[tuple[list[Any], list[bytes], list[Segment] | None]] = []
        for batch in batches(map(self._job.item, records), self._job.batch_size):
            keys = [self._job.key(item) for item in batch]
            found.append((batch, keys, finished_batch(self._job, batch, keys, self._finished)))
        missing = [(batch, keys) for batch, keys, segments in found if segments is None]
        name = shard_name(key for _, keys in missing for key in keys)
        if missing and not self._is_there(Path(self._plan.folder) / name):
            builder = ShardBuilder(self._plan.options)
            for batch, keys in missing:
                work(self._load(), batch, keys, builder)
            builder.take().save(Path(self._plan.folder))
        where: list[Segment] = []
        row, kept = 0, 0
        for batch, _, segments in found:
            if segments is None:
                where.append(Segment(name, row, row + len(batch)))
                row += len(batch)
            else:
                where += segments
                kept += len(batch)
        return Done(len(records), kept, joined(where))

    def _is_there(self, path: Path) -> bool:
        """Return whether an actor of this run wrote a shard, and died before it could tell."""
        before = self._finished is not None and path.name.encode() in self._finished.shards
        return not before and read_shard(path) is not None

    def _load(self) -> Worker[Any]:
        if self._worker is None:
            self._worker = self._job.load(self._threads)
        return self._worker


def name_of(item: object) -> str:
    """Name an item in a message."""
    name = getattr(item, "name", "") or (isinstance(item, Mapping) and item.get("image"))
    return repr(name or f"line {getattr(item, 'line', '?')}")
