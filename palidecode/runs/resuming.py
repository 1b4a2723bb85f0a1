"""A COCO file whose writing goes on where a killed process left it.

The output grows in two files beside it, and the journal says now and then how long they were
when all before was on the disk. That costs no second copy of the output, and no waiting: a
thread syncs while the next chunks are decoded.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from palidecode.answers.jsonl import Problem
from palidecode.coco.writing import FILE_START, CocoReport, CocoWriter
from palidecode.errors import InputError
from palidecode.files import unwritten
from palidecode.runs.journal import Journal, Row, encode_row, sync_folder

PAUSE = 0.25  # seconds between checkpoints, at least


@dataclass
class Progress:
    """How far the input has been read.

    Attributes
    ----------
    rows : int
        Rows of the input that are done, unusable ones included.
    issues : Counter of str
        Kinds of what was odd in them.
    problems : list of Problem
        What was left out.
    """

    rows: int = 0
    issues: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)


class ResumableCocoWriter(CocoWriter):
    """A `CocoWriter` that keeps what it has written when the process ends, however it ends.

    Parameters
    ----------
    path : str or path
    journal : Journal
        That has begun.
    **options
        Those of `CocoWriter`.

    Attributes
    ----------
    journal : Journal
    progress : Progress
        Once the ``with`` block is entered, that of the last checkpoint. Add to it, and call
        `checkpoint` after every chunk.
    """

    def __init__(self, path: str | os.PathLike[str], journal: Journal, **options: Any) -> None:
        super().__init__(path, **options)
        self.progress = Progress()
        self._path, self.journal = Path(path), journal
        self._paths = [beside(self._path, kind) for kind in ("annotations", "images")]
        self._given = len(self._mapping.categories)
        self._said = (self._given, 0)  # categories and problems that the journal knows
        self._due = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._synced: Future[None] = Future()
        self._synced.set_result(None)

    def __enter__(self) -> ResumableCocoWriter:
        rows = [row for _, row in self.journal.rows()]
        # The annotations become the output, so without them there is nothing to go on from.
        sizes = [rows[-1]["annotations"], rows[-1]["images"]] if rows else [0, 0]
        if not self._paths[0].exists():
            self.journal.restart()
            rows, sizes = [], [0, 0]
        with ExitStack() as opened:
            try:
                self._file = opened.enter_context(_opened(self._paths[0], sizes[0]))
                self._images = opened.enter_context(_opened(self._paths[1], sizes[1]))
                for row in rows:
                    self._restore(row)
                if rows:
                    self._check(rows[-1])
                else:
                    self._file.write(FILE_START)
            except OSError as error:
                raise unwritten(self._path, error) from error
            opened.pop_all()
        return self

    def checkpoint(self, *, now: bool = False) -> None:
        """Let what was added last, unless that was done a moment ago or the disk is behind.

        `now`: in any case, and wait until it is there.

        Raises
        ------
        InputError
            If the disk is full or fails, at this checkpoint or the one before.
        """
        if not now and not (self._synced.done() and time.perf_counter() > self._due):
            return
        self._synced.result()
        progress = self.progress
        row: Row = {"rows": progress.rows, "issues": progress.issues, "report": vars(self.report)}
        for name, file in (("annotations", self._file), ("images", self._images)):
            file.flush()
            row[name] = os.fstat(file.fileno()).st_size
        names = [str(item["name"]) for item in self._mapping.categories]
        row["categories"] = names[self._said[0] :]
        row["problems"] = progress.problems[self._said[1] :]
        self._said = (len(names), len(progress.problems))
        self._due = time.perf_counter() + PAUSE
        # As it is now: the report counts on.
        self._synced = self._thread.submit(self._sync, encode_row(row))
        if now:
            self._synced.result()

    def forget(self) -> None:
        """Let nothing be kept when the ``with`` block ends badly."""
        self._synced.result()
        self.journal.restart()

    def _sync(self, row: bytes) -> None:
        """In the thread: the row goes into the journal when all it speaks of is on the disk."""
        try:
            for file in (self._file, self._images):
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritten(self._path, error) from error
        self.journal.append_encoded([row])

    def __exit__(self, *problem: Any) -> None:
        try:
            if problem[0] is None:
                self._synced.result()
                self._write_rest()
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritten(self._path, error) from error
        finally:
            self._thread.shutdown()
            self._close()
        if problem[0] is None:
            os.replace(self._paths[0], self._path)
            sync_folder(self._path.parent)
            self._paths[1].unlink()
        elif not self.journal.has_rows:
            for path in self._paths:
                path.unlink(missing_ok=True)
        if isinstance(problem[1], OSError):
            raise unwritten(self._path, problem[1]) from problem[1]

    def _restore(self, row: Row) -> None:
        for name in row["categories"]:
            self._mapping.id_of(name)  # adds it again, with the same id
        self.progress.rows = row["rows"]
        self.progress.issues = Counter(row["issues"])
        self.progress.problems += [Problem(*problem) for problem in row["problems"]]
        self.report = CocoReport(**row["report"] | {"unmapped": Counter(row["report"]["unmapped"])})
        self._said = (len(self._mapping.categories), len(self.progress.problems))

    def _check(self, last: Row) -> None:
        """Both files hold as many lines as the journal says; the names of the images."""
        found = []
        with self._paths[0].open("rb") as file:
            found.append(sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")))
        numbers = self._ids
        with suppress(ValueError, KeyError, TypeError):
            self._images.seek(0)
            for line in self._images:
                if line != "\n":
                    image = json.loads(line.rstrip(",\n"))
                    numbers[image["file_name"]] = image["id"]
        found.append(len(numbers))
        if found != [self.report.annotations, self.report.images]:
            raise InputError(
                f"{self._paths[0]}: is not as the journal says ({found[0]} annotations of "
                f"{found[1]} images, not {self.report.annotations} of {self.report.images}); "
                "begin anew with --restart"
            )
        self._file.seek(last["annotations"])
        self._images.seek(last["images"])

    def _close(self) -> None:
        for file in (self._file, self._images):
            with suppress(OSError):  # what a full disk didn't take; the journal doesn't know it
                file.close()


def beside(output: Path, kind: str) -> Path:
    """Where the unfinished output waits: ``coco.json.annotations.part``."""
    return output.with_name(f"{output.name}.{kind}.part")


def _opened(path: Path, size: int) -> IO[str]:
    """The file cut to a size."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    file = os.fdopen(number, "r+", encoding="utf-8", newline="\n")
    if os.fstat(number).st_size < size:
        file.close()
        raise InputError(f"{path}: is shorter than the journal says; begin anew with --restart")
    os.truncate(path, size)
    file.seek(size)
    return file
