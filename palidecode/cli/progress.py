"""Progress of long work: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

from palidecode.cli.terminal import message

_EVERY = 30  # seconds between two lines in a log


class Progress(AbstractContextManager["Progress"]):
    """Progress of some work; this one shows nothing."""

    done = 0

    def update(self, count: int) -> None:
        """Count what was done."""
        self.done += count

    def __exit__(self, *_: object) -> None:
        pass


class ProgressBar(Progress):
    """A bar on the terminal."""

    def __init__(self, text: str, total: int | None, unit: str) -> None:
        from tqdm import tqdm  # slow to import, and not needed without a terminal

        self._bar = tqdm(
            desc=text,
            total=total,
            unit=unit,
            unit_scale=unit == "B",  # bytes: 8.5M
            leave=False,
            delay=0.5,
        )

    def update(self, count: int) -> None:
        """Move the bar."""
        super().update(count)
        self._bar.update(count)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class ProgressLines(Progress):
    """A line every 30 s, for logs: what is done, the rate and the time left."""

    def __init__(
        self,
        text: str,
        total: int | None,
        unit: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text, self._total, self._unit, self._clock = text, total, unit, clock
        self._began = self._shown = clock()

    def update(self, count: int) -> None:
        """Print a line if the last one is old enough."""
        super().update(count)
        now = self._clock()
        if now - self._shown < _EVERY:
            return
        self._shown = now
        rate = self.done / (now - self._began)
        line = f"{self._text}: {self.done:,}"
        if self._total is not None:
            line += f" of {self._total:,}"
        line += f" {self._unit}, {rate:.3g}/s"
        if self._total is not None and rate:
            left = timedelta(seconds=round((self._total - self.done) / rate))
            line += f", {left} left"
        message(line)
