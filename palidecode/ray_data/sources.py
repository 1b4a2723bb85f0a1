"""Sources of rows: folders, COCO files, Parquet, JSON Lines, WebDataset.

Every reader returns a Ray Dataset of rows in the source's order, with these columns (null or
absent where unknown):

====================  ===========================================================================
``image``             the picture's name in the output
``path``, ``bytes``   its file, or the content of its file
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
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.answers.jsonl import AnswerRow, read_lines, read_object, read_row
from palidecode.coco.reading import AnyRow, read_dataset
from palidecode.coco.skips import SkippedRowsWarning, Skips
from palidecode.errors import InputError
from palidecode.files import PICTURES, inside
from palidecode.ray_data.cluster import in_order, need_ray
from palidecode.runs.sources import PictureFile, each_picture, kinds_of

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

ANSWER_KEYS = ("output", "token_ids", "suffix")
_BLOCK = 4096  # rows


def source_schema() -> pa.Schema:
    """Return the columns of a source."""
    import pyarrow as pa

    return pa.schema(
        {
            "image": pa.string(),
            "path": pa.string(),
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


def read_pictures(paths: Paths) -> Dataset:
    """Read the pictures of files and folders (and the folders in them), in order of their names.

    Rows hold paths, so the workers must see the same folder. Pictures in an object store
    (``s3://…``) are read with ``ray.data.read_binary_files(…, include_paths=True)`` and renamed.

    Raises
    ------
    InputError
        As `palidecode predict` does: no such folder, no picture, two of the same name.
    """
    skipped: Counter[str] = Counter()
    dataset = _dataset(
        (item.name, item.path, None)
        if isinstance(item, PictureFile)
        else (item.name, None, item.reason)
        for item in each_picture(_listed(paths), skipped)
    )
    if skipped:
        text = f"files that can't be read as pictures were skipped: {kinds_of(skipped)}"
        warnings.warn(text, SkippedRowsWarning, stacklevel=2)
    return dataset


def read_coco(path: str | os.PathLike[str], images: str | os.PathLike[str]) -> Dataset:
    """Read the pictures of a COCO file, in its order, in the directory `images`.

    Images without a usable name are skipped with a warning.

    Raises
    ------
    InputError
        If it is no COCO file, or has no image with a usable name.
    """
    skips = Skips()
    read = read_dataset(path, AnyRow, skips, needs=("images",))
    folder, names = os.fspath(images), []
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
    return _dataset((name, os.path.join(folder, name), None) for name in names)


def read_parquet(paths: Paths) -> Dataset:
    """Read rows of Parquet files, in the order of the files' names.

    Columns of other names are renamed with `ray.data.Dataset.rename_columns`.

    Parameters
    ----------
    paths : path, or sequence of paths
        Files or folders, also of an object store.
    """
    need_ray()
    import ray.data

    with in_order():
        return ray.data.read_parquet(_files(paths, (".parquet",)))


def read_jsonl(
    paths: Paths,
    images: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    *,
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
    pictures : bool
        Rows are about pictures in `images`, and need no answer.

    Raises
    ------
    InputError
        If a file can't be read.
    """
    if pictures and images is None:
        raise InputError("where are the pictures? images=DIR, or --pictures DIR")
    need_ray()
    import ray.data

    ranges = list(_ranges(_files(paths, (".jsonl", ".ndjson"))))
    if not ranges:
        raise InputError(f"{paths}: nothing in it")
    folder = None if images is None else os.fspath(images)
    given = {"images": folder, "size": size, "pictures": pictures, "cwd": os.getcwd()}
    with in_order():
        dataset = ray.data.from_items(ranges, override_num_blocks=len(ranges))
        return dataset.map_batches(
            _read_range,  # type: ignore[arg-type]
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs=given,
        )


def read_webdataset(paths: Paths) -> Dataset:
    """Read samples of WebDataset tar files: pictures, and the answers in ``.json`` or ``.txt``.

    A sample's name is its key and the picture's ending. A ``.json`` has the keys of an
    `AnswerRow`; a ``.txt`` is the answer.
    """
    need_ray()
    import ray.data

    with in_order():
        dataset = ray.data.read_webdataset(_files(paths, (".tar",)), decoder=None)
        return dataset.map_batches(_read_samples, batch_size=None, batch_format="pandas")


def read_any(
    source: Paths | Dataset,
    images: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
    *,
    pictures: bool = False,
) -> Dataset:
    """Read a source by the endings of its files; a Dataset is returned as it is."""
    if not isinstance(source, str | os.PathLike | Sequence):
        return source
    endings = {Path(path).suffix.lower() for path in _listed(source)}
    if len(endings) == 1:
        (ending,) = endings
        if ending == ".parquet":
            return read_parquet(source)
        if ending == ".tar":
            return read_webdataset(source)
        if ending in (".jsonl", ".ndjson") or (not pictures and ending != ""):
            return read_jsonl(source, images, size, pictures=pictures)
        if ending == ".json":
            if images is None:
                raise InputError(
                    "where are the pictures of the COCO file? images=DIR, or --pictures DIR"
                )
            return read_coco(_listed(source)[0], images)
    if not pictures:
        raise InputError(f"{source}: answers come in .jsonl, .parquet or .tar files")
    return read_pictures(source)


# -- parts -------------------------------------------------------------------------------


def _listed(paths: Paths) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _files(paths: Paths, endings: tuple[str, ...]) -> list[str]:
    """List files, and those in folders, in order of their names; addresses stay as they are."""
    found: list[str] = []
    for path in [os.fspath(item) for item in _listed(paths)]:
        if os.path.isdir(path):
            inside_it = sorted(file for file in Path(path).rglob("*") if file.suffix in endings)
            if not inside_it:
                raise InputError(f"{path}: no file in it that ends in {' or '.join(endings)}")
            found += map(str, inside_it)
        elif "://" in path or os.path.isfile(path):
            found.append(path)
        else:
            raise InputError(f"{path}: no such file or folder")
    return found


def _dataset(files: Iterator[tuple[str, str | None, str | None]]) -> Dataset:
    """Return a Dataset of names, paths and problems, which go to Ray block by block."""
    need_ray()
    import pyarrow as pa
    import ray.data

    schema = pa.schema([source_schema().field(name) for name in ("image", "path", "problem")])
    blocks = []
    while some := list(islice(files, _BLOCK)):
        columns = [list(column) for column in zip(*some, strict=True)]
        blocks.append(ray.put(pa.table(columns, schema=schema)))
    with in_order():
        return ray.data.from_arrow_refs(blocks)  # type: ignore[arg-type]  # of Ray's two ObjectRefs


def _ranges(paths: list[str]) -> Iterator[dict[str, object]]:
    """Yield byte ranges of whole lines."""
    number = 0
    for path in paths:
        try:
            with open(path, "rb") as file:
                start = stop = 0
                first = number
                for line in file:
                    number += 1
                    stop += len(line)
                    if number - first == _BLOCK:
                        yield {"path": path, "start": start, "stop": stop, "number": first}
                        start, first = stop, number
                if stop > start:
                    yield {"path": path, "start": start, "stop": stop, "number": first}
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def _read_range(
    table: pa.Table, images: str | None, size: tuple[int, int] | None, pictures: bool, cwd: str
) -> pa.Table:
    import pyarrow as pa

    in_folder(cwd)
    rows = []
    for part in table.to_pylist():
        for line, text in read_lines(part["path"], part["start"], part["stop"], part["number"]):
            try:
                row = read_object(text)
                if pictures:
                    rows.append(_picture(line, row, str(images)))
                else:
                    rows.append(_columns(read_row(line, row, images, size)))
            except InputError as error:
                rows.append({"line": line, "problem": str(error)})
    return pa.Table.from_pylist(rows, source_schema())


def _picture(line: int, row: Mapping[str, object], images: str) -> dict[str, object]:
    name = row.get("image")
    if not isinstance(name, str) or not name:
        raise InputError(f"'image' must be a file name, got {name!r}")
    inside(images, name)
    return {"line": line, "image": name, "path": os.path.join(images, name)}


def _columns(row: AnswerRow) -> dict[str, object]:
    answer = {"output" if isinstance(row.answer, str) else "token_ids": row.answer}
    size = {"width": row.size[0], "height": row.size[1]}
    values = {"prompt": row.prompt or None, "scores": row.scores, "codec": row.codec or None}
    return {"line": row.line, "image": row.name, **size, **answer, **values}


def _read_samples(frame: Any) -> pa.Table:
    import pyarrow as pa

    rows = []
    for sample in frame.to_dict("records"):
        # Samples of one block that lack a file have NaN there.
        files = {name: data for name, data in sample.items() if isinstance(data, bytes)}
        row: dict[str, Any] = {"image": sample["__key__"]}
        ending = next((name for name in files if f".{name.rpartition('.')[2]}" in PICTURES), None)
        if ending is not None:
            row |= {"image": f"{sample['__key__']}.{ending}", "bytes": files[ending]}
        try:
            values = read_object(files["json"]) if "json" in files else {}
            if "txt" in files:
                values["output"] = files["txt"].decode()
            if not values.keys().isdisjoint(ANSWER_KEYS):
                row |= _typed(values, row["image"])
        except (InputError, UnicodeDecodeError) as error:
            row["problem"] = str(error)
        rows.append(row)
    return pa.Table.from_pylist(rows, source_schema())


def _typed(values: Mapping[str, object], name: str) -> dict[str, object]:
    """Return the columns of an answer; no size where the answer has none but its picture may."""
    found = _columns(read_row(1, {**values, "image": name}, default=(1, 1)))
    if values.keys().isdisjoint(("width", "height", "size", "image_size_wh")):
        del found["width"], found["height"]
    del found["line"]
    return found


def in_folder(path: str) -> None:
    """Relative paths of the driver mean the same here, where there is such a folder."""
    if os.path.isdir(path):
        os.chdir(path)
