"""The columns that `Detections` are made of: rows selected, joined and suppressed, no masks."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Self, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from palidecode.answers.assembler import ParseIssue
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.errors import InputError
from palidecode.geometry.rle import Rle
from palidecode.vocab import SEG_PER_MASK

Rows: TypeAlias = npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | slice | Sequence[int]
ImageId: TypeAlias = int | str


@dataclass(frozen=True, eq=False)
class ObjectColumns:
    """The columns of `Detections`, which explains them; selects and joins their rows."""

    xyxy: npt.NDArray[np.float32]
    labels: list[str]
    scores: npt.NDArray[np.float32]
    image_index: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    codes: npt.NDArray[np.uint8]
    has_mask: npt.NDArray[np.bool_]
    rles: list[Rle | None] | None = None
    codec: MaskCodec | None = None
    codes_id: str = GOOGLE_ID
    issues: list[tuple[int, ParseIssue]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    image_ids: list[ImageId | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.labels)
        shapes = {
            "xyxy": (count, 4),
            "scores": (count,),
            "image_index": (count,),
            "codes": (count, SEG_PER_MASK),
            "has_mask": (count,),
        }
        for name, shape in shapes.items():
            given = getattr(self, name).shape
            if given != shape:
                raise InputError(
                    f"{name} must have shape {shape}, as the labels ({count}), got {given}"
                )
        if self.sizes.ndim != 2 or self.sizes.shape[1] != 2:
            raise InputError(f"sizes must have shape (B, 2), got {self.sizes.shape}")
        if self.rles is not None and len(self.rles) != count:
            raise InputError(f"rles ({len(self.rles)}) must be as many as labels ({count})")
        if count and not (0 <= self.image_index.min() <= self.image_index.max() < len(self.sizes)):
            raise InputError(f"image_index must be in 0 … {len(self.sizes) - 1}")
        images = len(self.sizes)
        if not self.names:
            object.__setattr__(self, "names", [""] * images)
        if not self.image_ids:
            object.__setattr__(self, "image_ids", [None] * images)
        if not len(self.names) == len(self.image_ids) == images:
            raise InputError(
                f"names ({len(self.names)}) and image_ids ({len(self.image_ids)}) must be as many "
                f"as the images ({images})"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: int | Rows) -> Self:
        """Select one object by its index, or several as `select` does; all images stay."""
        if isinstance(rows, (int, np.integer)):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"object {rows} is not one of the {len(self)}")
            return self.select([int(rows)])
        return self.select(rows)

    def __iter__(self) -> Iterator[Self]:
        """Yield each object as `Detections` of one."""
        return (self.select([row]) for row in range(len(self)))

    def __add__(self, other: Self) -> Self:
        """Append the images of other detections; see `concat`."""
        return self.concat([self, other]) if isinstance(other, ObjectColumns) else NotImplemented

    @classmethod
    def empty(cls) -> Self:
        """Return detections of no image."""
        return cls(
            xyxy=np.zeros((0, 4), np.float32),
            labels=[],
            scores=np.zeros(0, np.float32),
            image_index=np.zeros(0, np.int64),
            sizes=np.zeros((0, 2), np.int64),
            codes=np.zeros((0, SEG_PER_MASK), np.uint8),
            has_mask=np.zeros(0, np.bool_),
        )

    @classmethod
    def concat(cls, parts: Iterable[Self], *, merge_images: bool = False) -> Self:
        """Append the images of several detections.

        Parameters
        ----------
        parts : iterable of Detections
        merge_images : bool
            Make one image of those that have the same name and size, with the objects of all;
            by default they stay apart. Images without a name always do.

        Raises
        ------
        InputError
            For mask codes of different weights: one codec can't decode both.
        """
        given = list(parts)
        if not given:
            return cls.empty()
        coded = [part for part in given if part._coded().any()] or given[:1]
        codecs = {part.codec.id: part.codec for part in coded if part.codec is not None}
        weights = {part.codes_id for part in coded}
        if len(weights) > 1 or len(codecs) > 1:
            raise InputError(
                f"masks of {' and '.join(sorted(weights | set(codecs)))} can't be joined as codes; "
                "make them RLE first: dataclasses.replace(part, rles=part.to_rle())"
            )
        starts = np.cumsum([0, *(len(part.sizes) for part in given)]).tolist()
        numbered = list(zip(starts, given, strict=False))
        with_rles = any(part.rles is not None for part in given)
        joined = cls(
            xyxy=np.concatenate([part.xyxy for part in given]),
            labels=list(chain.from_iterable(part.labels for part in given)),
            scores=np.concatenate([part.scores for part in given]),
            image_index=np.concatenate([part.image_index + start for start, part in numbered]),
            sizes=np.concatenate([part.sizes for part in given]),
            codes=np.concatenate([part.codes for part in given]),
            has_mask=np.concatenate([part.has_mask for part in given]),
            rles=[r for p in given for r in p.rles or [None] * len(p)] if with_rles else None,
            codec=next(iter(codecs.values()), None),
            codes_id=weights.pop(),
            issues=[(start + image, issue) for start, p in numbered for image, issue in p.issues],
            names=list(chain.from_iterable(part.names for part in given)),
            image_ids=list(chain.from_iterable(part.image_ids for part in given)),
        )
        return joined._merged() if merge_images else joined

    def _merged(self) -> Self:
        """Make one image of those with the same name and size, in order of their first."""
        numbers: dict[object, int] = {}
        ids: list[ImageId | None] = []
        firsts: list[int] = []
        target = np.zeros(len(self.sizes), np.int64)
        for image, (name, size) in enumerate(zip(self.names, self.sizes.tolist(), strict=True)):
            number = numbers.setdefault((name, *size) if name else image, len(numbers))
            if number == len(ids):
                ids.append(None)
                firsts.append(image)
            if ids[number] is None:
                ids[number] = self.image_ids[image]
            target[image] = number
        merged = replace(
            self,
            image_index=target[self.image_index],
            sizes=self.sizes[firsts],
            issues=[(int(target[image]), issue) for image, issue in self.issues],
            names=[self.names[image] for image in firsts],
            image_ids=ids,
        )
        return merged.select(np.argsort(merged.image_index, kind="stable"))

    def select(self, rows: Rows) -> Self:
        """Select rows by index, boolean mask or slice; all images and issues stay."""
        keep = self._numbers(rows)
        index = keep.tolist()
        return replace(
            self,
            xyxy=self.xyxy[keep],
            labels=[self.labels[row] for row in index],
            scores=self.scores[keep],
            image_index=self.image_index[keep],
            codes=self.codes[keep],
            has_mask=self.has_mask[keep],
            rles=None if self.rles is None else [self.rles[row] for row in index],
        )

    def image(self, index: int | str) -> Self:
        """Select one image by its index or its name: its rows and its issues.

        Raises
        ------
        InputError
            If there is no such image, or several have the name.
        """
        if isinstance(index, str):
            index = self._index_of(index)
        if not 0 <= index < len(self.sizes):
            raise InputError(f"image {index} is not one of the {len(self.sizes)}")
        order, bounds = self._by_image
        part = self.select(order[bounds[index] : bounds[index + 1]])
        return replace(
            part,
            image_index=np.zeros(len(part), np.int64),
            sizes=self.sizes[index : index + 1],
            issues=[(0, issue) for issue in self._issues_of.get(index, ())],
            names=self.names[index : index + 1],
            image_ids=self.image_ids[index : index + 1],
        )

    def _index_of(self, name: str) -> int:
        found = self._named.get(name, [])
        if not name or not found:
            known = ", ".join(map(repr, list(filter(None, self._named))[:5])) or "no names"
            raise InputError(f"no image is called {name!r}; there are {known}")
        if len(found) > 1:
            raise InputError(f"{len(found)} images are called {name!r}: select by index: {found}")
        return found[0]

    @cached_property
    def _named(self) -> dict[str, list[int]]:
        """The indices of the images by name."""
        named: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            named.setdefault(name, []).append(index)
        return named

    @cached_property
    def _by_image(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows in the order of their images, and the bounds of each image in them."""
        order = np.argsort(self.image_index, kind="stable")
        bounds = np.searchsorted(self.image_index[order], np.arange(len(self.sizes) + 1))
        return order, bounds.astype(np.int64)

    @cached_property
    def _issues_of(self) -> dict[int, list[ParseIssue]]:
        issues: dict[int, list[ParseIssue]] = {}
        for image, issue in self.issues:
            issues.setdefault(image, []).append(issue)
        return issues

    def nms(self, iou: float, class_agnostic: bool = False) -> Self:
        """Drop boxes that overlap a better one of their image and label (greedy NMS of OpenCV).

        Parameters
        ----------
        iou : float
            Boxes with a larger IoU than this are one object's, in [0, 1].
        class_agnostic : bool
            Compare boxes of different labels, too.

        Returns
        -------
        Detections
            The others, in the same order. The higher score wins; unknown scores come last, and
            equal ones in order. Inverted, empty and infinite boxes overlap nothing, and stay.

        Raises
        ------
        InputError
            For an `iou` out of range.
        """
        check_iou(iou)
        keep = np.ones(len(self), np.bool_)
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        boxes = np.concatenate([self.xyxy[:, :2], sides], axis=1).astype(np.float64)
        for part in self.alike(class_agnostic):
            if len(part) > 1:  # the order decides, so that NaN is below every score
                order = np.arange(len(part), 0, -1, dtype=np.float32)
                best = cv2.dnn.NMSBoxes(boxes[part].tolist(), order.tolist(), 0.0, iou)
                keep[part] = False
                keep[part[best]] = True
        return self.select(keep)

    def alike(self, class_agnostic: bool = False) -> list[npt.NDArray[np.int64]]:
        """Return the rows of each image and label, the highest score first.

        Rows with inverted, empty and infinite boxes are in none.
        """
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        solid = np.isfinite(self.xyxy).all(axis=1) & np.asarray((sides > 0).all(axis=1))
        numbers = {label: number for number, label in enumerate(dict.fromkeys(self.labels))}
        group = self.image_index.copy()
        if not class_agnostic:
            labels = np.fromiter((numbers[label] for label in self.labels), np.int64, len(self))
            group = group * max(1, len(numbers)) + labels
        rank = np.where(np.isnan(self.scores), np.inf, -self.scores)
        rows = np.flatnonzero(solid)
        rows = rows[np.lexsort((rank[rows], group[rows]))]
        return np.split(rows, np.flatnonzero(np.diff(group[rows])) + 1)

    def _images(self) -> Iterator[Self]:
        return (self.image(index) for index in range(len(self.sizes)))

    def _numbers(self, rows: Rows) -> npt.NDArray[np.int64]:
        if isinstance(rows, slice):
            return np.arange(*rows.indices(len(self)))
        chosen = np.atleast_1d(np.asarray(rows))
        if chosen.size == 0:
            return np.zeros(0, np.int64)
        if chosen.ndim > 1 or chosen.dtype.kind not in "biu":
            raise InputError(
                f"rows must be indices, a boolean mask or a slice, got {reprlib.repr(rows)}"
            )
        if chosen.dtype.kind == "i" and -len(self) <= chosen.min() <= chosen.max() < len(self):
            # np.arange(len(self)) would cost as much as all objects.
            wrapped: npt.NDArray[np.int64] = np.where(chosen < 0, chosen + len(self), chosen)
            return wrapped
        numbers: npt.NDArray[np.int64] = np.arange(len(self))[chosen]
        return numbers

    def _coded(self) -> npt.NDArray[np.bool_]:
        if self.rles is None:
            return self.has_mask
        return self.has_mask & np.fromiter((rle is None for rle in self.rles), np.bool_, len(self))

    def _given(self, row: int) -> Rle | None:
        return None if self.rles is None else self.rles[row]

    def _size(self, row: int) -> tuple[int, int]:
        return self._size_of(int(self.image_index[row]))

    def _size_of(self, image: int) -> tuple[int, int]:
        width, height = self.sizes[image].tolist()
        return width, height


def check_iou(iou: float) -> None:
    """Raise `InputError` unless an IoU is in [0, 1]."""
    if not 0 <= iou <= 1:
        raise InputError(f"iou must be in [0, 1], got {iou}")
