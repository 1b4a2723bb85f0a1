"""RefCOCO's files as the field has them: expressions, and what each refers to.

``refs(unc).p`` is a pickle, and a pickle can run any program. Here only lists, dicts, text and
numbers come out of one; whatever asks for more is refused before anything of it is made.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

from palidecode.coco.loading import read_segmentation
from palidecode.errors import InputError
from palidecode.files import check_size, read_json
from palidecode.geometry.rle import Rle, union

_DEEPEST = 12  # lists and dicts in each other; refs have five
_HOLDERS = (list, tuple, dict, set, frozenset)

# All that unpickling damaged bytes is known to raise.
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError),
    *(KeyError, OverflowError, MemoryError, RecursionError, AssertionError, struct.error),
)


class Truth(NamedTuple):
    """One referring expression and what it refers to.

    Attributes
    ----------
    id : int or str
        ``sent_id``, or the number of the row.
    image : str
        File name.
    size : tuple of 2 int
        Width and height in pixels.
    rle : Rle
        The mask in the full resolution of the image; empty where there is no target.
    bbox : tuple of 4 float, or None
        x, y, width, height in pixels; by default the tight box of the mask.
    expression : str
    """

    id: int | str
    image: str
    size: tuple[int, int]
    rle: Rle
    bbox: tuple[float, float, float, float] | None = None
    expression: str = ""


@dataclass(frozen=True)
class RefCoco:
    """The expressions of one split, by ``sent_id``.

    Attributes
    ----------
    truths : dict of int to Truth
    of_ref : dict of int to list of int
        The ``sent_id`` of every ``ref_id``.
    other_splits : dict of int to str
        Which split the other expressions belong to.
    """

    truths: dict[int, Truth] = field(default_factory=dict)
    of_ref: dict[int, list[int]] = field(default_factory=dict)
    other_splits: dict[int, str] = field(default_factory=dict)


class _PlainUnpickler(pickle._Unpickler):
    """Lists, dicts, tuples, sets, text and numbers; no classes, no functions.

    In Python, not in C: the C one reserves as much memory as a few hostile bytes ask for.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for objects outside of it")

    def _load_bytearray(self) -> NoReturn:  # as large as nine bytes say, before any of it is read
        raise pickle.UnpicklingError("it holds a bytearray")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }


def load_refs(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The refs of ``refs(unc).p`` and its like, or of gRefCOCO's ``grefs(unc).json``.

    Raises
    ------
    InputError
        If the file can't be read, is damaged, or asks for anything but plain values.
    """
    if Path(path).suffix == ".json":
        refs = read_json(path)
    else:
        try:
            with Path(path).open("rb") as file:
                # Written by Python 2, whose text was bytes.
                refs = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
        except _DAMAGE as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{path}: not a pickle of plain lists, dicts, text and numbers ({said}); "
                "nothing of it was run"
            ) from error
        _check_tree(refs, path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise InputError(f"{path}: refs must be a list of dicts, as in refs(unc).p")
    return refs


def _check_tree(refs: Any, path: str | os.PathLike[str]) -> None:
    """Refuse what becomes more, walked through, than the file has bytes, or is nested deeply.

    A few bytes can say: ten times the list before, in ten lists. Nothing that nobody wants to
    blow up has fewer bytes than values.
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
    raise InputError(f"{path}: not refs: its lists hold each other, or too many others")


def read_refcoco(
    refs: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    instances: str | os.PathLike[str] | Mapping[str, Any],
    split: str = "val",
) -> RefCoco:
    """The expressions of one split with their masks.

    Parameters
    ----------
    refs : path or list of dict
        ``refs(unc).p``, ``refs(google).p``, ``refs(umd).p``, ``grefs(unc).json`` or their
        content. An ``ann_id`` may be a list: several objects are one mask, none (or -1) is none.
    instances : path or dict
        ``instances.json``: ``images`` and ``annotations`` as COCO has them.
    split : str
        ``train``, ``val``, ``testA``, ``testB`` or ``test``.

    Raises
    ------
    InputError
        Naming the first ref that can't be read, or the splits there are.
    """
    where = "refs"
    if isinstance(refs, (str, os.PathLike)):
        refs, where = load_refs(refs), str(refs)
    images, annotations = _read_instances(instances)
    found, masks = RefCoco(), {}
    for place, ref in enumerate(refs):
        try:
            sentences = [(int(s["sent_id"]), _text(s)) for s in ref["sentences"]]
            if ref["split"] != split:
                other = _as_text(ref["split"])
                found.other_splits.update((number, other) for number, _ in sentences)
                continue
            image = images[ref["image_id"]]
            targets = tuple(_targets(ref))
            key = (ref["image_id"], targets)
            if key not in masks:
                masks[key] = _mask_and_box([annotations[t] for t in targets], image[1])
            for number, text in sentences:
                if number in found.truths:
                    raise ValueError(f"sent_id {number} is there twice")
                found.truths[number] = Truth(number, *image, *masks[key], text)
                found.of_ref.setdefault(int(ref["ref_id"]), []).append(number)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{where}: ref {place}: {reason}") from error
    if not found.truths:
        splits = Counter(found.other_splits.values())
        known = ", ".join(f"{name} ({count})" for name, count in splits.items()) or "none"
        raise InputError(f"{where}: no expression of split {split!r}; there are: {known}")
    return found


def _read_instances(
    instances: str | os.PathLike[str] | Mapping[str, Any],
) -> tuple[dict[int, tuple[str, tuple[int, int]]], dict[int, Mapping[str, Any]]]:
    """Name and size of every image, and every annotation, by id."""
    where = "instances" if isinstance(instances, Mapping) else str(instances)
    data = instances if isinstance(instances, Mapping) else read_json(instances)
    try:
        images = {
            image["id"]: (
                str(image.get("file_name", image["id"])),
                check_size([image["width"], image["height"]]),
            )
            for image in data["images"]
        }
        return images, {annotation["id"]: annotation for annotation in data["annotations"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: needs 'images' (id, width, height) and 'annotations' (id), as RefCOCO's "
            f"instances.json ({error!r})"
        ) from error


def _text(sentence: Mapping[str, Any]) -> str:
    return _as_text(sentence.get("sent", sentence.get("raw", "")))


def _as_text(value: Any) -> str:
    # Not str(value): a list that holds one long text a thousand times has few bytes in the file.
    if not isinstance(value, str):
        raise TypeError(f"a sentence and a split must be text, not {type(value).__name__}")
    return value


def _targets(ref: Mapping[str, Any]) -> list[int]:
    """The annotations that a ref means: one, several (gRefCOCO), or none."""
    given = ref["ann_id"]
    targets = given if isinstance(given, list) else [given]
    return [] if ref.get("no_target") else [target for target in targets if target != -1]


def _mask_and_box(
    annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> tuple[Rle, tuple[float, float, float, float] | None]:
    """The union of some annotations, and the box of a single one."""
    rles = [read_segmentation(annotation["segmentation"], size) for annotation in annotations]
    box = read_box(annotations[0].get("bbox")) if len(annotations) == 1 else None
    return union([rle for rle in rles if rle is not None], size), box


def read_box(box: Any) -> tuple[float, float, float, float] | None:
    """A COCO box, or a `ValueError`; None where there is none."""
    if box is None:
        return None
    numbers = isinstance(box, (list, tuple)) and all(isinstance(n, (int, float)) for n in box)
    try:
        values = tuple(map(float, box)) if numbers else ()
    except OverflowError:  # a number of hundreds of digits
        values = ()
    if len(values) != 4 or not all(map(math.isfinite, values)) or min(values[2:]) < 0:
        raise ValueError(f"bbox must be x, y, width and height, got {box!r}")
    return values
