"""Counts with their nouns, and tables as aligned text."""

from __future__ import annotations

from collections.abc import Sequence


def many(count: int, one: str, several: str = "") -> str:
    """Return a count and its noun: ``1 picture``, ``2 pictures``."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: its first column left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]
