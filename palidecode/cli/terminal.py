"""Standard streams: no text of a file can steer the terminal; closed and full streams."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO
from unicodedata import category

from palidecode.errors import InputError

_JOINERS = "\u200c\u200d"  # within words and emoji


def escaped(text: str) -> str:
    r"""Return text with control, direction and other invisible characters as JSON escapes.

    ``"\x1b]0;"`` becomes ``\u001b]0;``, a line break ``\n``. The text of a JSON document keeps its
    meaning. Idempotent.
    """
    if text.isprintable():
        return text
    return "".join(char if _harmless(char) else json.dumps(char)[1:-1] for char in text)


def message(text: str) -> None:
    """Print a line on stderr."""
    try:
        print(f"palidecode: {escaped(text)}", file=sys.stderr)
    except OSError:  # closed or full; there is no other place to report that
        _discard(sys.stderr)


def open_streams() -> None:
    """Open streams that the caller closed (``>&-``): files would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Discard what follows if the reader of the standard output is gone (``| head``).

    Raises
    ------
    InputError
        If it can't be written for another reason: the result would be lost.
    """
    try:
        yield
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        raise InputError(
            f"the standard output can't be written: {error.strerror or error}"
        ) from error


def flush_stdout() -> None:
    """Write what is left in the buffer of the standard output, as `writing_stdout`."""
    if sys.stdout is not None:
        with writing_stdout():
            sys.stdout.flush()


def _harmless(char: str) -> bool:
    return char.isprintable() or category(char) == "Zs" or char in _JOINERS


def _discard(stream: TextIO) -> None:
    """Send the rest of a stream nowhere."""
    with suppress(OSError, ValueError):  # a stream without a file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
