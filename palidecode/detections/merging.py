"""Merge what several looks at a picture found: one object each, however often it was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.detections.columns import check_iou
from palidecode.detections.objects import Detections
from palidecode.geometry.boxes import box_iou
from palidecode.geometry.masks import MaskCrop
from palidecode.geometry.rle import Rle, crop_to_rle, rle_to_crop, union
from palidecode.geometry.windows import Windows

Ints: TypeAlias = npt.NDArray[np.int64]

MERGE_IOU = 0.55
"""Boxes of one label with a larger IoU are one object's."""
NEAR_EDGE = 0.02
"""Share of a look's side: an object this near to an inner edge is cut by it."""

CUT_SCORE = 0.5
"""Share of its score that an object keeps if a tile's edge cuts it and no other part is found."""
SAME_IOU = 0.3
"""A second look's object with a larger IoU is the one that was looked at."""
UNSEEN_SCORE = 0.5
"""Share of its score that an object keeps if a second look doesn't find it."""
ALIGNED = 0.6
"""Parts on both sides of an edge are one object's if they share so much of their common span."""


@dataclass(frozen=True, eq=False)
class Looks:
    """Windows of pictures that a model looked at, each as a picture of its own.

    Attributes
    ----------
    windows : ndarray of int64, shape (L, 4)
        Whole pixels of the picture.
    picture : ndarray of int64, shape (L,)
        Index of the picture of each look.
    sizes : ndarray of int64, shape (P, 2)
        Width and height of the pictures.
    names : list of str, length P
    """

    windows: Windows
    picture: Ints
    sizes: Ints
    names: list[str]

    def place(self, found: Detections) -> Detections:
        """Move what was found in each look to its place in the picture.

        Boxes are moved by whole pixels, so that masks of codes stay the same pixels; masks given
        as RLE are moved, too.

        Parameters
        ----------
        found : Detections
            An image for each look.

        Returns
        -------
        Detections
            An image for each picture; rows in the order of `found`.
        """
        corners = self.windows[found.image_index, :2]
        number = self.picture[found.image_index]
        rles = None
        if found.rles is not None:
            rles = [
                None if rle is None else _moved(rle, corner, self.sizes[picture])
                for rle, corner, picture in zip(found.rles, corners, number, strict=True)
            ]
        return replace(
            found,
            xyxy=(found.xyxy + np.tile(corners, 2)).astype(np.float32),
            image_index=number,
            sizes=self.sizes,
            names=self.names,
            image_ids=[],
            rles=rles,
            issues=[(int(self.picture[look]), issue) for look, issue in found.issues],
        )

    def cut(self, found: Detections) -> npt.NDArray[np.bool_]:
        """Find the sides of each look's objects that an edge inside the picture cuts.

        Parameters
        ----------
        found : Detections
            An image for each look.

        Returns
        -------
        ndarray of bool, shape (N, 4)
            True for left, top, right, bottom if it is within `NEAR_EDGE` of such an edge.
        """
        windows = self.windows[found.image_index]
        sides = windows[:, 2:] - windows[:, :2]
        edges = np.concatenate([np.zeros_like(sides), sides], axis=1)
        near = np.abs(found.xyxy - edges) <= NEAR_EDGE * np.tile(sides, 2)
        pictures = self.sizes[self.picture[found.image_index]]
        inner = windows != np.concatenate([np.zeros_like(pictures), pictures], axis=1)
        return np.asarray(near & inner)

    def merge(self, found: Detections) -> Detections:
        """Merge what was found in the whole pictures and in their tiles.

        Two parts of an object, cut by the facing edges of neighbouring tiles, are united; their
        score is the mean. Other objects that an edge cuts get `CUT_SCORE` of theirs, so that a
        whole one goes first, as it does before a united one. Then the best of those that overlap
        stays, with their best score; see `leaders`.

        Parameters
        ----------
        found : Detections
            An image for each look.

        Returns
        -------
        Detections
            An image for each picture.
        """
        cut = self.cut(found)
        placed = self.place(found)
        led = self._across_edges(found, placed, cut)
        united = unite(placed, led)
        count = np.bincount(led, minlength=len(found))
        parts = count[led] > 1
        scores = np.where(cut.any(axis=1) & ~parts, placed.scores * CUT_SCORE, placed.scores)
        means = np.bincount(led, scores, len(found)) / np.maximum(count, 1)
        scores = means[np.unique(led)].astype(np.float32)
        # A mask that was seen whole is better than two parts', whatever the scores.
        rank = np.where(count[np.unique(led)] > 1, scores * np.float32(CUT_SCORE), scores)
        repeats = leaders(replace(united, scores=rank))
        best = np.full(len(united), np.nan, np.float32)
        np.fmax.at(best, repeats, scores)
        kept = np.flatnonzero(repeats == np.arange(len(united)))
        order = np.argsort(united.image_index[kept], kind="stable")
        return replace(united, scores=best).select(kept[order])

    def _across_edges(
        self, found: Detections, placed: Detections, cut: npt.NDArray[np.bool_]
    ) -> Ints:
        """Return the leader of each object's parts in neighbouring tiles."""
        led = np.arange(len(found))
        windows, boxes = self.windows[found.image_index], placed.xyxy.astype(np.float64)
        for low, other in ((0, 1), (1, 0)):
            high, end = low + 2, other + 2
            afters = np.flatnonzero(cut[:, low])
            for row in np.flatnonzero(cut[:, high]).tolist():
                here, box = windows[row], boxes[row]
                there, facing = windows[afters], boxes[afters]
                beside = (there[:, low] > here[low]) & (there[:, low] <= here[high])
                beside &= (there[:, high] > here[high]) & (there[:, other] == here[other])
                beside &= placed.image_index[afters] == placed.image_index[row]
                both = np.minimum(facing[:, end], box[end]) - np.maximum(
                    facing[:, other], box[other]
                )
                span = np.maximum(facing[:, end], box[end]) - np.minimum(
                    facing[:, other], box[other]
                )
                for part in afters[beside & (both >= ALIGNED * span)].tolist():
                    if placed.labels[part] == placed.labels[row]:
                        led[led == led[part]] = led[row]
        return led

    def refine(self, first: Detections, second: Detections, rows: Ints) -> Detections:
        """Replace objects by what a second look finds in their surroundings.

        Parameters
        ----------
        first : Detections
            An image for each picture.
        second : Detections
            An image for each look.
        rows : ndarray of int64, shape (L,)
            The row of `first` that each look is about.

        Returns
        -------
        Detections
            The objects of `first`, in order, with box and mask of the one of their label that
            overlaps them best, and the geometric mean of both scores. Those without one stay,
            with `UNSEEN_SCORE` of their score. Of those that then overlap, the best stays; see
            `Detections.nms`.
        """
        placed = self.place(second)
        chosen = np.arange(len(first))
        scores = first.scores.copy()
        order = np.argsort(second.image_index, kind="stable")
        bounds = np.searchsorted(second.image_index[order], np.arange(len(rows) + 1)).tolist()
        for look, row in enumerate(rows.tolist()):
            alike = order[bounds[look] : bounds[look + 1]]
            alike = alike[[placed.labels[other] == first.labels[row] for other in alike.tolist()]]
            overlaps = box_iou(first.xyxy[row : row + 1], placed.xyxy[alike])[0]
            if overlaps.max(initial=0.0) > SAME_IOU:
                best = int(alike[overlaps.argmax()])
                chosen[row] = len(first) + best
                scores[row] = np.sqrt(first.scores[row] * placed.scores[best])
            else:
                scores[row] *= UNSEEN_SCORE
        both, pictures = Detections.concat([first, placed]), len(self.sizes)
        refined = replace(
            both,
            image_index=both.image_index % max(1, pictures),
            sizes=self.sizes,
            names=self.names,
            image_ids=[],
            issues=[(image % pictures, issue) for image, issue in both.issues],
        ).select(chosen)
        return replace(refined, scores=scores).nms(MERGE_IOU)


def _moved(rle: Rle, corner: Ints, size: Ints) -> Rle:
    crop = rle_to_crop(rle)
    x, y = corner.tolist()
    width, height = size.tolist()
    return crop_to_rle(MaskCrop(crop.x0 + x, crop.y0 + y, crop.mask), (width, height))


def leaders(found: Detections, iou: float = MERGE_IOU) -> Ints:
    """Return the row of the object that each row repeats, of its image and label.

    Parameters
    ----------
    found : Detections
        Objects of all looks, with the same image index where the picture is the same.
    iou : float
        Boxes with a larger IoU than this are one object's, in [0, 1].

    Returns
    -------
    ndarray of int64, shape (N,)
        A row that `Detections.nms` keeps is its own leader; the others' leader is the row it
        keeps that overlaps them most.

    Raises
    ------
    InputError
        For an `iou` out of range.
    """
    check_iou(iou)
    led = np.arange(len(found))
    for part in found.alike():
        overlaps = box_iou(found.xyxy[part], found.xyxy[part])
        kept: list[int] = []
        for row, overlap in enumerate(overlaps):  # the highest score first
            best = kept[int(overlap[kept].argmax())] if kept else row
            if best != row and overlap[best] > iou:
                led[part[row]] = part[best]
            else:
                kept.append(row)
    return led


def unite(found: Detections, led: Ints) -> Detections:
    """Make one object of the rows with the same leader: the hull of boxes, the union of masks.

    Returns
    -------
    Detections
        The leaders, in order, with their scores. Masks of several rows are RLE.
    """
    kept, counts = np.unique(led, return_counts=True)
    several = kept[counts > 1]
    if not len(several):
        return found.select(kept)
    xyxy = found.xyxy.copy()
    rles: list[Rle | None] = list(found.rles or [None] * len(found))
    has_mask = found.has_mask.copy()
    for leader in several.tolist():
        rows = np.flatnonzero(led == leader)
        boxes = found.xyxy[rows]
        xyxy[leader] = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]
        masks = [rle for rle in found.select(rows).to_rle() if rle is not None]
        if masks:
            rles[leader] = union(masks, _size(found, leader))
            has_mask[leader] = True
    return replace(found, xyxy=xyxy, has_mask=has_mask, rles=rles).select(kept)


def _size(found: Detections, row: int) -> tuple[int, int]:
    width, height = found.sizes[found.image_index[row]].tolist()
    return width, height
