"""One process works through a run: batches to shards, and shards to the COCO file."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palidecode.coco.shards import MALFORMED, Failure, Merger, Result, RowIssue, ShardBuilder
from palidecode.coco.writing import CocoOptions, CocoReport
from palidecode.errors import InputError, ServerError
from palidecode.files import writes_through
from palidecode.runs.answers import batches
from palidecode.runs.finished import Finished, Segment
from palidecode.runs.jobs import Item, Job, Worker
from palidecode.runs.journal import Header, Journal, hash_files, write_failures

KEPT = "what is finished is kept: run the same command again to resume"
"""Said where a server is gone."""
_APART = 1.0  # seconds; writing and deleting a file may take as long as a batch of boxes
_SHOWN: dict[str | tuple[str, type[Warning], int], int] = {}  # warnings that shards don't keep


@dataclass(frozen=True)
class RunOptions:
    """Options of a long run.

    Attributes
    ----------
    restart : bool
        Discard what an earlier run has finished.
    keep_journal : bool
        Keep the shards when all is done: the next run then looks at new and changed rows only.
    no_journal : bool
        Save no shards; an interrupted run starts over.
    """

    restart: bool = False
    keep_journal: bool = False
    no_journal: bool = False


@dataclass(frozen=True)
class Watch:
    """Callbacks of a run. Each may raise to stop it; what is finished is kept.

    Attributes
    ----------
    begin : callable
        Called with the number of rows that earlier runs have finished.
    loading : callable
        Called before a model or codec is loaded.
    loaded : callable
        Called with the seconds that loading took, where that was needed.
    result : callable
        Called with the items and the result of every batch that was worked on in this process.
    rows : callable
        Called with the number of rows that were done.
    issue : callable
        Called with every parse issue of the output, also those of earlier runs.
    """

    begin: Callable[[int], None] = lambda rows: None
    loading: Callable[[], None] = lambda: None
    loaded: Callable[[float], None] = lambda seconds: None
    result: Callable[[Sequence[Any], Result], None] = lambda items, result: None
    rows: Callable[[int], None] = lambda rows: None
    issue: Callable[[RowIssue], None] = lambda issue: None


@dataclass(frozen=True)
class WrittenCoco:
    """A COCO file that a run has written.

    Attributes
    ----------
    path : Path
    report : CocoReport
        Counts of what is in it, and what was skipped. Without images there is no file.
    issues : Counter of str
        Kinds of parse issues.
    failed : list of dict
        Rows and pictures that were skipped, as in ``failures.jsonl``.
    rows, kept : int
        Number of rows, and of those that an earlier run had finished.
    """

    path: Path
    report: CocoReport
    issues: Counter[str]
    failed: list[Failure]
    rows: int
    kept: int


def header_of(job: Job[Any], options: CocoOptions) -> Header:
    """Return the identity of a run."""
    settings = {**job.settings(), "coco": asdict(options)}
    return Header(job.command, settings, hash_files(job.files()))


def begin(
    journal: Journal, job: Job[Any], options: CocoOptions, *, restart: bool = False
) -> Finished:
    """Make sure that a journal is this run's; what is finished."""
    journal.begin(header_of(job, options), restart=restart)
    return Finished.read(journal.shards())


def merger_of(
    job: Job[Any], output: Path, options: CocoOptions, watch: Watch, *, kept: bool = True
) -> Merger:
    """Return the writer that merges shards; with `kept` a full disk loses no finished work."""
    return Merger(
        output,
        options,
        job.info(),
        once=job.once,
        failed_by=job.failed_by,
        kept=kept,
        on_issue=watch.issue,
    )


def merge(merger: Merger, journal: Journal, segments: Iterable[Segment]) -> None:
    """Add finished rows to the output."""
    for name, first, stop in segments:
        shard = journal.shard(name)
        try:
            merger.add(shard, first, stop)
        except MALFORMED as error:
            path = journal.folder / name
            raise InputError(f"{path}: is no shard ({error!r}); use --restart") from error


def finish(merger: Merger, journal: Journal | None, kept: int, *, keep: bool) -> WrittenCoco:
    """List failures, delete the journal unless it is to be kept, and return what was written."""
    if not writes_through(merger.path):
        write_failures(merger.path, merger.failed)
    report = merger.writer.report
    if journal is not None and not keep:
        journal.remove(merger.path if report.images else None)
    return WrittenCoco(merger.path, report, merger.issues, merger.failed, merger.rows, kept)


def write_coco(
    job: Job[Item],
    items: Iterable[Item],
    output: Path,
    options: CocoOptions,
    run: RunOptions | None = None,
    watch: Watch | None = None,
) -> WrittenCoco:
    """Work through items in this process, and write the COCO file."""
    run, watch = run or RunOptions(), watch or Watch()
    loaded: list[Worker[Item]] = []

    def worker() -> Worker[Item]:
        if not loaded:
            watch.loading()
            began = time.perf_counter()
            loaded.append(job.load())
            watch.loaded(time.perf_counter() - began)
        return loaded[0]

    kept = 0
    with ExitStack() as stack:
        journal, finished = None, None
        if not run.no_journal:
            # Locked before a model of gigabytes is loaded for nothing.
            journal = stack.enter_context(Journal(output))
            finished = begin(journal, job, options, restart=run.restart)
            watch.begin(len(finished))
        if not finished:
            worker()  # before anything is read or written; else only if it is needed
        merger = merger_of(job, output, options, watch, kept=journal is not None)
        with merger, _Saver(ShardBuilder(options), journal) as saver:
            for batch in batches(items, job.batch_size):
                keys = [job.key(item) for item in batch] if journal is not None else []
                segments = finished_batch(job, batch, keys, finished)
                if segments is None:
                    first = len(saver.builder.shard)
                    try:
                        result = work(worker(), batch, keys, saver.builder)
                    except ServerError as error:
                        if journal is None:
                            raise
                        raise ServerError(f"{error}; {KEPT}") from error
                    watch.result(batch, result)
                    merger.add(saver.builder.shard, first, first + len(batch))
                    saver.offer()
                else:
                    kept += len(batch)
                    assert journal is not None
                    merge(merger, journal, segments)
                watch.rows(len(batch))
        return finish(merger, journal, kept, keep=run.keep_journal)


def finished_batch(
    job: Job[Item], items: Sequence[Item], keys: Sequence[bytes], finished: Finished | None
) -> list[Segment] | None:
    """Find the rows of a batch; None where it must be worked on.

    A batch is done as a whole, because what is computed together decides the last bits: when a
    row of it is missing, or failed then and can be used now.
    """
    found = finished.find(keys) if finished is not None else None
    if found is None or any(job.mended(items[row]) for row in found[1]):
        return None
    return found[0]


def work(
    worker: Worker[Item], items: Sequence[Item], keys: Sequence[bytes], builder: ShardBuilder
) -> Result:
    """Work on a batch, and add it to the builder's shard, with what was warned about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = worker(items)
        builder.add(keys, result)
    for item in caught:
        warning = (item.category.__name__, str(item.message))
        if not issubclass(item.category, UserWarning):
            warnings.warn_explicit(
                item.message, item.category, item.filename, item.lineno, registry=_SHOWN
            )
        elif warning not in builder.shard.warnings:
            builder.shard.warnings.append(warning)
    return result


class _Saver:
    """Saves shards in a thread, so that the disk isn't waited for.

    A shard is saved after a batch, unless the one before was begun less than `_APART` seconds ago
    or is still being saved: then the next batch shares it.
    """

    def __init__(self, builder: ShardBuilder, journal: Journal | None) -> None:
        self.builder = builder
        self._journal = journal
        self._saved: Future[None] = Future()
        self._saved.set_result(None)
        self._due = 0.0  # on the clock of time.monotonic

    def __enter__(self) -> _Saver:
        self._thread = ThreadPoolExecutor(max_workers=1)
        return self

    def offer(self) -> None:
        """Save the shard, or let it grow."""
        if self._journal is None:
            self.builder.take()
        elif self._saved.done() and time.monotonic() >= self._due:
            self._due = time.monotonic() + _APART
            self._save(self._journal.folder)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Of a run that is stopped or breaks off what is finished is saved, where that is possible.
        with ExitStack() as stack:
            stack.callback(self._thread.shutdown)
            if kind is not None:
                stack.enter_context(suppress(InputError))
            if self._journal is not None and len(self.builder.shard):
                self._save(self._journal.folder)
            self._saved.result()

    def _save(self, folder: Path) -> None:
        self._saved.result()
        self._saved = self._thread.submit(self.builder.take().save, folder)
