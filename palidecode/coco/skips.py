"""Rows of COCO files that were skipped, or are odd: counted, with examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.errors import warn

Side: TypeAlias = Literal["truth", "prediction", "image", "category", "ref"]

Offsets: TypeAlias = npt.NDArray[np.int64] | list[int]

_EXAMPLES = 5
_WORDS: dict[Side, tuple[str, str]] = {
    "truth": ("annotation", "annotations"),
    "prediction": ("prediction", "predictions"),
    "image": ("image", "images"),
    "category": ("category", "categories"),
    "ref": ("ref", "refs"),
}

SKIPPED = {
    "unreadable": "could not be read",
    "unknown_image": "of unknown images",
    "unknown_category": "of unknown categories",
    "ambiguous": "with a file name that several images share",
    "bad_name": "without a usable file name",
    "no_size": "without a width and a height",
    "bad_score": "whose score is NaN or infinite",
    "bad_box": "whose box is NaN, or beyond a billion pixels",
    "negative_box": "whose box has a negative side",
    "bad_area": "whose area is negative or infinite",
    "no_mask": "without a mask",
    "no_box": "without a box",
    "bad_mask": "whose mask is damaged or of another size than the picture",
    "bad_target": "whose object or image can't be read",
    "merged": "repeating a better one (merged)",
    "not_asked": "of categories that the prompt did not ask for",
    "not_labelled": "of categories that their picture is not labelled for: neither right nor wrong",
    "beyond_300": "beyond the 300 best of an image, which LVIS ignores",
}
"""Reasons to skip a row: it is in no number and no output."""

NOTED = {
    "negative_box": "whose box has a negative side: always wrong",
    "outside": "whose box is outside the picture",
    "no_mask": "without a mask: always wrong",
    "bad_ring": "with polygon rings of fewer than three points, which were skipped",
    "empty_box": "whose box has no area: nothing can match it",
    "no_answer": "without a single prediction: every object there counts as missed",
    "same_name": "with a file name that another has too: predictions of one name are evaluated "
    "together",
    "other_size": "of another size than in the ground truth: boxes and masks don't fit; the option "
    "--scale-to-truth (scale_to_truth=True) scales them",
    "turned": "turned by 90° against the ground truth: only one side applied an EXIF rotation?",
    "all_crowds": "with iscrowd, and none without: there is no object to evaluate; the "
    "option --crowds (crowds=True) counts crowds as objects",
    "fractions": "whose box is within 0 and 1, and none is beyond: COCO's boxes are in pixels; "
    "multiply by the width and the height of the picture",
    "bins": "whose box reaches beyond the picture, and all end below 1024: are they loc bins? "
    "COCO's boxes are in pixels; loc_to_xyxy converts them",
    "rotated": "with a rotation (attributes.rotation): COCO's boxes are upright, and this one is "
    "that before the rotation",
    "federated": "labelled for some categories alone (neg_category_ids, as in LVIS): objects of "
    "the others may be there, and count as absent",
    "lvis": "labelled for some categories alone (neg_category_ids): evaluated as LVIS does",
    "spaces": "whose name had white space around it, which was stripped",
    "clipped": "beyond the 100 best of an image and category, which COCO ignores",
}
"""Oddities of rows that are used."""

DIFFER = ("rotated", "same_name", "other_size", "turned", "all_crowds", "fractions", "bins")
"""Oddities by which ground truth and predictions don't fit."""
_MEANT = ("merged", "not_asked", "not_labelled", "beyond_300")
"""Reasons to skip that the options or LVIS's rules ask for."""


class SkippedRowsWarning(UserWarning):
    """Some rows of a COCO file were skipped."""


def needs_a_look(skipped: Iterable[Skip], noted: Iterable[Skip]) -> bool:
    """Return True if rows or rings were skipped unasked, or ground truth and predictions differ."""
    return any(skip.reason not in _MEANT for skip in skipped) or any(
        skip.reason in (*DIFFER, "bad_ring") for skip in noted
    )


@dataclass
class Skip:
    """Rows of one kind that were skipped, or are odd.

    Attributes
    ----------
    side : {"truth", "prediction", "image", "category", "ref"}
    reason : str
        A key of `SKIPPED` or `NOTED`.
    text : str
        The reason in words.
    count : int
    examples : tuple of str
        The first few: their index in the file (``annotations[9]``), or the names of pictures.
    names : dict of str to int
        Each unknown category and its number of rows.
    """

    side: Side
    reason: str
    text: str
    count: int = 0
    examples: tuple[str, ...] = ()
    names: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the fields for JSON."""
        named = {"names": self.names} if self.names else {}
        return {
            "side": self.side,
            "reason": self.reason,
            "count": self.count,
            "text": self.text,
            "examples": list(self.examples),
            **named,
        }

    @property
    def such_as(self) -> str:
        """The examples in words; ``""`` if `__str__` names all of them."""
        if self.names or not self.examples:
            return ""
        return ("such as " if self.count > len(self.examples) else "") + ", ".join(self.examples)

    def __str__(self) -> str:
        named = ", ".join(f"{name!r} {count}" for name, count in list(self.names.items())[:10])
        more = f", and {len(self.names) - 10} more" if len(self.names) > 10 else ""
        shown = f"{self.count:,} {_WORDS[self.side][self.count != 1]} {self.text}"
        return f"{shown} ({named}{more})" if named else shown


class Skips:
    """Collects `Skip`.

    Attributes
    ----------
    lists : dict of str to str
        Name of the list in the file that contains a side's rows.
    """

    def __init__(self) -> None:
        self.lists: dict[Side, str] = {side: words[1] for side, words in _WORDS.items()}
        self.lists |= {"truth": "annotations", "prediction": "results"}
        self._skipped: dict[tuple[Side, str], Skip] = {}
        self._noted: dict[tuple[Side, str], Skip] = {}

    def at(self, side: Side, offset: int) -> str:
        """Return the index of a row in its file: ``annotations[9]``."""
        return f"{self.lists[side]}[{offset}]"

    def add(self, side: Side, reason: str, offset: int, example: str) -> None:
        """Skip one row."""
        self.add_many(side, reason, [offset], [example])

    def add_many(
        self,
        side: Side,
        reason: str,
        offsets: Offsets,
        examples: Iterable[str] | None = None,
        names: Mapping[str, int] | None = None,
    ) -> None:
        """Skip rows, given by their offsets in the file's list."""
        self._collect(self._skipped, Skip(side, reason, SKIPPED[reason]), offsets, examples, names)

    def note(
        self, side: Side, reason: str, offsets: Offsets, examples: Iterable[str] | None = None
    ) -> None:
        """Note rows that are odd and used."""
        self._collect(self._noted, Skip(side, reason, NOTED[reason]), offsets, examples)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """The skipped rows, most frequent reason first."""
        return tuple(sorted(self._skipped.values(), key=lambda skip: -skip.count))

    @property
    def noted(self) -> tuple[Skip, ...]:
        """Rows that are odd and used, most frequent reason first."""
        return tuple(sorted(self._noted.values(), key=lambda skip: -skip.count))

    def __str__(self) -> str:
        return "; ".join(
            str(skip) + (f" ({skip.such_as})" if skip.such_as else "")
            for skip in (*self.skipped, *self.noted)
        )

    def warn(self, where: str) -> None:
        """Warn of what was skipped or noted, if anything was."""
        if self._skipped or self._noted:
            text = f"{where}: {'skipped: ' if self._skipped else ''}{self}"
            warn(text, SkippedRowsWarning)

    def _collect(
        self,
        skips: dict[tuple[Side, str], Skip],
        new: Skip,
        offsets: Offsets,
        examples: Iterable[str] | None,
        names: Mapping[str, int] | None = None,
    ) -> None:
        if len(offsets) == 0:
            return
        skip = skips.setdefault((new.side, new.reason), new)
        room = _EXAMPLES - len(skip.examples)
        if examples is None:
            examples = (self.at(skip.side, offset) for offset in offsets[:room])
        skip.examples += tuple(islice(examples, room))
        skip.count += len(offsets)
        for name, count in (names or {}).items():
            skip.names[name] = skip.names.get(name, 0) + count
