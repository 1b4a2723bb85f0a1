"""Pictures to the pixels a model reads: squeezed to a square, colours to [−1, 1].

Two ways of squeezing: Hugging Face's processor (Pillow's filters, which antialias) and
big_vision's ``resize`` (TensorFlow's bilinear without antialias, cut to whole levels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.errors import InputError
from palidecode.files import Picture, open_picture, read_json
from palidecode.runtime.config import PaliGemmaConfig

Resample = Literal["bicubic", "bilinear", "big_vision"]
Colour = tuple[float, float, float]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BY_NUMBER: dict[Any, Resample] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_HALF: Colour = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ImageConfig:
    """How pictures become pixels; the defaults are PaliGemma's."""

    size: int = 224  # pixels, both sides
    resample: Resample = "bicubic"
    mean: Colour = _HALF  # of levels scaled to [0, 1]: red, green, blue
    std: Colour = _HALF


def read_image_config(folder: Path, config: PaliGemmaConfig) -> ImageConfig:
    """What a Hugging Face folder says about its pictures; PaliGemma's ways where it is silent.

    Reads ``preprocessor_config.json``, or the part ``image_processor`` of
    ``processor_config.json``, where newer transformers puts the same.

    Raises
    ------
    InputError
        If a value is unknown, or the size isn't that of the model's vision tower.
    """
    size = config.vision.image_size
    path, part = folder / "preprocessor_config.json", None
    if not path.exists():
        path, part = folder / "processor_config.json", "image_processor"
    data = read_json(path) if path.exists() else {}
    if part is not None and isinstance(data, dict):
        data = data.get(part, {})
    if not isinstance(data, dict):
        raise InputError(f"{path}: not an object")
    said = data.get("size", size)
    if said not in (size, {"height": size, "width": size}):
        raise InputError(f"{path}: size is {said}, the model reads {size} × {size} pixels")
    number = data.get("resample", 3)
    if number not in (2, 3):
        raise InputError(f"{path}: resample is {number!r}; known are 2 (bilinear) and 3 (bicubic)")
    if data.get("do_center_crop") or data.get("do_pad") or data.get("do_resize") is False:
        raise InputError(f"{path}: crops, pads or keeps sizes; PaliGemma's pictures are squeezed")
    factor = data.get("rescale_factor", 1 / 255)
    if data.get("do_rescale") is False or factor != 1 / 255:
        raise InputError(f"{path}: levels must be rescaled by 1/255")
    if data.get("do_normalize") is False:
        return ImageConfig(size, _BY_NUMBER[number], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    mean, std = (_colour(path, data, name) for name in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise InputError(f"{path}: image_std must be above 0")
    return ImageConfig(size, _BY_NUMBER[number], mean, std)


def _colour(path: Path, data: dict[str, Any], name: str) -> Colour:
    values = data.get(name, _HALF)
    try:
        numbers = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([np.nan])
    if numbers.shape not in ((), (3,)) or not np.isfinite(numbers).all():
        raise InputError(f"{path}: {name} is {values!r}, not three numbers")
    return cast("Colour", tuple(np.broadcast_to(numbers, 3).tolist()))


def to_pixels(
    images: Sequence[Picture], config: ImageConfig | None = None
) -> npt.NDArray[np.float32]:
    """Pictures as the vision tower reads them.

    Parameters
    ----------
    images : sequence of path, PIL image, or uint8 array (H, W), (H, W, 3) or (H, W, 4)
        Opened as `palidecode.files.open_picture` does. Boxes are in the space of the
        picture that it returns, whose size is ``open_picture(image).size``.
    config : ImageConfig, optional

    Returns
    -------
    ndarray of float32, shape (B, 3, S, S)
        Red, green, blue; in [−1, 1] with the default mean and std.

    Raises
    ------
    InputError
        For the first picture that can't be read, with its place.
    """
    config = config or ImageConfig()
    pixels = np.empty((len(images), 3, config.size, config.size), np.float32)
    table = _table(config)
    for number, image in enumerate(images):
        try:
            opened = open_picture(image)
        except InputError as error:
            if len(images) == 1:
                raise
            raise InputError(f"picture {number + 1} of {len(images)}: {error}") from error
        levels = squeeze(opened, config)
        for colour in range(3):
            pixels[number, colour] = table[colour, levels[:, :, colour]]
    return pixels


def squeeze(image: Image.Image, config: ImageConfig) -> npt.NDArray[np.uint8]:
    """An RGB image to levels (S, S, 3), whatever its shape was."""
    if config.resample != "big_vision":
        side = (config.size, config.size)
        return np.asarray(image.resize(side, _FILTERS[config.resample]))
    return _bilinear(np.asarray(image), config.size)


def _bilinear(levels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Bilinear without antialias, half-pixel centres, fractions cut off.

    Source: big_vision's ``pp.ops_image.get_resize`` with TensorFlow's kernel, in float32
    and in its order, since cutting makes a whole level of a rounding error.
    """
    top, bottom, down = _taps(levels.shape[0], size)
    left, right, across = _taps(levels.shape[1], size)
    across, down = across[None, :, None], down[:, None, None]
    rows = []
    for row in (top, bottom):
        near, far = (levels[row[:, None], column].astype(np.float32) for column in (left, right))
        rows.append(near + (far - near) * across)
    # Between two levels there is no other: nothing to clip.
    return cast("npt.NDArray[np.uint8]", (rows[0] + (rows[1] - rows[0]) * down).astype(np.uint8))


def _taps(old: int, new: int) -> tuple[npt.NDArray[np.int64], ...]:
    """For each new pixel the two old ones it lies between, and how far it is from the first."""
    place = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new)
    place -= np.float32(0.5)
    floor = np.floor(place)
    low = np.maximum(floor, 0).astype(np.int64)
    high = np.minimum(np.ceil(place), old - 1).astype(np.int64)
    return low, high, place - floor


def _table(config: ImageConfig) -> npt.NDArray[np.float32]:
    """What each of the 256 levels becomes in each colour: (3, 256).

    Rounded where transformers' processor rounds, so that results are equal bit by bit.
    """
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(c, np.float32)[:, None] for c in (config.mean, config.std))
    return cast("npt.NDArray[np.float32]", (scaled - mean) / std)
