"""COCO files in pieces: shards that many processes write, and one file that is merged of them.

A shard is a COCO file of its own, with ids of its own, that says in ``info`` what was left out
of it. Its last line is a checksum of all before, so a shard that is there is whole or refused.
Merging reads one shard at a time and gives new numbers; nothing is decoded again.
"""

from __future__ import annotations

import io
import json
import os
import re
import uuid
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palidecode.coco.categories import CategoryMap
from palidecode.coco.writing import FILE_START, CocoReport, CocoWriter
from palidecode.errors import InputError
from palidecode.files import unwritten

_IMAGES, _CATEGORIES, _INFO = '],\n"images": [', '],\n"categories": ', ',\n"info": '
_LAST = b',\n"crc32": "%08x"}\n'
_LAST_SIZE = len(_LAST % 0)
_NUMBERS = re.compile(r'\{"id": \d+, "image_id": (\d+), "category_id": (\d+), ')


class _EveryLabel(CategoryMap):
    """Every label is a category of its own, unless `wanted` would leave it out.

    A shard can't know which labels came before it, so it keeps them as they are.
    """

    def __init__(self, wanted: CategoryMap) -> None:
        super().__init__()
        self._wanted = wanted
        self.left_out = wanted.left_out

    def id_of(self, label: str) -> int | None:
        return None if self._wanted.id_of(label) is None else super().id_of(label)


class CocoShard(CocoWriter):
    """A `CocoWriter` of one shard, in memory until `save`.

    Parameters
    ----------
    **options
        Those of `CocoWriter` that the merged file will have.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(os.devnull, **options)
        self._mapping = _EveryLabel(self._mapping)
        self._text = io.StringIO()
        self._opening = nullcontext(self._text)

    def note(self, **said: Any) -> None:
        """What else the shard says of itself; JSON values. Before the ``with`` block ends."""
        report = vars(self.report) | {"unmapped": dict(self.report.unmapped)}
        self._more["shard"] = {"report": report, **said}

    def save(self, path: Path) -> None:
        """Write it: to another name, synced, renamed.

        Raises
        ------
        InputError
            If it can't be written.
        """
        data = self._text.getvalue().removesuffix("}\n").encode()
        aside = path.with_name(f"{uuid.uuid4().hex}.part")  # several machines may try at once
        try:
            with aside.open("wb") as file:
                file.write(data + _LAST % zlib.crc32(data))
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            raise unwritten(path, error) from error
        finally:
            aside.unlink(missing_ok=True)


@dataclass(frozen=True)
class ReadShard:
    """A shard that is whole.

    Attributes
    ----------
    annotations : list of str
        Their lines.
    images : list of dict
    labels : list of str
        Its categories, in the order of their ids from 1.
    said : mapping
        What `CocoShard.note` was told.
    report : CocoReport
    """

    annotations: list[str]
    images: list[dict[str, Any]]
    labels: list[str]
    said: Mapping[str, Any]
    report: CocoReport


def read_shard(path: Path) -> ReadShard | None:
    """The shard at a path; None where there is none, or one that is damaged.

    Raises
    ------
    InputError
        If it can't be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
    body, last = data[:-_LAST_SIZE], data[-_LAST_SIZE:]
    if last != _LAST % zlib.crc32(body):
        return None
    text = body.decode()
    annotations, _, text = text.removeprefix(FILE_START).partition(_IMAGES)
    images, _, text = text.partition(_CATEGORIES)
    categories, _, info = text.partition(_INFO)
    said = json.loads(info)["shard"]
    return ReadShard(
        annotations=list(_rows(annotations)),
        images=[json.loads(line) for line in _rows(images)],
        labels=[item["name"] for item in json.loads(categories)],
        said=said,
        report=CocoReport(**said["report"] | {"unmapped": Counter(said["report"]["unmapped"])}),
    )


def _rows(block: str) -> Iterator[str]:
    """The objects of a list that stands one a line; text has no bare line breaks in JSON."""
    if block:
        yield from block.removeprefix("\n").split(",\n")


class MergingCocoWriter(CocoWriter):
    """A `CocoWriter` that takes shards: the file is the one that it would have written itself.

    Parameters
    ----------
    path : str or path
    once : bool
        No image may come in two shards.
    **options
        Those of `CocoWriter`.
    """

    def __init__(self, path: str | os.PathLike[str], *, once: bool = False, **options: Any) -> None:
        super().__init__(path, **options)
        self._once = once
        self._sizes = array("q")  # width and height, in the order of the images' numbers

    def add_shard(self, shard: ReadShard) -> list[tuple[int, str]]:
        """Write a shard's images and annotations under new numbers.

        Returns
        -------
        list of (int, str)
            Images of the shard that are left out, by their place in it, and why: they came in
            an earlier shard, with another size or though they should come once.
        """
        left_out: list[tuple[int, str]] = []
        images: list[int | None] = []
        for place, image in enumerate(shard.images):
            name, size = image["file_name"], (image["width"], image["height"])
            first = self._size_of(name)
            reason = ""
            if first is not None and self._once:
                reason = f"a picture named {name!r} came before"
            elif first is not None and first != size:
                earlier = f"{first[0]}×{first[1]} in an earlier row"
                reason = f"{name!r} is {size[0]}×{size[1]} here but {earlier}"
            if reason:
                left_out.append((place, reason))
                images.append(None)
                continue
            if first is None:
                self._sizes.extend(size)
            images.append(self._add_image(image))
        self._add_annotations(shard, images)
        report, added = self.report, shard.report
        for count in ("empty_boxes", "empty_masks", "small_parts", "crowds"):
            setattr(report, count, getattr(report, count) + getattr(added, count))
        report.unmapped.update(added.unmapped)
        return left_out

    def _size_of(self, name: str) -> tuple[int, int] | None:
        """Of an image that is written."""
        number = self._ids.get(name)
        if number is None:
            return None
        return self._sizes[2 * number - 2], self._sizes[2 * number - 1]

    def _add_annotations(self, shard: ReadShard, images: Sequence[int | None]) -> None:
        categories = [self._mapping.id_of(label) for label in shard.labels]
        written = self.report.annotations
        for line in shard.annotations:
            found = _NUMBERS.match(line)
            if found is None:
                raise InputError(f"not an annotation of a shard: {line[:60]}")
            image, category = images[int(found[1]) - 1], categories[int(found[2]) - 1]
            if image is None:
                continue
            written += 1
            start = ",\n" if written > 1 else "\n"
            numbers = f'{{"id": {written}, "image_id": {image}, "category_id": {category}, '
            self._file.write(start + numbers + line[found.end() :])
        self.report.annotations = written
