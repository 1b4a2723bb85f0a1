"""Convert pictures to the model's pixels: resized to a square, colours in [−1, 1].

Resizing follows Hugging Face's processor (Pillow's filters, which antialias) or big_vision's
``resize`` (TensorFlow's bilinear without antialias, truncated to whole levels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.errors import InputError
from palidecode.files import Picture, open_picture, read_json
from palidecode.runtime.config import PaliGemmaConfig

Resample = Literal["bicubic", "bilinear", "big_vision"]
Colour = tuple[float, float, float]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BY_NUMBER: dict[object, Resample] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_HALF: Colour = (0.5, 0.5, 0.5)

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files of a folder's preprocessing; the first goes before the second."""


@dataclass(frozen=True)
class ImageConfig:
    """Preprocessing of pictures; the defaults are PaliGemma's."""

    size: int = 224  # pixels, both sides
    resample: Resample = "bicubic"
    mean: Colour = _HALF  # red, green, blue, of levels in [0, 1]
    std: Colour = _HALF


def read_image_config(folder: Path, config: PaliGemmaConfig) -> ImageConfig:
    """Read a Hugging Face folder's preprocessing; missing values are PaliGemma's.

    Reads ``preprocessor_config.json``, or ``image_processor`` in ``processor_config.json``,
    where newer transformers saves it.
    """
    size = config.vision.image_size
    path, part = folder / PROCESSORS[0], None
    if not path.exists():
        path, part = folder / PROCESSORS[1], "image_processor"
    data = read_json(path) if path.exists() else {}
    if part is not None and isinstance(data, dict):
        data = data.get(part, {})
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a JSON object")
    sides = data.get("size", size)
    if sides not in (size, {"height": size, "width": size}):
        raise InputError(f"{path}: size is {sides}, the model reads {size} × {size} pixels")
    number = data.get("resample", 3)
    if number not in (2, 3):
        raise InputError(f"{path}: resample is {number!r}; it must be 2 (bilinear) or 3 (bicubic)")
    if data.get("do_center_crop") or data.get("do_pad") or data.get("do_resize") is False:
        raise InputError(
            f"{path}: do_center_crop and do_pad must be false and do_resize true, as PaliGemma "
            "resizes to a square"
        )
    factor = data.get("rescale_factor", 1 / 255)
    if data.get("do_rescale") is False or factor != 1 / 255:
        raise InputError(f"{path}: rescale_factor must be 1/255 and do_rescale true")
    if data.get("do_normalize") is False:
        return ImageConfig(size, _BY_NUMBER[number], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    mean, std = (_colour(path, data, name) for name in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise InputError(f"{path}: image_std must be above 0")
    return ImageConfig(size, _BY_NUMBER[number], mean, std)


def _colour(path: Path, data: dict[str, object], name: str) -> Colour:
    values = data.get(name, _HALF)
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([np.nan])
    if numbers.shape not in ((), (3,)) or not np.isfinite(numbers).all():
        raise InputError(f"{path}: {name} is {values!r}, not three numbers")
    return cast("Colour", tuple(np.broadcast_to(numbers, 3).tolist()))


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A picture as the model sees it, which takes little memory.

    Attributes
    ----------
    pixels : ndarray of float32, shape (3, S, S)
    size : tuple of 2 int
        Width and height of the picture.
    """

    pixels: npt.NDArray[np.float32]
    size: tuple[int, int]


def shrink(image: Image.Image, config: ImageConfig) -> Shrunk:
    """Convert an opened picture to the vision tower's input."""
    return Shrunk(to_pixels([image], config)[0], image.size)


def to_pixels(
    images: Sequence[Picture], config: ImageConfig | None = None
) -> npt.NDArray[np.float32]:
    """Convert pictures to the vision tower's input, float32 (B, 3, S, S), red, green, blue.

    Pictures are opened by `palidecode.files.open_picture`; boxes are in the coordinates of the
    picture it returns. Values are in [−1, 1] with the default mean and std.
    """
    config = config or ImageConfig()
    pixels = np.empty((len(images), 3, config.size, config.size), np.float32)
    table = _table(config)
    for row, image in enumerate(images):
        try:
            opened = open_picture(image)
        except InputError as error:
            if len(images) == 1:
                raise
            raise InputError(f"picture {row + 1} of {len(images)}: {error}") from error
        levels = resize(opened, config)
        for channel in range(3):
            pixels[row, channel] = table[channel, levels[:, :, channel]]
    return pixels


def resize(image: Image.Image, config: ImageConfig) -> npt.NDArray[np.uint8]:
    """Resize an RGB image to a square of levels (S, S, 3), ignoring its aspect ratio."""
    if config.resample != "big_vision":
        side = (config.size, config.size)
        return np.asarray(image.resize(side, _FILTERS[config.resample]))
    return _bilinear(np.asarray(image), config.size)


def _bilinear(levels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize bilinearly without antialias, with half-pixel centres, truncating to levels.

    Source: big_vision's ``pp.ops_image.get_resize`` with TensorFlow's kernel. float32 and the
    order of operations are its own: truncation turns a rounding error into a whole level.
    """
    top, bottom, down = _taps(levels.shape[0], size)
    left, right, across = _taps(levels.shape[1], size)
    across, down = across[None, :, None], down[:, None, None]
    rows = []
    for row in (top, bottom):
        near, far = (levels[row[:, None], column].astype(np.float32) for column in (left, right))
        rows.append(near + (far - near) * across)
    return cast("npt.NDArray[np.uint8]", (rows[0] + (rows[1] - rows[0]) * down).astype(np.uint8))


def _taps(old: int, new: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Indices of the two old pixels around each new one, and its distance from the first."""
    centre = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new)
    centre -= np.float32(0.5)
    floor = np.floor(centre)
    low = np.maximum(floor, 0).astype(np.int64)
    high = np.minimum(np.ceil(centre), old - 1).astype(np.int64)
    return low, high, centre - floor


def _table(config: ImageConfig) -> npt.NDArray[np.float32]:
    """Normalised values of the 256 levels for each channel, (3, 256).

    Rounded as in transformers' processor, so that results are equal bit by bit.
    """
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(c, np.float32)[:, None] for c in (config.mean, config.std))
    return cast("npt.NDArray[np.float32]", (scaled - mean) / std)
