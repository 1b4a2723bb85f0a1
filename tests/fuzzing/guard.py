"""Sees what Python itself reports (PEP 578): files opened to write, programs and code run.

An audit hook can't be taken out again, so there is one, which looks only inside `watched`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_RUNS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen"),
    *("pty.spawn", "pickle.find_class", "socket.connect", "socket.getaddrinfo", "urllib.Request"),
    "ctypes.dlopen",
)
_CHANGES = {"os.remove": (0,), "os.rename": (0, 1), "os.rmdir": (0,), "os.mkdir": (0,)}
_CHANGES |= {"os.link": (0, 1), "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,)}
_FOLDERS = {"os.remove": 1, "os.rmdir": 1}  # the argument that is a descriptor of a folder
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(BaseException):
    """Raised where it happens; not an `Exception`, so that no handler catches it."""


class _Watch:
    """The folder being watched, if any, and the events seen."""

    place: Path | None = None
    seen: list[str] = []  # noqa: RUF012
    hooked = False


@contextmanager
def watched(place: Path) -> Iterator[None]:
    """Forbid writing outside of `place`, and running programs or code from data.

    Temporary files count as files of `place`.
    """
    if not _Watch.hooked:
        sys.addaudithook(_hook)
        _Watch.hooked = True
    before = tempfile.tempdir
    tempfile.tempdir = str(place)
    _Watch.seen.clear()
    _Watch.place = place.resolve()
    try:
        yield
    finally:
        _Watch.place = None
        tempfile.tempdir = before
    assert not _Watch.seen, _Watch.seen


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _Watch is None or _Watch.place is None:  # None while the interpreter ends
        return
    if event in _RUNS:
        _forbid(f"{event} {args!r}")
    elif event == "exec":
        name = getattr(args[0], "co_filename", "<text>")
        if name.startswith("<") and not name.startswith("<frozen") and not _importing():
            _forbid(f"code of {name} was run")
    elif event == "open":
        if isinstance(args[2], int) and args[2] & _WRITES:
            _check(event, args[0])
    elif event in _CHANGES:
        folder = args[_FOLDERS[event]] if event in _FOLDERS else -1
        for number in _CHANGES[event]:
            _check(event, args[number], folder)


def _importing() -> bool:
    """Dataclasses write their methods as text when their module is imported."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
    return False


def _check(event: str, path: Any, folder: int = -1) -> None:
    if isinstance(path, int) or path is None:
        return
    base = "" if folder == -1 else os.readlink(f"/proc/self/fd/{folder}")
    real = Path(os.path.realpath(os.path.join(base, os.fsdecode(path))))
    place = _Watch.place
    if place not in (real, *real.parents) and real != Path(os.devnull):
        _forbid(f"{event} {str(path)!r} is outside of {place}")


def _forbid(what: str) -> None:
    _Watch.seen.append(what)
    raise Forbidden(what)
