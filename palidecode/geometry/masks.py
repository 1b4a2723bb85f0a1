"""Paste 64×64 fields into boxes as masks, and crop masks to 64×64.

A field is pasted into its box in one of two ways: see `Paste`. Encoding follows big_vision's
preprocessing: corners are rounded, resizing is bilinear with antialias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.errors import InputError
from palidecode.files import MAX_PIXELS
from palidecode.geometry.boxes import as_rows
from palidecode.vocab import MASK_SIDE

DEFAULT_THRESHOLD = 0.0

Paste: TypeAlias = Literal["subpixel", "big_vision"]
"""``subpixel`` reads the field at the centres of the pixels inside the exact box;
``big_vision`` truncates the box's corners with ``int()``, as its RefCOCO evaluator does. That
moves masks half a pixel up and left, so it is right for that protocol alone."""
DEFAULT_PASTE: Paste = "subpixel"

# Where nothing shrinks, OpenCV's resize equals Pillow's up to float32 rounding. Pillow resizes
# fields with a pixel closer to the threshold than this share of the largest value.
_ROUNDING = 4e-6


class MaskCrop(NamedTuple):
    """A crop of an image's mask: ``mask[y, x]`` is the image's pixel ``(x0 + x, y0 + y)``.

    Attributes
    ----------
    x0, y0 : int
        Top left pixel of the crop.
    mask : ndarray of bool, shape (h, w)
        The crop, within the image; h or w is 0 if the box contains no whole pixel.
    """

    x0: int
    y0: int
    mask: npt.NDArray[np.bool_]


def paste_big_vision(
    field: npt.NDArray[np.float32],
    xyxy: npt.ArrayLike,
    size: tuple[int, int],
    *,
    threshold: float = DEFAULT_THRESHOLD,
) -> MaskCrop:
    """Paste a field into its box, its corners truncated, as big_vision's RefCOCO evaluator does.

    Takes a field (64, 64), a box in pixels, and the width and height of the image. The crop
    equals big_vision's paste, pixel by pixel; it is empty for inverted and empty boxes.
    """
    x1, y1, x2, y2 = whole_corners(xyxy)
    width, height = size
    if x2 <= x1 or y2 <= y1:
        return _empty(x1, y1, size)
    if (x2 - x1) > 4 * width + MASK_SIDE or (y2 - y1) > 4 * height + MASK_SIDE:
        raise InputError(
            f"the box {(x1, y1, x2, y2)} is far larger than its image {width}×{height}; "
            "clip the boxes first"
        )
    if (x2 - x1) * (y2 - y1) > MAX_PIXELS:
        raise InputError(f"a mask of {x2 - x1}×{y2 - y1} is more than {MAX_PIXELS} pixels")
    mask = _resize_above(field, (x2 - x1, y2 - y1), threshold)
    left, top = min(max(0, -x1), x2 - x1), min(max(0, -y1), y2 - y1)
    if left or top or x2 > width or y2 > height:
        mask = mask[top : max(top, height - y1), left : max(left, width - x1)]
        if mask.size == 0:
            return _empty(x1, y1, size)
    return MaskCrop(x1 + left, y1 + top, mask)


def paste_subpixel(
    field: npt.NDArray[np.float32],
    xyxy: npt.ArrayLike,
    size: tuple[int, int],
    *,
    threshold: float = DEFAULT_THRESHOLD,
) -> MaskCrop:
    """Read a field bilinearly at the centres of the pixels inside the exact box.

    Takes what `paste_big_vision` takes. Between the outermost samples and the box's edge the
    field is held constant; nothing is antialiased. Measured on 775 objects of COCO, encoded and
    decoded without a mistake: mean IoU 0.934, against 0.893 with `paste_big_vision`. The crop is
    empty where no pixel's centre is inside the box.
    """
    x1, y1, x2, y2 = _finite_corners(xyxy)
    x0, columns, column_weights = _samples(x1, x2, size[0])
    y0, rows, row_weights = _samples(y1, y2, size[1])
    if not (len(columns) and len(rows)):
        return _empty(x0, y0, size)
    if len(columns) * len(rows) > MAX_PIXELS:
        raise InputError(f"a mask of {len(columns)}×{len(rows)} is more than {MAX_PIXELS} pixels")
    stretched = _interpolated(np.asarray(field, np.float32), rows, row_weights)
    # Column by column in memory: run-length encoding reads it in this order, much faster.
    values = _interpolated(np.ascontiguousarray(stretched.T), columns, column_weights)
    return MaskCrop(x0, y0, (values > threshold).T)


def _finite_corners(xyxy: npt.ArrayLike) -> tuple[float, float, float, float]:
    try:
        x1, y1, x2, y2 = map(float, np.asarray(xyxy, np.float64).tolist())
    except (TypeError, ValueError) as error:
        raise InputError(f"a box must be four finite numbers, got {xyxy!r}") from error
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise InputError(f"a box must be four finite numbers, got {xyxy!r}")
    return x1, y1, x2, y2


def _samples(
    low: float, high: float, side: int
) -> tuple[int, npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """First pixel of an axis whose centre is in the box; for each pixel, sample and weight."""
    first = max(0, math.ceil(min(low, side) - 0.5))
    last = min(side, math.ceil(min(max(high, low), side) - 0.5))
    centres = np.arange(first, max(first, last)) + 0.5
    scale = MASK_SIDE / (high - low) if high > low else 0.0
    at = np.clip((centres - low) * scale - 0.5, 0, MASK_SIDE - 1)
    samples = np.minimum(at.astype(np.intp), MASK_SIDE - 2)
    return first, samples, (at - samples).astype(np.float32)


def _interpolated(
    values: npt.NDArray[np.float32], samples: npt.NDArray[np.intp], weights: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Rows between the rows of `values`: row ``samples`` and the next, mixed by `weights`."""
    mixed = np.diff(values, axis=0).take(samples, axis=0, mode="clip")
    mixed *= weights[:, None]
    mixed += values.take(samples, axis=0, mode="clip")
    return mixed


PASTES: dict[Paste, Callable[..., MaskCrop]] = {
    "subpixel": paste_subpixel,
    "big_vision": paste_big_vision,
}


def check_paste(paste: str) -> Paste:
    """Return the way to paste of that name, or raise an `InputError` that lists them."""
    for name in PASTES:
        if name == paste:
            return name
    raise InputError(f"paste must be one of {', '.join(PASTES)}, got {paste!r}")


def whole_corners(xyxy: npt.ArrayLike) -> tuple[int, int, int, int]:
    """Truncate a box's corners with ``int()``, as big_vision's evaluator does."""
    try:
        x1, y1, x2, y2 = map(int, np.asarray(xyxy, np.float64).tolist())
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"a box must be four finite numbers, got {xyxy!r}") from error
    return x1, y1, x2, y2


def rounded_corners(xyxy: npt.ArrayLike, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Clip a box to the image and round its corners, as big_vision does before encoding."""
    x1, y1, x2, y2 = np.rint(np.clip(np.asarray(xyxy, np.float64), 0, size * 2)).tolist()
    return int(x1), int(y1), int(x2), int(y2)


def _empty(x: int, y: int, size: tuple[int, int]) -> MaskCrop:
    inside = min(max(x, 0), size[0]), min(max(y, 0), size[1])
    return MaskCrop(*inside, np.zeros((0, 0), np.bool_))


def _resize_above(
    field: npt.NDArray[np.float32], size: tuple[int, int], threshold: float
) -> npt.NDArray[np.bool_]:
    """Compare Pillow's bilinear resize with `threshold`, by OpenCV where the result is equal."""
    if min(size) >= MASK_SIDE:
        # Columns first, as run-length encoding reads them: it takes a tenth of the time.
        columns = np.ascontiguousarray(field.T, np.float32)
        resized = cv2.resize(columns, size[::-1], interpolation=cv2.INTER_LINEAR).T
        near = _ROUNDING * max(1.0, cv2.norm(columns, cv2.NORM_INF))
        above: npt.NDArray[np.bool_] = resized > threshold + near
        if not (above ^ (resized > threshold - near)).any():
            return above
    image = Image.fromarray(np.ascontiguousarray(field, np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)) > threshold


def crop_masks(masks: npt.NDArray[np.bool_], xyxy: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Crop masks (N, H, W) to the 64×64 crops that the codec encodes, float32 in [0, 1].

    As in big_vision, the boxes' corners are rounded to pixels and crops are resized bilinearly
    with antialias. A crop is all 0 if its rounded box is empty or outside the image.
    """
    boxes = as_rows(xyxy, 4, "xyxy")
    if masks.ndim != 3 or len(masks) != len(boxes):
        raise InputError(
            f"masks must have shape ({len(boxes)}, H, W), as the boxes, got {masks.shape}"
        )
    out = np.zeros((len(boxes), MASK_SIDE, MASK_SIDE), np.float32)
    height, width = masks.shape[1:]
    corners = np.rint(np.clip(boxes, 0, [width, height] * 2)).astype(np.int64)
    for row, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        if x2 > x1 and y2 > y1:
            out[row] = shrink(masks[row, y1:y2, x1:x2])
    return out


def shrink(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Resize a crop (h, w) of 0 and 1 to 64×64 in [0, 1], bilinearly with antialias."""
    image = Image.fromarray(np.ascontiguousarray(mask, np.float32))
    return np.asarray(image.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BILINEAR))
