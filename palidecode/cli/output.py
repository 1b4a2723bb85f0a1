"""What commands print: JSON or text, progress, problems; and their exit codes."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from palidecode.coco.skips import Skip

DONE, LEFT_OUT, FAILED = 0, 1, 2
GO_ON = "the same command goes on from here"
_SHOWN_PROBLEMS = 10
SHOWN_CLASSES = 20
_AS_ASKED = ("merged", "not_asked")  # left out because somebody wanted it so


def progress_bar(
    args: argparse.Namespace, text: str, total: int | None = None, **options: Any
) -> Any:
    """A bar on stderr where somebody looks at it, and work is long."""
    # disable=None: no bar where stderr is no terminal.
    quiet = True if args.json else None
    return tqdm(desc=text, total=total, disable=quiet, leave=False, delay=0.5, **options)


def say_resumed(args: argparse.Namespace, what: str, journal: Path) -> None:
    """That a run goes on, and where that is known from."""
    if not args.json:
        print(f"palidecode: going on: {what} are finished ({journal})", file=sys.stderr)


def say_problems(args: argparse.Namespace, problems: Sequence[Any], what: str = "line") -> None:
    """The first problems one by one, the rest as a number."""
    if args.json:
        return
    for number, reason in problems[:_SHOWN_PROBLEMS]:
        print(f"palidecode: {what} {number}: {reason}", file=sys.stderr)
    if len(problems) > _SHOWN_PROBLEMS:
        rest = len(problems) - _SHOWN_PROBLEMS
        print(f"palidecode: and {rest} more (all of them with --json)", file=sys.stderr)


def skipped_unasked(skipped: Sequence[Skip]) -> bool:
    """Whether rows were left out that nobody asked to leave out."""
    return any(skip.reason not in _AS_ASKED for skip in skipped)


def aligned(cells: list[list[str]]) -> list[str]:
    """Cells in columns."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]


def skip_line(skip: Skip) -> str:
    """A line about rows that were left out."""
    return f"  {skip}" + (f" ({skip.such_as})" if skip.such_as else "")


def decimals(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
