"""The two sides held together: file names, ids, sizes and units that differ are matched or noted.

A prediction dataset's pictures are matched by file name, in Unicode's form NFC and with ``\\`` as
``/``; else by the last part of the name, if only one picture has it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.coco.reading import BoxRow, CocoFile, ImageRow, Key, Row, RunLengths, index_by_id
from palidecode.coco.skips import Skips
from palidecode.errors import InputError
from palidecode.geometry.rle import check_rle

Size: TypeAlias = tuple[int, int]

_BINS = 1024  # the largest end of a box that is given in bins
_BEYOND = 0.02  # of a picture's side, and a pixel: a box that ends there is in another unit
_MANY = 0.4  # share of such boxes


def index_by_name(
    images: list[ImageRow], truths: list[ImageRow], where: str, skips: Skips
) -> dict[Key, int]:
    """Map the images of a prediction dataset, which have ids of their own, to the ground truth's.

    Images whose name fits several are skipped.
    """
    exact, last = _names(truths)
    if not exact or not any(image.file_name for image in images):
        return index_by_id(truths)
    fits = [exact.get(_key(i)) or last.get(PurePosixPath(_key(i)).name, []) for i in images]
    # Of several names for one picture only its own counts.
    names: dict[int, set[str]] = {}
    for image, indices in zip(images, fits, strict=True):
        names.setdefault(indices[0] if len(indices) == 1 else -1, set()).add(_key(image))
    index_of: dict[Key, int] = {}
    shared: list[int] = []
    for offset, (image, indices) in enumerate(zip(images, fits, strict=True)):
        if len(indices) == 1 and (len(names[indices[0]]) == 1 or _key(image) in exact):
            index_of[image.id] = indices[0]
        elif indices:
            shared.append(offset)
    if images and not index_of:
        if shared:
            name = images[shared[0]].file_name
            raise InputError(f"{where}: the file name {name!r} is ambiguous: several images fit it")
        raise InputError(
            f"{where}: none of its pictures is in the ground truth (the first "
            f"is {images[0].file_name!r}, there it is {truths[0].file_name!r})"
        )
    examples = (repr(images[offset].file_name) for offset in shared)
    skips.add_many("image", "ambiguous", shared, examples)
    counts = Counter(_key(image) for image in images if image.id in index_of)
    twice = [n for n, image in enumerate(images) if counts[_key(image)] > 1]
    skips.note("image", "same_name", twice, (repr(images[n].file_name) for n in twice))
    return index_of


def sizes_by_name(truths: list[ImageRow]) -> Callable[[str], Size | None]:
    """Return a function that finds the size of an image by its name, as `index_by_name` does."""
    exact, last = _names(truths)

    def size_of(name: str) -> Size | None:
        key = _key(ImageRow(0, name))
        fits = exact.get(key) or last.get(PurePosixPath(key).name, [])
        sizes = {(truths[index].width, truths[index].height) for index in fits}
        size = sizes.pop() if len(sizes) == 1 else (0, 0)
        return size if min(size) > 0 else None

    return size_of


def _names(truths: list[ImageRow]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return the indices of images by their name, and by the last part of it."""
    exact: dict[str, list[int]] = {}
    for index, image in enumerate(truths):
        if image.file_name:
            exact.setdefault(_key(image), []).append(index)
    last: dict[str, list[int]] = {}
    for key, indices in exact.items():
        last.setdefault(PurePosixPath(key).name, []).extend(indices)
    return exact, last


def compare_sizes(
    read: CocoFile[BoxRow],
    index_of: Mapping[Key, int],
    truths: list[ImageRow],
    skips: Skips,
    scale: bool,
) -> None:
    """Note pictures whose size differs between predictions and ground truth.

    `index_of` gives the index in `truths` of a prediction's image. `scale` scales the predictions
    to the ground truth's size instead; pictures that are turned by 90° can't be scaled, and are
    noted all the same.
    """
    for offset, image in read.images.numbered():
        truth = truths[index_of[image.id]] if image.id in index_of else image
        size, wanted = (image.width, image.height), (truth.width, truth.height)
        if size == wanted or min(*size, *wanted) < 1:
            continue
        shown = "×".join(map(str, size)), "×".join(map(str, wanted))
        example = f"{truth.file_name!r}: {shown[0]}, in the ground truth {shown[1]}"
        if _is_turned(size, wanted):
            skips.note("image", "turned", [offset], [example])
        elif not scale:
            skips.note("image", "other_size", [offset], [example])
    if scale:
        sizes = {image.id: (image.width, image.height) for image in read.images.rows}
        for row in read.annotations.rows:
            index = index_of.get(row.image_id)
            if index is not None:
                truth = truths[index]
                _scale(row, sizes.get(row.image_id), (truth.width, truth.height))


def note_units(
    boxes: npt.NDArray[np.float64],
    sizes: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    skips: Skips,
) -> None:
    """Note predictions whose boxes are no pixels: fractions of the picture, or loc bins.

    Takes boxes (N, 4), and the size of each box's picture (N, 2), 0 if unknown.
    """
    solid = (boxes[:, 2:] > 0).all(axis=1)
    boxes, sizes, offsets = boxes[solid], sizes[solid], offsets[solid]
    if not len(boxes) or boxes[:, :2].min() < 0:
        return
    ends = boxes[:, :2] + boxes[:, 2:]
    beyond = ((sizes > 0) & (ends > sizes * (1 + _BEYOND) + 1)).any(axis=1)
    if ends.max() <= 1:
        if (sizes > 2).all():
            skips.note("prediction", "fractions", offsets)
    elif ends.max() <= _BINS and beyond.mean() >= _MANY:
        skips.note("prediction", "bins", offsets[beyond])


def _key(image: ImageRow) -> str:
    return unicodedata.normalize("NFC", (image.file_name or "").replace("\\", "/"))


def _is_turned(size: Size, wanted: Size) -> bool:
    """Return True if one is the other turned by 90°, up to rounding, and not a square."""
    (width, height), (wide, high) = size, wanted
    swapped = abs(width * wide - height * high) <= max(*size, *wanted)
    return swapped and (width - height) * (wide - high) < 0


def _scale(row: BoxRow, size: Size | None, wanted: Size) -> None:
    """Scale a prediction in place from the size of its own picture, or of its own mask."""
    outline = row.segmentation if isinstance(row, Row) else None
    if size is None and isinstance(outline, RunLengths):
        size = outline.size[1], outline.size[0]
    if size is None or size == wanted or min(*size, *wanted) < 1 or _is_turned(size, wanted):
        return
    across, down = wanted[0] / size[0], wanted[1] / size[1]
    if row.bbox is not None:
        x, y, width, height = row.bbox
        row.bbox = x * across, y * down, width * across, height * down
    if isinstance(row, Row) and isinstance(outline, RunLengths):
        row.segmentation = _resized(outline, wanted)
    elif isinstance(row, Row) and isinstance(outline, list):
        factors = across, down
        row.segmentation = [[v * factors[n % 2] for n, v in enumerate(ring)] for ring in outline]


def _resized(outline: RunLengths, wanted: Size) -> RunLengths:
    """Take the nearest pixel of a mask for each pixel of another size."""
    try:
        rle = check_rle({"size": list(outline.size), "counts": outline.counts})
    except InputError:
        return outline  # is skipped later, as a mask of another size
    mask = coco_mask.decode(rle)
    x, y = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(wanted, (mask.shape[1], mask.shape[0]), strict=True)
    )
    made = coco_mask.encode(np.asfortranarray(mask[np.ix_(y, x)]))
    return RunLengths(size=(wanted[1], wanted[0]), counts=made["counts"].decode("ascii"))
