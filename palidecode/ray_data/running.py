"""The driver: a source and a job, run by actors, into a COCO file, Parquet or a Dataset."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.coco.categories import check_categories
from palidecode.coco.shards import MergingCocoWriter, ReadShard, read_shard
from palidecode.coco.writing import Categories, CocoReport, MaskFormat
from palidecode.detections import CodecMismatchWarning
from palidecode.errors import InputError, PalidecodeError
from palidecode.files import KEPT
from palidecode.ray_data.actor import TRIES, Actor, ShardPlan
from palidecode.ray_data.cluster import Workers, ordered, reading
from palidecode.ray_data.jobs import Job
from palidecode.runs.journal import (
    Header,
    Journal,
    Row,
    journal_path,
    remove_leftovers,
    write_failures,
)

if TYPE_CHECKING:
    from ray.data import Dataset

OnShard = Callable[[Row], None]


@dataclass(frozen=True, eq=False)
class Found:
    """What will be found, once somebody asks for it: by `dataset`, `write_coco`, `write_parquet`.

    Attributes
    ----------
    source : ray.data.Dataset
    job : Job
    workers : Workers
    header : Header
        Which run it is, so that it goes on and never mixes with another.
    shard_size : int
        Rows that are done together, and written to one file.
    info : mapping
        For the COCO file's ``info``.
    categories : list of str, optional
        The names that were asked for, where they are known.
    """

    source: Dataset
    job: Job
    workers: Workers
    header: Header
    shard_size: int
    info: Mapping[str, Any] = field(default_factory=dict)
    categories: list[str] | None = None

    def dataset(self) -> Dataset:
        """The rows as a lazy Ray Dataset; for its columns see `palidecode.ray_data.rows`."""
        return self._mapped(None)

    def _mapped(self, plan: ShardPlan | None) -> Dataset:
        given = {"job": self.job, "threads": self.workers.threads, "cwd": os.getcwd()}
        # Whole shards of exactly so many rows: what is computed together decides the last bits.
        shards = ordered(self.source).repartition(
            target_num_rows_per_block=self.shard_size, strict=True
        )
        return shards.map_batches(
            Actor,
            batch_size=None,
            batch_format="pyarrow",
            compute=self.workers.strategy(),
            fn_constructor_kwargs={**given, "plan": plan},
            **self.workers.remote_args(),
        )


@dataclass(frozen=True)
class WrittenCoco:
    """A COCO file that was written of shards.

    Attributes
    ----------
    path : Path
    report : CocoReport
        What is in it, and what was left out.
    issues : Counter of str
        Kinds of what was odd in the answers.
    failed : list of dict
        Rows and pictures that were left out, as in ``failures.jsonl``.
    rows, kept : int
        How many went in, and how many of these an earlier run had finished.
    """

    path: Path
    report: CocoReport
    issues: Counter[str]
    failed: list[Row]
    rows: int
    kept: int


@dataclass(frozen=True)
class CocoOptions:
    """How the COCO file is written: see `to_coco`."""

    categories: Categories | None = None
    match: Any = "exact"
    unmapped: Any = "keep"
    aliases: Mapping[str, str] | None = None
    form: MaskFormat = field(default_factory=lambda: MaskFormat("rle"))

    def settings(self) -> dict[str, Any]:
        """For the header: what the shards' text depends on."""
        given = None if self.categories is None else check_categories(self.categories)
        names = ("match", "unmapped", "aliases")
        said = {"categories": given} | {name: getattr(self, name) for name in names}
        return said | vars(self.form)


def shards_folder(path: str | os.PathLike[str]) -> Path:
    """Where the shards of an output wait: ``coco.json.shards``."""
    return Path(path).with_name(Path(path).name + ".shards")


def write(
    found: Found,
    path: str | os.PathLike[str],
    options: CocoOptions,
    *,
    restart: bool = False,
    keep_journal: bool = False,
    on_begin: Callable[[int], None] = lambda shards: None,
    on_shard: OnShard = lambda row: None,
) -> WrittenCoco:
    """See `palidecode.ray_data.write_coco`.

    `on_begin` is told how many shards are there, `on_shard` of each that is done; it may raise
    to stop.
    """
    output = Path(path)
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name a file to write")
    header = Header(
        f"{found.header.command} on ray",
        {**found.header.settings, **options.settings()},
        found.header.hashes,
    )
    folder = shards_folder(output)
    with Journal(journal_path(output)) as journal:
        went_on = journal.begin(header, restart=restart)
        remove_leftovers(output)
        if not went_on:
            shutil.rmtree(folder, ignore_errors=True)
            journal.append([{"shards": folder.name}])
        folder.mkdir(exist_ok=True)
        for left in [*folder.glob("*.part"), *folder.glob(f"*{TRIES}")]:
            left.unlink(missing_ok=True)
        there = {path.name for path in folder.glob("*.json")}
        on_begin(len(there))
        rows = _run(found, ShardPlan(os.path.abspath(folder), vars(options)), on_shard)
        for row in rows:
            # A shard that was written by an actor that died before it could say so is new.
            row["kept"] = row["kept"] and row["shard"] in there
        try:
            written = _merge(found, output, options, folder, rows)
        except InputError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise InputError(f"{error}; {KEPT}") from error
        if not keep_journal:
            shutil.rmtree(folder, ignore_errors=True)
            journal.remove(output if written.report.images else None)
    if not written.report.images:
        raise InputError(f"nothing could be read; {output} was not written")
    return written


def _run(found: Found, plan: ShardPlan, on_shard: OnShard) -> list[Row]:
    """Have every shard written that isn't; a row about each, in order."""
    from ray.exceptions import RayError

    rows: list[Row] = []
    try:
        with warnings.catch_warnings():
            # Advice for runs that have fewer shards than workers.
            warnings.filterwarnings("ignore", "The minimum number of concurrent actors")
            with reading(found._mapped(plan)) as done:
                for row in done:
                    if row["error"] is not None:
                        raise InputError(row["error"])
                    rows.append(row)
                    on_shard(row)
    except RayError as error:
        reason = str(error).strip().splitlines()
        raise PalidecodeError(
            f"Ray broke off: {reason[-1] if reason else type(error).__name__}; what is finished "
            "is kept: the same command goes on from here"
        ) from error
    return rows


def _merge(
    found: Found, output: Path, options: CocoOptions, folder: Path, rows: list[Row]
) -> WrittenCoco:
    """The shards as one file, one at a time; no file where no image is in any of them."""
    issues: Counter[str] = Counter()
    failed: list[Row] = []
    told: dict[tuple[str, str], None] = {}
    writer = MergingCocoWriter(
        output, once=found.job.one_row_each, info=found.info, **vars(options)
    )
    with writer if any(row["images"] for row in rows) else nullcontext():
        before = 0  # rows of the source
        for row in rows:
            shard = read_shard(folder / row["shard"])
            if shard is None:
                raise InputError(f"{folder / row['shard']}: is damaged; the same command mends it")
            first = before if shard.said["relative"] else 0
            failed += [_numbered(item, first) for item in shard.said["failed"]]
            if shard.images:
                for place, reason in writer.add_shard(shard):
                    failed += [_numbered(i, first) for i in _rows_of(shard, place, reason)]
            issues.update(shard.said["issues"])
            told |= dict.fromkeys((name, text) for name, text in shard.said["warnings"])
            before += row["rows"]
    for name, text in told:
        kind = CodecMismatchWarning if name == CodecMismatchWarning.__name__ else UserWarning
        warnings.warn(text, kind, stacklevel=4)
    write_failures(output, failed)
    kept = sum(row["rows"] for row in rows if row["kept"])
    return WrittenCoco(output, writer.report, issues, failed, before, kept)


def _numbered(failed: Row, first: int) -> Row:
    """Lines that were counted from the beginning of a shard, from that of the source."""
    return {**failed, "line": failed["line"] + first} if "line" in failed else failed


def _rows_of(shard: ReadShard, place: int, reason: str) -> list[Row]:
    """What failed where an image of a shard is left out."""
    if "lines" in shard.said:
        return [{"line": line, "reason": reason} for line in shard.said["lines"][place]]
    return [{"image": shard.images[place]["file_name"], "reason": reason}]
