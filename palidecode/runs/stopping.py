"""SIGINT and SIGTERM: stop immediately, or in a long run after the current batch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_STOPPING = b"palidecode: stopping after this batch (Ctrl-C again: immediately)\n"


class StopAsked(KeyboardInterrupt):
    """Unwinds what a signal interrupts. Libraries catch `Exception`, so it is none."""


class Stopping:
    """Receives SIGINT and SIGTERM.

    Only the main thread receives signals, so in any other this does nothing.

    Parameters
    ----------
    immediate : bool
        Raise `StopAsked` at the first signal; the next one ends the process. Otherwise `check`
        raises it, and a SIGINT after the first signal raises KeyboardInterrupt.

    Attributes
    ----------
    immediate : bool
        May be changed at any time.
    signal : int
        Number of the first signal; 0 before any.
    """

    def __init__(self, *, immediate: bool = False) -> None:
        self.immediate = immediate
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
        first = self.signal == 0
        self.signal = self.signal or number
        if self.immediate:
            for each in self._before:
                signal.signal(each, signal.SIG_DFL)
            raise StopAsked
        signal.signal(signal.SIGINT, signal.default_int_handler)  # before the next one is invited
        if first:
            # The signal may have interrupted print(), which can't be entered twice.
            with suppress(OSError):
                os.write(2, _STOPPING)


def run_stoppable(work: Callable[[Stopping], int], hint: str) -> int:
    """Do the work and return its exit code, or 128 plus the signal's number if it was stopped."""
    with Stopping() as stopping:
        try:
            return work(stopping)
        except KeyboardInterrupt as error:
            if not (stopping.signal or isinstance(error, StopAsked)):
                raise
        except Exception:
            # A library may turn the interruption into an exception of its own.
            if not (stopping.signal and stopping.immediate):
                raise
    print(f"palidecode: stopped; {hint}", file=sys.stderr)
    return 128 + stopping.signal
