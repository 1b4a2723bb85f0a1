"""Startup time, and peak memory of decoding: ``python benchmarks/startup.py``

Import times are those of fresh interpreters; peak memory is that of a whole `palidecode decode`
process, as the system counts it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from answers import texts
from masks import choose_weights, shapes_of_things
from measure import Cell, Table, Target, at_least, at_most, report

from palidecode.codec import load_codec
from palidecode.codec.weights import save_safetensors

RUNS = 9
HEAVY = ("torch", "onnxruntime", "ray", "transformers", "matplotlib")
WATCHED = (*HEAVY, "jax", "numpy", "cv2", "PIL", "pycocotools", "shapely", "contourpy", "tqdm")
PARSE = "import palidecode; palidecode.parse('<loc0001><loc0002><loc0103><loc0204> cat')"
OBJECTS_PER_ANSWER = 10
LARGEST = 100_000
FILES = (1_000, 10_000, LARGEST)  # objects
SIZE = {"width": 1280, "height": 960}
LIMIT_MB = 1000
FORMATS = {"polygons": (4_000, 1_800), "rle": (4_000, 2_000), "none": (100_000, 100_000)}
"""Objects, and wanted objects/s, by `--segmentation`."""


def wall(code: str) -> float:
    """Measure the milliseconds of one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - start) * 1e3


def loaded(code: str) -> list[str]:
    """List the watched modules that a statement loads."""
    show = f"import sys; print(*[name for name in {WATCHED!r} if name in sys.modules])"
    command = [sys.executable, "-c", f"{code}\n{show}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def imports() -> tuple[Table, list[Target]]:
    """Measure wall times of fresh interpreters, in turns."""
    statements = ("pass", "import numpy", "import palidecode", PARSE)
    names = ("nothing (`python -c pass`)", "`import numpy`", "`import palidecode`")
    names += ("`import palidecode`, and one text parsed",)
    runs: dict[str, list[float]] = {statement: [] for statement in statements}
    for statement in statements:
        wall(statement)  # loads every file into the system's cache
    for _ in range(RUNS):
        for statement in statements:
            runs[statement].append(wall(statement))
    rows: list[list[Cell]] = []
    for name, statement in zip(names, statements, strict=True):
        times = runs[statement]
        modules = " ".join(loaded(statement)) or "none"
        rows.append([name, statistics.median(times), min(times), modules])
    heavy = sorted({name for code in statements[2:] for name in loaded(code)} & set(HEAVY))
    ours = statistics.median(runs["import palidecode"])
    targets = [
        at_most("`import palidecode`, whole process", ours, 150, "ms"),
        Target("heavy modules loaded", "none", ", ".join(heavy) or "none", not heavy),
    ]
    columns = ("statement", "median ms", "fastest ms", "watched modules that are loaded")
    note = f"Whole processes, including the start of the interpreter; {RUNS} runs each."
    return Table("Starting", columns, rows, note), targets


def write_answers(path: Path, objects: int, codes: np.ndarray | None) -> None:
    """Write answers, ten objects a line, repeating the same thousand lines; masks need `codes`."""
    lines = min(1000, objects // OBJECTS_PER_ANSWER)
    masks = codes is not None
    answers = texts(11, lines, OBJECTS_PER_ANSWER, masks=masks, codes_of=codes)
    with path.open("w", encoding="utf-8") as file:
        for line in range(objects // OBJECTS_PER_ANSWER):
            row = {"image": f"{line:06d}.jpg", **SIZE, "output": answers[line % len(answers)]}
            file.write(json.dumps(row) + "\n")


def decode_file(
    answers: Path, out: Path, weights: Path, segmentation: str = "polygons"
) -> tuple[float, float]:
    """Measure seconds and peak megabytes of the command on one file."""
    command = [sys.executable, "-m", "palidecode", "decode", str(answers), "-o", str(out)]
    command += ["--segmentation", segmentation, "--restart"]
    start = time.perf_counter()
    with (out.with_suffix(".log")).open("w") as log:
        environment = {**os.environ, "PALIDECODE_WEIGHTS": str(weights)}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(out.with_suffix(".log").read_text()[-2000:])
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e6


def count_in(path: Path, word: bytes) -> int:
    """Count a word in a file that may be too large to load."""
    count, tail = 0, b""
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            text = tail + block
            count += text.count(word)
            tail = text[-(len(word) - 1) :]
    return count


def memory() -> tuple[Table, list[Target]]:
    """Measure the command's peak memory as the file grows."""
    columns = ("objects", "answers", "seconds", "objects/s", "coco.json, MB", "peak RSS, MB")
    title = "`palidecode decode` to a COCO file"
    if not hasattr(os, "wait4"):
        why = "not measured: this system has no wait4"
        return Table(title, columns, [[why, *[None] * 5]]), []
    rows: list[list[Cell]] = []
    chosen, which = choose_weights()
    codes = load_codec(chosen, "onnx").encode(shapes_of_things(256))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.safetensors")
        save_safetensors(chosen.arrays, weights)
        for objects in FILES:
            source, out = Path(folder, f"{objects}.jsonl"), Path(folder, f"{objects}.json")
            write_answers(source, objects, codes)
            seconds, peak = decode_file(source, out, weights)
            lines, size = objects // OBJECTS_PER_ANSWER, out.stat().st_size / 1e6
            annotations = count_in(out, b'"bbox"')
            assert annotations == objects, f"{annotations} annotations of {objects}"
            rows.append([objects, lines, seconds, objects / seconds, size, peak])
    peaks = [float(row[-1] or 0) for row in rows]
    targets = [
        at_most(f"peak RSS, {LARGEST:,} objects", peaks[-1], LIMIT_MB, "MB"),
        at_most("peak RSS: the largest file ÷ the middle one", peaks[-1] / peaks[-2], 1.5, "×"),
    ]
    note = (
        f"Every object has a mask, decoded with {which}. A file ten times as large may take at "
        "most 1.5 times the memory."
    )
    return Table(title, columns, rows, note), targets


def formats() -> tuple[Table, list[Target]]:
    """Measure the command's speed by format; medians of three runs, in turns."""
    chosen, which = choose_weights()
    codes = load_codec(chosen, "onnx").encode(shapes_of_things(256))
    taken: dict[str, list[float]] = {name: [] for name in FORMATS}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.safetensors")
        save_safetensors(chosen.arrays, weights)
        for name, (objects, _) in FORMATS.items():
            write_answers(Path(folder, f"{name}.jsonl"), objects, None if name == "none" else codes)
        for _ in range(3):
            for name, seconds in taken.items():
                source, out = Path(folder, f"{name}.jsonl"), Path(folder, f"{name}.json")
                seconds.append(decode_file(source, out, weights, name)[0])
    rows: list[list[Cell]] = []
    targets = []
    for name, (objects, wanted) in FORMATS.items():
        median = statistics.median(taken[name])
        rows.append([f"`--segmentation {name}`", objects, median, objects / median])
        targets.append(at_least(f"decode, {name}", objects / median, wanted, "objects/s"))
    note = f"Whole processes. Masks are decoded with {which}."
    columns = ("format", "objects", "seconds", "objects/s")
    return Table("`palidecode decode` by format", columns, rows, note), targets


def main() -> None:
    """Measure and print."""
    parts = [imports(), memory(), formats()]
    report("startup", [table for table, _ in parts], [t for _, targets in parts for t in targets])


if __name__ == "__main__":
    main()
