"""Backgrounds of the scenes: chosen once, painted at any size.

None contains anything that looks like an object of a class. Clutter is added on purpose:
lines, blobs, dashes, letters.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.float32]
Painter = Callable[[int], Picture]
"""Paints a (size, size, 3) float32 picture, 0 to 255, for a size in pixels."""

_SHIFT = 4
_LETTERS = {
    "A": ["0,2 .7,0 1.4,2", ".35,1.2 1.05,1.2"],
    "E": ["1.2,0 0,0 0,2 1.2,2", "0,1 1,1"],
    "F": ["1.2,0 0,0 0,2", "0,1 1,1"],
    "H": ["0,0 0,2", "1.2,0 1.2,2", "0,1 1.2,1"],
    "K": ["0,0 0,2", "1.2,0 0,1.1 1.2,2"],
    "M": ["0,2 0,0 .8,1.2 1.6,0 1.6,2"],
    "N": ["0,2 0,0 1.2,2 1.2,0"],
    "R": ["0,2 0,0 .9,0 1.2,.5 .9,1 0,1", ".6,1 1.2,2"],
    "S": ["1.2,.2 .8,0 .3,0 0,.4 .2,.9 1,1.1 1.2,1.6 .9,2 .4,2 0,1.8"],
    "U": ["0,0 0,1.5 .3,2 .9,2 1.2,1.5 1.2,0"],
    "W": ["0,0 .4,2 .9,.6 1.4,2 1.8,0"],
    "Z": ["0,0 1.2,0 0,2 1.2,2"],
    "2": ["0,.4 .3,0 .9,0 1.2,.4 1.1,.9 0,2 1.2,2"],
    "4": ["1,2 1,0 0,1.4 1.3,1.4"],
    "7": ["0,0 1.2,0 .4,2"],
}
"""Letters and figures as strokes, 2 units high."""


def _tone(rng: np.random.Generator, spread: float = 1.0) -> Picture:
    """A muted colour."""
    hue, saturation, value = rng.random(), rng.uniform(0.06, 0.55), rng.uniform(0.25, 0.97)
    wheel = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    rgb = 255 * value * (1 - spread * saturation * (1 - wheel))
    return rgb.astype(np.float32)


def _near(rng: np.random.Generator, tone: Picture, amount: float) -> Picture:
    """A colour close to another."""
    return np.clip(tone * rng.uniform(1 - amount, 1 + amount) + rng.normal(0, 9, 3), 6, 250).astype(
        np.float32
    )


def _grown(grid: Picture, size: int) -> Picture:
    return np.asarray(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def _polygon(image: Picture, ring: npt.ArrayLike, color: Picture) -> None:
    size = len(image)
    points = np.rint((np.asarray(ring, np.float32) * size - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(image, [points], color.tolist(), shift=_SHIFT)


def _smooth(tone: Picture, size: int) -> Picture:
    return np.full((size, size, 3), tone, np.float32)


def gradient(rng: np.random.Generator) -> Painter:
    """A smooth gradient of two to nine colours."""
    side = int(rng.integers(2, 4))
    first = _tone(rng)
    grid = np.stack([_near(rng, first, 0.3) for _ in range(side * side)])
    if rng.random() < 0.5:
        grid[rng.integers(side * side)] = _tone(rng)
    grid = grid.reshape(side, side, 3)
    return lambda size: _grown(grid, size)


def texture(rng: np.random.Generator) -> Painter:
    """Paper, plaster, stone: noise of several sizes over a gradient."""
    base = gradient(rng)
    layers = [
        (rng.standard_normal((side, max(2, round(side * rng.uniform(0.3, 1))))), strength)
        for side, strength in ((6, 11), (20, 8), (56, rng.uniform(2, 12)))
    ]

    def painted(size: int) -> Picture:
        grain = np.zeros((size, size), np.float32)
        for grid, strength in layers:
            grain += _grown(grid.astype(np.float32), size) * np.float32(strength)
        return base(size) + grain[..., None]

    return painted


def stripes(rng: np.random.Generator) -> Painter:
    """Slanted bands of two or three related colours."""
    tone = _tone(rng)
    tones = [tone, *(_near(rng, tone, 0.28) for _ in range(int(rng.integers(1, 3))))]
    width = rng.uniform(0.05, 0.2)
    angle = rng.uniform(0, np.pi)
    along, across = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )

    def painted(size: int) -> Picture:
        image = _smooth(tones[0], size)
        for number, start in enumerate(np.arange(-0.75, 0.75, width)):
            left, right = 0.5 + across * start, 0.5 + across * (start + width)
            ring = [left - along, left + along, right + along, right - along]
            _polygon(image, ring, tones[number % len(tones)])
        return cv2.GaussianBlur(image, (0, 0), size * 0.004)

    return painted


def waves(rng: np.random.Generator) -> Painter:
    """Curved bands, one in front of the other, as hills or a sea."""
    tone, far = _tone(rng), _tone(rng)
    count = int(rng.integers(3, 7))
    xs = np.linspace(-0.05, 1.05, 40)
    ridges = []
    for number in range(count):
        level = (number + rng.uniform(0.2, 0.9)) / count
        ridge = level + sum(
            rng.uniform(0.01, 0.06) * np.sin(xs * rng.uniform(3, 14) + rng.uniform(0, 6.3))
            for _ in range(2)
        )
        share = number / count
        ridges.append(
            (np.stack([xs, ridge], 1), _near(rng, far * (1 - share) + tone * share, 0.12))
        )

    def painted(size: int) -> Picture:
        image = _smooth(far, size)
        for ridge, color in ridges:
            _polygon(image, np.concatenate([ridge, [[1.05, 1.3], [-0.05, 1.3]]]), color)
        return cv2.GaussianBlur(image, (0, 0), size * 0.005)

    return painted


def landscape(rng: np.random.Generator) -> Painter:
    """A sky, a horizon, and ground with a soft pattern."""
    horizon = rng.uniform(0.3, 0.75)
    sky = np.array([[_near(rng, _tone(rng), 0.1)], [_tone(rng, 0.5)]], np.float32)
    ground = np.array([[_tone(rng)], [_tone(rng)]], np.float32)
    ground[1] = ground[0] * np.float32(rng.uniform(0.6, 1.2))
    ground = np.clip(ground, 0, 250)
    xs = np.linspace(-0.05, 1.05, 24)
    hills = [
        (rng.uniform(0.02, 0.1), rng.uniform(3, 12), rng.uniform(0, 6.3), rng.uniform(0.3, 0.7))
        for _ in range(int(rng.integers(0, 3)))
    ]
    grain = rng.standard_normal((48, 12)).astype(np.float32) * np.float32(rng.uniform(2, 9))

    def painted(size: int) -> Picture:
        image = _grown(np.repeat(sky, 2, 1), size)
        for height, waves_, phase, mix in hills:
            ridge = np.stack([xs, horizon - height * (0.6 + 0.4 * np.sin(xs * waves_ + phase))], 1)
            color = sky[1, 0] * np.float32(1 - mix) + ground[0, 0] * np.float32(mix)
            _polygon(image, np.concatenate([ridge, [[1.05, 1], [-0.05, 1]]]), color)
        start = round(horizon * size)
        below = cv2.resize(np.repeat(ground, 2, 1), (size, size), interpolation=cv2.INTER_CUBIC)
        below += _grown(grain, size)[..., None]
        image[start:] = below[: size - start]
        return image

    return painted


def photo(rng: np.random.Generator) -> Painter:
    """Clutter out of focus, as behind the subject of a photograph."""
    grid = cv2.resize(np.stack([_tone(rng) for _ in range(4)]).reshape(2, 2, 3), (40, 40)).astype(
        np.float32
    )
    for _ in range(int(rng.integers(8, 18))):
        corners = int(rng.integers(3, 7))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = rng.uniform(0.05, 0.3) * rng.uniform(0.5, 1, (corners, 1))
        ring = rng.random(2) + np.stack([np.cos(angles), np.sin(angles)], 1) * reach
        _polygon(grid, ring, _tone(rng))
    grid = cv2.GaussianBlur(grid, (0, 0), rng.uniform(1.2, 3.5))
    grain = rng.standard_normal((64, 64)).astype(np.float32) * np.float32(rng.uniform(0, 7))
    return lambda size: _grown(grid, size) + _grown(grain, size)[..., None]


def noise(rng: np.random.Generator) -> Painter:
    """Coloured noise, fine or coarse."""
    tone = _tone(rng)
    side = int(rng.integers(10, 60))
    grid = (tone + rng.standard_normal((side, side, 3)) * rng.uniform(8, 26)).astype(np.float32)
    return lambda size: _grown(grid, size)


def tiles(rng: np.random.Generator) -> Painter:
    """A checked cloth or a tiled wall, in related colours."""
    tone = _tone(rng)
    side = int(rng.integers(3, 9))
    other = _near(rng, tone, 0.2)
    checks = (np.indices((side, side)).sum(0) % 2)[..., None]
    grid = np.where(checks, tone, other) + rng.normal(0, rng.uniform(0, 7), (side, side, 1))
    light = gradient(rng)

    def painted(size: int) -> Picture:
        flat = cv2.resize(grid.astype(np.float32), (size, size), interpolation=cv2.INTER_NEAREST)
        return flat * np.float32(0.8) + light(size) * np.float32(0.2)

    return painted


KINDS = (gradient, texture, stripes, waves, landscape, photo, photo, noise, tiles)


def background(rng: np.random.Generator) -> Painter:
    """One of the kinds, with clutter on seven of ten."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    painter = kind(rng)
    if rng.random() < 0.3:
        return painter
    marks = [_mark(rng) for _ in range(int(rng.integers(1, 7)))]

    def painted(size: int) -> Picture:
        image = np.ascontiguousarray(painter(size))
        for mark in marks:
            mark(image)
        return image

    return painted


def _mark(rng: np.random.Generator) -> Callable[[Picture], None]:
    """Clutter: a line, a squiggle, dashes, a letter or a blob."""
    kind = int(rng.integers(5))
    color = _tone(rng).tolist()
    start, thick = rng.random(2), rng.uniform(0.008, 0.022)
    if kind == 3:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        reach = 1 + sum(
            rng.uniform(0.1, 0.35) * np.sin(angles * wave + rng.uniform(0, 6.3))
            for wave in (2, 3, 5)
        )
        ring = np.stack([np.cos(angles) * reach, np.sin(angles) * reach * 0.6], 1)
        blob = start + ring * rng.uniform(0.03, 0.1)
        return lambda image: _polygon(image, blob, np.array(color, np.float32))
    turn, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.7)
    t = np.linspace(0, 1, 24)
    bend = rng.uniform(0.02, 0.09) * np.sin(t * rng.uniform(4, 22)) if kind == 1 else 0 * t
    line = np.stack([t * length, bend], 1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    line = start + line @ rotation
    runs = [line[at : at + 3] for at in range(0, 24, 5)] if kind == 2 else [line]
    if kind == 4:
        strokes = _LETTERS[str(rng.choice(list(_LETTERS)))]
        height = rng.uniform(0.1, 0.25) / 2
        lean = rotation if rng.random() < 0.3 else np.eye(2)
        runs = [
            start + np.array([pair.split(",") for pair in stroke.split()], float) @ lean * height
            for stroke in strokes
        ]

    def draw(image: Picture) -> None:
        size = len(image)
        points = [np.rint((run * size - 0.5) * 16).astype(np.int32) for run in runs]
        cv2.polylines(image, points, False, color, max(1, round(thick * size)), cv2.LINE_8, _SHIFT)

    return draw
