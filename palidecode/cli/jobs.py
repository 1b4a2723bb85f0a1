"""Long runs: options of a cluster, and a job that runs in this process or on a Ray cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.cli.output import RESUMABLE, Output
from palidecode.coco.writing import CocoOptions
from palidecode.errors import InputError
from palidecode.files import writes_through
from palidecode.runs.journal import shards_folder
from palidecode.runs.local import RunOptions, Watch, WrittenCoco, write_coco
from palidecode.runs.stopping import Stopping, run_stoppable
from palidecode.wording import many

if TYPE_CHECKING:
    from palidecode.runs.answers import DecodeJob
    from palidecode.runs.pictures import PredictJob


@dataclass(frozen=True)
class RayOptions:
    """Options of a run on a cluster.

    Attributes
    ----------
    ray : str, optional
        Address of the cluster; without it the run stays in this process.
    workers, worker_cpus, worker_gpus
        Number of workers, and the CPUs and GPUs of each.
    shard_size : int, optional
        Rows that are finished together.
    pictures : str, optional
        Directory of the pictures that a COCO or JSON Lines file names.
    """

    ray: str | None = None
    workers: int | None = None
    worker_cpus: float = 1.0
    worker_gpus: float | None = None
    shard_size: int | None = None
    pictures: str | None = None

    def __post_init__(self) -> None:
        given = {
            "--workers": self.workers,
            "--worker-gpus": self.worker_gpus,
            "--shard-size": self.shard_size,
        }
        alone = [name for name, value in given.items() if value is not None]
        if self.ray is None and alone:
            raise InputError(f"{' and '.join(alone)} can't be used without --ray")


@dataclass(frozen=True)
class Finish:
    """End of a run that wasn't interrupted: what it wrote, and how long it took in seconds."""

    written: WrittenCoco
    seconds: float
    loading: float


def run_job(
    job: PredictJob | DecodeJob,
    items: Iterable[Any],
    source: Sequence[Path],
    path: Path,
    coco: CocoOptions,
    run: RunOptions,
    ray: RayOptions,
    output: Output,
    doing: str,
    watch: Watch,
) -> Finish | int:
    """Run a job on `items`, or with `ray` on the rows of `source`.

    `watch` has the callbacks that the command needs; the others report progress.

    Returns
    -------
    Finish or int
        The exit code where the run was interrupted.
    """
    run = replace(run, no_journal=run.no_journal or writes_through(path))
    if ray.ray is not None and run.no_journal:
        raise InputError(
            "--ray saves shards beside the output: --no-journal, pipes and devices can't be "
            "combined with it"
        )
    seconds, one = [0.0], "picture" if job.once else "row"
    finished: list[WrittenCoco] = []
    began = time.perf_counter()

    def work(stopping: Stopping) -> int:
        def begin(rows: int) -> None:
            if rows:
                output.resumed(many(rows, one), shards_folder(path))

        def load() -> None:
            stopping.immediate = True
            if text := job.loading():
                output.note(text)

        def loaded(took: float) -> None:
            stopping.immediate = False
            seconds.append(took)

        def count(rows: int) -> None:
            stopping.immediate = False
            bar.update(rows)
            stopping.check()

        total = len(items) if isinstance(items, list) and ray.ray is None else None
        with output.progress(doing, total, f"{one}s") as bar:
            watching = replace(watch, begin=begin, loading=load, loaded=loaded, rows=count)
            if ray.ray is None:
                stopping.immediate = True  # until the first batch
                finished.append(write_coco(job, items, path, coco, run, watching))
            else:
                finished.append(_on_ray(job, source, path, coco, run, ray, watching, output))
        return 0

    if run.no_journal:
        work(Stopping())
    else:
        code = run_stoppable(work, RESUMABLE)
        if not finished:
            return code
    return Finish(finished[0], time.perf_counter() - began - sum(seconds), sum(seconds))


def _on_ray(
    job: PredictJob | DecodeJob,
    source: Sequence[Path],
    path: Path,
    coco: CocoOptions,
    run: RunOptions,
    ray: RayOptions,
    watch: Watch,
    output: Output,
) -> WrittenCoco:
    # Ray is an optional dependency, and not needed by most runs.
    from palidecode.ray_data.cluster import connected
    from palidecode.ray_data.running import found_in, write

    with ExitStack() as stack:
        if output.json:  # Ray prints what it reports of workers, which is no JSON
            stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(connected(ray.ray))
        watch.rows(0)  # a signal may have come meanwhile
        found = found_in(
            job,
            source if len(source) > 1 else source[0],
            images=ray.pictures,
            concurrency=ray.workers,
            num_cpus=ray.worker_cpus,
            num_gpus=ray.worker_gpus,
            shard_size=ray.shard_size,
        )
        return write(found, path, coco, run, watch)
