"""Scaling from one worker to a cluster: ``python benchmarks/ray_scale.py``

Decodes answers of three masks: one process on one core and two of them against Ray with two
workers; then how many workers the driver feeds, the cost of merging, and memory over time. Then
measures each stage on a small sample, adds the stages up to a model of throughput, and compares
its prediction with a run on pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from answers import texts
from measure import Table, Target, at_least, at_most, in_turns, number, report
from PIL import Image

from palidecode.cores import cores

OBJECTS = 3
SIZE = (640, 480)
SHARD = 1024
FED = 100  # shards of a run that finds them all
PADDING = 380  # characters of an answer of three boxes there, to be as long as three masks
SAMPLE = 512  # answers for measuring the stages
TOLERANCE = 25.0  # per cent that the model's prediction may be off
WORKERS = 2
ROUNDS = 3

Seconds = dict[str, float]


def codes_of(count: int) -> np.ndarray:
    """Encode drawn blobs: random codes decode to speckles, whose outlines cost more."""
    import cv2

    from palidecode import load_codec

    rng = np.random.default_rng(3)
    masks = np.zeros((count, 64, 64), np.float32)
    for mask in masks:
        centre, axes = rng.integers(20, 44, 2).tolist(), rng.integers(10, 28, 2).tolist()
        cv2.ellipse(mask, centre, axes, int(rng.integers(180)), 0, 360, 1.0, -1)
    return load_codec("palidecode-demo").encode(masks)


def answers_file(path: Path, count: int, *, sizes: bool = True, seed: int = 11) -> Path:
    """Write answers about pictures of one size."""
    with path.open("w", encoding="utf-8") as file:
        codes = codes_of(64)
        for number, text in enumerate(texts(seed, count, OBJECTS, masks=True, codes_of=codes)):
            row: dict[str, Any] = {"image": f"{number:06}.jpg", "output": text}
            if sizes:
                row |= {"width": SIZE[0], "height": SIZE[1]}
            file.write(json.dumps(row) + "\n")
    return path


def pictures(folder: Path, count: int) -> Path:
    """Write small JPEGs: a few contents under many names."""
    folder.mkdir()
    rng = np.random.default_rng(4)
    contents = []
    for _ in range(16):
        low = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(low).resize((320, 240)).save(file, "JPEG")
        contents.append(file.getvalue())
    for n in range(count):
        (folder / f"{n:06}.jpg").write_bytes(contents[n % 16])
    return folder


# -- runs --------------------------------------------------------------------------------


@contextlib.contextmanager
def on_one_core(which: int = 0) -> Iterator[None]:
    """Run this process with all its threads on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[which]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def peak() -> float:
    """Peak memory of this process in MB; `resource` would include its parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def in_child(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a function in a fresh process and return its result."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(work, args, options)


class Alone(NamedTuple):
    """One process: seconds, seconds of CPU, and peak MB."""

    whole: float
    cpu: float
    peak: float


def one_worker(path: Path, output: Path, images: Path | None = None, core: int = 0) -> Alone:
    """Run `palidecode decode` on one core, with imports and loading."""
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    with on_one_core(core), contextlib.redirect_stdout(io.StringIO()):
        from palidecode.cli import main

        words = ["decode", path, "-o", output, "--weights", "palidecode-demo", "--json"]
        words += ["--segmentation", "rle", *(["--images", images] if images else [])]
        code = main([str(word) for word in words])
    assert code <= 1, code
    return Alone(time.perf_counter() - began, time.process_time(), peak())


def two_processes(path: Path, folder: Path) -> tuple[float, float]:
    """Decode half of the answers in each of two parallel processes: seconds, seconds of CPU."""
    lines = path.read_text().splitlines(keepends=True)
    half = len(lines) // 2
    jobs = []
    for core, part in enumerate((lines[:half], lines[half:])):
        (folder / f"half{core}.jsonl").write_text("".join(part))
        jobs.append((folder / f"half{core}.jsonl", folder / f"half{core}.json", None, core))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        done = pool.starmap(one_worker, jobs, chunksize=1)
    return max(one.whole for one in done), sum(one.cpu for one in done)


@dataclass
class RayRun:
    """Seconds of a run's parts, and memory of its processes over time."""

    start: float = 0.0  # of Ray and its worker processes
    first: float = 0.0  # shard
    last: float = 0.0
    whole: float = 0.0
    cpu: float = 0.0  # of all processes, Ray's too, without the start
    driver: int = field(default_factory=os.getpid)
    memory: list[tuple[float, dict[int, float]]] = field(default_factory=list)


def on_ray(path: Path, output: Path, workers: int, *, keep: bool = False) -> RayRun:
    """Decode on a new Ray cluster, sampling memory and CPU once a second."""
    import ray

    from palidecode import ray_data
    from palidecode.coco.writing import CocoOptions, MaskFormat
    from palidecode.ray_data.running import write
    from palidecode.runs.local import RunOptions, Watch

    run = RayRun()
    began = time.perf_counter()
    with ray_data.connected():
        # A task in each process that Ray starts by itself. It is pickled, as a lambda is.
        there = ray.remote(num_cpus=1)(lambda: time.sleep(0.2))
        ray.get([there.remote() for _ in range(cores() + 1)])
        run.start = time.perf_counter() - began
        began, used = time.perf_counter(), sum(cpu_of_all().values())

        def on_rows(rows: int) -> None:
            if rows:
                run.last = time.perf_counter() - began
                run.first = run.first or run.last

        stop = threading.Event()
        watching = threading.Thread(target=watch, args=(run, stop, began))
        watching.start()
        job = ray_data.decode(path, weights="palidecode-demo", concurrency=workers)
        options, journal = CocoOptions(form=MaskFormat("rle")), RunOptions(keep_journal=keep)
        write(job, output, options, journal, Watch(rows=on_rows))
        run.whole = time.perf_counter() - began
        stop.set()
        watching.join()
        run.cpu -= used
    return run


def watch(run: RayRun, stop: threading.Event, began: float) -> None:
    """Record the memory of the driver and of the actors until `stop` is set."""
    cpu: dict[int, float] = {}
    while not stop.wait(1.0):
        memory = {os.getpid(): resident(os.getpid())}
        now = cpu_of_all()
        cpu |= now
        for pid in now:
            with contextlib.suppress(OSError):
                if b"ray::Actor" in (Path("/proc") / str(pid) / "cmdline").read_bytes():
                    memory[pid] = resident(pid)
        run.memory.append((time.perf_counter() - began, memory))
    run.cpu = sum((cpu | cpu_of_all()).values())


def cpu_of_all() -> dict[int, float]:
    """Seconds of CPU of this process and of all that it has started, by process."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "stat").read_text().rpartition(")")[2].split()
            parents[int(path.name)] = int(words[1])
            seconds[int(path.name)] = sum(map(int, words[11:13])) / os.sysconf("SC_CLK_TCK")
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: seconds[pid] for pid in found}


def resident(pid: int) -> float:
    """Resident memory of a process in MB, without shared memory."""
    with contextlib.suppress(OSError, ValueError):
        pages = (Path("/proc") / str(pid) / "statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGESIZE") / (1 << 20)
    return 0.0


def memory_rows(run: RayRun) -> tuple[list[list[Any]], float]:
    """Sample each process's memory over the run, and the largest growth in its second half."""
    busy = [memory for seconds, memory in run.memory if run.first <= seconds <= run.last]
    pids = sorted({pid for memory in busy for pid in memory}, key=lambda pid: pid != run.driver)
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows, growth = [], 0.0
    for n, pid in enumerate(pids):
        series = [memory[pid] for memory in busy if pid in memory]
        if len(series) < 8:
            continue
        points = [series[min(int(share * len(series)), len(series) - 1)] for share in shares]
        rows.append(["driver" if pid == run.driver else f"actor {n}", *points])
        middle = statistics.median(series[len(series) // 2 : len(series) // 2 + 4])
        growth = max(growth, statistics.median(series[-4:]) - middle)
    return rows, growth


def merge(shards: Path, output: Path, times: int) -> tuple[float, int, float]:
    """Merge the shards of a folder `times` times: seconds of CPU, annotations, peak MB."""
    from palidecode.coco.shards import Merger, read_shard
    from palidecode.coco.writing import CocoOptions

    names = sorted(shards.glob("*.json"))
    began = time.process_time()
    with Merger(output, CocoOptions(), {}) as merger:
        for turn in range(times):
            for name in names:
                shard = read_shard(name)
                assert shard is not None
                shard.images = [(f"{turn}/{name}", *size) for name, *size in shard.images]
                merger.add(shard, 0, len(shard))
    return time.process_time() - began, merger.writer.report.annotations, peak()


# -- the model ---------------------------------------------------------------------------


def stages(path: Path, images: Path, folder: Path) -> Seconds:
    """Measure the seconds of each stage for one answer of three masks, on one core."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from palidecode.answers.rows import read_rows
    from palidecode.coco.shards import Merger, Result, ShardBuilder, key_of, read_shard
    from palidecode.coco.writing import CocoOptions, MaskFormat
    from palidecode.detections import Detections
    from palidecode.files import open_picture
    from palidecode.runs.answers import AnswerDecoder, DecodeOptions, decode_rows

    with on_one_core():
        decoder = AnswerDecoder.load(DecodeOptions("palidecode-demo"), threads=1)
        files = [images / f"{n:06}.jpg" for n in range(SAMPLE)]
        assert decoder.codec is not None
        codec = decoder.codec
        options = CocoOptions(form=MaskFormat("rle"))
        parts: list[Detections] = []
        names: list[list[str]] = []

        def decoded() -> None:
            parts.clear()
            names.clear()
            for rows, part, _ in decode_rows(iter(rows_of), decoder):
                parts.append(part)
                names.append([row.name for row in rows])

        rows_of = list(read_rows(path, images))
        decoded()
        codes = [part.codes for part in parts]
        fields = [codec.decode(part) for part in codes]

        class Given:
            """A codec that returns given fields, in order."""

            id = codec.id

            def __init__(self) -> None:
                self.rest = iter(fields)
                self.held = np.zeros((0, 64, 64), np.float32)

            def decode(self, asked: Any) -> np.ndarray:
                while len(self.held) < len(asked):
                    self.held = np.concatenate([self.held, next(self.rest)])
                out, self.held = self.held[: len(asked)], self.held[len(asked) :]
                return out

        def rles() -> None:
            given = Given()
            for part in parts:
                replace(part, codec=given).to_rle()

        def written() -> None:
            given, builder = Given(), ShardBuilder(options)
            with Merger(folder / "sample.json", options, {}) as merger:
                for part, part_names in zip(parts, names, strict=True):
                    result = Result(
                        replace(part, codec=given), range(len(part_names)), part_names, {}
                    )
                    builder.add([key_of(name) for name in part_names], result)
                    shard = builder.take()
                    merger.add(shard, 0, len(shard))
                    shard.save(folder)
                    saved.add(folder / shard.name)

        saved: set[Path] = set()
        written()

        def merged() -> None:
            with Merger(folder / "merged.json", options, {}) as merger:
                for name in saved:
                    read = read_shard(name)
                    assert read is not None
                    merger.add(read, 0, len(read))

        each = {
            "reading the line and the picture's header": lambda: list(read_rows(path, images)),
            "parsing": decoded,
            "codec": lambda: [codec.decode(part) for part in codes],
            "masks to RLE": rles,
            "RLE and writing": written,
            "merging": merged,
            "opening the picture (predict only)": lambda: [open_picture(file) for file in files],
        }
        turns = in_turns(each, rounds=3, least=0.0)  # writing is a difference of two of them
        seconds = {name: whole / SAMPLE for name, whole in turns.items()}
    seconds["writing"] = seconds.pop("RLE and writing") - seconds["masks to RLE"]
    return seconds


def startup() -> float:
    """Measure the seconds until the first answer can be decoded: imports, weights, session."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with on_one_core():
        began = time.perf_counter()
        from palidecode.cli import main  # noqa: F401
        from palidecode.cli.decode import run  # noqa: F401
        from palidecode.runs.answers import AnswerDecoder, DecodeOptions

        codec = AnswerDecoder.load(DecodeOptions("palidecode-demo"), threads=1).codec
        assert codec is not None
        codec.decode(np.zeros((1, 16), np.uint8))
        return time.perf_counter() - began


SINGLE = (
    "reading the line and the picture's header",
    "parsing",
    "codec",
    "masks to RLE",
    "writing",
)


def predicted(seconds: Seconds, rows: int) -> float:
    """Predict the seconds of one worker: start, plus the sum of the stages for each row."""
    return seconds["starting"] + rows * sum(seconds[name] for name in SINGLE)


# -- the report --------------------------------------------------------------------------


def scaling(folder: Path, count: int) -> tuple[list[Table], list[Target], float]:
    """Compare one worker with Ray's two, and measure memory; and one worker's s per answer."""
    path = answers_file(folder / "answers.jsonl", count)
    alone = in_child(one_worker, path, folder / "one.json")
    runs = {1: [in_child(on_ray, path, folder / "ray1.json", 1)], WORKERS: []}
    pairs = []
    for _ in range(ROUNDS):  # in turns, as the speed of a shared machine varies
        pairs.append(two_processes(path, folder))
        runs[WORKERS].append(in_child(on_ray, path, folder / f"ray{WORKERS}.json", WORKERS))
    for workers in runs:
        same = (folder / f"ray{workers}.json").read_bytes() == (folder / "one.json").read_bytes()
        assert same, f"{workers} workers wrote another file"
    split, busy = min(pairs), min(runs[WORKERS], key=lambda run: run.whole)
    none = (None, None, None)
    rows: list[list[Any]] = [
        ["one process on one core", *alone[:2], count / alone.whole, 1.0, None, None, alone.peak],
        ["two such processes, half each", *split, count / split[0], alone.whole / split[0], *none],
    ]
    for workers, run in {1: runs[1][0], WORKERS: busy}.items():
        name = f"Ray, {workers} worker{'s' if workers > 1 else ''}"
        rows.append([name, run.whole, run.cpu, count / run.whole, alone.whole / run.whole])
        rows[-1] += [run.start, run.first, max(max(memory.values()) for _, memory in run.memory)]
    columns = ("run", "s", "CPU, s", "answers/s", "× one", "Ray's start, s", "first shard after, s")
    columns += ("MB",)
    both = [
        f"{statistics.median(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"
        for values in ([one[0] for one in pairs], [run.whole for run in runs[WORKERS]])
    ]
    note = (
        f"{count:,} answers of {OBJECTS} masks in one file; the results are equal, byte for byte. "
        "Seconds are those of the whole run, with imports, loading, merging and the start of the "
        "actors, but without the start of Ray's cluster and its processes, which import Ray. MB: "
        "the largest process. Two parallel processes without Ray and merging are the limit of "
        f"this machine. They and Ray ran {ROUNDS} times in turns, and the table has the fastest: "
        f"medians {both[0]} s and {both[1]} s; Ray takes {busy.whole / split[0]:.2f} times as long."
    )
    memory, growth = memory_rows(busy)
    tables = [
        Table("One worker and Ray", columns, rows, note),
        Table(
            "Memory while two workers run: MB",
            ("process", "first shard", "¼", "½", "¾", "last shard"),
            memory,
            "Resident memory without shared memory. The driver keeps a summary of every shard.",
        ),
    ]
    targets = [
        at_least(
            "Ray with two workers", split[0] / busy.whole, 0.95, "× two processes without Ray"
        ),
        at_most("memory: growth in the second half of the run", growth, 16.0, "MB"),
    ]
    return tables, targets, alone.cpu / count


def feeding(folder: Path, each: float) -> tuple[Table, list[Target]]:
    """Measure the driver on shards that exist already, so that workers only look them up.

    `each` is the seconds of CPU that a worker takes for an answer of three masks.
    """
    path, output = folder / "boxes.jsonl", folder / "boxes.json"
    with path.open("w", encoding="utf-8") as file:
        for n, text in enumerate(texts(13, FED * SHARD, OBJECTS, masks=False)):
            row = {"image": f"{n:06}.jpg", "output": text, "width": SIZE[0], "height": SIZE[1]}
            row["padding"] = "x" * PADDING
            file.write(json.dumps(row) + "\n")
    in_child(on_ray, path, output, WORKERS, keep=True)
    wall, cpu = in_child(fed, path, output)
    rows = [
        ["driver's CPU", 1e3 * cpu, 1 / cpu, each * SHARD / cpu],
        ["wall clock, two workers on the same cores", 1e3 * wall, 1 / wall, each * SHARD / wall],
    ]
    note = (
        f"{FED} shards of {SHARD:,} answers that exist already, without merging, which the driver "
        f"does when no worker waits; {1e3 * each:.2f} ms of CPU for an answer of three masks."
    )
    columns = ("time of the driver", "ms per shard", "shards/s", "workers fed")
    target = at_least("one driver feeds", each * SHARD / cpu, 100, "workers")
    return Table("The driver", columns, rows, note), [target]


def fed(path: Path, output: Path) -> tuple[float, float]:
    """Hand out shards that exist already: the driver's seconds a shard, by the clock and of CPU."""
    import ray

    from palidecode import ray_data
    from palidecode.coco.writing import CocoOptions, MaskFormat
    from palidecode.ray_data.actor import ShardPlan
    from palidecode.runs.journal import Journal
    from palidecode.runs.local import begin

    moments = []
    options = CocoOptions(form=MaskFormat("rle"))
    with ray_data.connected(), Journal(output) as journal:
        job = ray_data.decode(path, weights="palidecode-demo", concurrency=WORKERS)
        finished = begin(journal, job.job, options)
        plan = ShardPlan(str(journal.folder.resolve()), options, ray.put(finished))
        with job.pool(plan) as pool:
            for result in pool.results():
                if result is not None:
                    assert result[1].kept == result[1].rows
                    moments.append((time.perf_counter(), time.process_time()))
    wall, cpu = (last - first for first, last in zip(moments[0], moments[-1], strict=True))
    return wall / (FED - 1), cpu / (FED - 1)


def merging(folder: Path) -> tuple[Table, list[Target]]:
    """Measure merging the same shards 8 and 64 times."""
    shards = in_child(kept_shards, folder)
    rows, peaks = [], []
    for times in (8, 64):
        seconds, annotations, most = in_child(merge, shards, folder / "merged.json", times)
        size = (folder / "merged.json").stat().st_size / 1e6
        rows.append([f"{annotations:,} objects", seconds, annotations / seconds, size, most])
        peaks.append((annotations / OBJECTS, most))
    (few, low), (many, high) = peaks
    each = 1e6 * (high - low) / (many - few)
    note = (
        f"One shard is in memory at a time. Memory grows by {number(each)} bytes per picture for "
        "the names, which the writer on a single machine keeps, too."
    )
    columns = ("merged", "CPU, s", "objects per s of CPU", "file, MB", "peak, MB")
    targets = [at_most("merging: memory per picture", each, 1000.0, "bytes")]
    return Table("Merging shards", columns, rows, note), targets


def kept_shards(folder: Path) -> Path:
    """Write four shards of the size that the actors write."""
    from palidecode.coco.writing import CocoOptions, MaskFormat
    from palidecode.runs.answers import DecodeJob, DecodeOptions
    from palidecode.runs.journal import shards_folder
    from palidecode.runs.local import RunOptions, write_coco

    path = answers_file(folder / "kept.jsonl", 4 * SHARD, seed=17)
    job = DecodeJob(DecodeOptions("palidecode-demo", batch_size=SHARD))
    options = CocoOptions(form=MaskFormat("rle"))
    output = folder / "kept.json"
    write_coco(job, job.items(path), output, options, RunOptions(keep_journal=True))
    return shards_folder(output)


def model(folder: Path, count: int) -> tuple[list[Table], list[Target]]:
    """Measure each stage, and compare their sum with a run on pictures."""
    images = pictures(folder / "pictures", max(count, SAMPLE))
    sample = answers_file(folder / "sample.jsonl", SAMPLE, sizes=False, seed=5)
    path = answers_file(folder / "pictures.jsonl", count, sizes=False, seed=6)
    turns, runs = [], []
    for _ in range(ROUNDS):  # in turns, as the speed of a shared machine varies
        turns.append(in_child(stages, sample, images, folder) | {"starting": in_child(startup)})
        runs.append(in_child(one_worker, path, folder / "real.json", images).whole)
    seconds = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    real = statistics.median(runs)
    expected = predicted(seconds, count)
    off = 100 * (expected / real - 1)
    rows: list[list[Any]] = [[name, 1e6 * seconds[name]] for name in SINGLE]
    rows += [
        [name, 1e6 * seconds[name]] for name in ("merging", "opening the picture (predict only)")
    ]
    rows.append(["starting, once", 1e6 * seconds["starting"]])
    table = Table(
        "Cost of each stage: µs per picture",
        ("stage", "µs"),
        rows,
        f"{OBJECTS} masks per picture, one core; medians over a sample of {SAMPLE} answers about "
        f"JPEGs of 320×240, {ROUNDS} times, in turns with the runs below.",
    )
    check = Table(
        "The model against a run",
        ("pictures", "predicted, s", "measured, s", "off, %"),
        [[f"{count:,}", expected, real, off]],
        "`palidecode decode` on one core, with sizes read from the pictures and a journal; median "
        f"of {ROUNDS}.",
    )
    targets = [at_most("model of throughput: off by", abs(off), TOLERANCE, "%")]
    return [table, check], targets


def run_all(count: int, checked: int) -> None:
    """Run all parts and print their tables."""
    # In the working folder: the temporary folder may be in memory, where writing is free.
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).resolve()
        tables, targets, each = scaling(folder, count)
        fed, fed_target = feeding(folder, each)
        merged, more = merging(folder)
        parts, checks = model(folder, checked)
        report("ray_scale", [*tables, fed, merged, *parts], [*targets, *fed_target, *more, *checks])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--answers", type=int, default=20_000, metavar="N")
    parser.add_argument("--pictures", type=int, default=5_000, metavar="N")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    run_all(options.answers, options.pictures)
