"""Encode boxes to loc bins and masks to seg codes, as big_vision's training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.codec.protocol import MaskCodec
from palidecode.errors import InputError
from palidecode.geometry.boxes import DEFAULT_DIVISOR, as_rows, xyxy_to_loc
from palidecode.geometry.masks import crop_masks, shrink
from palidecode.geometry.rle import Rle, rle_to_window
from palidecode.vocab import MASK_SIDE, SEG_PER_MASK

Masks: TypeAlias = npt.NDArray[Any] | Sequence[Rle] | Sequence[npt.NDArray[Any]]

_CHUNK = 512  # crops per block: 8 MB


def encode_boxes(
    xyxy: npt.ArrayLike, sizes: npt.ArrayLike, divisor: int = DEFAULT_DIVISOR
) -> npt.NDArray[np.int16]:
    """Encode boxes in pixels to loc bins.

    Parameters
    ----------
    xyxy : array_like of float, shape (N, 4)
        x1, y1, x2, y2 in pixels, clipped to the image.
    sizes : array_like of int, shape (2,) or (N, 2)
        Image width and height in pixels, one for all or one per box.
    divisor : {1024, 1023}
        The divisor of the decoder; 1023 is big_vision's ``round(v · 1023)``.

    Returns
    -------
    ndarray of int16, shape (N, 4)
        y1, x1, y2, x2 in 0 … 1023. A box thinner than a bin may have no area
        (``y2 <= y1`` or ``x2 <= x1``); `to_finetuning_rows` skips and counts such boxes.

    Raises
    ------
    InputError
        For NaN or infinite coordinates, another divisor, or sizes that aren't positive.

    Examples
    --------
    >>> encode_boxes([[320, 0, 640, 240]], (640, 480)).tolist()
    [[0, 512, 512, 1023]]
    """
    return xyxy_to_loc(xyxy, sizes, divisor=divisor)


def encode_masks(masks: Masks, xyxy: npt.ArrayLike, codec: MaskCodec) -> npt.NDArray[np.uint8]:
    """Encode masks of whole images to sixteen seg codes each.

    Crops as big_vision does: rounds the box's corners to pixels and resizes the content to 64×64,
    bilinearly with antialias. The codes belong to the `codec` that made them; another codec
    decodes them to other shapes.

    Parameters
    ----------
    masks : ndarray of bool or uint8 (0 and 1), shape (N, H, W); or list of N RLE dicts
        COCO's RLE, compressed or not, of images of any size; cropped to the same values without
        decoding the image.
    xyxy : array_like of float, shape (N, 4)
        Boxes in pixels.
    codec : MaskCodec
        From `load_codec`.

    Returns
    -------
    ndarray of uint8, shape (N, 16)
        In 0 … 127. A mask without a pixel in its box has the codes of an empty crop.

    Raises
    ------
    InputError
        If the numbers of masks and boxes differ, for boxes that aren't finite, for damaged RLE,
        and for masks with values outside [0, 1].

    Examples
    --------
    >>> from palidecode import load_codec
    >>> rle = {"size": [100, 100], "counts": [2000, 50, 7950]}
    >>> encode_masks([rle], [[20, 0, 21, 50]], load_codec("palidecode-demo")).shape
    (1, 16)
    """
    boxes = _finite(xyxy)
    if len(masks) != len(boxes):
        raise InputError(f"masks ({len(masks)}) must be as many as boxes ({len(boxes)})")
    crop: Any = crop_rles if len(masks) and isinstance(masks[0], Mapping) else _crop_arrays
    codes = np.zeros((len(boxes), SEG_PER_MASK), np.uint8)
    for start in range(0, len(boxes), _CHUNK):
        part = slice(start, start + _CHUNK)
        codes[part] = codec.encode(crop(masks[part], boxes[part]))
    return codes


def crop_rles(rles: Sequence[Rle], xyxy: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Crop RLE masks to the same values as `crop_masks`, without decoding the images.

    Each of the N RLEs has the size of its own image.
    """
    boxes = _finite(xyxy)
    if len(rles) != len(boxes):
        raise InputError(f"RLEs ({len(rles)}) must be as many as boxes ({len(boxes)})")
    out = np.zeros((len(boxes), MASK_SIDE, MASK_SIDE), np.float32)
    for row, rle in enumerate(rles):
        window = rle_to_window(rle, boxes[row])
        if window.size:
            out[row] = shrink(window)
    return out


def _crop_arrays(masks: Any, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    try:
        return crop_masks(np.asarray(masks), boxes)
    except ValueError as error:
        raise InputError(f"masks must be one array (N, H, W), or RLE: {error}") from error


def _finite(xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    boxes = as_rows(xyxy, 4, "xyxy")
    bad = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
    if len(bad):
        raise InputError(
            f"box {bad[0]} has coordinates that aren't finite: {boxes[bad[0]].tolist()}"
        )
    return boxes
