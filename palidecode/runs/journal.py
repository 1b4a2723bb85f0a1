"""The folder of an unfinished run: which run it is, what is finished, and a lock.

``coco.json.shards`` holds a header, one line with a checksum, and the run's shards. It goes when
the output is written.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from palidecode.coco.shards import SUFFIX, Failure, Shard, read_shard
from palidecode.codec.weights import sha256_of
from palidecode.errors import InputError
from palidecode.files import CREATE, replacing, take_lock, unwritten
from palidecode.version import __version__

HEADER = "header.jsonl"
FAILURES = "failures.jsonl"
OWNER = "owner"
"""File that stands in for the lock where the file system has none."""

_CRC = b'{"crc":"%08x",'
_HEAD = len(_CRC % 0)
_SHOWN = 3  # differences between two runs
_LONGEST_VALUE = 60
_TRIES, _PAUSE = 100, 0.1  # seconds, at the lock of failures.jsonl
_WAY_OUT = "write to another -o, or discard that run with --restart"


@dataclass(frozen=True)
class Header:
    """Identity of a run; runs that differ in any of it never mix.

    Attributes
    ----------
    command : str
        ``predict`` or ``decode``.
    settings : mapping
        Options that decide a number of the output, as `dataclasses.asdict` gives them.
    hashes : mapping of str to str
        Name and SHA-256 of the files that do: the model's, the mask codec's.
    """

    command: str
    settings: Mapping[str, object]
    hashes: Mapping[str, str]

    def as_row(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "version": __version__,
            "command": self.command,
            # As they will be read again: tuples are lists there.
            "settings": json.loads(json.dumps(dict(self.settings))),
            "hashes": dict(self.hashes),
        }


def shards_folder(output: str | os.PathLike[str]) -> Path:
    """Return the folder of an output's unfinished run: ``coco.json.shards``."""
    return Path(output).with_name(Path(output).name + ".shards")


def hash_files(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each file, several together: a model's files are many gigabytes.

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
    """Folder of one output's unfinished run, locked during the ``with`` block.

    A folder without shards is deleted at the end, and can be used by any run.

    Parameters
    ----------
    output : str or path

    Attributes
    ----------
    folder : Path

    Raises
    ------
    InputError
        If the folder can't be written, or another process uses it.
    """

    def __init__(self, output: str | os.PathLike[str]) -> None:
        if os.path.isdir(output):
            raise InputError(f"{output}: is a directory; name a file to write")
        self.folder = shards_folder(output)
        self._path = self.folder / HEADER
        self._aside = self.folder.with_name(f".{self.folder.name}.part")  # while it is deleted
        self._file: IO[bytes]
        self._owner: Path | None = None
        self._shard = lru_cache(maxsize=4)(read_shard)

    def __enter__(self) -> Journal:
        try:
            self._file = self._locked()
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.folder}: can't be written: {reason}") from error
        return self

    def __exit__(self, *problem: object) -> None:
        self._shard.cache_clear()
        if not self.shards():
            self.remove()
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)
        self._file.close()

    def begin(self, header: Header, *, restart: bool = False) -> None:
        """Make sure that the shards are those of this run, or that there are none.

        Raises
        ------
        InputError
            If they are another run's, naming what differs, or the header is damaged or can't be
            written.
        """
        wanted = header.as_row()
        shutil.rmtree(self._aside, ignore_errors=True)  # a killed run's
        for left in self.folder.iterdir():
            stale = restart and left.suffix == SUFFIX
            if stale or left.suffix == ".part":
                left.unlink(missing_ok=True)
        if self.shards():
            self._check(wanted)
            return
        try:
            self._file.seek(0)
            self._file.truncate()
            data = memoryview(encode_row(wanted))
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritten(self._path, error) from error
        sync_folder(self.folder)
        sync_folder(self.folder.parent)

    def shards(self) -> list[Path]:
        """Return the files of the shards."""
        try:
            return [path for path in self.folder.iterdir() if path.suffix == SUFFIX]
        except FileNotFoundError:
            return []

    def shard(self, name: str) -> Shard:
        """Read a shard; the last few are kept in memory.

        Raises
        ------
        InputError
            If it was damaged since the run began.
        """
        shard = self._shard(self.folder / name)
        if shard is None:
            raise InputError(
                f"{self.folder / name}: is damaged; run the same command again to redo it"
            )
        return shard

    def remove(self, output: Path | None = None) -> None:
        """Delete it: the run is over. `output` is made to last before."""
        if output is not None:
            with output.open("rb") as file:
                os.fsync(file.fileno())
            sync_folder(output.parent)
        # Out of the way in one step: a run that finds half of the shards would redo the others.
        shutil.rmtree(self._aside, ignore_errors=True)
        with suppress(OSError):  # Windows renames no folder of open files
            os.replace(self.folder, self._aside)
        for folder in (self._aside, self.folder):
            shutil.rmtree(folder, ignore_errors=True)
        self._owner = None

    def _locked(self) -> IO[bytes]:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError), ExitStack() as stack:
                file = os.fdopen(os.open(self._path, CREATE, 0o666), "r+b", buffering=0)
                stack.callback(file.close)
                try:
                    held = take_lock(file.fileno(), self._path)
                except BlockingIOError as error:
                    raise InputError(
                        f"{self.folder}: another process is writing it; wait for it, or write to "
                        "another -o"
                    ) from error
                if not held and os.name != "nt":
                    self._own()
                    # The other one may have finished in between.
                    take_lock(file.fileno(), self._path)
                stack.pop_all()
                return file

    def _own(self) -> None:
        """Create the file that keeps other runs away where there are no locks.

        It names its owner. Nobody but the user can know if that one is still alive on another
        machine, so what a killed run leaves isn't deleted.
        """
        path = self.folder / OWNER
        try:
            number = os.open(path, CREATE | os.O_EXCL, 0o666)
        except FileExistsError as error:
            owner = path.read_text(errors="replace").strip() or "another process"
            raise InputError(
                f"{self.folder}: {owner} is writing it, and this file system has no locks to see "
                f"if it is alive (flock). If it isn't, delete {path}; or write to another -o"
            ) from error
        with os.fdopen(number, "w") as file:
            file.write(f"process {os.getpid()} on {platform.node()}\n")
        self._owner = path

    def _check(self, wanted: Mapping[str, Any]) -> None:
        self._file.seek(0)
        found = _parse(self._file.read())
        if found is None:
            raise InputError(f"{self._path}: is damaged; {_WAY_OUT}")
        if not all(isinstance(found.get(part), dict) for part in ("settings", "hashes")):
            raise InputError(f"{self._path}: is not the header of a run; {_WAY_OUT}")
        try:
            differences = list(_differences(found, wanted))
        except RecursionError:
            differences = ["its settings are nested too deeply"]
        if differences:
            listed = "; ".join(differences[:_SHOWN])
            more = len(differences) - _SHOWN
            listed += f"; and {more} more" if more > 0 else ""
            raise InputError(f"{self.folder}: belongs to another run: {listed}. {_WAY_OUT}")


def write_failures(output: Path, failures: Iterable[Failure]) -> Path | None:
    """List what failed in ``failures.jsonl`` beside the output; None where nothing did.

    Every row names its output: those of other outputs in the folder are kept, and the file is
    deleted when there are none.

    Raises
    ------
    InputError
        If it can't be written.
    """
    path = output.with_name(FAILURES)
    rows = [json.dumps({"output": output.name, **row}).encode() for row in failures]
    if not rows and not os.path.lexists(path):
        return None
    try:
        with _lock_of(path) as number:
            kept = [line for line in _lines_of(number) if not _is_of(line, output.name)]
            if not rows and not kept:
                path.unlink()
                return None
            with replacing(path, "wb") as file:
                file.writelines(line + b"\n" for line in [*kept, *rows])
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror or error}") from error
    return path if rows else None


@contextmanager
def _lock_of(path: Path) -> Iterator[int]:
    """Lock a file that several runs replace; its number. Others need it for a moment only."""
    for _ in range(_TRIES):
        number = os.open(path, CREATE, 0o666)
        try:
            try:
                take_lock(number, path)
            except FileNotFoundError:  # replaced meanwhile
                continue
            except BlockingIOError:
                time.sleep(_PAUSE)
                continue
            yield number
            return
        finally:
            os.close(number)
    raise InputError(f"{path}: another process is writing it; run the same command again")


def _lines_of(number: int) -> list[bytes]:
    """Lines of an open file, without a last one that was cut."""
    with os.fdopen(os.dup(number), "rb") as file:
        *lines, last = file.read().split(b"\n")
    with suppress(ValueError, RecursionError):
        json.loads(last)
        lines.append(last)
    return lines


def _is_of(line: bytes, name: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and row.get("output") == name


def encode_row(row: Mapping[str, object]) -> bytes:
    """Return a row as its line, with the checksum."""
    body = json.dumps(row, allow_nan=False, separators=(",", ":")).encode("ascii")[1:]
    return _CRC % zlib.crc32(body) + body + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the row of a line that fits its checksum; None for any other."""
    body = line[_HEAD:-1]
    if not line.endswith(b"\n") or line[:_HEAD] != _CRC % zlib.crc32(body):
        return None
    try:
        row = json.loads(b"{" + body)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for name in ("version", "command"):
        if found.get(name) != wanted[name]:
            yield f"{name} was {found.get(name)}, now {wanted[name]}"
    for part, show in (("settings", _value), ("hashes", _hash)):
        old, new = dict(_leaves(found[part])), dict(_leaves(wanted[part]))
        for path in [*new, *(path for path in old if path not in new)]:
            if old.get(path) != new.get(path):
                yield f"{path[-1]} was {show(old.get(path))}, now {show(new.get(path))}"


def _leaves(
    values: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], object]]:
    """Values of nested options, each with the path of its name."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _value(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def _hash(value: object) -> str:
    return "missing" if value is None else f"sha256 {str(value)[:8]}"


def sync_folder(folder: Path) -> None:
    """Make new, renamed and deleted names last through a power cut, where folders can be synced."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
