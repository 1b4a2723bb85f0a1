"""The driver: actors run a job on a source, and their shards become a COCO file."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.coco.writing import CocoOptions
from palidecode.errors import InputError, PalidecodeError
from palidecode.ray_data.actor import Actor, Done, ShardPlan, name_of
from palidecode.ray_data.cluster import Workers, gpus_there, need_ray, ordered
from palidecode.ray_data.sharing import Shares
from palidecode.ray_data.sources import (
    DatasetRows,
    JsonLines,
    Part,
    Paths,
    RowFiles,
    Source,
    answers_of,
    records_of,
    source_of,
)
from palidecode.runs.answers import DecodeJob
from palidecode.runs.jobs import Job
from palidecode.runs.journal import Journal
from palidecode.runs.local import RunOptions, Watch, WrittenCoco, begin, finish, merge, merger_of
from palidecode.runs.pictures import PredictJob

if TYPE_CHECKING:
    from ray.data import Dataset

    from palidecode.ray_data.pool import Pool

PREDICTED = 64  # pictures in a shard: what is lost when an actor dies
DECODED = 1024  # answers


@dataclass(frozen=True, eq=False)
class Found:
    """A lazy job: nothing runs until `dataset`, `write_coco` or `write_parquet`.

    Attributes
    ----------
    source : Source
    job : Job
    workers : Workers
    shard_size : int
        Rows that are done together, and written to one file, fewer at the end; rounded up to whole
        batches.
    """

    source: Source
    job: Job[Any]
    workers: Workers
    shard_size: int

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise InputError(f"shard_size must be at least 1, got {self.shard_size}")
        whole = -(-self.shard_size // self.job.batch_size) * self.job.batch_size
        object.__setattr__(self, "shard_size", whole)

    def dataset(self) -> Dataset:
        """Return the rows as a lazy Ray Dataset; for its columns see `palidecode.runs.rows`."""
        job = self.job
        if isinstance(job, DecodeJob) and isinstance(self.source, JsonLines | RowFiles):
            # Rows of their datasets have our keys.
            job = DecodeJob(replace(job.options, output_key=None, image_key=None))
        # Blocks of exactly so many rows: what is computed together decides the last bits.
        blocks = ordered(self.source.dataset()).repartition(
            target_num_rows_per_block=self.shard_size, strict=True
        )
        return blocks.map_batches(
            Actor,
            batch_size=None,
            batch_format="pyarrow",
            compute=self.workers.strategy(),
            fn_constructor_args=(job, self.workers.threads, os.getcwd()),
            **self.workers.remote_args(),
        )

    def pool(self, plan: ShardPlan) -> Pool:
        """Return the actors that write the shards of a plan."""
        from palidecode.ray_data.pool import Pool  # loads Ray

        workers = self.workers
        given = (self.job, workers.threads, os.getcwd(), plan)
        size = self.job.batch_size
        shares = Shares(self.source.shards(size, self.job.columns), self.shard_size // size)
        spare = isinstance(self.source, DatasetRows)
        return Pool(given, workers, shares, self._named, spare=spare)

    def _named(self, parts: Sequence[Part]) -> str:
        records = records_of(parts)
        first, last = (name_of(self.job.item(records[row])) for row in (0, -1))
        return f"{first} to {last}"


def found_in(
    job: PredictJob | DecodeJob,
    source: Paths | Dataset,
    *,
    images: str | os.PathLike[str] | None = None,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1.0,
    num_gpus: float | None = None,
    shard_size: int | None = None,
) -> Found:
    """Return a lazy job on the rows of a source; see `palidecode.ray_data.predict` and `decode`.

    `images` is the folder of pictures that a COCO or JSON Lines file names.
    """
    need_ray()
    if isinstance(job, DecodeJob):
        workers = Workers(concurrency, num_cpus)
        rows, reader = answers_of(source, job.options)
        size = DECODED if shard_size is None else shard_size
        return Found(rows, DecodeJob(job.options, reader), workers, size)
    if num_gpus is None:
        num_gpus = float(gpus_there() and job.options.model.uses_gpu)
    workers = Workers(concurrency, num_cpus, num_gpus)
    rows = source_of(source, images, job.options.box_image)
    job = job.with_engine(accelerator=num_gpus > 0)
    return Found(rows, job, workers, PREDICTED if shard_size is None else shard_size)


def write(
    found: Found,
    output: Path,
    options: CocoOptions,
    run: RunOptions | None = None,
    watch: Watch | None = None,
) -> WrittenCoco:
    """Run a job on the cluster, and write the COCO file.

    Raises
    ------
    InputError
        For another run's shards, and a full disk.
    PalidecodeError
        If Ray breaks off.
    """
    import ray

    run, watch = run or RunOptions(), watch or Watch()
    if run.no_journal:
        raise InputError("a run on Ray needs its shards: no_journal=True is for one machine")
    with Journal(output) as journal:
        finished = begin(journal, found.job, options, restart=run.restart)
        watch.begin(len(finished))
        folder = os.path.abspath(journal.folder)
        plan = ShardPlan(folder, options, ray.put(finished))
        kept = 0
        merger = merger_of(found.job, output, options, watch)
        with merger, closing(_each_shard(found, plan, watch)) as shards:
            for done in shards:
                kept += done.kept
                merge(merger, journal, done.segments)
        return finish(merger, journal, kept, keep=run.keep_journal)


def _each_shard(found: Found, plan: ShardPlan, watch: Watch) -> Generator[Done]:
    """Run the actors on what is missing; yield their reports in the order of the source.

    They come when no actor waits for the driver: actors go first.
    """
    from ray.exceptions import RayError

    reports = _InOrder()
    try:
        with found.pool(plan) as pool:
            for result in pool.results(reports.ready):
                if result is None:
                    watch.rows(0)  # which may stop it
                    if reports.ready():
                        yield reports.take()
                    continue
                number, done = result
                if done.error:
                    raise InputError(done.error)
                watch.rows(done.rows)
                reports.add(number, done)
    except RayError as error:
        reason = str(error).strip().splitlines()
        raise PalidecodeError(
            f"the run broke off, Ray says: {reason[-1] if reason else type(error).__name__}; what "
            "is finished is kept: start the cluster again if it isn't running, then run the same "
            "command again to resume"
        ) from error
    while reports.ready():
        watch.rows(0)
        yield reports.take()


class _InOrder:
    """Reports that come in any order, and are taken in that of their numbers."""

    def __init__(self) -> None:
        self._early: dict[int, Done] = {}
        self._next = 0

    def add(self, number: int, done: Done) -> None:
        self._early[number] = done

    def ready(self) -> bool:
        return self._next in self._early

    def take(self) -> Done:
        self._next += 1
        return self._early.pop(self._next - 1)
