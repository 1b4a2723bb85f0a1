"""The journal of a long run: what is finished, on disk, so that a killed run can go on.

One JSON object per line, each with the CRC-32 of the rest of its line. The first says which run
it is; every other is one finished piece of it. Rows of a batch are written and synced together,
so after a crash only the last batch can be unfinished, and the line that was being written has
no line break: it is cut off. Any other line that doesn't fit its checksum is an error.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from palidecode.codec.weights import sha256_of
from palidecode.errors import InputError
from palidecode.files import replacing, unwritten

try:
    import fcntl
except ImportError:  # Windows has no flock: two runs at once are not noticed there
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
FAILURES = "failures.jsonl"

Row = dict[str, Any]

_CRC = b'{"crc":"%08x",'
_HEAD = len(_CRC % 0)
_SHOWN = 3  # differences between two runs
_LONGEST_VALUE = 60
_WAY_OUT = "write to another -o, or forget that run with --restart"


@dataclass(frozen=True)
class Header:
    """Which run a journal belongs to; runs that differ in any of it never mix.

    Attributes
    ----------
    command : str
        ``predict`` or ``decode``.
    settings : mapping
        Everything beside the inputs that decides a number of the output; JSON values.
    hashes : mapping of str to str
        Name and SHA-256 of the files that do: the model's, the mask codec's.
    """

    command: str
    settings: Mapping[str, Any]
    hashes: Mapping[str, str]

    def as_row(self) -> Row:
        """The first row."""
        from palidecode.version import __version__

        return {
            "palidecode_journal": SCHEMA,
            "version": __version__,
            "command": self.command,
            # As they will be read again: tuples are lists there.
            "settings": json.loads(json.dumps(dict(self.settings))),
            "hashes": dict(self.hashes),
        }


def journal_path(output: str | os.PathLike[str]) -> Path:
    """Where the journal of an output file lies: ``coco.json.journal.jsonl``."""
    return Path(output).with_name(Path(output).name + ".journal.jsonl")


def hash_files(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each file, several at once: a model's shards are many gigabytes.

    Raises
    ------
    InputError
        If one can't be read.
    """
    try:
        with ThreadPoolExecutor(max_workers=4) as pool:
            return dict(zip(files, pool.map(sha256_of, files.values()), strict=True))
    except OSError as error:
        raise InputError(f"{error.filename}: can't be read: {error.strerror or error}") from error


class Journal:
    """One run's journal, locked while the ``with`` block lasts.

    `begin` says which run it is and cuts off what a killed one left half written; then rows can
    be read and added. A journal without rows leaves no file, and is nobody's.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    InputError
        If the file can't be written, or another process has it (where the system has flock).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: IO[bytes]
        self._reader: IO[bytes] | None = None
        self._here = True  # until it is removed
        self._end = 0  # everything before it is whole and synced
        self._first = 0  # where the rows begin

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._locked()
        except OSError as error:
            raise InputError(f"{self.path}: can't be written: {error.strerror or error}") from error
        return self

    def __exit__(self, *problem: Any) -> None:
        with suppress(OSError):
            if self._here and os.fstat(self._file.fileno()).st_size <= self._first:
                self.path.unlink()
        if self._reader is not None:
            self._reader.close()
        self._file.close()

    def begin(self, header: Header, *, restart: bool = False) -> bool:
        """Make sure that this is the journal of that run; returns whether it has rows.

        Raises
        ------
        InputError
            If it is another run's, naming what differs, or damaged, naming the line.
        """
        wanted, whole = header.as_row(), _whole_lines(self._file)
        if whole and not restart:
            with self.path.open("rb") as file:
                line = file.readline()
            found = self._row(line, 1)
            parts = (found.get("settings", {}), found.get("hashes", {}))
            if "palidecode_journal" not in found or not all(isinstance(p, dict) for p in parts):
                raise InputError(f"{self.path}: line 1 is not a journal's; {_WAY_OUT}")
            if whole > len(line):
                self._check_header(found, wanted)
                self._first = len(line)
                self._cut(whole)
                return True
        self._cut(0)
        self._write([encode_row(wanted)], sync=False)  # it lasts when the first rows do
        self._first = self._end
        return False

    @property
    def has_rows(self) -> bool:
        """Whether anything is finished, once it has begun."""
        return self._end > self._first

    def restart(self) -> None:
        """Forget all rows; the header stays."""
        self._cut(self._first)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Every row after the header, with its place for `read`.

        Raises
        ------
        InputError
            At the first damaged line, with its number.
        """
        place = self._first
        with self.path.open("rb") as file:
            file.seek(place)
            for number, line in enumerate(file, 2):
                yield place, self._row(line, number)
                place += len(line)

    def read(self, place: int) -> Row:
        """The row at a place that `rows` gave."""
        if self._reader is None:
            self._reader = self.path.open("rb")
        self._reader.seek(place)
        return self._row(self._reader.readline(), None)

    def append(self, rows: Iterable[Row]) -> list[int]:
        """Write the rows of one batch and sync them to the disk; returns their places.

        Raises
        ------
        InputError
            If the disk is full or fails; what was written before stays whole.
        """
        return self.append_encoded([encode_row(row) for row in rows])

    def append_encoded(self, lines: list[bytes]) -> list[int]:
        """The same of rows that went through `encode_row` before."""
        first = not self.has_rows
        places = list(accumulate(map(len, lines), initial=self._end))[:-1]
        self._write(lines)
        if first:
            sync_folder(self.path.parent)
        return places

    def remove(self, output: Path | None = None) -> None:
        """Delete it: the run is over. `output` is what has to be on the disk before."""
        if output is not None:
            with output.open("rb") as file:
                os.fsync(file.fileno())
            sync_folder(output.parent)
        self.path.unlink(missing_ok=True)
        self._here = False

    def _write(self, lines: list[bytes], *, sync: bool = True) -> None:
        whole = b"".join(lines)
        data = memoryview(whole)
        try:
            self._file.seek(self._end)
            while data:
                data = data[self._file.write(data) :]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._cut(self._end)
            raise unwritten(self.path, error) from error
        self._end += len(whole)

    def _locked(self) -> IO[bytes]:
        while True:
            number = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            file = os.fdopen(number, "r+b", buffering=0)
            try:
                if fcntl is not None:
                    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise InputError(
                    f"{self.path}: another process is writing it; wait for it, or write to "
                    "another -o"
                ) from error
            except OSError:
                pass  # a file system without locks
            # The other one may have finished and deleted it between our opening and locking.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(number), self.path.stat()):
                    return file
            file.close()

    def _cut(self, size: int) -> None:
        with suppress(OSError):
            self._file.truncate(size)
        self._end = size

    def _row(self, line: bytes, number: int | None) -> Row:
        row = _parse(line)
        if row is None:
            where = "a line" if number is None else f"line {number}"
            raise InputError(
                f"{self.path}: {where} is damaged; delete it and all after it to go on from "
                "there, or begin anew with --restart"
            )
        return row

    def _check_header(self, found: Row, wanted: Row) -> None:
        differences = list(_differences(found, wanted))
        if differences:
            said = "; ".join(differences[:_SHOWN])
            more = len(differences) - _SHOWN
            said += f"; and {more} more" if more > 0 else ""
            raise InputError(f"{self.path}: is the journal of another run: {said}. {_WAY_OUT}")


def write_failures(output: Path, failures: Iterable[Row]) -> Path | None:
    """List what failed in ``failures.jsonl`` beside the output; None where nothing did.

    Every row names its output: those of other outputs in the folder are kept, and the file is
    absent when none are left.

    Raises
    ------
    InputError
        If it can't be written.
    """
    path = output.with_name(FAILURES)
    rows = [json.dumps({"output": output.name, **row}).encode() for row in failures]
    kept = [line for line in _lines_of(path) if not _is_of(line, output.name)]
    if rows or kept:
        with replacing(path, "wb") as file:
            file.writelines(line + b"\n" for line in [*kept, *rows])
    else:
        path.unlink(missing_ok=True)
    return path if rows else None


def remove_leftovers(output: Path) -> None:
    """Delete what killed processes left of `output`: ``.coco.json.1234.part``."""
    for path in output.parent.glob(f".{output.name}.*.part"):
        number = path.name.removesuffix(".part").rpartition(".")[2]
        if number.isdecimal() and not _runs(int(number)):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name == "nt":  # signal 0 would end it there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _lines_of(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def _is_of(line: bytes, name: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and row.get("output") == name


def encode_row(row: Row) -> bytes:
    """A row as its line, with the checksum."""
    body = json.dumps(row, allow_nan=False, separators=(",", ":")).encode("ascii")[1:]
    return _CRC % zlib.crc32(body) + body + b"\n"


def _parse(line: bytes) -> Row | None:
    """The row of a line that fits its checksum; None for any other."""
    body = line[_HEAD:-1]
    if not line.endswith(b"\n") or line[:_HEAD] != _CRC % zlib.crc32(body):
        return None
    try:
        row = json.loads(b"{" + body)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _whole_lines(file: IO[bytes]) -> int:
    """How many bytes of it are whole lines."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        block = file.read(end - start)
        found = block.rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _differences(found: Row, wanted: Row) -> Iterator[str]:
    if found["palidecode_journal"] != wanted["palidecode_journal"]:
        yield f"its schema is {found['palidecode_journal']}, not {wanted['palidecode_journal']}"
        return
    for name in ("version", "command"):
        if found.get(name) != wanted[name]:
            yield f"{name} was {found.get(name)}, now {wanted[name]}"
    for part, show in (("settings", _value), ("hashes", _hash)):
        old, new = found.get(part, {}), wanted[part]
        for name in [*new, *(name for name in old if name not in new)]:
            if old.get(name) != new.get(name):
                yield f"{name} was {show(old.get(name))}, now {show(new.get(name))}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def _hash(value: Any) -> str:
    return "not there" if value is None else f"sha256 {str(value)[:8]}"


def sync_folder(folder: Path) -> None:
    """Make a new, renamed or deleted name last through a power cut, where folders can be synced."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
