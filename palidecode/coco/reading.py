"""COCO files to typed rows.

A sound file takes the fast path: msgspec decodes it straight into rows and skips what is not
evaluated. Anything odd (NaN, ids as floats, rows that miss a key) takes the careful one, row by
row, which reads more and says what is wrong with the rest. Both give the same rows.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np

from palidecode.coco.skips import Skips
from palidecode.errors import InputError
from palidecode.files import read_json

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Key: TypeAlias = int | str
Xywh: TypeAlias = tuple[float, float, float, float]


class RunLengths(msgspec.Struct, gc=False):
    """COCO's RLE as a file has it: ``size`` is height, width."""

    size: tuple[int, int]
    counts: str | list[int]


Outline: TypeAlias = RunLengths | list[list[float]] | None


class ImageRow(msgspec.Struct, gc=False):
    """An image; ``asked`` are the categories its prompt asked for, where a file says so."""

    id: Key
    file_name: str | None = None
    width: float = 0
    height: float = 0
    asked: list[str] | None = None


class CategoryRow(msgspec.Struct, gc=False):
    """A category."""

    id: int
    name: str


class Info(msgspec.Struct, gc=False):
    """What a prediction file's ``info`` may say about its prompts."""

    asked: list[str] | None = None


class BoxTruth(msgspec.Struct, gc=False):
    """An annotation, without its mask."""

    image_id: Key
    category_id: int
    bbox: Xywh
    id: Key | None = None
    area: float | None = None
    iscrowd: int | bool = 0


class Truth(msgspec.Struct, gc=False):
    """An annotation."""

    image_id: Key
    category_id: int
    bbox: Xywh | None = None
    id: Key | None = None
    area: float | None = None
    iscrowd: int | bool = 0
    segmentation: Outline = None


class BoxAnswer(msgspec.Struct, gc=False):
    """A prediction, without its mask."""

    image_id: Key
    category_id: int
    bbox: Xywh
    score: float | None = None


class Answer(msgspec.Struct, gc=False):
    """A prediction."""

    image_id: Key
    category_id: int
    bbox: Xywh | None = None
    score: float | None = None
    segmentation: Outline = None


class _BoxTruths(msgspec.Struct):
    images: list[ImageRow]
    categories: list[CategoryRow]
    annotations: list[BoxTruth]
    info: Any = None


class _Truths(msgspec.Struct):
    images: list[ImageRow]
    categories: list[CategoryRow]
    annotations: list[Truth]
    info: Any = None


class _BoxAnswers(msgspec.Struct):
    images: list[ImageRow]
    categories: list[CategoryRow]
    annotations: list[BoxAnswer]
    info: Any = None


class _Answers(msgspec.Struct):
    images: list[ImageRow]
    categories: list[CategoryRow]
    annotations: list[Answer]
    info: Any = None


class Read(msgspec.Struct):
    """A file's rows.

    Attributes
    ----------
    where : str
        The file's name, for messages.
    images, categories : list or None
        None for a results list.
    rows : list
        Of `BoxTruth`, `Truth`, `BoxAnswer` or `Answer`.
    places : list of int or None
        Where the rows stood, if some were left out.
    asked : list of str or None
        Categories the file says all its prompts asked for.
    """

    where: str
    images: list[ImageRow] | None
    categories: list[CategoryRow] | None
    rows: list[Any]
    places: list[int] | None = None
    asked: list[str] | None = None


def read_truths(source: Source, masks: bool, skips: Skips) -> Read:
    """The ground truth: a COCO dataset.

    Raises
    ------
    InputError
        If it can't be read, or isn't a dataset.
    """
    where = _where(source, "the ground truth")
    fast = _fast(source, _Truths if masks else _BoxTruths)
    if fast is not None:
        return Read(where, fast.images, fast.categories, fast.annotations)
    data = _plain(source)
    if isinstance(data, list):
        raise InputError(
            f"{where}: is a results list; the ground truth is a dataset with 'images', "
            "'annotations' and 'categories' (are the two files swapped?)"
        )
    read = _dataset(data, where)
    read.rows, read.places = _careful(data["annotations"], Truth, "truth", skips)
    return read


def read_answers(source: Source, masks: bool, skips: Skips) -> Read:
    """Predictions: a results list, or a dataset as `palidecode decode` writes it.

    Raises
    ------
    InputError
        If it can't be read, or is neither.
    """
    where = _where(source, "the predictions")
    listed: Any = list[Answer] if masks else list[BoxAnswer]
    fast = _fast(source, listed | (_Answers if masks else _BoxAnswers))
    if isinstance(fast, list):
        return Read(where, None, None, fast)
    if fast is not None:
        skips.lists["prediction"] = "annotations"
        return Read(
            where, fast.images, fast.categories, fast.annotations, None, _asked(fast.info, where)
        )
    data = _plain(source)
    if isinstance(data, list):
        rows, places = _careful(data, Answer, "prediction", skips)
        return Read(where, None, None, rows, places)
    read = _dataset(data, where, "predictions are a results list, or a dataset with all three")
    skips.lists["prediction"] = "annotations"
    read.rows, read.places = _careful(data["annotations"], Answer, "prediction", skips)
    read.asked = _asked(data.get("info"), where)
    return read


@contextmanager
def no_collection() -> Iterator[None]:
    """Hundreds of thousands of new rows would make the collector look through all, many times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _fast(source: Source, kind: Any) -> Any:
    """The typed content; None where something is odd."""
    try:
        if isinstance(source, (str, os.PathLike)):
            return msgspec.json.decode(Path(source).read_bytes(), type=kind)
        return msgspec.convert(source, kind)
    except OSError as error:
        raise InputError(f"{source}: can't be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return None


def _plain(source: Source) -> Any:
    if isinstance(source, (str, os.PathLike)):
        if Path(source).stat().st_size == 0:
            raise InputError(f"{source}: is empty")
        return read_json(source)
    return list(source) if isinstance(source, (tuple, np.ndarray)) else source


def _where(source: Source, what: str) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else what


def _dataset(data: Any, where: str, wanted: str = "a COCO dataset has all three") -> Read:
    """Images and categories, each checked; rows are read by the caller."""
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(data, Mapping) or not isinstance(data.get(key), list)
    ]
    if missing:
        named = " and ".join(f"'{key}'" for key in missing)
        raise InputError(f"{where}: no list of {named}; {wanted}")
    images = [_row(item, ImageRow, f"{where}: image {i}") for i, item in enumerate(data["images"])]
    categories = [
        _row(item, CategoryRow, f"{where}: category {i}")
        for i, item in enumerate(data["categories"])
    ]
    return Read(where, images, categories, [])


def _row(item: Any, kind: type, where: str) -> Any:
    try:
        return msgspec.convert(_loosened(item), kind)
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
        raise InputError(f"{where}: {error}") from error


def _asked(info: Any, where: str) -> list[str] | None:
    try:
        return msgspec.convert(info, Info).asked if isinstance(info, Mapping) else None
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
        raise InputError(f"{where}: info: {error}") from error


def _careful(
    items: Sequence[Any], kind: type, side: str, skips: Skips
) -> tuple[list[Any], list[int]]:
    """Row by row; what can't be read is counted."""
    rows: list[Any] = []
    places: list[int] = []
    for place, item in enumerate(items):
        try:
            rows.append(msgspec.convert(_loosened(item), kind))
            places.append(place)
        except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
            skips.add(side, "unreadable", place, f"{skips.where(side, place)}: {error}")
    return rows, places


def _loosened(item: Any) -> Any:
    """numpy's numbers, ids like 3.0, and counts as bytes, as JSON would have had them."""
    if not isinstance(item, Mapping):
        return item
    found = {key: _native(value) for key, value in item.items()}
    for key in ("id", "image_id", "category_id"):
        value = found.get(key)
        if isinstance(value, float) and value.is_integer():
            found[key] = int(value)
    if isinstance(found.get("segmentation"), Mapping):
        rle = dict(found["segmentation"])
        if isinstance(rle.get("counts"), bytes):
            rle["counts"] = rle["counts"].decode("ascii")
        found["segmentation"] = {key: _native(value) for key, value in rle.items()}
    return found


def _native(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)) and any(
        isinstance(v, (np.generic, np.ndarray)) for v in value
    ):
        return [_native(inner) for inner in value]
    return value
