"""Boxes: conversion between loc bins and pixels, areas, IoU.

Loc bins are y1, x1, y2, x2 in 0 … 1023, independent of the aspect ratio. Deployed
decoders (the Hugging Face demo, supervision) divide by 1024; big_vision encodes
``round(v · 1023)`` and its RefCOCO evaluator divides by 1023.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.vocab import LOC_COUNT

DEFAULT_DIVISOR = 1024
_DIVISORS = (LOC_COUNT - 1, LOC_COUNT)


def loc_to_xyxy(
    loc: npt.ArrayLike,
    sizes: npt.ArrayLike,
    *,
    divisor: int = DEFAULT_DIVISOR,
    clip: bool = False,
) -> npt.NDArray[np.float32]:
    """Convert loc bins to boxes in pixels.

    Parameters
    ----------
    loc : array_like of int, shape (N, 4)
        Bins y1, x1, y2, x2.
    sizes : array_like of int, shape (2,) or (N, 2)
        Image width and height in pixels, one for all or one per box.
    divisor : {1024, 1023}
        The number of bins the image is divided into.
    clip : bool
        Keep the boxes inside the image.

    Returns
    -------
    ndarray of float32, shape (N, 4)
        x1, y1, x2, y2 in pixels. Inverted boxes stay inverted.

    Raises
    ------
    InputError
        If the divisor or a shape is another, or sizes aren't positive.

    Examples
    --------
    >>> loc_to_xyxy([[0, 512, 1023, 1023]], (640, 480)).tolist()
    [[320.0, 0.0, 639.375, 479.53125]]
    """
    check_divisor(divisor)
    bins = as_rows(loc, 4, "loc")
    width_height = check_sizes(sizes, len(bins))
    pixels = bins[:, [1, 0, 3, 2]] * np.tile(width_height, 2) / divisor
    if clip:
        pixels = np.clip(pixels, 0, np.tile(width_height, 2))
    return pixels.astype(np.float32)


def xyxy_to_loc(
    xyxy: npt.ArrayLike, sizes: npt.ArrayLike, *, divisor: int = DEFAULT_DIVISOR
) -> npt.NDArray[np.int16]:
    """Convert boxes in pixels to loc bins, the inverse of `loc_to_xyxy`.

    ``round(v · divisor)`` clipped to 0 … 1023, v the fraction of the image's side; with
    divisor 1023 this is big_vision's encoding. Halves round to even, as numpy does.

    Parameters
    ----------
    xyxy : array_like of float, shape (N, 4)
        x1, y1, x2, y2 in pixels.
    sizes : array_like of int, shape (2,) or (N, 2)
        Image width and height in pixels.
    divisor : {1024, 1023}
        The decoder's divisor.

    Returns
    -------
    ndarray of int16, shape (N, 4)
        y1, x1, y2, x2.

    Raises
    ------
    InputError
        If coordinates aren't finite, the divisor is another, or sizes aren't positive.
    """
    check_divisor(divisor)
    boxes = as_rows(xyxy, 4, "xyxy")
    if not np.isfinite(boxes).all():
        bad = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise InputError(f"box {bad} has coordinates that aren't finite: {boxes[bad].tolist()}")
    width_height = check_sizes(sizes, len(boxes))
    bins = np.rint(boxes / np.tile(width_height, 2) * divisor)
    return np.clip(bins, 0, LOC_COUNT - 1)[:, [1, 0, 3, 2]].astype(np.int16)


def xywh_to_xyxy(xywh: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert COCO's x, y, width, height to corners, shape (N, 4)."""
    boxes = as_rows(xywh, 4, "xywh")
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def box_area(xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Compute the areas of boxes (N, 4); 0 for inverted boxes."""
    boxes = as_rows(xyxy, 4, "xyxy")
    return _area(boxes[:, :2], boxes[:, 2:])


def box_iou(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Compute the intersection over union of every box of `a` with every box of `b`.

    Parameters
    ----------
    a, b : array_like of float, shapes (N, 4) and (M, 4)
        xyxy in pixels.

    Returns
    -------
    ndarray of float64, shape (N, M)
        In [0, 1]; 0 if both boxes are empty.
    """
    return _iou(as_rows(a, 4, "a")[:, None], as_rows(b, 4, "b")[None])


def paired_iou(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """IoU of each box of `a` with the same row of `b`, shape (N,); 0 if both boxes are empty."""
    return _iou(as_rows(a, 4, "a"), as_rows(b, 4, "b"))


def _iou(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of boxes (…, 4), broadcast against each other."""
    shared = _area(np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - shared
    iou: npt.NDArray[np.float64] = np.divide(
        shared, union, out=np.zeros_like(shared), where=union > 0
    )
    return iou


def _area(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Areas of boxes between corners (…, 2); 0 for inverted boxes."""
    area: npt.NDArray[np.float64] = np.maximum(high - low, 0).prod(axis=-1)
    return area


def check_divisor(divisor: int) -> None:
    """Raise `InputError` unless the divisor is 1024 or 1023."""
    if not np.isscalar(divisor) or divisor not in _DIVISORS:
        raise InputError(f"divisor must be 1024 (default) or 1023 (big_vision), got {divisor!r}")


def check_sizes(sizes: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """Convert image sizes to float64 of shape (2,) or (count, 2), or raise `InputError`."""
    try:
        array = np.asarray(sizes, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"sizes must be numbers, (width, height): {error}") from error
    if array.shape == (0,) and count == 0:
        return np.zeros((0, 2))
    if array.shape not in ((2,), (count, 2)):
        raise InputError(
            f"sizes must be (width, height) or one such pair per row ({count}), "
            f"got shape {array.shape}"
        )
    if not (np.isfinite(array).all() and (array > 0).all()):
        rows = array.reshape(-1, 2)
        bad = int(np.flatnonzero(~(np.isfinite(rows) & (rows > 0)).all(axis=1))[0])
        raise InputError(
            f"size {bad} must be a positive width and height, got {rows[bad].tolist()}"
        )
    return array


def as_rows(values: npt.ArrayLike, columns: int, name: str) -> npt.NDArray[np.float64]:
    """Convert values to float64 of shape (N, columns), N = 0 included, or raise `InputError`."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers of shape (N, {columns}): {error}") from error
    if array.shape == (0,):
        return np.zeros((0, columns))
    if array.ndim != 2 or array.shape[1] != columns:
        raise InputError(f"{name} must have shape (N, {columns}), got {array.shape}")
    return array


def expected_bins(
    modes: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], radius: int
) -> npt.NDArray[np.float64]:
    """Sub-bin coordinates: the mean of the loc distribution around its chosen bin, in bins.

    Takes the bins that were written (M,) and the distribution of each (M, 1024); `radius` bins to
    each side count.
    """
    bins = np.arange(LOC_COUNT)
    near = np.abs(bins - modes[:, None]) <= radius
    weights = np.where(near, probabilities, 0).astype(np.float64)
    total = weights.sum(1)
    mean = (weights * bins).sum(1) / np.where(total > 0, total, 1)
    return np.where(total > 0, mean, modes)
