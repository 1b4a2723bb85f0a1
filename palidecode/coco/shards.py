"""Pieces of a COCO file that isn't finished: rows of a source with their annotations.

A shard file is COCO JSON whose ``info`` lists the rows of the source it holds. Rows are known by
a key and can be merged one by one, in any order and from any shards: merging gives new
numbers, and nothing is computed again. The last line is a checksum of everything before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, repeat
from operator import sub
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from palidecode.answers.rows import other_size
from palidecode.coco.categories import UNLABELLED
from palidecode.coco.writing import (
    FILE_START,
    CocoOptions,
    CocoReport,
    CocoWriter,
    annotations_of,
    json_line,
)
from palidecode.detections import CodecMismatchWarning, Detections
from palidecode.errors import InputError, warn
from palidecode.files import KEPT, unwritten

KEY_SIZE = 16  # bytes
SUFFIX = ".json"
MALFORMED = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(OverflowError, RecursionError),
)
"""Exceptions at a shard that fits its checksum, but wasn't written by `Shard.save`."""

_Item = TypeVar("_Item")
Failure = dict[str, Any]
"""A row of failures.jsonl: ``line`` or ``image``, and ``reason``."""
RowIssue = dict[str, Any]
"""A parse issue: ``line`` or ``image`` of its row, ``kind``, ``span`` and ``text``."""

_IMAGES, _CATEGORIES, _INFO = '],\n"images": [', '],\n"categories": ', ',\n"info": '
_LAST = b',\n"crc32": "%08x"}\n'
_LAST_SIZE = len(_LAST % 0)
_ENCODE = json.JSONEncoder(sort_keys=True).encode


def key_of(*values: object) -> bytes:
    """Return the key of a row that has these JSON values."""
    return hashlib.blake2b(_ENCODE(values).encode(), digest_size=KEY_SIZE).digest()


def shard_name(keys: Iterable[bytes]) -> str:
    """Return the name of a shard's file, a digest of its keys: the same rows replace each other."""
    return hashlib.blake2b(b"".join(keys), digest_size=KEY_SIZE).hexdigest() + SUFFIX


@dataclass(frozen=True)
class Result:
    """Detections in some rows of a source.

    Attributes
    ----------
    detections : Detections
        An image for every row that could be used, in order.
    rows : sequence of int
        Index of the row of each image.
    names : sequence of str
        Name of each row's image, also of those that could not be used.
    reasons : mapping of int to str
        Why a row, or a part of it, was skipped.
    lines : sequence of int
        Number of each row in its file, from 1; empty where that is unknown.
    """

    detections: Detections
    rows: Sequence[int]
    names: Sequence[str]
    reasons: Mapping[int, str]
    lines: Sequence[int] = ()


class Note(TypedDict, total=False):
    """Details of a row that has any.

    ``reason`` why it, or a part of it, was skipped; its ``name`` where it has no image;
    ``issues`` of its answer; ``report``, counts of `CocoReport` that aren't 0; and with
    skipped boxes ``labels``, the categories of all its objects.
    """

    reason: str
    name: str
    issues: list[RowIssue]
    report: dict[str, Any]
    labels: list[int]


@dataclass
class Shard:
    """Rows of a source, the image of each, and their annotations.

    Attributes
    ----------
    keys : list of bytes
        One per row.
    lines : list of int
        Number of each row in its file; empty where that is unknown.
    image_of : list of int
        Index of each row's image in `images`; -1 where it could not be used.
    ends : list of int
        Number of annotations up to each row, its own included.
    notes : dict of int to Note
        By row, in order.
    images : list of (str, int, int)
        Name, width and height.
    labels : list of str
        Names of the categories, which are numbered from 1.
    categories : list of int
        Of each annotation.
    texts : list of str
        `Annotation.text` of each.
    warnings : list of (str, str)
        Class and text of what was warned about.
    """

    keys: list[bytes] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    image_of: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    notes: dict[int, Note] = field(default_factory=dict)
    images: list[tuple[str, int, int]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    categories: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def name(self) -> str:
        """Name of its file."""
        return shard_name(self.keys)

    def save(self, folder: Path) -> None:
        """Write it into a folder: under another name, synced, then renamed."""
        path = folder / self.name
        aside = folder / f"{uuid.uuid4().hex}.part"  # several machines may try it together
        data = self._text().encode()
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.write(_LAST % zlib.crc32(data))
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            raise unwritten(path, error) from error
        finally:
            aside.unlink(missing_ok=True)

    def _text(self) -> str:
        counts = [end - start for start, end in zip([0, *self.ends], self.ends, strict=False)]
        image_of = [
            number
            for image, count in zip(self.image_of, counts, strict=True)
            for number in repeat(image + 1, count)
        ]
        annotations = [
            f'{{"id": {number}, "image_id": {image}, "category_id": {category}, {text}'
            for number, (image, category, text) in enumerate(
                zip(image_of, self.categories, self.texts, strict=True), 1
            )
        ]
        images = [
            f'{{"id": {number}, "file_name": {json_line(name)}, "width": {w}, "height": {h}}}'
            for number, (name, w, h) in enumerate(self.images, 1)
        ]
        categories = [{"id": id, "name": label} for id, label in enumerate(self.labels, 1)]
        rows = {
            "keys": b"".join(self.keys).hex(),
            "lines": self.lines,
            "images": self.image_of,
            "annotations": counts,
            "categories": self.categories,
            "notes": self.notes,
            "warnings": self.warnings,
        }
        lists = (_block(annotations), _IMAGES, _block(images), _CATEGORIES, json_line(categories))
        return FILE_START + "".join(lists) + _INFO + json_line({"rows": rows})


def _block(lines: list[str]) -> str:
    return "\n" + ",\n".join(lines) if lines else ""


def read_shard(path: Path) -> Shard | None:
    """Return the shard at a path; None where there is none, or one that is damaged."""
    body = _body(path)
    try:
        return None if body is None else _shard(body.decode())
    except MALFORMED:
        return None


def _shard(text: str) -> Shard:
    annotations, _, text = text.removeprefix(FILE_START).partition(_IMAGES)
    images, _, text = text.partition(_CATEGORIES)
    categories, _, info = text.partition(_INFO)
    rows = json.loads(info)["rows"]
    return Shard(
        keys=_keys(rows),
        lines=rows["lines"],
        image_of=rows["images"],
        ends=list(accumulate(rows["annotations"])),
        notes={int(row): note for row, note in rows["notes"].items()},
        images=[(i["file_name"], i["width"], i["height"]) for i in json.loads(f"[{images}]")],
        labels=[item["name"] for item in json.loads(categories)],
        categories=rows["categories"],
        # Lines of a list, without the three numbers at their beginning.
        texts=[line.split(", ", 3)[3] for line in annotations[1:].split(",\n") if line],
        warnings=[(name, text) for name, text in rows["warnings"]],
    )


def read_keys(path: Path) -> tuple[bytes, list[int]] | None:
    """Return the keys of a shard's rows, one after the other, and the rows that have no image.

    None where there is no shard, or one that is damaged.
    """
    body = _body(path)
    if body is None:
        return None
    try:
        rows = json.loads(body[body.rindex(_INFO.encode()) + len(_INFO) :])["rows"]
        keys, images = bytes.fromhex(rows["keys"]), rows["images"]
        failed = [row for row, image in enumerate(images) if image < 0]
    except MALFORMED:
        return None
    return (keys, failed) if len(keys) == KEY_SIZE * len(images) else None


def _body(path: Path) -> bytes | None:
    """Return everything before the checksum, where that fits."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
    body, last = data[:-_LAST_SIZE], data[-_LAST_SIZE:]
    return body if last == _LAST % zlib.crc32(body) else None


def _keys(rows: Mapping[str, Any]) -> list[bytes]:
    data = bytes.fromhex(rows["keys"])
    return [data[start : start + KEY_SIZE] for start in range(0, len(data), KEY_SIZE)]


class ShardBuilder:
    """Fills shards with what was detected, with the options of the file that will be merged."""

    def __init__(self, options: CocoOptions) -> None:
        self._form, self._drop_empty = options.form, options.drop_empty
        self._wanted = options.map()
        self._begin()

    def take(self) -> Shard:
        """Return the shard, and begin another."""
        shard = self.shard
        self._begin()
        return shard

    def add(self, keys: Sequence[bytes], result: Result) -> None:
        """Add rows; keys are only needed where the shard will be saved."""
        shard, detections = self.shard, result.detections
        first, before = len(shard), len(shard.texts)
        reports: defaultdict[int, CocoReport] = defaultdict(CocoReport)  # by image
        counts = [0] * len(result.rows)
        found_in = annotations_of(
            detections, self._category_of, self._form, reports.__getitem__, self._drop_empty
        )
        for found in found_in:
            counts[found.image] += 1
            shard.categories.append(found.category)
            shard.texts.append(found.text())
        images = [-1] * len(result.names)
        ends = [0] * len(result.names)
        sizes = detections.sizes.tolist()
        for row, count, size in zip(result.rows, counts, sizes, strict=True):
            image = (result.names[row], size[0], size[1])
            images[row] = _index(self._images, shard.images, image)
            ends[row] = count
        shard.keys += keys
        shard.lines += result.lines
        shard.image_of += images
        shard.ends += list(accumulate(ends, initial=before))[1:]
        for row, note in sorted(self._notes(result, reports).items()):
            shard.notes[first + row] = note

    def _begin(self) -> None:
        self.shard = Shard()
        self._category: dict[str, int | None] = {}  # by label
        self._labels: dict[str, int] = {}
        self._images: dict[tuple[str, int, int], int] = {}

    def _category_of(self, label: str) -> int | None:
        """Return a category for every label that the merged file will not skip.

        A shard can't know which labels come before it, so each is a category of its own.
        """
        if label not in self._category:
            number = None
            if self._wanted.id_of(label) is not None:
                number = _index(self._labels, self.shard.labels, label or UNLABELLED) + 1
            self._category[label] = number
        return self._category[label]

    def _notes(self, result: Result, reports: Mapping[int, CocoReport]) -> dict[int, Note]:
        notes: defaultdict[int, Note] = defaultdict(Note)
        for row, reason in result.reasons.items():
            notes[row]["reason"] = reason
        for row in set(result.reasons).difference(result.rows):
            notes[row]["name"] = result.names[row]
        for image, issue in result.detections.issues:
            notes[result.rows[image]].setdefault("issues", []).append(
                {"kind": issue.kind.value, "span": [*issue.span], "text": issue.text}
            )
        for image, report in reports.items():
            note = notes[result.rows[image]]
            note["report"] = {name: count for name, count in vars(report).items() if count}
            if report.dropped_boxes or report.infinite_boxes:
                of_image = (result.detections.image_index == image).nonzero()[0].tolist()
                found = (self._category[result.detections.labels[row]] for row in of_image)
                note["labels"] = [number for number in found if number is not None]
        return notes


def _index(numbers: dict[_Item, int], items: list[_Item], item: _Item) -> int:
    """Return the index of an item in a list, to which it is added where it is new."""
    if item not in numbers:
        numbers[item] = len(items)
        items.append(item)
    return numbers[item]


class Merger:
    """Writes the COCO file that rows of shards make: as a `CocoWriter` given all of them would.

    Rows are added within its ``with`` block. Without any image there is no file.

    Parameters
    ----------
    path : str or path
    options : CocoOptions
    info : mapping
        More for the dataset's ``info``.
    once : bool
        No image may come twice.
    failed_by : {"image", "line"}
        How skipped rows are listed.
    kept : bool
        Finished work survives a full disk; the error message mentions it.
    on_issue : callable
        Called with every parse issue.

    Attributes
    ----------
    path : Path
    writer : CocoWriter
    issues : Counter of str
        Kinds of parse issues.
    failed : list of dict
        Rows that were skipped, or a part of them.
    rows : int
        Rows that were added.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: CocoOptions,
        info: Mapping[str, object],
        *,
        once: bool = False,
        failed_by: Literal["image", "line"] = "image",
        kept: bool = False,
        on_issue: Callable[[RowIssue], None] = lambda issue: None,
    ) -> None:
        self.path = Path(path)
        self._on_issue = on_issue
        self.writer = CocoWriter.of(path, options, info)
        self.issues: Counter[str] = Counter()
        self.failed: list[Failure] = []
        self.rows = 0
        self._once, self._failed_by, self._kept = once, failed_by, kept
        self._warned: set[tuple[str, str]] = set()
        self._sizes = array("q")  # width and height, in the order of the images' numbers

    def __enter__(self) -> Merger:
        self.writer.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        if problem[0] is None and not self.writer.report.images:
            problem = (Exception, Exception(), None)  # discards the file
        try:
            self.writer.__exit__(*problem)
        except InputError as error:  # the disk is full: anything else only passes through
            raise InputError(f"{error}; {KEPT}" if self._kept else error) from error.__cause__

    def add(self, shard: Shard, first: int, stop: int) -> None:
        """Write rows of a shard under new numbers, and repeat its warnings once.

        A row whose image came before with another size, or came before though it must not, is
        skipped and listed.
        """
        for name, text in shard.warnings:
            if (name, text) not in self._warned:
                self._warned.add((name, text))
                mismatch = name == CodecMismatchWarning.__name__
                warn(text, CodecMismatchWarning if mismatch else UserWarning)
        start, ids = first, list[int]()
        for row in range(first, stop):
            self.rows += 1
            image, reason = 0, ""
            if shard.image_of[row] >= 0:
                image, reason = self._image(shard.images[shard.image_of[row]])
            if reason:
                self._write(shard, start, row, ids)
                start, ids = row + 1, []
            else:
                ids.append(image)
            note = shard.notes.get(row)
            if note is not None and not reason:
                reason = note.get("reason", "")
                for issue in note.get("issues", ()):
                    self.issues[issue["kind"]] += 1
                    self._on_issue(self._row_of(shard, row) | issue)
                counts = note.get("report", {})
                unmapped: Counter[str] = Counter(counts.get("unmapped"))
                self.writer.report.add(CocoReport(**counts | {"unmapped": unmapped}))
            if reason:
                self.failed.append(self._row_of(shard, row) | {"reason": reason})
        self._write(shard, start, stop, ids)

    def _image(self, image: tuple[str, int, int]) -> tuple[int, str]:
        """Return the id of an image, or why it is skipped."""
        name, size = image[0], image[1:]
        number = int(self.writer.ids.get(name, 0))
        if not number:
            self._sizes.extend(size)
            return int(self.writer.add_image(name, size)), ""
        if self._once:
            return 0, f"a picture named {name!r} came before"
        first = self._sizes[2 * number - 2], self._sizes[2 * number - 1]
        return number, "" if first == size else other_size(name, size, first)

    def _row_of(self, shard: Shard, row: int) -> Failure:
        """Return the ``line`` or ``image`` of a row."""
        if self._failed_by == "line":
            return {"line": (shard.lines and shard.lines[row]) or self.rows}
        image = shard.image_of[row]
        return {"image": shard.images[image][0] if image >= 0 else shard.notes[row]["name"]}

    def _write(self, shard: Shard, first: int, stop: int, images: Sequence[int]) -> None:
        """Write the annotations of rows; `images` are the ids of their images."""
        if first == stop:
            return
        ends = shard.ends[first:stop]
        starts = [shard.ends[first - 1] if first else 0, *ends[:-1]]
        part = slice(starts[0], ends[-1])
        category: dict[int, int] = {}
        for number in _in_order(shard, first, stop):
            found = self.writer.categories.id_of(shard.labels[number - 1])
            assert found is not None  # a shard has no label that is skipped
            category[number] = found
        self.writer.add_annotations(
            chain.from_iterable(map(repeat, images, map(sub, ends, starts))),
            [category[number] for number in shard.categories[part]],
            shard.texts[part],
        )


def _in_order(shard: Shard, first: int, stop: int) -> dict[int, None]:
    """Categories of some rows in the order in which they appear, those of skipped boxes too."""
    order: dict[int, None] = {}
    done = shard.ends[first - 1] if first else 0
    for row in range(first, stop):
        labels = shard.notes[row].get("labels") if row in shard.notes else None
        if labels is not None:
            before = shard.ends[row - 1] if row else 0
            order |= dict.fromkeys(shard.categories[done:before]) | dict.fromkeys(labels)
            done = shard.ends[row]
    return order | dict.fromkeys(shard.categories[done : shard.ends[stop - 1]])
