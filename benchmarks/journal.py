"""Cost of a long run's journal: ``python benchmarks/journal.py``

`palidecode decode` of the same answers with its journal and without, whole runs in turns: three
boxes per answer, which is the fastest there is to decode, and three masks per answer. Then the
rows that `palidecode predict` writes for each picture.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from answers import texts
from measure import Cell, Table, Target, at_most, in_turns, report

from palidecode import decode
from palidecode.cli import decode as command
from palidecode.cli import main
from palidecode.coco.writing import CocoWriter
from palidecode.codec.weights import DEMO_ID
from palidecode.runs.journal import Header, Journal, journal_path
from palidecode.runs.prediction import FinishedPictures, PictureFile, detections_of, picture_rows
from palidecode.runs.resuming import ResumableCocoWriter

OBJECTS = 3
RUNS = {"boxes": (40_000, False), "masks": (400, True)}
SIZE = (640, 480)
BATCH, BATCHES = 8, 100  # of predicted pictures
ROUNDS = 5
MOST = 3.0  # per cent


def answers_file(path: Path, count: int, masks: bool) -> Path:
    """A file of answers about pictures of one size."""
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts(11, count, OBJECTS, masks=masks)):
            row = {"image": f"{number}.jpg", "output": text, "width": 640, "height": 480}
            file.write(json.dumps(row) + "\n")
    return path


def run(path: Path, *options: str) -> None:
    """The command, in this process."""
    output = str(path.with_name("coco.json"))
    with contextlib.redirect_stdout(io.StringIO()):
        words = ["decode", str(path), "-o", output, "--weights", DEMO_ID, "--segmentation", "rle"]
        code = main([*words, "--json", *options])
    assert code <= 1, code


class Stopwatch:
    """Adds up the time spent in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._before: list[tuple[Any, str, Callable[..., Any]]] = []

    def watch(self, owner: Any, name: str, sign: int = 1) -> None:
        """Count what this function takes, or with ``sign=-1`` take it off again."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.seconds += sign * (time.perf_counter() - began)

        self._before.append((owner, name, function))
        setattr(owner, name, timed)

    def restore(self) -> None:
        """The functions as they were."""
        for owner, name, function in self._before:
            setattr(owner, name, function)


def share_of_journal(path: Path) -> float:
    """Per cent of a run that the main thread spends in the journal, waiting included."""
    watch = Stopwatch()
    watch.watch(command, "_decode_header")
    for name in ("__enter__", "begin", "remove", "__exit__"):
        watch.watch(Journal, name)
    for name in ("__enter__", "checkpoint", "__exit__"):
        watch.watch(ResumableCocoWriter, name)
    watch.watch(CocoWriter, "_write_rest", -1)  # is written with a journal or without
    began = time.perf_counter()
    try:
        run(path)
    finally:
        watch.restore()
    whole = time.perf_counter() - began
    return 100 * watch.seconds / (whole - watch.seconds)


def decoding(folder: Path) -> tuple[Table, list[Target]]:
    """Whole runs with a journal and without."""
    rows: list[list[Cell]] = []
    targets = []
    for name, (count, masks) in RUNS.items():
        path = answers_file(folder / f"{name}.jsonl", count, masks)
        seconds = in_turns(
            {
                "with": lambda path=path: run(path),
                "without": lambda path=path: run(path, "--no-journal"),
            },
            rounds=ROUNDS,
        )
        share = statistics.median(share_of_journal(path) for _ in range(ROUNDS))
        difference = 100 * (seconds["with"] / seconds["without"] - 1)
        rows.append(
            [f"{count:,} answers, {OBJECTS} {name} each", *seconds.values(), difference, share]
        )
        targets.append(at_most(f"journal of a decode-only run, {name}", share, MOST, "%"))
    note = (
        "A decode run's journal says four times a second how far the output has come, once that "
        "is on the disk; a thread waits for the disk. The last column is what the main thread "
        "spends in the journal: opening it, hashing the input and the codec's weights, "
        "checkpoints, the last sync. The difference of whole runs is the same and the machine's "
        "noise on top, which on a busy one is more than that."
    )
    columns = ("run", "with a journal, s", "without, s", "difference, %", "in the journal, %")
    return Table("decode", columns, rows, note), targets


def predicting(folder: Path) -> Table:
    """Rows of pictures: made, written and synced, and read again."""
    found = decode(texts(12, BATCH, OBJECTS, masks=True), SIZE)
    spent = dict.fromkeys(("rows made", "written and synced", "read again"), 0.0)
    with Journal(journal_path(folder / "predicted.json")) as journal:
        journal.begin(Header("predict", {}, {}))
        done = FinishedPictures(journal)
        for batch in range(BATCHES):
            names = [f"{batch * BATCH + place:06}.jpg" for place in range(BATCH)]
            began = time.perf_counter()
            rows = picture_rows([PictureFile(Path(name), name) for name in names], found)
            made = time.perf_counter()
            done.add(rows)
            spent["rows made"] += made - began
            spent["written and synced"] += time.perf_counter() - made
        began = time.perf_counter()
        places = list(FinishedPictures(journal).places.values())
        for start in range(0, len(places), BATCH):
            detections_of([journal.read(place) for place in places[start : start + BATCH]])
        spent["read again"] = time.perf_counter() - began
        size = journal.path.stat().st_size / len(places)
    rows = [[name, 1e6 * seconds / len(places)] for name, seconds in spent.items()]
    title = f"predict: pictures of {OBJECTS} masks, {BATCH} per batch, {size:,.0f} bytes each"
    return Table(title, ("step", "µs per picture"), rows, f"The disk: {disk(folder)}.")


def disk(folder: Path) -> str:
    """Measure one small fsync on this machine."""
    with (folder / "sync").open("wb") as file:
        began = time.perf_counter()
        for _ in range(20):
            file.write(b"x" * 1000)
            file.flush()
            os.fsync(file.fileno())
    return f"a sync of 1 kB takes {50 * (time.perf_counter() - began):.2f} ms"


def run_all() -> None:
    """Run all parts and print their tables."""
    # In the working folder, not in a temporary one: that may be memory, where syncs are free.
    with tempfile.TemporaryDirectory(dir=".") as name:
        table, targets = decoding(Path(name))
        report("journal", [table, predicting(Path(name))], targets)


if __name__ == "__main__":
    run_all()
