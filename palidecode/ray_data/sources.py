"""Sources of rows: folders, COCO files, Parquet, JSON Lines, CSV, WebDataset, and Ray Datasets.

A source gives the driver its shards, without tasks of Ray and without holding them: rows of
files, or where workers find them. It can be a Ray Dataset, too. Rows have these columns (null or
absent where unknown):

====================  ===========================================================================
``image``             the picture's name in the output
``path``, ``bytes``   its file, or the content of its file
``group``             the files of all pictures that a prompt is about, where it is several
``width``, ``height`` its size in pixels
``output``            an answer's text; or ``token_ids``, its token ids
``prompt``            the prompt of the answer
``scores``            one per box
``codec``             the weights that the answer's codes belong to
``line``              the row's number in its source
``problem``           why a row can't be used; it is listed as a failure
====================  ===========================================================================

Any other Dataset with these columns can be used, too.
"""

from __future__ import annotations

import os
import queue
import re
import tarfile
import threading
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from palidecode.answers.row_files import LINES, Problem, open_rows, read_lines, read_object
from palidecode.answers.rows import (
    IMAGE_KEYS,
    OUTPUT_KEYS,
    SIZE_KEYS,
    AnswerRow,
    RowReader,
    candidates,
)
from palidecode.coco.reading import AnyRow, read_dataset
from palidecode.coco.skips import SkippedRowsWarning, Skips
from palidecode.errors import InputError
from palidecode.files import PICTURES, inside
from palidecode.ray_data.cluster import in_order, need_ray, ordered, reading
from palidecode.runs.answers import DecodeOptions
from palidecode.runs.jobs import Record
from palidecode.runs.sources import PictureFile, Unread, each_picture, kinds_of

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_BLOCK = 4096  # rows
_ENDINGS = {"jsonl": LINES, "parquet": (".parquet",), "tar": (".tar",)}
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # key and ending of a file in a .tar
_SECOND = 1.0
_PICTURE = ["image", "path", "group", "problem"]
_OURS = {"line", "problem"}
"""Columns that mean something here, and anything in a file."""


@dataclass(frozen=True)
class Lines:
    """Lines of a JSON Lines file, between two byte offsets.

    Attributes
    ----------
    path : str
    start, stop : int
    number : int
        Lines before them.
    pictures : str, optional
        Rows are about pictures in this folder, and need no answer.
    box_image : int, optional
        See `RowReader`.
    """

    path: str
    start: int
    stop: int
    number: int
    pictures: str | None
    box_image: int | None = None

    def records(self) -> Iterator[Record]:
        """Read them; a line that can't be used has a ``problem``."""
        for line, text in read_lines(self.path, self.start, self.stop, self.number):
            try:
                row = read_object(text)
                if self.pictures is not None:
                    yield _picture(line, row, self.pictures, self.box_image)
                else:
                    own = {"line": line, "problem": None, "bytes": None}
                    yield {**row, **own}
            except InputError as error:
                yield {"line": line, "problem": str(error)}


Part: TypeAlias = "Lines | list[Record] | pa.Table"
"""Rows of a source, or where they are; small enough to be sent."""


def records_of(parts: Iterable[Part]) -> list[Record]:
    """Return the rows of parts; values that are null are missing.

    Raises
    ------
    InputError
        If their file can't be read.
    """
    found: list[Record] = []
    for part in parts:
        if isinstance(part, list):
            found += part
            continue
        rows = part.records() if isinstance(part, Lines) else part.to_pylist()
        found += [{key: value for key, value in row.items() if value is not None} for row in rows]
    return found


class Source(Protocol):
    """Rows in order."""

    def shards(self, size: int, columns: Sequence[str]) -> Generator[list[Part] | None]:
        """Yield `size` rows at a time, fewer at the end; None after a second without rows.

        Raises
        ------
        InputError
            If something can't be read.
        """

    def dataset(self) -> Dataset:
        """Return the rows as a Ray Dataset."""


@dataclass(frozen=True)
class PictureFiles:
    """Pictures of files and folders; for `box_image` see `each_picture`."""

    paths: tuple[str, ...]
    box_image: int | None = None

    def shards(self, size: int, columns: Sequence[str]) -> Generator[list[Part] | None]:
        skipped: Counter[str] = Counter()
        rows = map(_record, each_picture(self.paths, skipped, self.box_image))
        while some := list(islice(rows, size)):
            yield [some]
        if skipped:
            text = f"files that can't be read as pictures were skipped: {kinds_of(skipped)}"
            warnings.warn(text, SkippedRowsWarning, stacklevel=2)

    def dataset(self) -> Dataset:
        return _dataset(self)


def _record(item: PictureFile | Unread) -> Record:
    if isinstance(item, Unread):
        return {"image": item.name, "problem": item.reason}
    record = {"image": item.name, "path": item.path}
    return {**record, "group": list(item.group)} if item.group else record


@dataclass(frozen=True)
class CocoPictures:
    """Pictures that a COCO file names."""

    names: tuple[str, ...]
    folder: str

    def shards(self, size: int, columns: Sequence[str]) -> Generator[list[Part] | None]:
        for start in range(0, len(self.names), size):
            names = self.names[start : start + size]
            yield [[{"image": name, "path": os.path.join(self.folder, name)} for name in names]]

    def dataset(self) -> Dataset:
        return _dataset(self)


@dataclass(frozen=True)
class JsonLines:
    """JSON Lines: workers read them."""

    paths: tuple[str, ...]
    reader: RowReader
    pictures: bool = False

    def shards(self, size: int, columns: Sequence[str]) -> Generator[list[Part] | None]:
        for parts in self._lines(size):
            yield list[Part](parts)

    def _lines(self, size: int) -> Iterator[list[Lines]]:
        number, rows = 0, 0
        parts: list[Lines] = []
        about = (self.reader.images if self.pictures else None, self.reader.box_image)
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    start = stop = 0
                    first = number
                    for line in file:
                        number += 1
                        stop += len(line)
                        rows += not line.isspace()
                        if rows == size:
                            yield [*parts, Lines(path, start, stop, first, *about)]
                            parts, rows, start, first = [], 0, stop, number
                    if stop > start:
                        parts.append(Lines(path, start, stop, first, *about))
            except OSError as error:
                raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
        if rows:
            yield parts

    def dataset(self) -> Dataset:
        need_ray()
        import ray.data

        parts = [asdict(part) for shard in self._lines(_BLOCK) for part in shard]
        if not parts:
            raise InputError(f"{', '.join(self.paths)}: nothing in it")
        reader, pictures = self.reader, self.pictures

        def read(table: pa.Table) -> pa.Table:
            records = records_of(Lines(**part) for part in table.to_pylist())
            return to_source(
                [record if pictures else _answer(record, reader) for record in records]
            )

        with in_order():
            dataset = ray.data.from_items(parts, override_num_blocks=len(parts))
            return dataset.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=0)


@dataclass(frozen=True)
class RowFiles:
    """Answers in files that have no byte ranges: the driver reads them."""

    paths: tuple[str, ...]
    reader: RowReader

    def shards(self, size: int, columns: Sequence[str]) -> Generator[list[Part] | None]:
        rows = self._rows()
        while some := list(islice(rows, size)):
            yield [some]

    def _rows(self) -> Iterator[Record]:
        """Yield the rows, numbered through all files."""
        before = 0
        for path in self.paths:
            number = before
            with open_rows(path) as file:
                for found in file.objects():
                    number = before + found[0]
                    if isinstance(found, Problem):
                        yield {"line": number, "problem": found.reason}
                    else:
                        row = {key: value for key, value in found[1].items() if value is not None}
                        row.pop("problem", None)
                        yield {**row, "line": number}
            before = number

    def dataset(self) -> Dataset:
        need_ray()
        import ray.data

        blocks = []
        for parts in self.shards(_BLOCK, ()):
            assert parts is not None
            rows = [_answer(record, self.reader) for record in records_of(parts)]
            blocks.append(ray.put(to_source(rows)))
        with in_order():
            return ray.data.from_arrow_refs(blocks)  # type: ignore[arg-type]  # of two ObjectRefs


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet: the driver reads it, so that no row group is read by several workers."""

    paths: tuple[str, ...]

    def shards(self, size: int, columns: Sequence[str]) -> Generator[list[Part] | None]:
        parts: list[Part] = []
        free = size
        for table in self._tables(size, columns):
            if len(table) >= free:  # a table has at most `size` rows
                yield [*parts, table.slice(0, free)]
                rest = table.slice(free)
                parts, free = [rest] if len(rest) else [], size - len(rest)
            else:
                parts.append(table)
                free -= len(table)
        if parts:
            yield parts

    def _tables(self, size: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in self.paths:
            with _opened(path) as file:
                found = pq.ParquetFile(file)
                there = set(found.schema_arrow.names) - _OURS
                names = [name for name in columns if name in there]
                if not names:
                    raise InputError(f"{path}: has none of the columns {', '.join(columns)}")
                for batch in found.iter_batches(batch_size=size, columns=names):
                    yield pa.Table.from_batches([batch])

    def dataset(self) -> Dataset:
        need_ray()
        import ray.data

        with in_order():
            return ray.data.read_parquet(list(self.paths), num_cpus=0)


@dataclass(frozen=True)
class TarFiles:
    """WebDataset: the driver reads the files, which can only be read from their beginning."""

    paths: tuple[str, ...]
    output_key: str | None = None
    pictures: bool = False

    def shards(self, size: int, columns: Sequence[str]) -> Generator[list[Part] | None]:
        rows = (row for path in self.paths for row in self._samples(path))
        while some := list(islice(rows, size)):
            yield [some]

    def dataset(self) -> Dataset:
        need_ray()
        import ray.data

        def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
            rows = (row for path in batch["item"] for row in self._samples(path))
            while some := list(islice(rows, 64)):
                yield to_source(some)

        with in_order():
            files = ray.data.from_items(list(self.paths), override_num_blocks=len(self.paths))
            return files.map_batches(read, batch_size=None, num_cpus=0)

    def _samples(self, path: str) -> Iterator[Record]:
        return (_sample(key, files, self.output_key, self.pictures) for key, files in _tar(path))


@dataclass(frozen=True)
class DatasetRows:
    """Rows of a Ray Dataset, which takes CPUs of the cluster."""

    rows: Dataset

    def shards(self, size: int, columns: Sequence[str]) -> Generator[list[Part] | None]:
        """Read in a thread, so that waiting for the cluster can be interrupted."""
        tables: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=2)
        stopped = threading.Event()

        def put(item: pa.Table | BaseException | None) -> None:
            while not stopped.is_set():
                with suppress(queue.Full):
                    tables.put(item, timeout=_SECOND)
                    return

        def read() -> None:
            try:
                with reading(ordered(self.rows), size) as batches:
                    for table in batches:
                        names = [name for name in columns if name in table.column_names]
                        put(table.select(names))
                        if stopped.is_set():
                            return
                put(None)
            except BaseException as error:  # is raised by the one that reads the queue
                put(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            while True:
                try:
                    item = tables.get(timeout=_SECOND)
                except queue.Empty:
                    yield None
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield [item]
        finally:
            stopped.set()
            thread.join()

    def dataset(self) -> Dataset:
        return self.rows


def source_schema() -> pa.Schema:
    """Return the columns of a source."""
    import pyarrow as pa

    return pa.schema(
        {
            "image": pa.string(),
            "path": pa.string(),
            "group": pa.list_(pa.string()),
            "bytes": pa.large_binary(),
            "width": pa.int64(),
            "height": pa.int64(),
            "output": pa.string(),
            "token_ids": pa.list_(pa.int64()),
            "prompt": pa.string(),
            "scores": pa.list_(pa.float64()),
            "codec": pa.string(),
            "line": pa.int64(),
            "problem": pa.string(),
        }
    )


def to_source(rows: Sequence[Record]) -> pa.Table:
    """Return rows as an Arrow table; one that has a value of another type has a ``problem``."""
    import pyarrow as pa

    schema = source_schema()
    try:
        return pa.Table.from_pylist(list(rows), schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if len(rows) == 1:
            problem = {"line": rows[0].get("line"), "problem": f"a value can't be used: {error}"}
            return pa.Table.from_pylist([problem], schema)
        return pa.concat_tables([to_source([row]) for row in rows])


def read_pictures(paths: Paths) -> Dataset:
    """Read the pictures of files and folders (and the folders in them), in order of their names.

    Rows hold paths, so the workers must see the same folder. Pictures in an object store
    (``s3://…``) are read with ``ray.data.read_binary_files(…, include_paths=True)`` and renamed.

    Raises
    ------
    InputError
        As `palidecode predict` does: no such folder, no picture, two of the same name.
    """
    return _pictures(paths).dataset()


def read_coco(path: str | os.PathLike[str], images: str | os.PathLike[str]) -> Dataset:
    """Read the pictures of a COCO file, in its order, in the directory `images`.

    Images without a usable name are skipped with a warning.

    Raises
    ------
    InputError
        If it is no COCO file, or has no image with a usable name.
    """
    return _coco(path, images).dataset()


def read_parquet(paths: Paths) -> Dataset:
    """Read rows of Parquet files, in the order of the files' names.

    Columns of other names are renamed with `ray.data.Dataset.rename_columns`.

    Parameters
    ----------
    paths : path, or sequence of paths
        Files or folders, also of an object store.
    """
    return ParquetFiles(_files(paths, "parquet")).dataset()


def read_jsonl(
    paths: Paths,
    images: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    *,
    output_key: str | None = None,
    image_key: str | None = None,
    box_image: int | None = None,
    pictures: bool = False,
) -> Dataset:
    """Read rows of JSON Lines, as `palidecode decode` does: see `AnswerRow`.

    Ray's own reader ends at the first broken line and infers types from some; this one hands
    byte ranges of the files to Ray, and a broken line is one row with a ``problem``.

    Parameters
    ----------
    paths : path, or sequence of paths
        Lines are numbered through all files.
    images : path, optional
        The folder of the pictures.
    size : tuple of 2 int, optional
        Width and height for rows that name neither a size nor a picture.
    output_key, image_key : str, optional
    box_image : int, optional
        Keys of the answers and the pictures, and which of several has the boxes; see
        `palidecode.answers.rows.read_rows`.
    pictures : bool
        Rows are about pictures in `images`, and need no answer.

    Raises
    ------
    InputError
        If a file can't be read, or which key has the answers isn't clear.
    """
    reader = RowReader.of(images, size, output_key, image_key, box_image)
    return _jsonl(_files(paths, "jsonl"), reader, pictures).dataset()


def read_webdataset(paths: Paths) -> Dataset:
    """Read samples of WebDataset tar files: pictures, and the answers in ``.json`` or ``.txt``.

    A sample's name is its key and the picture's ending. A ``.json`` has the keys of an
    `AnswerRow`; a ``.txt`` is the answer.
    """
    return TarFiles(_files(paths, "tar")).dataset()


def source_of(
    source: Paths | Dataset,
    images: str | os.PathLike[str] | None = None,
    box_image: int | None = None,
) -> Source:
    """Return a source of pictures by the endings of its files, or of a Dataset.

    `box_image` is the picture that boxes are measured in, where a row of JSON Lines names several.

    Raises
    ------
    InputError
        For files that can't be a source.
    """
    if not isinstance(source, str | os.PathLike | Sequence):
        return DatasetRows(source)
    ending = _ending(source)
    if ending == ".parquet":
        return ParquetFiles(_files(source, "parquet"))
    if ending == ".tar":
        return TarFiles(_files(source, "tar"), pictures=True)
    if ending in LINES:
        reader = RowReader.of(images, None, None, None, box_image)
        return _jsonl(_files(source, "jsonl"), reader, True)
    if ending == ".json":
        if images is None:
            raise InputError(
                "where are the pictures of the COCO file? images=DIR, or --pictures DIR"
            )
        return _coco(_listed(source)[0], images)
    return _pictures(source, box_image)


def answers_of(source: Paths | Dataset, options: DecodeOptions) -> tuple[Source, RowReader | None]:
    """Return a source of answers, and the reader of its rows where their keys were chosen.

    Raises
    ------
    InputError
        For files that can't be a source, and if which key has the answers isn't clear.
    """
    if not isinstance(source, str | os.PathLike | Sequence):
        return DatasetRows(source), None
    options.check_images()
    ending, reader = _ending(source), options.reader()
    if ending == "":
        raise InputError(f"{source}: answers come in .jsonl, .json, .csv, .parquet or .tar files")
    if ending == ".tar":
        # The key of the answers of its rows is ours.
        ours = replace(reader, outputs=(), pictures=IMAGE_KEYS)
        return TarFiles(_files(source, "tar"), options.output_key), ours
    if ending == ".parquet":
        files = _files(source, "parquet")
        return ParquetFiles(files), _chosen(reader, files)
    files = _files(source, "jsonl")
    with_ranges = all(map(_has_ranges, files))
    blank = files[0].removesuffix(".gz").endswith((".csv", ".tsv"))
    reader = replace(_chosen(reader, files), blank=blank)
    return (_jsonl(files, reader, False) if with_ranges else RowFiles(files, reader)), reader


# -- parts -------------------------------------------------------------------------------


def _pictures(paths: Paths, box_image: int | None = None) -> PictureFiles:
    return PictureFiles(tuple(map(os.path.abspath, _listed(paths))), box_image)


def _coco(path: str | os.PathLike[str], images: str | os.PathLike[str]) -> CocoPictures:
    skips = Skips()
    read = read_dataset(path, AnyRow, skips, needs=("images",))
    folder, names = os.path.abspath(images), []
    for offset, image in read.images.numbered():
        try:
            if not image.file_name:
                raise InputError("no file_name")
            inside(folder, image.file_name)
            names.append(image.file_name)
        except InputError as error:
            at = skips.at("image", offset)
            skips.add("image", "bad_name", offset, f"{at}: {error}")
    if not names:
        raise InputError(f"{path}: has no images with a usable name: {skips}")
    skips.warn(str(path))
    return CocoPictures(tuple(names), folder)


def _jsonl(paths: tuple[str, ...], reader: RowReader, pictures: bool) -> JsonLines:
    if pictures and reader.images is None:
        raise InputError("where are the pictures? images=DIR, or --pictures DIR")
    if reader.images is not None and not os.path.isdir(reader.images):
        raise InputError(f"{reader.images}: no such directory of pictures")
    if reader.images is not None:
        reader = replace(reader, images=os.path.abspath(reader.images))
    return JsonLines(paths, reader if pictures else _chosen(reader, paths), pictures)


def _chosen(reader: RowReader, paths: Sequence[str]) -> RowReader:
    """Choose the keys of answers in files of this machine, and the folder of their pictures."""
    files = [path for path in paths if "://" not in path]
    folders = {os.path.dirname(path) for path in files}
    folder = folders.pop() if len(folders) == 1 else ""
    if files and not reader.outputs:
        reader = reader.choose(_all_candidates(files), f"{', '.join(files[:3])}: ")
    return replace(reader, folder=folder)


def _all_candidates(paths: Iterable[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    for path in paths:
        with open_rows(path) as file:
            yield from candidates(file)


def _has_ranges(path: str) -> bool:
    """Return True for plain JSON Lines, whatever their ending."""
    with open_rows(path) as file:
        return file.kind == "lines" and not file.packed


def _ending(paths: Paths) -> str:
    """Return the ending that all files share, in lower case; else nothing."""
    endings = {Path(path).suffix.lower() for path in _listed(paths)}
    return endings.pop() if len(endings) == 1 else ""


def _listed(paths: Paths) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _files(paths: Paths, kind: str) -> tuple[str, ...]:
    """List files, and those in folders, in order of their names.

    They are absolute: workers start in other folders. Addresses stay as they are.
    """
    endings = _ENDINGS[kind]
    found: list[str] = []
    for path in [os.fspath(item) for item in _listed(paths)]:
        if os.path.isdir(path):
            inside_it = sorted(file for file in Path(path).rglob("*") if file.suffix in endings)
            if not inside_it:
                raise InputError(f"{path}: no file in it that ends in {' or '.join(endings)}")
            found += map(os.path.abspath, inside_it)
        elif "://" in path:
            found.append(path)
        elif os.path.isfile(path):
            found.append(os.path.abspath(path))
        else:
            raise InputError(f"{path}: no such file or folder")
    return tuple(found)


def _dataset(source: Source) -> Dataset:
    """Return a Dataset of names and paths, which go to Ray block by block."""
    need_ray()
    import ray.data

    blocks = []
    for parts in source.shards(_BLOCK, ()):
        assert parts is not None
        blocks.append(ray.put(to_source(records_of(parts)).select(_PICTURE)))
    with in_order():
        return ray.data.from_arrow_refs(blocks)  # type: ignore[arg-type]  # of Ray's two ObjectRefs


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file or an address; what can't be read in the ``with`` block is one clear error."""
    import pyarrow as pa
    import pyarrow.fs

    try:
        with ExitStack() as stack:
            if "://" in path:
                system, name = pyarrow.fs.FileSystem.from_uri(path)
                yield cast("IO[bytes]", stack.enter_context(system.open_input_file(name)))
            else:
                yield stack.enter_context(open(path, "rb"))
    except (OSError, EOFError, ValueError, pa.ArrowException, tarfile.TarError) as error:
        reason = str(getattr(error, "strerror", None) or error).strip().partition("\n")[0]
        raise InputError(f"{path}: can't be read: {reason}") from error


def _picture(line: int, row: Mapping[str, object], images: str, box_image: int | None) -> Record:
    reader = RowReader(box_image=box_image)
    names = [picture.name for picture in reader.named(row)]
    boxed = reader.picture(row).name
    paths = []
    for name in names:
        if name is None:
            raise InputError("needs 'image', a file name")
        inside(images, name)
        paths.append(os.path.join(images, name))
    assert boxed is not None
    record = {"line": line, "image": boxed, "path": os.path.join(images, boxed)}
    return record if len(paths) == 1 else {**record, "group": paths}


def _answer(record: Record, reader: RowReader) -> Record:
    """Return the columns of an answer."""
    return record if "problem" in record else _columns(reader.item(record["line"], record))


def _columns(row: AnswerRow | Problem) -> dict[str, object]:
    if isinstance(row, Problem):
        return {"line": row.line, "problem": row.reason}
    answer = {"output" if isinstance(row.answer, str) else "token_ids": row.answer}
    size = {"width": row.size[0], "height": row.size[1]}
    values = {"prompt": row.prompt or None, "scores": row.scores, "codec": row.codec or None}
    return {"line": row.line, "image": row.name, **size, **answer, **values}


def _tar(path: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the samples of a .tar: consecutive files whose names differ in their endings."""
    with _opened(path) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
        key, files = "", dict[str, bytes]()
        for member in tar:
            name = _SAMPLE.fullmatch(member.name)
            if name is None or not member.isfile():
                continue
            if name[1] != key and files:
                yield key, files
                files = {}
            key, content = name[1], tar.extractfile(member)
            assert content is not None
            files[name[2].lower()] = content.read()
        if files:
            yield key, files


def _sample(key: str, files: Mapping[str, bytes], output_key: str | None, pictures: bool) -> Record:
    row: dict[str, Any] = {"image": key}
    ending = next((name for name in files if f".{name.rpartition('.')[2]}" in PICTURES), None)
    if ending is not None:
        row |= {"image": f"{key}.{ending}", "bytes": files[ending]}
    try:
        values = read_object(files["json"]) if "json" in files else {}
        if "txt" in files:
            values["output"] = files["txt"].decode()
        keys = {output_key} if output_key else {*OUTPUT_KEYS, "suffix"}
        if not pictures and not values.keys().isdisjoint(keys):
            row |= _typed(values, row["image"], output_key)
    except (InputError, UnicodeDecodeError) as error:
        row["problem"] = str(error)
    return {name: value for name, value in row.items() if value is not None}


def _typed(values: Mapping[str, object], name: str, output_key: str | None) -> dict[str, object]:
    """Return the columns of an answer; no size where the answer has none but its picture may."""
    reader = RowReader.of(None, (1, 1), output_key, None)
    found = _columns(reader.read(1, {**values, "image": name}))
    if all(values.get(key) is None for key in SIZE_KEYS):
        del found["width"], found["height"]
    del found["line"]
    return found


def in_folder(path: str) -> None:
    """Relative paths of the driver mean the same here, where there is such a folder."""
    if os.path.isdir(path):
        os.chdir(path)
