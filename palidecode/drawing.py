"""Boxes, translucent masks and labels on the picture."""

from __future__ import annotations

import colorsys
import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import open_picture
from palidecode.geometry.masks import DEFAULT_THRESHOLD
from palidecode.geometry.polygons import Polygons

Color: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[int, int, int, int]
Picture: TypeAlias = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]

_SUBPIXEL = 4  # fractional bits of OpenCV's drawing coordinates
_LONGEST_LABEL = 48
_FAR = 100_000  # pixels


def draw(
    picture: Picture,
    detections: Detections,
    *,
    index: int = 0,
    alpha: float = 0.45,
    threshold: float = DEFAULT_THRESHOLD,
    labels: bool = True,
    boxes: bool = True,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """Draw the objects of one image; the picture itself stays as it was.

    Parameters
    ----------
    picture : path, PIL image or uint8 array (H, W, 3)
    detections : Detections
    index : int
        Which of its images `picture` is.
    alpha : float
        How opaque masks are, in [0, 1]; 0 leaves outlines only.
    threshold : float
        A pixel is mask where its field is above it.
    labels, boxes : bool
        Draw labels (with the score, where known) and boxes.
    font : path, optional
        A TrueType font, for labels in scripts that Pillow's own font lacks.

    Returns
    -------
    PIL.Image.Image
        RGB, of the picture's size. Boxes are scaled if the picture was resized.

    Raises
    ------
    InputError
        For a picture or a font that can't be read, or an index without an image.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie in [0, 1], got {alpha}")
    image = _as_image(picture)
    found = detections.image(index)
    # Large objects first, so that small ones stay visible.
    sides = np.maximum(found.xyxy[:, 2:] - found.xyxy[:, :2], 0)
    found = found.select(np.argsort(-sides.prod(axis=1), kind="stable"))
    scale = np.asarray(image.size) / found.sizes[0]
    colors = [color_of(label) for label in found.labels]
    thickness = max(1, round(min(image.size) / 320))
    canvas = np.array(image)
    for polygons, color in zip(found.to_polygons(threshold=threshold), colors, strict=True):
        if polygons is not None:
            _lay_mask(canvas, polygons, scale, color, alpha, thickness)
    # OpenCV's coordinates are short, and what is as far away isn't seen.
    placed = np.clip(found.xyxy * np.tile(scale, 2), -_FAR, _FAR)
    corners = np.rint(placed).astype(np.int64).tolist()
    if boxes:
        for (x1, y1, x2, y2), color in zip(corners, colors, strict=True):
            cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness, cv2.LINE_AA)
    drawn = Image.fromarray(canvas)
    if labels:
        _write_labels(drawn, found, corners, colors, font)
    return drawn


def color_of(label: str) -> Color:
    """A strong colour that a label always has, on every machine and in every run."""
    digest = hashlib.blake2b(_printable(label.casefold()).encode(), digest_size=4).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    # Two rows of lightness, so that neighbouring hues can still be told apart.
    lightness = (0.46, 0.60)[digest[2] % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _as_image(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(
                f"a picture array must be (H, W, 3) uint8, got {picture.shape} {picture.dtype}"
            )
        return Image.fromarray(picture)
    return open_picture(picture)


def _lay_mask(
    canvas: npt.NDArray[np.uint8],
    polygons: Polygons,
    scale: npt.NDArray[np.float64],
    color: Color,
    alpha: float,
    thickness: int,
) -> None:
    """Blend a mask into the canvas and draw its outline; holes stay clear."""
    rings = [
        np.rint(ring * scale * (1 << _SUBPIXEL)).astype(np.int32)
        for part in polygons.parts
        for ring in (part.exterior, *part.holes)
    ]
    if not rings:
        return
    every = np.concatenate(rings) >> _SUBPIXEL
    height, width = canvas.shape[:2]
    x1, y1 = np.clip(every.min(axis=0) - 1, 0, [width, height]).tolist()
    x2, y2 = np.clip(every.max(axis=0) + 2, 0, [width, height]).tolist()
    if x2 > x1 and y2 > y1:
        cover = np.zeros((y2 - y1, x2 - x1), np.uint8)
        moved = [ring - (np.array([x1, y1], np.int32) << _SUBPIXEL) for ring in rings]
        cv2.fillPoly(cover, moved, 255, cv2.LINE_AA, _SUBPIXEL)
        share = (cover.astype(np.float32) * (alpha / 255))[:, :, None]
        part = canvas[y1:y2, x1:x2]
        part[:] = np.rint(part * (1 - share) + np.asarray(color, np.float32) * share)
    cv2.polylines(canvas, rings, True, color, thickness, cv2.LINE_AA, _SUBPIXEL)


def _write_labels(
    image: Image.Image,
    found: Detections,
    corners: Sequence[Sequence[int]],
    colors: Sequence[Color],
    font: str | os.PathLike[str] | None,
) -> None:
    """Labels above their boxes, moved out of each other's way where there is room."""
    pen = ImageDraw.Draw(image)
    size = int(np.clip(min(image.size) / 30, 11, 40))
    letters = _font(None if font is None else str(font), size)
    taken: list[Box] = []
    for row, label in enumerate(found.labels):
        text = _caption(label, float(found.scores[row]))
        if not text:
            continue
        left, top, right, bottom = pen.textbbox((0, 0), text, font=letters)
        pad = max(2, size // 5)
        width, height = int(right - left) + 2 * pad, int(bottom - top) + 2 * pad
        place = _find_place(corners[row], width, height, image.size, taken)
        taken.append(place)
        pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colors[row])
        ink = "black" if _luminance(colors[row]) > 0.45 else "white"
        pen.text((place[0] + pad - left, place[1] + pad - top), text, fill=ink, font=letters)


def _caption(label: str, score: float) -> str:
    text = _printable(" ".join(label.split()))
    if len(text) > _LONGEST_LABEL:
        text = text[: _LONGEST_LABEL - 1] + "…"
    return text if np.isnan(score) else f"{text} {score:.2f}".strip()


def _printable(text: str) -> str:
    """Halves of surrogate pairs, which no font and no encoding has, as question marks."""
    return text.encode("utf-8", "replace").decode()


def _find_place(
    corners: Sequence[int], width: int, height: int, size: tuple[int, int], taken: list[Box]
) -> Box:
    """Above the box, inside its top, below it, inside its bottom: the first that is free."""
    x1, y1, _, y2 = corners
    x = int(np.clip(x1, 0, max(0, size[0] - width)))
    places = []
    for y in (y1 - height, y1, y2, y2 - height):
        clear = int(np.clip(y, 0, max(0, size[1] - height)))
        places.append((x, clear, x + width, clear + height))
    for place in places:
        if not any(_overlap(place, other) for other in taken):
            return place
    return places[0]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _luminance(color: Color) -> float:
    """Relative luminance of sRGB, as WCAG defines contrast by."""
    linear = [(v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4) for v in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@lru_cache(maxsize=16)
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(path, size)
    except OSError as error:
        raise InputError(f"{path}: not a font that Pillow can read ({error})") from error
