"""Printing: results as JSON or text, problems, progress; and the exit codes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from palidecode.cli.progress import Progress, ProgressBar, ProgressLines
from palidecode.cli.terminal import escaped, message, writing_stdout
from palidecode.wording import many

if TYPE_CHECKING:
    from palidecode.coco.skips import Skip
    from palidecode.coco.writing import CocoReport

DONE, SKIPPED = 0, 1
"""Exit codes: finished; finished, but look: see `palidecode.cli`."""
RESUMABLE = "run the same command again to resume"
SHOWN_CLASSES = 20
NO_LOC = (
    "not one answer has a <loc…> token: keep special tokens when you detokenize "
    "(skip_special_tokens=False), and separate the names of a prompt by ' ; ', not by commas"
)
_SHOWN_PROBLEMS = 10


def objects_of(report: CocoReport, path: Path) -> str:
    """Return what a COCO file holds: ``3 objects of 1 picture in coco.json``."""
    return f"{many(report.annotations, 'object')} of {many(report.images, 'picture')} in {path}"


def counted(counts: Mapping[str, object]) -> str:
    """Return counts as text: ``crowds 2, unmapped_labels ('cat' 1)``."""
    return ", ".join(f"{name} {_count(count)}" for name, count in counts.items())


def _count(count: object) -> str:
    if not isinstance(count, Mapping):
        return str(count)
    return "(" + ", ".join(f"{name!r} {number}" for name, number in count.items()) + ")"


def decimals(value: float | None) -> str:
    """Return a number with three decimals; a dash for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def blocks(tables: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of tables, with an empty line between two."""
    return [line for table in tables for line in ("", *table)][1:]


def skip_lines(title: str, skips: Sequence[Skip]) -> list[str]:
    """Return the lines that list skipped rows, with examples; none without skipped rows."""
    lines = [f"  {skip}" + (f" ({skip.such_as})" if skip.such_as else "") for skip in skips]
    return ["", f"{title}:", *lines] if lines else []


def report_lines(report: CocoReport) -> list[str]:
    """Return the lines about objects that are skipped or written without a side."""
    lines = []
    if report.empty_boxes:
        lines.append(
            f"inverted or empty boxes: {report.empty_boxes}, written without width or height "
            "(--drop-empty skips them)"
        )
    return lines + ([f"skipped: {counted(report.left_out())}"] if report.left_out() else [])


def skipped_unasked(report: CocoReport) -> bool:
    """Return True if objects were skipped that the options don't ask to skip.

    An object whose mask has no pixel is written with its box, and every other count is what
    --unmapped, --drop-empty, --simplify or --min-area ask for.
    """
    return bool(report.infinite_boxes or report.skipped)


@dataclass(frozen=True)
class Output:
    """Prints what one run of a command has to report.

    Attributes
    ----------
    json : bool
        Print the result as one JSON object, and neither problems nor progress.
    quiet : bool
        Print the result alone.
    verbose : bool
        Print every problem.
    data_on_stdout : bool
        The standard output is the data's (``-o -``): print the result on stderr.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    data_on_stdout: bool = False

    def result(self, data: object, lines: list[str]) -> None:
        """Print the result on stdout (see `data_on_stdout`): `data` as JSON, or `lines`."""
        if self.json:
            lines = [json.dumps(data, ensure_ascii=False, allow_nan=False)]
        text = "\n".join(map(escaped, lines))
        if self.data_on_stdout:
            print(text, file=sys.stderr)
            return
        with writing_stdout():
            print(text)

    def note(self, text: str) -> None:
        """Print a line on stderr, unless the output is JSON or quiet."""
        if not (self.json or self.quiet):
            message(text)

    def resumed(self, what: str, journal: Path) -> None:
        """Report that a run resumes, and from which journal."""
        self.note(f"resuming: {what} already finished ({journal})")

    def problems(self, problems: Sequence[tuple[int, str]], what: str = "line") -> None:
        """Print the first problems (number and reason), and how many more there are."""
        self.listed([f"{what} {number}: {reason}" for number, reason in problems])

    def listed(
        self, lines: Sequence[str], count: int | None = None, way: str = "--verbose lists"
    ) -> None:
        """Print the first lines on stderr, and how many more there are; all with --verbose.

        `count` is their number where `lines` are not all of them, and `way` names who has them.
        """
        shown = lines if self.verbose else lines[:_SHOWN_PROBLEMS]
        for line in shown:
            self.note(line)
        more = (len(lines) if count is None else count) - len(shown)
        if more:
            self.note(f"and {more:,} more ({way} all of them)")

    def progress(self, text: str, total: int | None = None, unit: str = "it") -> Progress:
        """Return the progress on stderr: a bar, or without a terminal a line every 30 s.

        The bar is hidden if the work takes under 0.5 s.
        """
        if self.json or self.quiet:
            return Progress()
        if not sys.stderr.isatty():
            return ProgressLines(text, total, unit)
        return ProgressBar(text, total, unit)
