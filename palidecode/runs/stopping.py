"""SIGINT and SIGTERM during a long run: a clean stop after the current batch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_STOPPING = b"palidecode: stopping after this batch (Ctrl-C again: immediately)\n"


class StopAsked(Exception):
    """Unwinds an interrupted run; `run_stoppable` catches it."""


class Stopping:
    """Notes the first SIGINT or SIGTERM; a SIGINT after it raises KeyboardInterrupt immediately.

    Only the main thread receives signals, so in any other this does nothing.

    Attributes
    ----------
    signal : int
        Number of the signal; 0 before any.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Call between batches.

        Raises
        ------
        StopAsked
            If a signal was received.
        """
        if self.signal:
            raise StopAsked

    def _receive(self, number: int, _: object) -> None:
        if self.signal == 0:
            # The signal may have interrupted print(), which can't be entered twice.
            with suppress(OSError):
                os.write(2, _STOPPING)
        self.signal = self.signal or number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_stoppable(work: Callable[[Stopping], int], hint: str) -> int:
    """Do the work and return its exit code, or 128 plus the signal's number if it was stopped."""
    with Stopping() as stopping:
        try:
            return work(stopping)
        except StopAsked:
            pass
        except KeyboardInterrupt:
            if not stopping.signal:
                raise
    print(f"palidecode: stopped; {hint}", file=sys.stderr)
    return 128 + stopping.signal
