"""Merge what several looks at a picture found: one object each, however often it was found."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.detections.columns import check_iou
from palidecode.detections.objects import Detections
from palidecode.geometry.boxes import box_iou
from palidecode.geometry.rle import Rle, union

Ints: TypeAlias = npt.NDArray[np.int64]

MERGE_IOU = 0.55
"""Boxes of one label with a larger IoU are one object's."""


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


def merge(found: Detections, iou: float = MERGE_IOU) -> tuple[Detections, Ints]:
    """Keep the best of the rows that are one object's, as `Detections.nms` does.

    Returns
    -------
    tuple of (Detections, ndarray of int64, shape (N,))
        The objects, in order, and the number of rows that found each.
    """
    led = leaders(found, iou)
    kept = np.flatnonzero(led == np.arange(len(found)))
    return found.select(kept), np.bincount(led, minlength=len(found))[kept]


def mean_boxes(found: Detections, led: Ints) -> Detections:
    """Give every row the mean box of the rows with its leader, weighted by their scores.

    That is weighted boxes fusion (Solovyev et al., 2021) of boxes. Unknown scores, and scores of
    zero alone, weigh alike.
    """
    weights = np.nan_to_num(found.scores.astype(np.float64), nan=0.0)
    totals = np.bincount(led, weights, len(found))
    weights = np.where(totals[led] > 0, weights, 1.0)
    totals = np.bincount(led, weights, len(found))[led]
    sums = [np.bincount(led, weights * side, len(found))[led] for side in found.xyxy.T]
    boxes = np.stack(sums, axis=1) / totals[:, None] if len(found) else found.xyxy
    return replace(found, xyxy=boxes.astype(np.float32))


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
