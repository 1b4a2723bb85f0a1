"""The reader of COCO files: typed rows, and what was skipped.

Every command reads through it by one rule: what is good is used, what isn't is listed in `Skips`.
A sound file takes the fast path: msgspec decodes it into rows and passes over keys that no command
reads. Anything odd (NaN, ids as floats, rows that miss a key) takes the careful path, row by row.
Both give the same rows.
"""

from __future__ import annotations

import gc
import os
import re
import reprlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from palidecode.coco.categories import Category, check_categories, check_unique
from palidecode.coco.skips import Side, Skips
from palidecode.errors import InputError
from palidecode.files import MAX_PIXELS, MAX_SIDE, read_json, regular

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Key: TypeAlias = int | str
Xywh: TypeAlias = tuple[float, float, float, float]
Ints: TypeAlias = npt.NDArray[np.int64]

MAX_COORDINATE = 1e9
"""Limit of a box's numbers, in pixels."""
MAX_SCORE = float(np.finfo(np.float32).max)
"""Limit of a score."""

_Side = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]
_DAMAGE = (msgspec.MsgspecError, UnicodeError, OverflowError, RecursionError)
_LISTS = ("images", "annotations", "categories")
_CROWD_TEXTS = {"": 0, "0": 0, "false": 0, "1": 1, "true": 1}
_EXPECTED = {
    "bbox": "bbox must be four finite numbers (x, y, width, height), none above 1e9",
    "image_id": "image_id must be a whole number or a text",
    "category_id": "category_id must be a whole number",
    "iscrowd": "iscrowd must be 0 or 1",
    "file_name": "file_name must be a text",
    "score": "score must be a number",
    "area": "area must be a number",
    "segmentation": "segmentation must be polygons or an RLE",
    "width": f"width must be a whole number of pixels, at most {MAX_SIDE}",
    "height": f"height must be a whole number of pixels, at most {MAX_SIDE}",
}


class RunLengths(msgspec.Struct, gc=False):
    """COCO's RLE as a file has it: ``size`` is height, width."""

    size: tuple[int, int]
    counts: str | list[int]


Outline: TypeAlias = RunLengths | list[list[float]] | None


class ImageRow(msgspec.Struct, gc=False):
    """An image; a side of 0 is unknown.

    Without a ``file_name``, it is the last part of ``coco_url`` (as in LVIS).
    ``asked`` are the categories that its prompt asked for, in files that contain them.
    """

    id: Key
    file_name: str | None = None
    width: _Side = 0
    height: _Side = 0
    asked: list[str] | None = None
    coco_url: object = None
    neg_category_ids: object = None
    not_exhaustive_category_ids: object = None

    @property
    def federated(self) -> bool:
        """True if the picture was labelled for some categories alone, as in LVIS."""
        return self.neg_category_ids is not None


class AnyRow(msgspec.Struct):
    """An annotation that is not read, whatever it contains."""


class BoxRow(msgspec.Struct, kw_only=True, gc=False):
    """An annotation or a prediction with a box; its mask is not read."""

    image_id: Key
    category_id: int
    bbox: Xywh | None
    id: Key | None = None
    area: float | None = None
    iscrowd: int | bool = 0
    score: float | None = None
    attributes: object = None

    @property
    def rotated(self) -> bool:
        """True if the box must be turned (CVAT's ``attributes.rotation``)."""
        attributes = self.attributes if isinstance(self.attributes, dict) else {}
        angle = attributes.get("rotation")
        return isinstance(angle, (int, float)) and angle % 360 != 0


class Row(BoxRow, kw_only=True, gc=False):
    """An annotation or a prediction."""

    bbox: Xywh | None = None
    segmentation: Outline = None


R = TypeVar("R", bound=msgspec.Struct)


class _Content(msgspec.Struct, Generic[R]):
    images: list[ImageRow] | None = None
    annotations: list[R] | None = None
    categories: list[Any] | None = None
    info: object = None


class Broken(NamedTuple):
    """A row that can't be read: its offset, the reason, and the ids that can be read of it."""

    offset: int
    problem: str
    id: object
    image_id: object
    category_id: object


@dataclass
class Rows(Generic[R]):
    """The rows of one list of a file.

    Attributes
    ----------
    rows : list
    offsets : ndarray of int64
        Offset of each row in the list.
    broken : list of Broken
        Rows that can't be read; they are also in the `Skips`.
    """

    rows: list[R]
    offsets: Ints
    broken: list[Broken] = field(default_factory=list)

    def numbered(self) -> list[tuple[int, R]]:
        """Return each row with its offset."""
        return list(zip(self.offsets.tolist(), self.rows, strict=True))


@dataclass
class CocoFile(Generic[R]):
    """The rows of a COCO file.

    Attributes
    ----------
    where : str
        Name of the file, for messages.
    images : Rows of ImageRow
    annotations : Rows
        Annotations or predictions.
    categories : list of Category
    asked : list of str, or None
        The categories that all prompts asked for, if ``info`` contains them.
    is_list : bool
        True for a results list, which has neither images nor categories.
    """

    where: str
    images: Rows[ImageRow]
    annotations: Rows[R]
    categories: list[Category]
    asked: list[str] | None
    is_list: bool = False


def read_dataset(
    source: Source,
    kind: type[R],
    skips: Skips,
    *,
    name: str = "dataset",
    needs: Sequence[str] = _LISTS,
    unused: Sequence[str] = (),
) -> CocoFile[R]:
    """Read a COCO dataset, its annotations as `kind`: `Row`, `BoxRow`, or another struct.

    `skips` is filled with what can't be read. `name` is that of a dataset that is not a file;
    `needs` are the lists that must be there, `unused` the keys of annotations that may have any
    value.
    """
    where = _where(source, name)
    content = _fast(source, _Content[kind])  # type: ignore[valid-type]
    if content is not None and _is_sound(content, needs):
        return _typed(content, where, skips)
    data = _plain(source)
    if isinstance(data, list):
        raise InputError(
            f"{where}: is a results list, not a COCO dataset with 'images', 'annotations' and "
            "'categories'; is it the file of the predictions?"
        )
    return _careful(data, kind, where, skips, needs, unused)


def read_predictions(source: Source, kind: type[R], skips: Skips) -> CocoFile[R]:
    """Read a results list, or a dataset as `palidecode decode` writes it.

    The predictions are read as `kind`: `Row` or `BoxRow`.
    """
    where = _where(source, "the predictions")
    content = _fast(source, list[kind] | _Content[kind])  # type: ignore[valid-type]
    if isinstance(content, list):
        return replace(_typed(_Content(annotations=content), where, skips), is_list=True)
    is_sound = content is not None and _is_sound(content, _LISTS)
    data = None if is_sound else _plain(source)
    unused = ("id", "area", "iscrowd")
    if isinstance(data, list):
        rows = {"annotations": data}
        read = _careful(rows, kind, where, skips, ("annotations",), unused, "prediction")
        return replace(read, is_list=True)
    skips.lists["prediction"] = "annotations"
    if is_sound:
        return _typed(content, where, skips)
    return _careful(data, kind, where, skips, _LISTS, unused, "prediction")


class _Info(msgspec.Struct):
    info: Any = None


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the ``info`` of a COCO file; {} where there is none."""
    content = _fast(path, _Info | list[msgspec.Raw])
    info = content.info if isinstance(content, _Info) else None
    return info if isinstance(info, dict) else {}


def sized_images(read: CocoFile[R], skips: Skips) -> list[ImageRow]:
    """Return the images that have a width and a height; skip the others."""
    sized, problem = [], ""
    for offset, image in read.images.numbered():
        if min(image.width, image.height) > 0:
            sized.append(image)
        else:
            problem = f"{skips.at('image', offset)}: width {image.width}, height {image.height}"
            skips.add("image", "no_size", offset, problem)
    if problem and not sized:
        raise InputError(f"{read.where}: no image has a width and a height; {problem}")
    return sized


def note_federated(read: CocoFile[R], skips: Skips) -> None:
    """Note images that were labelled for some categories alone."""
    federated = [offset for offset, image in read.images.numbered() if image.federated]
    skips.note("image", "federated", federated)


def index_by_id(images: Sequence[ImageRow]) -> dict[Key, int]:
    """Return the index of each image by id; "1" and 1 are one id, unless a file has both."""
    index_of: dict[Key, int] = {}
    for index, image in enumerate(images):
        if isinstance(image.id, int):
            index_of[str(image.id)] = index
        elif image.id.isdecimal() and str(int(image.id)) == image.id:
            index_of[int(image.id)] = index
    return index_of | {image.id: index for index, image in enumerate(images)}


def read_box(value: object) -> Xywh | None:
    """Read a COCO box, x, y, width, height in pixels; None if there is none."""
    try:
        box: Xywh | None = msgspec.convert(_native(value), Xywh | None)
    except _DAMAGE:
        box = (np.nan,) * 4
    if box is not None and not is_box(box):
        raise InputError(f"{_EXPECTED['bbox']}, got {reprlib.repr(value)}")
    return box


def is_box(box: Xywh) -> bool:
    """Return True if all numbers of a box are finite and within the limit."""
    return all(abs(number) <= MAX_COORDINATE for number in box)


def read_outline(value: object) -> Outline:
    """Read a COCO segmentation: polygons, an RLE, or None."""
    try:
        outline: Outline = msgspec.convert(
            _loosened({"segmentation": value})["segmentation"], Outline
        )
    except _DAMAGE as error:
        raise InputError(f"{_EXPECTED['segmentation']}, got {reprlib.repr(value)}") from error
    return outline


@contextmanager
def no_collection() -> Iterator[None]:
    """Pause garbage collection while many rows are created."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _where(source: Source, name: str) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else name


def _fast(source: Source, kind: Any) -> Any:
    """Return the typed content; None if something is odd."""
    try:
        if isinstance(source, (str, os.PathLike)):
            content = regular(source).read_bytes()
            return msgspec.json.decode(content.removeprefix(BOM_UTF8), type=kind)
        return msgspec.convert(source, kind)
    except OSError as error:
        raise InputError(f"{source}: can't be read: {error.strerror or error}") from error
    except _DAMAGE:
        return None


def _is_sound(content: _Content[R], needs: Sequence[str]) -> bool:
    images = content.images or []
    return all(getattr(content, key) is not None for key in needs) and all(
        image.width * image.height <= MAX_PIXELS for image in images
    )


def _plain(source: Source) -> object:
    if isinstance(source, (str, os.PathLike)):
        if Path(source).stat().st_size == 0:
            raise InputError(f"{source}: is empty")
        return read_json(source)
    return list(source) if isinstance(source, (tuple, np.ndarray)) else source


def _typed(content: _Content[R], where: str, skips: Skips) -> CocoFile[R]:
    images, rows = content.images or [], content.annotations or []
    return _file(
        where,
        Rows(images, np.arange(len(images))),
        Rows(rows, np.arange(len(rows))),
        check_categories(content.categories or [], skips, where, by_name=False),
        content.info,
    )


def _careful(
    data: object,
    kind: type[R],
    where: str,
    skips: Skips,
    needs: Sequence[str],
    unused: Sequence[str],
    side: Side = "truth",
) -> CocoFile[R]:
    mapping = data if isinstance(data, Mapping) else {}
    lists = {key: mapping[key] for key in _LISTS if isinstance(mapping.get(key), list)}
    missing = [key for key in needs if key not in lists]
    missing += [
        key for key in _LISTS if key not in (*needs, *lists) and mapping.get(key) is not None
    ]
    if missing:
        raise InputError(
            f"{where}: no list of {' and '.join(map(repr, missing))}; a COCO dataset has "
            "'images', 'annotations' and 'categories'"
        )
    images = _careful_rows(lists.get("images", []), ImageRow, "image", skips)
    if images.broken and not images.rows:
        raise InputError(f"{where}: no image can be read; images[0]: {images.broken[0].problem}")
    rows = _careful_rows(lists.get("annotations", []), kind, side, skips, unused)
    categories = check_categories(lists.get("categories", []), skips, where, by_name=False)
    return _file(where, images, rows, categories, mapping.get("info"))


def _file(
    where: str,
    images: Rows[ImageRow],
    rows: Rows[R],
    categories: list[Category],
    info: object,
) -> CocoFile[R]:
    check_unique([image.id for image in images.rows], f"{where}: images")
    for image in images.rows:
        if not image.file_name and isinstance(image.coco_url, str):
            image.file_name = image.coco_url.rpartition("/")[2] or None
    asked = info.get("asked") if isinstance(info, Mapping) else None
    try:
        asked = msgspec.convert(asked, list[str] | None)
    except _DAMAGE:
        raise InputError(f"{where}: info: asked must be a list of names") from None
    return CocoFile(where, images, rows, categories, asked)


def _careful_rows(
    items: Sequence[object], kind: type[R], side: Side, skips: Skips, unused: Sequence[str] = ()
) -> Rows[R]:
    """Read row by row; what can't be read is skipped."""
    rows: list[R] = []
    offsets: list[int] = []
    broken: list[Broken] = []
    for offset, item in enumerate(items):
        try:
            rows.append(_careful_row(item, kind, unused))
            offsets.append(offset)
        except _DAMAGE as error:
            problem = _explained(error, item)
            skips.add(side, "unreadable", offset, f"{skips.at(side, offset)}: {problem}")
            ids = item if isinstance(item, Mapping) else {}
            broken.append(Broken(offset, problem, *map(ids.get, Broken._fields[2:])))
    return Rows(rows, np.array(offsets, np.int64), broken)


def _careful_row(item: object, kind: type[R], unused: Sequence[str]) -> R:
    loosened = _loosened(item)
    if isinstance(loosened, dict):
        for key in unused:
            loosened.pop(key, None)
        if kind is BoxRow and loosened.get("bbox") is None:
            # A row without a box may have a mask that gives its box.
            return msgspec.convert(loosened, Row)  # type: ignore[return-value]
    row = msgspec.convert(loosened, kind)
    if isinstance(row, ImageRow) and row.width * row.height > MAX_PIXELS:
        raise OverflowError(f"{row.width}×{row.height} is more than {MAX_PIXELS} pixels")
    return row


def _explained(error: Exception, item: object) -> str:
    """Return the reason why a row can't be read, with the value that is wrong."""
    if not isinstance(item, Mapping):
        return f"not an object: {reprlib.repr(item)}"
    path = re.search(r"at `\$\.(\w+)", str(error))
    key = path.group(1) if path else ""
    if key in _EXPECTED:
        return f"{_EXPECTED[key]}, got {reprlib.repr(item[key])}"
    lacking = re.search(r"missing required field `(\w+)`", str(error))
    return f"has no {lacking.group(1)!r}" if lacking else str(error)


def _loosened(item: Any) -> Any:
    """Return a row as JSON would have it: numpy's numbers, ids like 3.0, and counts as bytes."""
    if not isinstance(item, Mapping):
        return item
    row = {key: _native(value) for key, value in item.items()}
    for key in ("iscrowd", "width", "height"):
        if row.get(key, 0) is None:
            del row[key]
    crowd = row.get("iscrowd")
    if isinstance(crowd, str):
        row["iscrowd"] = _CROWD_TEXTS.get(crowd.strip().lower(), crowd)
    for key in ("category_id", "width", "height"):
        number = row.get(key)
        if isinstance(number, str) and number.isdecimal():
            row[key] = int(number)
    for key in ("id", "image_id", "category_id", "iscrowd", "width", "height"):
        value = row.get(key)
        if isinstance(value, float) and value.is_integer():
            row[key] = int(value)
    if isinstance(row.get("segmentation"), Mapping):
        rle = dict(row["segmentation"])
        if isinstance(rle.get("counts"), bytes):
            rle["counts"] = rle["counts"].decode("ascii")
        row["segmentation"] = {key: _native(value) for key, value in rle.items()}
    return row


def _native(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)) and any(
        isinstance(v, (np.generic, np.ndarray)) for v in value
    ):
        return [_native(inner) for inner in value]
    return value
