"""Run every benchmark in its own process and write ``results.md``: ``python benchmarks/run.py``

python benchmarks/run.py parsing rle     # some of them; the page has only their sections
python benchmarks/run.py -o other.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import Table, Target, machine, markdown, targets_table, versions

FOLDER = Path(__file__).resolve().parent
BENCHMARKS = {
    "parsing": "Reading answers",
    "masks": "Decoding masks",
    "rle": "RLE and polygons",
    "encoding": "Encoding masks",
    "referring": "Referring segmentation",
    "evaluation": "COCO evaluation",
    "finding": "Finding more objects",
    "runtime": "Running the model",
    "quantized": "The model in 8 and 4 bits",
    "training_step": "A training step of the 3B model",
    "journal": "The journal of a long run",
    "ray_scale": "Many pictures, on Ray",
    "serving": "Serving",
    "startup": "Starting, and memory",
}


def run(name: str) -> dict[str, Any]:
    """Run one benchmark, print its tables and return its JSON."""
    command = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.rstrip().split("\n")
    if done.returncode != 0:
        raise SystemExit(f"benchmarks/{name}.py failed with exit code {done.returncode}")
    print("\n".join(lines[:-1]), flush=True)
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def section(result: dict[str, Any]) -> str:
    """Format one benchmark's section of the page."""
    tables = [Table(**table) for table in result["tables"]]
    targets = [Target(**target) for target in result["targets"]]
    if targets:
        tables.append(targets_table(targets))
    name = result["benchmark"]
    parts = [f"## {BENCHMARKS[name]}", f"`python benchmarks/{name}.py`"]
    for table in tables:
        parts += [f"### {table.title}", markdown(table)]
        if table.note:
            parts.append(table.note)
    return "\n\n".join(parts)


def page(results: list[dict[str, Any]], command: str) -> str:
    """Format the whole page."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    targets = [Target(**target) for result in results for target in result["targets"]]
    missed = [target for target in targets if not target.met]
    summary = f"{len(targets) - len(missed)} of {len(targets)} targets are met."
    if missed:
        named = "; ".join(f"{t.what} ({t.measured}, wanted {t.wanted})" for t in missed)
        summary += f" Missed: {named}."
    facts = [[key, value] for key, value in machine().items()]
    facts += [[key, value] for key, value in versions().items()]
    return "\n\n".join(
        [
            "# Benchmarks",
            f"Written by `{command}` on {today}. Both sides of every comparison ran in one "
            "process, in turns; numbers are medians.",
            summary,
            markdown(Table("", ("machine and versions", ""), facts)),
            *(section(result) for result in results),
        ]
    )


def main() -> None:
    """Run the benchmarks and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "results.md")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    names = options.names or list(BENCHMARKS)
    command = " ".join(["python benchmarks/run.py", *options.names])
    text = page([run(name) for name in names], command)
    options.output.write_text(text + "\n", encoding="utf-8")
    print(f"\nwrote {options.output}")


if __name__ == "__main__":
    main()
