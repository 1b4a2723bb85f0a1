"""Unite the objects of several samples of an answer: each sample votes for what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.detections.merging import MERGE_IOU, Ints, leaders
from palidecode.detections.objects import Detections
from palidecode.geometry.masks import MaskCrop
from palidecode.geometry.rle import Rle, crop_to_rle

Weights: TypeAlias = npt.NDArray[np.float64]


def vote(found: Detections, sample: Ints, samples: int, iou: float = MERGE_IOU) -> Detections:
    """Make one object of the rows that are one object's, of several samples.

    Parameters
    ----------
    found : Detections
        Objects of all samples.
    sample : ndarray of int64, shape (N,)
        The sample of each row, in [0, samples).
    samples : int
        Number of samples, those that found nothing included.
    iou : float
        See `palidecode.detections.merging.leaders`.

    Returns
    -------
    Detections
        The objects in order. The score is the mean over all samples of each one's best score for
        the object, which is 1 where it is unknown and 0 where there is none. Boxes are means
        weighted by scores (weighted boxes fusion; Solovyev et al., 2021), and a pixel is mask where
        rows with half of the weight say so. Masks of several rows are RLE.
    """
    led = leaders(found, iou)
    weights = np.nan_to_num(found.scores.astype(np.float64), nan=1.0)
    votes = np.zeros((len(found), samples))
    np.maximum.at(votes, (led, sample), weights)
    xyxy = found.xyxy.copy()
    rles: list[Rle | None] = list(found.rles or [None] * len(found))
    has_mask = found.has_mask.copy()
    kept, counts = np.unique(led, return_counts=True)
    several = np.isin(led, kept[counts > 1])
    crops = dict(zip(np.flatnonzero(several).tolist(), found.select(several).crops(), strict=True))
    for leader in kept[counts > 1].tolist():
        rows = np.flatnonzero(led == leader)
        boxes = found.xyxy[rows].astype(np.float64)
        xyxy[leader] = np.average(boxes, axis=0, weights=_not_all_zero(weights[rows]))
        masks = [crop for row in rows.tolist() if (crop := crops[row]) is not None]
        if masks:
            width, height = found.sizes[found.image_index[leader]].tolist()
            shares = _not_all_zero(weights[rows[found.has_mask[rows]]])
            rles[leader] = crop_to_rle(_majority(masks, shares), (width, height))
            has_mask[leader] = True
    scores = votes.mean(axis=1).astype(np.float32)
    return replace(found, xyxy=xyxy, scores=scores, rles=rles, has_mask=has_mask).select(kept)


def _not_all_zero(weights: Weights) -> Weights:
    return weights if weights.any() else np.ones_like(weights)


def _majority(masks: Sequence[MaskCrop], weights: Weights) -> MaskCrop:
    """Return the pixels that masks with at least half of the weight have."""
    x0, y0 = min(crop.x0 for crop in masks), min(crop.y0 for crop in masks)
    x1 = max(crop.x0 + crop.mask.shape[1] for crop in masks)
    y1 = max(crop.y0 + crop.mask.shape[0] for crop in masks)
    total: Weights = np.zeros((y1 - y0, x1 - x0))
    for crop, weight in zip(masks, weights.tolist(), strict=True):
        height, width = crop.mask.shape
        top, left = crop.y0 - y0, crop.x0 - x0
        total[top : top + height, left : left + width] += weight * crop.mask
    return MaskCrop(x0, y0, 2 * total >= weights.sum())
