"""New versions of a row at each use: mirrored, cropped, objects in another order, noise boxes.

Boxes and masks move with the picture. A mask's codes are decoded, moved and encoded again by the
model's own codec, since rows hold nothing finer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.answers.assembler import ParsedObject
from palidecode.answers.parsing import format_objects, parse
from palidecode.codec.protocol import MaskCodec
from palidecode.errors import InputError
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.prompts import SEPARATOR, split_verb
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.trainer.examples import Example
from palidecode.vocab import LOC_COUNT, MASK_SIDE, loc_token

ORDERS = ("given", "left-to-right", "random")
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
_VISIBLE = 0.5  # least share of a box that a window keeps, unless it keeps nothing
_ATTEMPTS = 10
_LAST = LOC_COUNT - 1

Boxes = npt.NDArray[np.float64]
Fields = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Variation:
    """The ways in which rows vary; the defaults leave them as they are.

    Attributes
    ----------
    flip : bool
        Mirror every second picture, but none whose prompt or answer has a word that begins with
        "left" or "right".
    crop : float, optional
        Cut a random window out of the picture, whose sides have at least this share of the
        picture's. A window that cuts more than half of a box off, and not all of it, isn't used.
    order : {"given", "left-to-right", "random"}
        Order of the objects in the answer, by the left edge, then the top.
    noise : int
        Fill answers up to this many objects, or the longest row, with boxes of random corners and
        the class `noise_token`. Their loc tokens aren't in the loss; all else is. Source:
        PaliGemma 2's report, appendix C, which fills up to the longest sequence.
    noise_token : str
        One token of the model's vocabulary that no class needs. The report names it ``<noise>``;
        which id it has there isn't public, so that the default is Gemma's first unused token.
    """

    flip: bool = False
    crop: float | None = None
    order: str = "given"
    noise: int = 0
    noise_token: str = "<unused0>"

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop < 1:
            raise InputError(f"crop must be between 0 and 1, got {self.crop}")
        if self.order not in ORDERS:
            raise InputError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        if self.noise < 0:
            raise InputError(f"noise must be 0 or above, got {self.noise}")

    @property
    def active(self) -> bool:
        """True if any row changes."""
        return replace(self, noise_token=Variation.noise_token) != Variation()


class Varying:
    """Makes versions of rows.

    Parameters
    ----------
    variation : Variation
    tokenizer : Tokenizer
    codec : MaskCodec or None
        Needed for rows with masks if pictures change.
    longest : int
        Most tokens of a prompt and an answer with noise boxes.

    Raises
    ------
    InputError
        If `noise_token` is no token of the model's.
    """

    def __init__(
        self, variation: Variation, tokenizer: Tokenizer, codec: MaskCodec | None, longest: int
    ) -> None:
        self.variation, self._tokenizer, self._codec = variation, tokenizer, codec
        self._longest = longest
        self._separator = tokenizer.encode(f"{loc_token(0)} a{SEPARATOR}{loc_token(0)}")
        self._separator = self._separator[len(tokenizer.encode(f"{loc_token(0)} a")) : -1]
        self._noise = tokenizer.token(variation.noise_token) if variation.noise else None

    def vary(self, example: Example, rng: np.random.Generator) -> Example:
        """Make a new version of a row; one that lists no objects stays as it is."""
        objects, issues = parse(example.suffix)
        lists = split_verb(example.prefix)[0] is not None or objects
        if example.others:  # boxes are those of one picture, and which is not known here
            return example
        if issues or not lists or any(item.loc is None for item in objects):
            return example
        chosen = list(objects)
        window, flipped = None, False
        if self.variation.crop is not None:
            window, chosen = self._cropped(example, chosen, rng)
        if self.variation.flip and rng.random() < 0.5 and not _has_sides(example):
            flipped, chosen = True, self._mirrored(chosen)
        chosen = _ordered(chosen, self.variation.order, rng)
        suffix = format_objects(chosen)
        answer = self._tokenizer.encode(suffix)
        silent = [False] * len(answer)
        if self._noise is not None:
            room = self._longest - len(example.prompt) - 1
            for _ in range(self.variation.noise - len(chosen)):
                noise, quiet = self._noise_box(rng, first=not answer)
                if len(answer) + len(noise) > room:
                    break
                answer, silent = answer + noise, silent + quiet
        return replace(
            example,
            suffix=suffix,
            answer=(*answer, self._tokenizer.vocabulary.eos),
            silent=(*silent, False),
            window=window,
            flipped=flipped,
        )

    def _cropped(
        self, example: Example, objects: list[ParsedObject], rng: np.random.Generator
    ) -> tuple[tuple[int, int, int, int] | None, list[ParsedObject]]:
        """Choose a window in which every object is or isn't, and the objects in it."""
        least = self.variation.crop or 1.0
        size = np.array(example.size)
        boxes = _boxes_of(objects) * np.tile(size, 2)
        for _ in range(_ATTEMPTS):
            sides = np.maximum(1, np.rint(size * rng.uniform(least, 1, 2))).astype(int)
            first = rng.integers(0, size - sides + 1)
            window = np.concatenate([first, first + sides])
            clipped = np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))
            share = _areas(clipped) / np.maximum(_areas(boxes), 1e-9)
            bins = _to_bins((clipped - np.tile(window[:2], 2)) / np.tile(sides, 2))
            kept = (share >= _VISIBLE) & _has_area(bins)
            if (kept | (share == 0)).all():
                break
        else:
            return None, objects
        moved = [_in_box(objects[index], bins[index]) for index in np.flatnonzero(kept)]
        inner = (clipped - np.tile(boxes[:, :2], 2)) / np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        x1, y1, x2, y2 = window.tolist()
        return (x1, y1, x2, y2), self._masks_moved(moved, inner[kept], mirror=False)

    def _mirrored(self, objects: list[ParsedObject]) -> list[ParsedObject]:
        boxes = _boxes_of(objects)
        bins = _to_bins(np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1))
        moved = [_in_box(item, row) for item, row in zip(objects, bins, strict=True)]
        whole = np.tile([0.0, 0.0, 1.0, 1.0], (len(objects), 1))
        return self._masks_moved(moved, whole, mirror=True)

    def _masks_moved(
        self, objects: list[ParsedObject], inner: Boxes, mirror: bool
    ) -> list[ParsedObject]:
        """Encode the masks' parts `inner` (xyxy, shares of the box), mirrored or not."""
        changed = [
            index
            for index, (item, part) in enumerate(zip(objects, inner, strict=True))
            if item.seg is not None and (mirror or not np.allclose(part, [0, 0, 1, 1]))
        ]
        if not changed or self._codec is None:
            return objects
        fields = self._codec.decode(np.array([objects[index].seg for index in changed]))
        parts = np.stack([_part(f, inner[n]) for f, n in zip(fields, changed, strict=True)])
        if mirror:
            parts = parts[:, :, ::-1]
        codes = self._codec.encode(np.ascontiguousarray(parts)).tolist()
        made = list(objects)
        for index, seg in zip(changed, codes, strict=True):
            made[index] = made[index]._replace(seg=tuple(seg))
        return made

    def _noise_box(self, rng: np.random.Generator, first: bool) -> tuple[list[int], list[bool]]:
        """Return the tokens of a noise box, and those of them that aren't in the loss."""
        corners = [np.sort(rng.choice(LOC_COUNT, 2, replace=False)) for _ in range(2)]
        bins = [corner[end] for end in (0, 1) for corner in corners]
        before = [] if first else self._separator
        offset = self._tokenizer.vocabulary.loc_offset
        assert self._noise is not None
        tokens = [*before, *(offset + int(bin_) for bin_ in bins), self._noise]
        return tokens, [False] * len(before) + [True] * len(bins) + [False]


def _has_sides(example: Example) -> bool:
    return bool(_SIDES.search(example.prefix) or _SIDES.search(example.suffix))


def _in_box(item: ParsedObject, bins: npt.NDArray[np.int64]) -> ParsedObject:
    """Give an object another box: bins y1 x1 y2 x2."""
    y1, x1, y2, x2 = bins.tolist()
    return item._replace(loc=(y1, x1, y2, x2))


def _boxes_of(objects: Sequence[ParsedObject]) -> Boxes:
    """Return boxes as shares of the picture, xyxy; the last bin is the picture's edge."""
    bins = np.array([item.loc for item in objects], np.float64).reshape(-1, 4)
    return np.where(bins == _LAST, 1.0, bins / DEFAULT_DIVISOR)[:, [1, 0, 3, 2]]


def _to_bins(xyxy: Boxes) -> npt.NDArray[np.int64]:
    bins = np.clip(np.rint(xyxy * DEFAULT_DIVISOR), 0, _LAST)
    return bins[:, [1, 0, 3, 2]].astype(np.int64)


def _has_area(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return (bins[:, 2] > bins[:, 0]) & (bins[:, 3] > bins[:, 1])


def _areas(xyxy: Boxes) -> npt.NDArray[np.float64]:
    sides = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    areas: npt.NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return areas


def _part(field: Fields, inner: Boxes) -> Fields:
    """Cut a part (xyxy, shares) out of a field, and stretch it to the field's size, in [0, 1]."""
    levels = np.clip(field / 2 + 0.5, 0, 1).astype(np.float32)
    box = tuple((np.clip(inner, 0, 1) * MASK_SIDE).tolist())
    if box == (0, 0, MASK_SIDE, MASK_SIDE):
        return levels
    side = (MASK_SIDE, MASK_SIDE)
    image = Image.fromarray(levels).resize(side, Image.Resampling.BILINEAR, box)
    return np.asarray(image, np.float32).clip(0, 1)


def _ordered(
    objects: list[ParsedObject], order: str, rng: np.random.Generator
) -> list[ParsedObject]:
    if order == "random":
        return [objects[index] for index in rng.permutation(len(objects))]
    if order == "left-to-right":
        return sorted(objects, key=lambda item: (item.loc[1], item.loc[0]) if item.loc else (0, 0))
    return objects
