"""Files of rows: JSON Lines, a JSON array, CSV, Parquet; all but the last also with gzip.

The content says which it is, so that ``answers.json`` may hold lines or an array; only CSV is
known by its ending. What an object means is in `palidecode.answers.rows`.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import os
import shutil
import tempfile
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from palidecode.errors import InputError

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

Kind: TypeAlias = Literal["lines", "array", "csv", "parquet"]
Object: TypeAlias = dict[str, object]

LINES = (".jsonl", ".ndjson")
ROWS = (*LINES, ".json", ".csv", ".tsv", ".parquet", ".gz")
"""Endings of files of rows; any other is read as JSON Lines."""

_LONGEST_LINE = 1 << 24
_LONGEST_CELL = 1 << 24
_LONGEST_ARRAY = 1 << 30
_BATCH = 1024  # rows of Parquet
_UTF16 = (BOM_UTF16_BE, BOM_UTF16_LE)
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_NUMBERS = ("width", "height", "box_image")


class Problem(NamedTuple):
    """A row, or a part of one, that was skipped."""

    line: int
    reason: str


class Twice(NamedTuple):
    """An object of JSON that has a key twice, so that nothing says which value is meant."""

    key: str


@contextmanager
def open_rows(path: str | os.PathLike[str]) -> Iterator[RowFile]:
    """Open a file of rows; a pipe is copied first, because rows are read twice.

    Raises
    ------
    InputError
        If the file can't be read.
    """
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(Path(path).open("rb"))
            if not file.seekable():
                copy = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, copy)
                file = copy
            packed = _head(file).startswith(_GZIP)
            if packed:
                unpacked = gzip.GzipFile(fileobj=file)
                file = stack.enter_context(io.BufferedReader(unpacked))
            if _head(file).startswith(_UTF16):
                raise InputError(f"{path}: is UTF-16; save it as UTF-8")
            yield RowFile(file, os.fspath(path), packed)
        except (OSError, EOFError, zlib.error) as error:  # also of a damaged gzip file
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: can't be read: {reason}") from error


class RowFile:
    """The objects of an open file.

    Attributes
    ----------
    path : str
    packed : bool
        True for gzip.
    kind : {"lines", "array", "csv", "parquet"}
    """

    def __init__(self, file: IO[bytes], path: str, packed: bool) -> None:
        self._file, self.path, self.packed = file, path, packed
        self.kind = self._kind()

    def _kind(self) -> Kind:
        head, name = _head(self._file), Path(self.path.removesuffix(".gz"))
        if head.startswith(_PARQUET):
            return "parquet"
        if name.suffix.lower() in (".csv", ".tsv"):
            return "csv"
        lines = name.suffix.lower() in LINES
        return "array" if head.startswith(b"[") and not lines else "lines"

    def objects(
        self, columns: Collection[str] | None = None
    ) -> Iterator[tuple[int, Object] | Problem]:
        """Yield the objects with their numbers, from 1: of lines, or of rows.

        Of Parquet only `columns` are read, which takes less time; the others are None.

        Raises
        ------
        InputError
            If the file is no such file, or pyarrow isn't installed and it is Parquet.
        """
        self._file.seek(0)
        if self.kind == "array":
            yield from self._array()
        elif self.kind == "csv":
            yield from self._csv()
        elif self.kind == "parquet":
            yield from self._parquet(columns)
        else:
            for line, text in self.lines():
                try:
                    yield line, read_object(text)
                except InputError as error:
                    yield Problem(line, str(error))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of JSON Lines, as `read_lines` does."""
        self._file.seek(0)
        return _lines(self._file)

    def _array(self) -> Iterator[tuple[int, Object] | Problem]:
        text = self._file.read(_LONGEST_ARRAY + 1 if self.packed else -1)
        if self.packed and len(text) > _LONGEST_ARRAY:
            raise InputError(f"{self.path}: unpacks to over 1 GiB; write JSON Lines instead")
        try:
            items = _JSON.decode(text.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: not JSON: {error}") from error
        for number, item in enumerate(items, 1):
            if isinstance(item, Twice):
                yield Problem(number, f"has the key {item.key!r} twice")
            elif isinstance(item, dict):
                yield number, item
            else:
                yield Problem(number, "not a JSON object")

    def _csv(self) -> Iterator[tuple[int, Object] | Problem]:
        csv.field_size_limit(_LONGEST_CELL)
        text = io.TextIOWrapper(self._file, "utf-8-sig", newline="")
        try:
            header = text.readline(_LONGEST_LINE)
            text.seek(0)
            delimiter = max(",\t;", key=header.count)
            rows = csv.reader(_short(text), delimiter=delimiter, strict=True)
            columns = next(rows, [])
            if len(set(columns)) < len(columns):
                raise InputError(f"{self.path}: two columns have the same name")
            yield from _table(rows, columns)
        except (ValueError, csv.Error) as error:  # no UTF-8; a damaged header
            raise InputError(f"{self.path}: can't be read as CSV: {error}") from error
        finally:
            text.detach()

    def _parquet(self, columns: Collection[str] | None) -> Iterator[tuple[int, Object]]:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise InputError(
                f"{self.path}: Parquet needs: pip install 'palidecode[parquet]'"
            ) from error
        number = 0
        try:
            file = pq.ParquetFile(self._file)
            names = dict.fromkeys(file.schema_arrow.names)
            wanted = [name for name in names if columns is None or name in columns]
            if not wanted:
                yield 1, names
            for batch in file.iter_batches(_BATCH, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, names | row
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"{self.path}: can't be read: {reason}") from error


def read_lines(
    path: str | os.PathLike[str], start: int, stop: int, number: int
) -> Iterator[tuple[int, bytes]]:
    """Read the non-empty lines of a file, with their numbers from ``number + 1``.

    Lines that begin at byte offsets from `start` up to, but not including, `stop`.

    Raises
    ------
    InputError
        If the file can't be read.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(start)
            yield from _lines(file, stop, number)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def _lines(
    file: IO[bytes], stop: int | None = None, number: int = 0
) -> Iterator[tuple[int, bytes]]:
    while (stop is None or file.tell() < stop) and (text := file.readline(_LONGEST_LINE)):
        number += 1
        piece = text
        while len(piece) == _LONGEST_LINE and not piece.endswith(b"\n"):
            piece = file.readline(_LONGEST_LINE)  # the rest of a line that is too long
        if text.strip():
            yield number, text


def read_object(text: bytes) -> Object:
    """Parse the JSON object of a line."""
    try:
        row = _JSON.decode(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})") from error
    if isinstance(row, Twice):
        raise InputError(f"has the key {row.key!r} twice")
    if not isinstance(row, dict):
        raise InputError("not a JSON object with 'output' or 'token_ids'")
    return row


def _object(pairs: list[tuple[str, object]]) -> Object | Twice:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    return Twice(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _head(file: IO[bytes]) -> bytes:
    """Return the first bytes that aren't white space, nor a byte order mark."""
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    return head.removeprefix(BOM_UTF8).lstrip()[:4]


def _short(text: io.TextIOWrapper) -> Iterator[str]:
    """Yield the lines of a table, none of them endless."""
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE and not line.endswith("\n"):
            raise ValueError(f"a line of more than {_LONGEST_LINE:,} characters")
        yield line


def _table(rows: CsvReader, columns: Sequence[str]) -> Iterator[tuple[int, Object] | Problem]:
    """Yield the rows of a table below its header."""
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:  # a cell that is too long or not closed
            yield Problem(rows.line_num, f"can't be read as CSV: {error}")
            continue
        if row is None:
            return
        if len(row) == len(columns):
            cells = zip(columns, row, strict=True)
            yield rows.line_num, {key: _cell(key, text) for key, text in cells}
        elif row:
            which = "more" if len(row) > len(columns) else "fewer"
            yield Problem(rows.line_num, f"has {which} cells than the header")


def _cell(key: str, text: str) -> object:
    """Read a cell of CSV: text, a size, or a list or object as JSON or Python write it."""
    if not text:
        return None
    try:
        if key in _NUMBERS:
            return float(text)
        if text.startswith(("[", "{")):
            try:
                return _JSON.decode(text)
            except ValueError:
                return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass
    return text
