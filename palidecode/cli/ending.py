"""Early ends of a command: errors, signals, no memory, defects."""

from __future__ import annotations

import os
import signal
import traceback
from contextlib import suppress
from pathlib import Path

from palidecode.cli.terminal import flush_stdout, message
from palidecode.errors import InputError, PalidecodeError

FAILED = 2
DEBUG = "PALIDECODE_DEBUG"
"""Environment variable: any value but "" and 0 prints the traceback of an error."""

_SHOW = f"{DEBUG}=1 shows the traceback"
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")
_NO_THREAD = "can't start new thread"


def debugging() -> bool:
    """Return True if the user asked for tracebacks."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error on stderr."""
    for part in traceback.format_exception(error):
        for line in part.splitlines():
            message(line)


def ended(error: BaseException, number: int = 0) -> int:
    """Report in one line why a command ended early; `number` is that of a signal.

    Returns
    -------
    int
        The exit code.
    """
    if debugging():
        show_traceback(error)
    with suppress(InputError):
        flush_stdout()  # what can't be written is discarded: Python would try again at exit
    if isinstance(error, KeyboardInterrupt):
        number = number or signal.SIGINT
    if number:
        message("interrupted; no unfinished file was left")
        return 128 + number
    message(str(error) if isinstance(error, PalidecodeError) else _unexpected(error))
    return FAILED


def _unexpected(error: BaseException) -> str:
    """Return one line about an exception that isn't one of palidecode's."""
    kind, text = type(error).__name__, (str(error).strip().splitlines() or [""])[0]
    named = f"{kind}: {text}" if text else kind
    if isinstance(error, MemoryError) or any(part in text.lower() for part in _NO_MEMORY):
        return f"not enough memory ({named}); give less at a time, or try a smaller --batch-size"
    if _NO_THREAD in text:
        return f"{text}: the limit of processes is reached; raise it (ulimit -u)"
    if isinstance(error, RecursionError):
        return f"input is nested too deeply ({text}); {_SHOW}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}; {_SHOW}"
    frames = traceback.extract_tb(error.__traceback__)
    last = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"unexpected {named}{last}; please report it with its traceback: {_SHOW}"
