"""The codec's training masks: an endless, seeded stream of 64×64 crops.

70 % are drawn: polygons, ellipses, blobs, strokes, glyphs and silhouettes of symbol fonts,
alone, united, with holes, occluded, cut by the border of the image, thin and tiny. 30 % are
warped masks of annotated photographs (COCO val2014, CC BY 4.0).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import ImageFont
from pycocotools import mask as coco_mask

from palidecode.geometry.masks import shrink

Mask = npt.NDArray[np.uint8]
SIDE = 256  # of the canvas that shapes are drawn on, in pixels
Stream = Iterator[npt.NDArray[np.float32]]
REAL_SHARE = 0.3


class Fonts(NamedTuple):
    """Font files and the characters to draw from each."""

    files: tuple[str, ...]
    characters: tuple[tuple[int, ...], ...]


def load_fonts(files: list[str], limit: int = 1500) -> Fonts:
    """List the characters in each font's cmap (read by fontTools)."""
    from fontTools.ttLib import TTFont

    characters = []
    for file in files:
        with TTFont(file, fontNumber=0, lazy=True) as font:
            cmap = font.getBestCmap()
        codes = [code for code in cmap if code > 32]
        characters.append(tuple(codes[:: max(1, len(codes) // limit)]))
    return Fonts(tuple(files), tuple(characters))


@lru_cache(maxsize=64)
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def _canvas() -> Mask:
    return np.zeros((SIDE, SIDE), np.uint8)


def _points(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """A closed ring around the middle: sorted angles, random radii."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    radii = SIDE / 2 * rng.uniform(rng.uniform(0.2, 0.9), 1, count)
    stretch = rng.uniform(0.3, 1, 2)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] * stretch
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    out: npt.NDArray[np.float64] = ring @ rotation + SIDE / 2
    return out


def polygon(rng: np.random.Generator) -> Mask:
    """A star-shaped polygon of 3 to 14 corners."""
    canvas = _canvas()
    cv2.fillPoly(canvas, [np.rint(_points(rng, int(rng.integers(3, 15)))).astype(np.int32)], 1)
    return canvas


def blob(rng: np.random.Generator) -> Mask:
    """A smooth closed outline: a ring of random harmonics."""
    angles = np.linspace(0, 2 * np.pi, 128, endpoint=False)
    order = np.arange(1, int(rng.integers(3, 12)))
    weights = rng.normal(size=len(order)) / order ** rng.uniform(0.4, 1.5)
    waves = weights @ np.cos(np.outer(order, angles) + rng.uniform(0, 6.3, len(order))[:, None])
    radii = np.exp(rng.uniform(0.1, 0.8) * waves / (np.abs(waves).max() + 1e-9))
    ring = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.3, 1)], 1) * radii[:, None]
    ring *= SIDE / 2 / np.abs(ring).max()
    canvas = _canvas()
    cv2.fillPoly(canvas, [np.rint(ring + SIDE / 2).astype(np.int32)], 1)
    return canvas


def ellipse(rng: np.random.Generator) -> Mask:
    """A rotated ellipse."""
    canvas = _canvas()
    axes = tuple(int(v) for v in rng.uniform(0.15, 1, 2) * SIDE / 2)
    cv2.ellipse(canvas, (SIDE // 2, SIDE // 2), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return canvas


def box(rng: np.random.Generator) -> Mask:
    """A rotated rectangle, possibly full or very thin."""
    canvas = _canvas()
    size = rng.uniform(0.08, 1, 2) * SIDE
    angle = float(rng.choice([0.0, rng.uniform(-90, 90)]))
    corners = cv2.boxPoints(((SIDE / 2, SIDE / 2), (float(size[0]), float(size[1])), angle))
    cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], 1)
    return canvas


def stroke(rng: np.random.Generator) -> Mask:
    """Thick curved lines: limbs, cables, necks, legs."""
    canvas = _canvas()
    for _ in range(int(rng.integers(1, 5))):
        start = rng.uniform(0.1, 0.9, 2) * SIDE
        heading, bend = rng.uniform(0, 6.3), rng.normal() * 0.15
        points = [start]
        for _ in range(int(rng.integers(2, 14))):
            heading += bend + rng.normal() * 0.2
            points.append(points[-1] + SIDE / 10 * np.array([np.cos(heading), np.sin(heading)]))
        ring = np.rint(points).astype(np.int32)
        cv2.polylines(canvas, [ring], False, 1, int(rng.integers(3, 50)))
    return canvas


def noise(rng: np.random.Generator) -> Mask:
    """A level set of smooth noise: many parts, many holes."""
    cells = int(rng.integers(3, 9))
    field = cv2.resize(rng.normal(size=(cells, cells)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return (field > rng.uniform(-0.4, 0.6)).astype(np.uint8)


def glyph(rng: np.random.Generator, fonts: Fonts) -> Mask:
    """A letter or a silhouette of a symbol font."""
    which = int(rng.integers(len(fonts.files)))
    code = int(rng.choice(fonts.characters[which]))
    image = _font(fonts.files[which], 220).getmask(chr(code), mode="L")
    if not image.size[0] or not image.size[1]:
        return blob(rng)
    mask = np.array(image, np.uint8).reshape(image.size[::-1]) > 127
    return mask.astype(np.uint8)


def _tight(mask: Mask) -> Mask:
    """Crop a mask to its own box."""
    x, y, w, h = cv2.boundingRect(mask)
    return mask[y : y + h, x : x + w]


def _shape(rng: np.random.Generator, fonts: Fonts) -> Mask:
    kind = rng.choice(8, p=(0.16, 0.30, 0.08, 0.05, 0.13, 0.04, 0.12, 0.12))
    if kind >= 6:
        return glyph(rng, fonts)
    makers = (polygon, blob, ellipse, box, stroke, noise)
    return makers[int(kind)](rng)


def _fit(mask: Mask, width: int, height: int) -> Mask:
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)


def _lay(rng: np.random.Generator, canvas: Mask, mask: Mask, value: int) -> None:
    """Draw a shape somewhere on the canvas, cut by its border."""
    width, height = (int(v) for v in rng.uniform(0.15, 1.1, 2) * canvas.shape[::-1])
    part = _fit(mask, max(3, width), max(3, height))
    h, w = part.shape
    x = int(rng.integers(-w // 2, canvas.shape[1] - w // 2))
    y = int(rng.integers(-h // 2, canvas.shape[0] - h // 2))
    left, top = max(0, -x), max(0, -y)
    part = part[top : canvas.shape[0] - y, left : canvas.shape[1] - x]
    x, y = x + left, y + top
    canvas[y : y + part.shape[0], x : x + part.shape[1]][part > 0] = value


def _warp(rng: np.random.Generator, mask: Mask, strength: float) -> Mask:
    """Mirror, rotate a little, shear and bend smoothly."""
    height, width = mask.shape
    if rng.random() < 0.5:
        mask = mask[:, ::-1]
    if strength == 0:
        return mask
    matrix = np.eye(2) + rng.normal(size=(2, 2)) * 0.12 * strength
    centre = np.array([width / 2, height / 2])
    affine = np.concatenate([matrix, (centre - matrix @ centre)[:, None]], 1)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    bend = [
        cv2.resize(rng.normal(size=(4, 4)).astype(np.float32), (width, height)) * side * 0.04
        for side in (width, height)
    ]
    source_x = affine[0, 0] * x + affine[0, 1] * y + affine[0, 2] + bend[0] * strength
    source_y = affine[1, 0] * x + affine[1, 1] * y + affine[1, 2] + bend[1] * strength
    return cv2.remap(
        np.ascontiguousarray(mask),
        source_x.astype(np.float32),
        source_y.astype(np.float32),
        cv2.INTER_NEAREST,
    )


def _object_size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels: log-uniform from 8 to 320, any aspect up to 4."""
    side = np.exp(rng.uniform(np.log(10), np.log(320)))
    aspect = np.exp(rng.normal() * 0.5)
    return max(6, int(side * aspect**0.5)), max(6, int(side / aspect**0.5))


def synthetic(rng: np.random.Generator, fonts: Fonts) -> Mask:
    """One object's mask inside its own box, at a random size in pixels."""
    while True:
        mask = _tight(_shape(rng, fonts))
        if mask.size == 0:
            continue
        mask = _fit(mask, *_object_size(rng)).copy()
        for _ in range(int(rng.choice(3, p=(0.65, 0.25, 0.1)))):
            _lay(rng, mask, _shape(rng, fonts), 1)  # union
        for _ in range(int(rng.choice(3, p=(0.65, 0.25, 0.1)))):
            _lay(rng, mask, _shape(rng, fonts), 0)  # hole or occluder
        mask = _warp(rng, mask, 0.0)
        mask = _tight(mask)
        if min(mask.shape, default=0) >= 4 and mask.sum() >= 12:
            return mask


class CocoMask(NamedTuple):
    """An annotated mask, cropped to its box (corners rounded, as in big_vision)."""

    image_id: int
    mask: Mask


def load_coco(path: Path, half: int, smallest: int = 8) -> list[CocoMask]:
    """Masks of every second image of a COCO file, without crowds and tiny boxes.

    Parameters
    ----------
    path : Path
        A COCO instances file with polygons.
    half : {0, 1}
        0: images 1, 3, 5 … of the sorted ids (training); 1: the others (held out).
    smallest : int
        Boxes with a side of fewer pixels are skipped.
    """
    data = json.loads(path.read_text())
    images = {image["id"]: image for image in data["images"]}
    chosen = set(sorted(images)[half::2])
    crops = []
    for annotation in data["annotations"]:
        if annotation["image_id"] not in chosen or annotation["iscrowd"]:
            continue
        image = images[annotation["image_id"]]
        rle = coco_mask.merge(
            coco_mask.frPyObjects(annotation["segmentation"], image["height"], image["width"])
        )
        x, y, w, h = annotation["bbox"]
        x1, y1, x2, y2 = (round(v) for v in (x, y, x + w, y + h))
        if min(w, h) < smallest:
            continue
        crop = coco_mask.decode(rle)[y1:y2, x1:x2]
        if crop.any():
            crops.append(CocoMask(annotation["image_id"], crop))
    return crops


def real(rng: np.random.Generator, masks: list[CocoMask]) -> Mask:
    """One of the real masks, warped, in a box that is off like a detector's."""
    while True:
        mask = masks[int(rng.integers(len(masks)))].mask
        mask = _warp(rng, mask, float(rng.choice([0.0, 0.5, 1.0], p=(0.25, 0.45, 0.3))))
        if rng.random() < 0.6:
            mask = _tight(mask)
        if rng.random() < 0.2 and min(mask.shape) > 16:  # cut by the border
            share = rng.uniform(0, 0.35, 2)
            mask = mask[int(share[0] * mask.shape[0]) :, : int((1 - share[1]) * mask.shape[1])]
        if min(mask.shape, default=0) >= 6 and mask.sum() >= 12:
            return mask


def stream(seed: int, fonts: Fonts, coco: list[CocoMask], real_share: float = REAL_SHARE) -> Stream:
    """Yield crops (64, 64) in [0, 1] without end, the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        use_real = bool(coco) and rng.random() < real_share
        yield shrink(real(rng, coco) if use_real else synthetic(rng, fonts))
