"""Boxes, translucent masks and captions on a picture; `palidecode.draw` calls it."""

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
from PIL import Image, ImageDraw, ImageFont, ImageOps

from palidecode.errors import InputError
from palidecode.files import Picture, open_picture, regular

Color: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[int, int, int, int]
Ring: TypeAlias = npt.NDArray[np.float64]

_SUBPIXEL = 4  # fractional bits of OpenCV's drawing coordinates
_LONGEST_LABEL = 48
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")
_GAP = 12  # pixels between the pictures of a sheet
_FAR = 100_000  # pixels


def draw_objects(
    picture: Picture,
    size: tuple[int, int],
    xyxy: npt.NDArray[np.float32],
    colors: Sequence[Color],
    masks: Sequence[Sequence[Ring]],
    captions: Sequence[str],
    *,
    alpha: float,
    font: str | os.PathLike[str] | None = None,
    boxes: bool = True,
    line_width: int | None = None,
) -> Image.Image:
    """Draw the objects of one image on a copy of its picture, one over the other.

    Parameters
    ----------
    picture : path, PIL image or uint8 array
    size : tuple of 2 int
        Width and height of the image that the coordinates belong to.
    xyxy : ndarray, shape (N, 4)
        Boxes in pixels of that image.
    colors : sequence of N Color
    masks : sequence of N sequences of ndarray, shape (P, 2)
        The rings of each mask, holes included, in pixels; none where there is no mask.
    captions : sequence of N str
        ``""`` writes none.
    alpha : float
        Opacity of masks, in [0, 1].
    font : path, optional
    boxes : bool
    line_width : int, optional
        Of boxes and outlines, in pixels of the picture.
    """
    canvas = np.array(open_picture(picture))
    height, width = canvas.shape[:2]
    scale = np.array([width, height]) / size
    thickness = line_width or max(1, round(min(width, height) / 320))
    for rings, color in zip(masks, colors, strict=True):
        if rings:
            _draw_mask(canvas, [ring * scale for ring in rings], color, alpha, thickness)
    # OpenCV's coordinates are short; that far away is outside of every picture.
    scaled = np.clip(xyxy * np.tile(scale, 2), -_FAR, _FAR)
    corners = np.rint(scaled).astype(np.int64).tolist()
    if boxes:
        for (x1, y1, x2, y2), color in zip(corners, colors, strict=True):
            cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness, cv2.LINE_AA)
    drawn = Image.fromarray(canvas)
    _write_captions(drawn, corners, colors, captions, font)
    return drawn


def color_of(label: str) -> Color:
    """Return a label's strong colour, the same on every machine and in every run."""
    digest = hashlib.blake2b(_printable(label.casefold()).encode(), digest_size=4).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    # Two rows of lightness, so that neighbouring hues can still be told apart.
    lightness = (0.46, 0.60)[digest[2] % 2]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def caption_of(label: str, score: float) -> str:
    """Write a label on one line, shortened where it is long, and its score where it is known."""
    text = one_line(label)
    return text if np.isnan(score) else f"{text} {score:.2f}".strip()


def one_line(text: str, longest: int = _LONGEST_LABEL) -> str:
    """Return text on one line, shortened where it is long, without control characters."""
    text = _printable(" ".join(text.split())).translate(_CONTROLS)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def sheet_of(pictures: Sequence[Image.Image], side: int, columns: int = 4) -> Image.Image:
    """Place pictures side by side on white, each in a square of `side` pixels."""
    columns = min(columns, max(1, len(pictures)))
    step, rows = side + _GAP, -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), "white")
    for index, picture in enumerate(pictures):
        tile = ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
        row, column = divmod(index, columns)
        left, top = (side - tile.width) // 2, (side - tile.height) // 2
        sheet.paste(tile, (_GAP + column * step + left, _GAP + row * step + top))
    return sheet


def _draw_mask(
    canvas: npt.NDArray[np.uint8],
    rings: Sequence[Ring],
    color: Color,
    alpha: float,
    thickness: int,
) -> None:
    """Blend a mask into the canvas and draw its outline; holes stay clear."""
    points = [np.rint(ring * (1 << _SUBPIXEL)).astype(np.int32) for ring in rings]
    every = np.concatenate(points) >> _SUBPIXEL
    height, width = canvas.shape[:2]
    x1, y1 = np.clip(every.min(axis=0) - 1, 0, [width, height]).tolist()
    x2, y2 = np.clip(every.max(axis=0) + 2, 0, [width, height]).tolist()
    if x2 > x1 and y2 > y1:
        cover = np.zeros((y2 - y1, x2 - x1), np.uint8)
        moved = [ring - (np.array([x1, y1], np.int32) << _SUBPIXEL) for ring in points]
        cv2.fillPoly(cover, moved, 255, cv2.LINE_AA, _SUBPIXEL)
        share = (cover.astype(np.float32) * (alpha / 255))[:, :, None]
        part = canvas[y1:y2, x1:x2]
        part[:] = np.rint(part * (1 - share) + np.asarray(color, np.float32) * share)
    cv2.polylines(canvas, points, True, color, thickness, cv2.LINE_AA, _SUBPIXEL)


def _write_captions(
    image: Image.Image,
    corners: Sequence[Sequence[int]],
    colors: Sequence[Color],
    captions: Sequence[str],
    font: str | os.PathLike[str] | None,
) -> None:
    """Write captions above their boxes, moved out of each other's way where there is room."""
    if not any(captions):
        return
    pen = ImageDraw.Draw(image)
    size = int(np.clip(min(image.size) / 30, 11, 40))
    letters = _font(None if font is None else str(font), size)
    taken: list[Box] = []
    for corner, color, text in zip(corners, colors, captions, strict=True):
        if not text:
            continue
        left, top, right, bottom = pen.textbbox((0, 0), text, font=letters)
        pad = max(2, size // 5)
        width, height = int(right - left) + 2 * pad, int(bottom - top) + 2 * pad
        box = _free_box(corner, width, height, image.size, taken)
        taken.append(box)
        pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=color)
        ink = "black" if _luminance(color) > 0.45 else "white"
        pen.text((box[0] + pad - left, box[1] + pad - top), text, fill=ink, font=letters)


def _printable(text: str) -> str:
    """Replace halves of surrogate pairs, which no font has, by question marks."""
    return text.encode("utf-8", "replace").decode()


def _free_box(
    corners: Sequence[int], width: int, height: int, size: tuple[int, int], taken: list[Box]
) -> Box:
    """Choose the first free box: above the object, inside its top, below it, inside its bottom."""
    x1, y1, _, y2 = corners
    x = int(np.clip(x1, 0, max(0, size[0] - width)))
    boxes = []
    for y in (y1 - height, y1, y2, y2 - height):
        clear = int(np.clip(y, 0, max(0, size[1] - height)))
        boxes.append((x, clear, x + width, clear + height))
    return next((b for b in boxes if not any(_overlap(b, other) for other in taken)), boxes[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _luminance(color: Color) -> float:
    """Relative luminance of sRGB, by which WCAG defines contrast."""
    linear = [(v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4) for v in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@lru_cache(maxsize=16)
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(str(regular(path)), size)
    except OSError as error:
        raise InputError(f"{path}: not a font that Pillow can read ({error})") from error
