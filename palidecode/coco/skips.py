"""What an evaluation left out or changed, counted, with examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

_EXAMPLES = 5
_NOTED = "noted "

SKIPPED = {
    "unreadable": "could not be read",
    "unknown_image": "of images that the ground truth doesn't have",
    "unknown_category": "of categories that the ground truth doesn't have",
    "bad_score": "whose score is NaN or infinite",
    "bad_box": "whose box is NaN, or beyond a billion pixels",
    "negative_box": "whose box has a negative side",
    "bad_area": "whose area is negative or infinite",
    "no_mask": "without a mask",
    "no_box": "without a box",
    "bad_mask": "whose mask is damaged or of another size than the picture",
    "merged": "repeating a better one (merged)",
    "not_asked": "of categories that the prompt did not ask for",
}
"""Why rows were left out of every number."""

NOTED = {
    "negative_box": "whose box has a negative side: wrong whatever they match",
    "outside": "whose box lies outside the picture",
    "no_mask": "without a mask: wrong whatever they match",
    "bad_ring": "with polygon rings of fewer than three points, which were left out",
    "empty_box": "whose box has no area: nothing can match them",
    "no_answer": "without a single prediction: all their objects count as missed",
    "clipped": "beyond the 100 best of an image and category, which COCO doesn't look at",
}
"""What was odd and is still counted."""


@dataclass(frozen=True)
class Skip:
    """Rows of one kind that were left out, or are odd.

    Attributes
    ----------
    side : {"truth", "prediction", "image"}
    reason : str
        A key of `SKIPPED` or `NOTED`.
    count : int
    text : str
        The reason in words.
    examples : tuple of str
        The first few: where they stand in their file (``annotations[9]``), or which pictures.
    names : dict of str to int
        How often each unknown category came.
    """

    side: str
    reason: str
    count: int
    text: str
    examples: tuple[str, ...] = ()
    names: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            "side": self.side,
            "reason": self.reason,
            "count": self.count,
            "text": self.text,
            "examples": list(self.examples),
        }
        return found | ({"names": self.names} if self.names else {})

    @property
    def such_as(self) -> str:
        """The examples in words; ``""`` where `__str__` has named them all."""
        if self.names or not self.examples:
            return ""
        return ("such as " if self.count > len(self.examples) else "") + ", ".join(self.examples)

    def __str__(self) -> str:
        what = {"truth": "annotation", "prediction": "prediction", "image": "image"}[self.side]
        named = ", ".join(f"{name!r} {count}" for name, count in list(self.names.items())[:10])
        more = f", and {len(self.names) - 10} more" if len(self.names) > 10 else ""
        shown = f"{self.count:,} {what}{'' if self.count == 1 else 's'} {self.text}"
        return f"{shown} ({named}{more})" if named else shown


class Skips:
    """Collects `Skip`.

    Attributes
    ----------
    lists : dict of str to str
        What the list is called that a side's rows stand in.
    """

    def __init__(self) -> None:
        self.lists = {"truth": "annotations", "prediction": "results"}
        self._found: dict[tuple[str, str], tuple[int, list[str], dict[str, int]]] = {}

    def where(self, side: str, place: int) -> str:
        """Where a row stands in its file."""
        return f"{self.lists[side]}[{place}]"

    def add(self, side: str, reason: str, place: int, example: str) -> None:
        """One row."""
        self.add_many(side, reason, [place], [example])

    def add_many(
        self,
        side: str,
        reason: str,
        places: npt.NDArray[np.int64] | list[int],
        examples: Iterable[str] | None = None,
        names: dict[str, int] | None = None,
    ) -> None:
        """Rows of the file, by their place in its list."""
        if len(places) == 0:
            return
        count, shown, named = self._found.get((side, reason), (0, [], {}))
        room = _EXAMPLES - len(shown)
        if examples is None:
            examples = (self.where(side.removeprefix(_NOTED), place) for place in places[:room])
        shown += islice(examples, max(room, 0))
        for name, number in (names or {}).items():
            named[name] = named.get(name, 0) + number
        self._found[side, reason] = (count + len(places), shown, named)

    def note(
        self,
        side: str,
        reason: str,
        places: npt.NDArray[np.int64] | list[int],
        examples: Iterable[str] | None = None,
    ) -> None:
        """Rows that are odd and still counted."""
        self.add_many(_NOTED + side, reason, places, examples)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """What was left out, the most frequent first."""
        return self._listed("", SKIPPED)

    @property
    def noted(self) -> tuple[Skip, ...]:
        """What is odd and still counted, the most frequent first."""
        return self._listed(_NOTED, NOTED)

    def _listed(self, prefix: str, texts: dict[str, str]) -> tuple[Skip, ...]:
        found = [
            Skip(side.removeprefix(prefix), reason, count, texts[reason], tuple(examples), names)
            for (side, reason), (count, examples, names) in self._found.items()
            if side.startswith(_NOTED) == bool(prefix)
        ]
        return tuple(sorted(found, key=lambda skip: -skip.count))
