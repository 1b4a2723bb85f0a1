"""Timing, tables, targets and a description of the machine, shared by all benchmarks.

Contenders are timed in turns, round after round, so that changes of the machine's clock or load
affect all of them. The result is the median of the rounds.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from palidecode.cores import cores

# Processes that a benchmark starts find compiled modules, as those of an installed package do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

Cell = str | float | None

LIBRARIES = (
    *("palidecode", "numpy", "torch", "onnx", "onnxruntime", "opencv-python"),
    *("opencv-python-headless", "pillow", "pycocotools", "contourpy", "shapely"),
    *("hotcoco", "msgspec", "tokenizers", "transformers", "faster-coco-eval", "torchmetrics"),
    *("supervision", "openvino", "jax", "jaxlib", "flax", "ray", "pyarrow"),
)
INSTRUCTION_SETS = (
    *("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_bf16", "neon", "asimd", "sve", "bf16"),
)


@dataclass
class Table:
    """Rows of text and numbers under column names, with a note on the measurement."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass
class Target:
    """A wanted number, the measured number, and if it meets the target."""

    what: str
    wanted: str
    measured: str
    met: bool


def at_least(what: str, measured: float, wanted: float, unit: str) -> Target:
    """Make a target that is met from `wanted` up."""
    return Target(
        what, f"≥ {number(wanted)} {unit}", f"{number(measured)} {unit}", measured >= wanted
    )


def at_most(what: str, measured: float, wanted: float, unit: str) -> Target:
    """Make a target that is met up to `wanted`."""
    return Target(
        what, f"≤ {number(wanted)} {unit}", f"{number(measured)} {unit}", measured <= wanted
    )


def in_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    least: float = 0.15,
    pause: float = 0.0,
) -> dict[str, float]:
    """Measure the median seconds per call of each contender.

    Parameters
    ----------
    contenders : mapping of str to callable
    rounds : int
        Turns of each contender.
    least : float
        Least duration of a turn in seconds; calls are repeated to reach it.
    pause : float
        Seconds of sleep before a turn, followed by a call that isn't timed: threads of some
        libraries keep spinning after their last call.
    """
    repeats = {name: _repeats(call, least) for name, call in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            if pause:
                time.sleep(pause)
                call()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(turns) for name, turns in seconds.items()}


def _repeats(call: Callable[[], object], least: float) -> int:
    call()
    start = time.perf_counter()
    call()
    return max(1, round(least / max(time.perf_counter() - start, 1e-7)))


def optional(module: str) -> Any:
    """Import a peer's module; None if it isn't installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def missing(package: str) -> str:
    """The table row of a peer that isn't installed."""
    return f"not installed: pip install {package}"


def number(value: float) -> str:
    """Format with three significant digits and separators between thousands."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def cell(value: Cell) -> str:
    """Format one cell of a table."""
    if value is None:
        return "—"
    return value if isinstance(value, str) else number(value)


def markdown(table: Table) -> str:
    """Format a table as aligned Markdown, readable in a terminal too."""
    lines = [list(table.columns), *([cell(value) for value in row] for row in table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def targets_table(targets: Sequence[Target]) -> Table:
    """Convert targets to a table."""
    rows = [[t.what, t.wanted, t.measured, "yes" if t.met else "**no**"] for t in targets]
    return Table("Targets", ("what", "wanted", "measured", "met"), rows)


def report(name: str, tables: Sequence[Table], targets: Sequence[Target] = ()) -> None:
    """Print the tables and, as the last line, everything as one JSON object."""
    shown = [*tables, targets_table(targets)] if targets else tables
    for table in shown:
        print(f"\n{table.title}\n\n{markdown(table)}")
        if table.note:
            print(f"\n{table.note}")
    result = {
        "benchmark": name,
        "tables": [asdict(table) for table in tables],
        "targets": [asdict(target) for target in targets],
        "machine": machine(),
        "versions": versions(),
    }
    print("\n" + json.dumps(result, ensure_ascii=False))


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries among `LIBRARIES`."""
    installed = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            installed[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def machine() -> dict[str, str]:
    """Processor, available cores, relevant instruction sets, system."""
    facts = _cpuinfo()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    model = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        model += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return {
        "cpu": model,
        "cores": str(cores()),
        "instruction sets": " ".join(name for name in INSTRUCTION_SETS if name in flags) or "?",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpuinfo() -> dict[str, str]:
    """Read the first processor's lines of /proc/cpuinfo; empty if there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def peak_bytes() -> int:
    """Peak memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
