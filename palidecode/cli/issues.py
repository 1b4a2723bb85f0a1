"""Parse issues of a run: the first for the terminal, all of them in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from palidecode.coco.shards import RowIssue
from palidecode.files import replacing

_KEPT = 1000


class _DiscardedError(Exception):
    """Keeps a file of issues from being written."""


@dataclass
class Issues:
    """Collects parse issues.

    Attributes
    ----------
    first : list of RowIssue
        The first thousand.
    file : file, optional
        Gets all of them, one JSON object per line.
    count : int
    discarded : bool
        Set where the run was interrupted: there is no file then.
    """

    first: list[RowIssue] = field(default_factory=list)
    file: IO[str] | None = None
    count: int = 0
    discarded: bool = False

    def add(self, issue: RowIssue) -> None:
        """Add an issue."""
        self.count += 1
        if len(self.first) < _KEPT:
            self.first.append(issue)
        if self.file is not None:
            self.file.write(json.dumps(issue, ensure_ascii=False) + "\n")

    def lines(self) -> list[str]:
        """Return a line about each of the first: where it is, its kind and its text."""
        lines = []
        for issue in self.first:
            where = f"line {issue['line']}" if "line" in issue else issue["image"]
            start, stop = issue["span"]
            lines.append(f"{where}: {issue['kind']} at {start}…{stop}: {issue['text']!r}")
        return lines


@contextmanager
def collected(path: Path | None) -> Iterator[Issues]:
    """Collect issues, and write them into a file when the block ends."""
    issues = Issues()
    if path is None:
        yield issues
        return
    with suppress(_DiscardedError), replacing(path) as issues.file:
        yield issues
        if issues.discarded:
            raise _DiscardedError
