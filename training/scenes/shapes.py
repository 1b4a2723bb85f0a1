"""Objects of the scenes: their silhouettes, poses and painting.

Lengths are in units of the picture's side, so that an object can be drawn at any size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float32]
Gray = npt.NDArray[np.uint8]
Picture = npt.NDArray[np.float32]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 42, 42),
    "orange": (250, 140, 24),
    "yellow": (252, 220, 50),
    "green": (46, 168, 72),
    "blue": (40, 98, 224),
    "purple": (136, 58, 190),
    "pink": (250, 138, 190),
    "white": (248, 248, 246),
    "black": (30, 30, 36),
}

_SHIFT = 4  # cv2's sub-pixel bits
_LIGHT, _DARK = 0.72, 0.30  # details and outlines: share of white added, share of colour kept


@dataclass(frozen=True)
class Shape:
    """A silhouette, centred on 0, longer side 1, y down.

    Attributes
    ----------
    outline : tuple of (K, 2) float32 arrays
        Filled by the even-odd rule.
    details : tuple of (K, 2) float32 arrays
        Painted inside; part of the object.
    """

    outline: tuple[Points, ...]
    details: tuple[Points, ...] = ()


@dataclass(frozen=True)
class Item:
    """One object in a picture; lengths and positions in units of the picture's side.

    Attributes
    ----------
    label, color : str
        Class and colour name.
    outline, details : tuple of (K, 2) float32 arrays
        Rings in the picture, 0 to 1.
    rgb : (3,) float32
        The object's shade of `color`.
    edge : float
        Width of the outline inside the silhouette, 0 for none.
    edge_rgb, detail_rgb : (3,) float32
    slope : (2,) float32
        Shading: change of brightness across the object, along x and y.
    shadow : float
        Strength of the soft shadow below it, 0 for none.
    """

    label: str
    color: str
    outline: tuple[Points, ...]
    details: tuple[Points, ...]
    rgb: npt.NDArray[np.float32]
    edge: float
    edge_rgb: npt.NDArray[np.float32]
    detail_rgb: npt.NDArray[np.float32]
    slope: npt.NDArray[np.float32]
    shadow: float


def _regular(corners: int, turn: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + turn
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32) / 2


def _load() -> dict[str, Shape]:
    arm, end = 0.165, 0.5
    quarter = [(arm, -end), (arm, -arm), (end, -arm)]
    cross = [(x, y) for x, y in quarter]
    for _ in range(3):
        cross += [(-y, x) for x, y in cross[-3:]]
    own = {
        "circle": _regular(64, 0),
        "square": _regular(4, np.pi / 4) * np.float32(2**0.5),
        "triangle": np.array([(0, -0.45), (0.5, 0.42), (-0.5, 0.42)], np.float32),
        "cross": np.array(cross, np.float32),
    }
    shapes = {name: Shape((points,)) for name, points in own.items()}
    drawn = json.loads(Path(__file__).with_name("glyphs.json").read_text(encoding="utf-8"))
    for name, glyph in drawn["glyphs"].items():
        outline, details = (
            tuple(np.array(ring, np.float32) for ring in glyph[part])
            for part in ("outline", "details")
        )
        shapes[name] = Shape(outline, details)
    return dict(sorted(shapes.items()))


SHAPES = _load()
CLASSES = tuple(SHAPES)


def posed(
    rng: np.random.Generator, label: str, color: str, side: float, shape: Shape | None = None
) -> tuple[Item, npt.NDArray[np.float32]]:
    """Make an object around 0 in a random pose and style; also return its half extents.

    `shape` is by default that of the class.
    """
    turn = np.radians(rng.uniform(-25, 25))
    aspect = rng.uniform(0.85, 1.18) ** 0.5
    stretch = np.array([aspect, 1 / aspect]) * side
    if rng.random() < 0.5:
        stretch[0] = -stretch[0]
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = (np.array([[cos, sin], [-sin, cos]]) * stretch[:, None]).astype(np.float32)
    shape = shape or SHAPES[label]
    outline = tuple(ring @ matrix for ring in shape.outline)
    details = tuple(ring @ matrix for ring in shape.details)
    corners = np.concatenate(outline)
    low, high = corners.min(0), corners.max(0)
    middle = (low + high) / 2
    rgb = np.clip(np.array(COLORS[color]) * rng.uniform(0.9, 1.06) + rng.normal(0, 5, 3), 0, 255)
    bright = _brightness(rgb)
    darker, lighter = rgb * _DARK, rgb + (255 - rgb) * _LIGHT
    white_edge = bright < 60 or (bright < 200 and rng.random() < 0.35)
    item = Item(
        label,
        color,
        tuple(ring - middle for ring in outline),
        tuple(ring - middle for ring in details),
        rgb.astype(np.float32),
        float(rng.choice([0, 0.028, 0.045])) * side,
        (lighter if white_edge else darker).astype(np.float32),
        (lighter if bright < 150 else darker).astype(np.float32),
        rng.uniform([-0.12, -0.42], [0.12, -0.05]).astype(np.float32),
        float(rng.choice([0, rng.uniform(0.25, 0.5)])),
    )
    return item, (high - low) / 2


def _brightness(rgb: npt.NDArray[np.floating]) -> float:
    return float(rgb @ np.array([0.299, 0.587, 0.114]))


def fill(canvas: Gray, rings: tuple[Points, ...], scale: float, offset: npt.ArrayLike) -> None:
    """Fill rings with 255 by the even-odd rule.

    `offset` is the (scaled) pixel of the picture where the canvas begins. A pixel is filled if
    its centre is inside; cv2's whole numbers are centres, hence the half.
    """
    shift = np.asarray(offset, np.float32) + 0.5
    ints = [np.rint((ring * scale - shift) * (1 << _SHIFT)).astype(np.int32) for ring in rings]
    cv2.fillPoly(canvas, ints, 255, shift=_SHIFT)


def paint(image: Picture, item: Item) -> npt.NDArray[np.bool_]:
    """Paint one object over a picture and return the pixels it covers by half or more.

    Parameters
    ----------
    image : (size, size, 3) float32 array, 0 to 255
        Changed in place.
    item : Item

    Returns
    -------
    (size, size) bool array
    """
    size = len(image)
    mask = np.zeros((size, size), bool)
    corners = np.concatenate(item.outline) * size
    low = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, size)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, size)
    if (high <= low).any():
        return mask
    fine = 4 if size <= 160 else 2
    alpha, edge, inside = _coverage(item, size, low, high, fine)
    if item.shadow:
        _shade_below(image, alpha, low, high, item.shadow)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    ys, xs = np.mgrid[window].astype(np.float32)
    span = np.maximum(corners.max(0) - corners.min(0), 1)
    middle = (corners.max(0) + corners.min(0)) / 2
    slope_x, slope_y = item.slope
    light = 1 + (xs - middle[0]) / span[0] * slope_x + (ys - middle[1]) / span[1] * slope_y
    color = item.rgb * light[..., None]
    if item.details:
        color += (item.detail_rgb - color) * inside[..., None]
    if item.edge:
        color += (item.edge_rgb - color) * (edge / np.maximum(alpha, 1e-3))[..., None]
    np.clip(color, 0, 255, out=color)
    image[window] += (color - image[window]) * alpha[..., None]
    mask[window] = alpha >= 0.5
    return mask


def _coverage(
    item: Item, size: int, low: npt.NDArray[np.int_], high: npt.NDArray[np.int_], fine: int
) -> tuple[Picture, Picture, Picture]:
    """Coverage of each pixel by the silhouette, its edge line and its details, 0 to 1."""
    width, height = (high - low).tolist()
    scale, offset = size * fine, low * fine
    whole = np.zeros((height * fine, width * fine), np.uint8)
    fill(whole, item.outline, scale, offset)
    line, inside = np.zeros_like(whole), np.zeros_like(whole)
    if item.edge:
        shift = offset + 0.5
        rings = [
            np.rint((ring * scale - shift) * (1 << _SHIFT)).astype(np.int32)
            for ring in item.outline
        ]
        cv2.polylines(line, rings, True, 255, max(1, round(item.edge * scale * 2)), shift=_SHIFT)
        np.bitwise_and(line, whole, out=line)
    if item.details:
        fill(inside, item.details, scale, offset)
    small = [
        cv2.resize(layer, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        for layer in (whole, line, inside)
    ]
    return small[0], small[1], small[2]


def _shade_below(
    image: Picture,
    alpha: Picture,
    low: npt.NDArray[np.int_],
    high: npt.NDArray[np.int_],
    strength: float,
) -> None:
    """Darken the background below and right of an object, softly."""
    size = len(image)
    reach = max(2, round(size * 0.03))
    start, end = np.maximum(low - reach, 0), np.minimum(high + reach, size)
    room = np.zeros((end[1] - start[1], end[0] - start[0]), np.float32)
    step = max(1, round(size * 0.012))
    top, left = low[1] - start[1] + step, low[0] - start[0] + step
    part = room[top : top + len(alpha), left : left + alpha.shape[1]]
    part[:] = alpha[: part.shape[0], : part.shape[1]]
    soft = cv2.GaussianBlur(room, (0, 0), reach / 2.5)
    image[start[1] : end[1], start[0] : end[0]] *= 1 - strength * soft[..., None]
