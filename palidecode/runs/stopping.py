"""SIGINT and SIGTERM during a long run: a clean stop after the present batch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_STOPPING = b"palidecode: stopping after this batch (Ctrl-C again: at once)\n"


class StopAsked(Exception):
    """Unwinds a run that was asked to stop; `run_stoppable` catches it."""


class Stopping:
    """Notes the first SIGINT or SIGTERM; a SIGINT after it raises KeyboardInterrupt at once.

    Signals are only heard in the main thread, so in any other this does nothing.

    Attributes
    ----------
    signal : int
        What was heard; 0 for nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Call between batches.

        Raises
        ------
        StopAsked
            If a signal was heard.
        """
        if self.signal:
            raise StopAsked

    def _hear(self, number: int, _: object) -> None:
        if self.signal == 0:
            # print() could be what was interrupted; it can't be entered twice.
            with suppress(OSError):
                os.write(2, _STOPPING)
        self.signal = self.signal or number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_stoppable(work: Callable[[Stopping], int], hint: str) -> int:
    """Do the work; its exit code, or 128 and the signal's number where it was stopped."""
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
