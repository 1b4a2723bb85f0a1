"""RefCOCO's files: expressions, and the objects that they refer to.

``refs(unc).p`` is a pickle, and a pickle can run any program. Only lists, dicts, text and numbers
are read from it; a file that contains anything else is refused before any of that is made.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import msgspec

from palidecode.coco.mask_reading import read_mask
from palidecode.coco.reading import (
    Key,
    Outline,
    Source,
    Xywh,
    index_by_id,
    read_box,
    read_dataset,
    sized_images,
)
from palidecode.coco.skips import Skip, Skips
from palidecode.errors import InputError
from palidecode.files import read_json, regular
from palidecode.geometry.rle import Rle, union

_DEEPEST = 12  # nested lists and dicts; refs have five
_HOLDERS = (list, tuple, dict, set, frozenset)

# Everything that unpickling damaged bytes is known to raise.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError),
    *(KeyError, OverflowError, MemoryError, RecursionError, AssertionError, struct.error),
)


class Truth(NamedTuple):
    """One referring expression and the object that it refers to.

    Attributes
    ----------
    id : int or str
        ``sent_id``, or the number of the row.
    image : str
        File name.
    size : tuple of 2 int
        Width and height in pixels.
    rle : Rle or None
        The mask in the full resolution of the image; empty without a target. None where only the
        box is known.
    bbox : tuple of 4 float, or None
        x, y, width, height in pixels; by default the tight box of the mask.
    expression : str
    """

    id: int | str
    image: str
    size: tuple[int, int]
    rle: Rle | None
    bbox: tuple[float, float, float, float] | None = None
    expression: str = ""


@dataclass
class RefCoco:
    """The expressions of one split, by ``sent_id``.

    Attributes
    ----------
    truths : dict of int to Truth
    of_ref : dict of int to list of int
        The ``sent_id`` of every ``ref_id``.
    other_splits : dict of int to str
        Split of the other expressions.
    unusable : dict of int to str
        Expressions of the split that were skipped, and the reason.
    skipped : tuple of Skip
        Rows of the files that were skipped.
    """

    truths: dict[int, Truth] = field(default_factory=dict)
    of_ref: dict[int, list[int]] = field(default_factory=dict)
    other_splits: dict[int, str] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()


class _PlainUnpickler(pickle._Unpickler):
    """Reads lists, dicts, tuples, sets, text and numbers; no classes, no functions.

    In Python, not in C: the C one reserves as much memory as a few hostile bytes ask for.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("it asks for objects outside of the file")

    def _load_bytearray(self) -> NoReturn:  # its memory is reserved before any of it is read
        raise pickle.UnpicklingError("it holds a bytearray")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }


def load_refs(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Load ``refs(unc).p`` and similar files, or gRefCOCO's ``grefs(unc).json``."""
    if Path(path).suffix == ".json":
        refs = read_json(path)
    else:
        try:
            with regular(path).open("rb") as file:
                # Written by Python 2, whose text was bytes.
                refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
        except _DAMAGE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{path}: not a pickle of plain lists, dicts, text and numbers ({reason}); "
                "nothing of it was run"
            ) from error
        _check_tree(refs, path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise InputError(f"{path}: refs must be a list of dicts, as in refs(unc).p")
    return refs


def _check_tree(refs: object, path: str | os.PathLike[str]) -> None:
    """Guard against exponentially shared lists ("billion laughs") and deep nesting.

    Real files have more bytes than values.
    """
    left = Path(path).stat().st_size
    level: list[Any] = [refs]
    for _ in range(_DEEPEST):
        level = [value for value in level if isinstance(value, _HOLDERS)]
        if not level:
            return
        left -= sum(map(len, level))
        if left < 0:
            break
        level = [
            inner
            for value in level
            for inner in (chain(value, value.values()) if isinstance(value, dict) else value)
        ]
    raise InputError(f"{path}: not refs: its lists contain each other, or too many others")


def read_refcoco(
    refs: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    instances: str | os.PathLike[str] | Mapping[str, Any],
    split: str = "val",
) -> RefCoco:
    """Read the expressions of one split with their masks.

    Parameters
    ----------
    refs : path or list of dict
        ``refs(unc).p``, ``refs(google).p``, ``refs(umd).p``, ``grefs(unc).json`` or their
        content. An ``ann_id`` may be a list: several objects are one mask, none (or -1) is none.
    instances : path or dict
        ``instances.json``: ``images`` and ``annotations`` as COCO has them.
    split : str
        ``train``, ``val``, ``testA``, ``testB`` or ``test``.
    """
    where = "refs"
    if isinstance(refs, (str, os.PathLike)):
        refs, where = load_refs(refs), str(refs)
    skips = Skips()
    objects = _Objects(instances, skips)
    read = RefCoco()
    for offset, ref in enumerate(refs):
        try:
            sentences = [(int(s["sent_id"]), _text(s)) for s in ref["sentences"]]
            if ref["split"] != split:
                other = _as_text(ref["split"])
                read.other_splits.update((number, other) for number, _ in sentences)
                continue
            try:
                target = objects.target(ref["image_id"], tuple(_targets(ref)))
            except InputError as error:
                skips.add("ref", "bad_target", offset, f"{skips.at('ref', offset)}: {error}")
                read.unusable.update((number, str(error)) for number, _ in sentences)
                continue
            for number, text in sentences:
                if number in read.truths:
                    raise ValueError(f"sent_id {number} is there twice")
                read.truths[number] = Truth(number, *target, text)
                read.of_ref.setdefault(int(ref["ref_id"]), []).append(number)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{where}: ref {offset}: {reason}") from error
    read.skipped = skips.skipped + tuple(s for s in skips.noted if s.reason == "bad_ring")
    if read.unusable and not read.truths:
        raise InputError(f"{where}: no expression of split {split!r} can be used: {skips}")
    if not read.truths:
        splits = Counter(read.other_splits.values())
        known = ", ".join(f"{name} ({count})" for name, count in splits.items()) or "none"
        raise InputError(f"{where}: no expression of split {split!r}; there are: {known}")
    return read


class _Object(msgspec.Struct, kw_only=True, gc=False):
    """An annotation of ``instances.json``."""

    id: Key
    segmentation: Outline = None
    bbox: Xywh | None = None


class _Objects:
    """The objects that refs mean; each mask is read once."""

    def __init__(self, instances: Source, skips: Skips) -> None:
        read = read_dataset(
            instances, _Object, skips, name="instances", needs=("images", "annotations")
        )
        self._skips = skips
        images = sized_images(read, skips)
        self._images = {key: images[index] for key, index in index_by_id(images).items()}
        self._objects = {row.id: row for row in read.annotations.rows}
        self._broken = {item.id: item.problem for item in read.annotations.broken}
        self._no_images: dict[object, str] = {
            image.id: "no width and height" for image in read.images.rows
        }
        self._no_images |= {item.id: item.problem for item in read.images.broken}
        self._masks: dict[tuple[Key, tuple[Key, ...]], tuple[Rle | None, Xywh | None]] = {}

    def target(
        self, image_id: Key, targets: tuple[Key, ...]
    ) -> tuple[str, tuple[int, int], Rle | None, Xywh | None]:
        """Return an image's name and size, the mask of some objects together, and their box."""
        if image_id not in self._images and image_id in self._no_images:
            raise InputError(f"image {image_id}: {self._no_images[image_id]}")
        image = self._images[image_id]
        size = image.width, image.height
        key = image_id, targets
        if key not in self._masks:
            self._masks[key] = self._mask_and_box(targets, size)
        return image.file_name or str(image.id), size, *self._masks[key]

    def _mask_and_box(
        self, targets: tuple[Key, ...], size: tuple[int, int]
    ) -> tuple[Rle | None, Xywh | None]:
        """Return the union of some objects, and the box of a single one.

        Without the mask of one of them there is no union, and the box encloses all of them.
        """
        rles, boxes, lacking = [], list[Xywh](), ""
        for target in targets:
            if target not in self._objects and target in self._broken:
                raise InputError(f"annotation {target}: {self._broken[target]}")
            row = self._objects[target]
            try:
                rle, skipped_rings = read_mask(row.segmentation, size)
                box = solid_box(row.bbox)
            except InputError as error:
                raise InputError(f"annotation {target}: {error}") from error
            rles += [] if rle is None else [rle]
            boxes += [] if box is None else [box]
            if rle is None:
                lacking = lacking or f"annotation {target}: no segmentation"
            if skipped_rings:
                self._skips.note("truth", "bad_ring", [0], [f"annotation {target}"])
        if not lacking:
            return union(rles, size), boxes[0] if len(targets) == len(boxes) == 1 else None
        if len(boxes) < len(targets):
            raise InputError(f"{lacking}, and not every object has a bbox")
        return None, _enclosing(boxes)


def _enclosing(boxes: Sequence[Xywh]) -> Xywh:
    x, y = (min(box[axis] for box in boxes) for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box in boxes) for axis in (0, 1))
    return x, y, right - x, bottom - y


def solid_box(value: object) -> Xywh | None:
    """Read a COCO box whose sides are not negative; None for None."""
    box = read_box(value)
    if box is not None and min(box[2:]) < 0:
        raise InputError(f"bbox must have a width and a height from 0 up, got {list(box)}")
    return box


def _text(sentence: Mapping[str, Any]) -> str:
    return _as_text(sentence.get("sent", sentence.get("raw", "")))


def _as_text(value: object) -> str:
    # Not str(value): a list of one long text a thousand times has few bytes in the file.
    if not isinstance(value, str):
        raise TypeError(f"a sentence and a split must be text, not {type(value).__name__}")
    return value


def _targets(ref: Mapping[str, Any]) -> list[int]:
    """Return the annotations that a ref means: one, several (gRefCOCO), or none."""
    given = ref["ann_id"]
    targets = given if isinstance(given, list) else [given]
    return [] if ref.get("no_target") else [target for target in targets if target != -1]
