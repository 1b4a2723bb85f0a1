"""Cost of a long run's journal: ``python benchmarks/journal.py``

`palidecode decode` of the same answers with its journal and without, whole runs in turns: three
boxes per answer, which is the fastest there is to decode, and three masks per answer. Then the
steps that each picture of `palidecode predict` goes through.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from answers import texts
from measure import Cell, Table, Target, at_most, report

from palidecode import decode, load_codec
from palidecode.cli import main
from palidecode.coco.shards import Merger, Result, ShardBuilder, key_of
from palidecode.coco.writing import CocoOptions, MaskFormat
from palidecode.codec.weights import DEMO_ID
from palidecode.runs.finished import Finished
from palidecode.runs.journal import Header, Journal
from palidecode.runs.local import merge

OBJECTS = 3
RUNS = {"boxes": (40_000, False), "masks": (400, True)}
MOST = 15.0  # µs that a journal may cost per answer
SIZE = (640, 480)
BATCH, BATCHES = 8, 100  # of predicted pictures
ROUNDS = 5


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


def decoding(folder: Path) -> tuple[Table, list[Target]]:
    """Compare whole runs with a journal and without."""
    rows: list[list[Cell]] = []
    targets = []
    for name, (count, masks) in RUNS.items():
        path = answers_file(folder / f"{name}.jsonl", count, masks)
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        busy: dict[str, list[float]] = {"with": [], "without": []}
        for turn in range(2 * ROUNDS):
            which = "with" if turn % 2 else "without"
            began, used = time.perf_counter(), time.process_time()
            run(path, *([] if turn % 2 else ["--no-journal"]))
            seconds[which].append(time.perf_counter() - began)
            busy[which].append(time.process_time() - used)
        row = [statistics.median(values) for values in (*seconds.values(), *busy.values())]
        more = 1e6 * (row[2] - row[3]) / count
        rows.append([f"{count:,} answers, {OBJECTS} {name} each", *row, more])
        if not masks:  # with masks it is less than the noise of decoding them
            targets.append(at_most("journal of a decode-only run, per answer", more, MOST, "µs"))
    note = (
        "A shard is saved after every batch of 256 answers, by a thread that waits for the disk, "
        "and the same rows go from memory into the output. The last column is the "
        "difference of processor time, of all threads, per answer: keys of the rows, text and "
        "checksums of the shards, hashes of the mask codec. Medians of runs in turns, in one "
        "process."
    )
    columns = (
        "run",
        "with a journal, s",
        "without, s",
        "CPU with, s",
        "CPU without, s",
        "more, µs",
    )
    return Table("decode", columns, rows, note), targets


def predicting(folder: Path) -> Table:
    """Measure the CPU of pictures' rows: added to a shard, saved, read again, merged."""
    found = decode(texts(12, BATCH, OBJECTS, masks=True), SIZE, load_codec(DEMO_ID))
    options = CocoOptions(form=MaskFormat("rle"))
    spent = dict.fromkeys(("masks and text", "saved and synced", "found again", "merged"), 0.0)
    with Journal(folder / "predicted.json") as journal:
        journal.begin(Header("predict", {}, {}))
        builder = ShardBuilder(options)
        for batch in range(BATCHES):
            names = [f"{batch * BATCH + n:06}.jpg" for n in range(BATCH)]
            began = time.process_time()
            builder.add([key_of(name) for name in names], Result(found, range(BATCH), names, {}))
            made = time.process_time()
            builder.take().save(journal.folder)
            spent["masks and text"] += made - began
            spent["saved and synced"] += time.process_time() - made
        began = time.process_time()
        finished = Finished.read(journal.shards())
        names = [f"{n:06}.jpg" for n in range(BATCHES * BATCH)]
        where = finished.find([key_of(name) for name in names])
        spent["found again"] = time.process_time() - began
        assert where is not None
        began = time.process_time()
        with Merger(folder / "predicted.json", options, {}) as merger:
            merge(merger, journal, where[0])
        spent["merged"] = time.process_time() - began
        size = sum(path.stat().st_size for path in journal.shards()) / len(names)
    rows: list[list[Cell]] = [[name, 1e6 * s / len(names)] for name, s in spent.items()]
    title = f"predict: pictures of {OBJECTS} masks, {BATCH} per batch, {size:,.0f} bytes each"
    return Table(title, ("step", "µs of CPU per picture"), rows, f"The disk: {disk(folder)}.")


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
