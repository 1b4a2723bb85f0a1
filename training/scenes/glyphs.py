"""Convert silhouettes of a font to polygons: ``python -m training.scenes.glyphs``.

Writes ``glyphs.json``, from which `training.scenes.draw` draws, so that training and tests need
no font. The font is Font Awesome Free (solid), under the SIL Open Font License 1.1, which also
covers the polygons (``training/scenes/OFL.txt``). Install it with ``pip install
fonticon-fontawesome6``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from shapely import MultiPolygon, Polygon, affinity
from shapely.geometry import LinearRing

from palidecode.errors import InputError
from palidecode.files import replacing

FILE = Path(__file__).with_name("glyphs.json")
FONT = "fonts/Font Awesome 6 Free-Solid-900.otf"
GLYPHS = {
    "star": "star",
    "heart": "heart",
    "moon": "moon",
    "cat": "cat",
    "dog": "dog",
    "fish": "fish",
    "tree": "tree",
    "house": "house",
    "car": "car-side",
    "airplane": "plane",
    "umbrella": "umbrella",
    "key": "key",
}
"""Class name to the glyph's name in the font."""

THROUGH = ("key",)
"""Classes whose holes stay holes; those of all others are painted: eyes, windows, wheels."""

_STEPS = 6  # straight pieces per curve
_GAP = 0.07  # share of the longer side; narrower gaps are closed, so that a cat is one piece
_DETAIL = 0.001  # share of the longer side; tolerance of simplified outlines


def contours(font: Any, name: str) -> list[list[tuple[float, float]]]:
    """Trace a glyph's closed contours in font units, y up, with curves as straight pieces."""
    from fontTools.pens.recordingPen import DecomposingRecordingPen

    glyphs = font.getGlyphSet()
    pen = DecomposingRecordingPen(glyphs)
    glyphs[name].draw(pen)
    rings: list[list[tuple[float, float]]] = []
    for operation, points in pen.value:
        if operation == "moveTo":
            rings.append([points[0]])
        elif operation == "lineTo":
            rings[-1].append(points[0])
        elif operation == "curveTo":
            rings[-1].extend(_bezier([rings[-1][-1], *points]))
        elif operation == "qCurveTo":
            for piece in _quadratics(rings[-1][-1], points):
                rings[-1].extend(_bezier(piece))
    return [ring for ring in rings if len(ring) > 2]


def _bezier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a Bézier curve of any degree (de Casteljau), without the first."""
    line = []
    for t in np.linspace(0, 1, _STEPS + 1)[1:]:
        rest = np.array(points, float)
        while len(rest) > 1:
            rest = rest[:-1] * (1 - t) + rest[1:] * t
        line.append((float(rest[0, 0]), float(rest[0, 1])))
    return line


def _quadratics(start: Any, points: tuple[Any, ...]) -> list[list[tuple[float, float]]]:
    from fontTools.pens.basePen import decomposeQuadraticSegment

    pieces = []
    for control, end in decomposeQuadraticSegment(points):
        pieces.append([start, control, end])
        start = end
    return pieces


def silhouette(rings: list[list[tuple[float, float]]], through: bool) -> dict[str, Any]:
    """Convert a glyph to unit polygons: centred on 0, longer side 1, y down.

    Returns
    -------
    dict
        ``outline``: rings for the even-odd rule; ``details``: rings inside it that are painted
        in another shade, none if `through` keeps the holes open.
    """
    shape: Any = Polygon()
    for ring in rings:
        shape = shape.symmetric_difference(Polygon(LinearRing(ring)).buffer(0))
    left, low, right, high = shape.bounds
    scale = 1 / max(right - left, high - low)
    shape = affinity.translate(shape, -(left + right) / 2, -(low + high) / 2)
    shape = affinity.scale(shape, scale, -scale, origin=(0, 0))
    outer = [part.exterior for part in _parts(shape.buffer(_GAP / 2).buffer(-_GAP / 2))]
    holes = [hole for part in _parts(shape) for hole in part.interiors]
    return {
        "outline": [_points(ring) for ring in (outer + holes if through else outer)],
        "details": [] if through else [_points(ring) for ring in holes],
    }


def _parts(shape: Any) -> list[Polygon]:
    """Split a shape into its polygons, simplified."""
    simple = shape.simplify(_DETAIL)
    return list(simple.geoms) if isinstance(simple, MultiPolygon) else [simple]


def _points(ring: Any) -> list[list[float]]:
    return np.round(np.asarray(ring.coords)[:-1], 4).tolist()  # type: ignore[no-any-return]


def font_file() -> Path:
    """Locate the font in its package.

    Raises
    ------
    InputError
        If the package isn't installed.
    """
    package = find_spec("fonticon_fa6")
    if package is None or package.origin is None:
        raise InputError("the font is missing: pip install fonticon-fontawesome6, or --font FILE")
    return Path(package.origin).parent / FONT


def main(argv: list[str] | None = None) -> None:
    """Write the silhouettes with their source and license."""
    from fontTools.ttLib import TTFont

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--font", type=Path, help="Font Awesome 6 Free-Solid-900.otf")
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    options = parser.parse_args(argv)
    path = options.font or font_file()
    with TTFont(path) as font:
        version, copyright_ = (font["name"].getDebugName(number) for number in (5, 0))
        shapes = {
            label: {"glyph": name, **silhouette(contours(font, name), label in THROUGH)}
            for label, name in GLYPHS.items()
        }
    source = {
        "font": "Font Awesome 6 Free, solid",
        "version": version,
        "copyright": f"{copyright_} (Fonticons, Inc., https://fontawesome.com)",
        "licence": "SIL OFL 1.1, see OFL.txt; outlines flattened, closed and scaled",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "command": "python -m training.scenes.glyphs",
    }
    with replacing(options.output) as file:
        file.write('{"source": ' + json.dumps(source, indent=1) + ',\n"glyphs": {\n')
        file.write(",\n".join(f'"{k}": {json.dumps(v)}' for k, v in shapes.items()) + "\n}}\n")


if __name__ == "__main__":
    main()
