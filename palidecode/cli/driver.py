"""The driver of a run on Ray, in a process of its own.

Ray ends the process of a driver that loses its cluster without a word, and while it connects or
waits in its own code no signal is heard. So a parent watches: it passes signals on, ends a driver
that doesn't react, and reports one that died.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

from palidecode.cli.ending import FAILED
from palidecode.cli.output import RESUMABLE
from palidecode.cli.terminal import message

_PATIENCE = 10  # seconds that the driver may take to stop


def run_apart() -> int | None:
    """Go on in a child process.

    Returns
    -------
    int or None
        The exit code, in the parent; None in the child.
    """
    ended, told = os.pipe()
    alive, kept = os.pipe()
    process = os.fork()
    if process:
        os.close(told)
        os.close(alive)
        code = _Watch(process).code(ended)
        os.close(kept)
        return code
    os.close(ended)
    os.close(kept)
    _begin(alive, told)
    return None


def _begin(alive: int, told: int) -> None:
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the parent alone, which passes it on
    threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()
    atexit.register(os.write, told, b"1")  # the exit code is the command's, not Ray's
    if os.environ.get("RAY_BACKEND_LOG_LEVEL", "fatal") == "fatal":
        # Ray's C++ ends with a page of addresses, whatever its level.
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)


class _Watch:
    def __init__(self, process: int) -> None:
        self._process = process
        self._signal = 0

    def code(self, ended: int) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, self._pass_on)
        orderly = os.read(ended, 1)
        _, status = os.waitpid(self._process, 0)
        signal.alarm(0)
        if orderly and os.WIFEXITED(status):
            return os.WEXITSTATUS(status)
        if self._signal:
            message(f"stopped; {RESUMABLE}")
            return 128 + self._signal
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        why = "its process was killed" if killed else "Ray stopped on this machine or on the head"
        way = "" if killed else "start the cluster again if it isn't running, then "
        message(f"the run broke off: {why}; what is finished is kept: {way}{RESUMABLE}")
        return FAILED

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            if number == signal.SIGALRM:
                os.kill(self._process, signal.SIGKILL)
                return
            if not self._signal:
                signal.alarm(_PATIENCE)
            self._signal = self._signal or number
            os.kill(self._process, number)


def _die_with_parent(alive: int) -> None:
    os.read(alive, 1)  # until the parent's end is closed
    os._exit(FAILED)
