"""Draw the demo's picture and write the answers about it: ``python -m training.scenes.harbour``.

A harbour at sunset, drawn by code, so that every mask is known exactly. The answers are those of
a perfect model: boxes in bins, masks encoded by the shipped codec, with the flaws of real
answers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_mask

from palidecode.answers.parsing import ParsedObject, format_objects
from palidecode.codec import load_codec
from palidecode.geometry.boxes import xyxy_to_loc
from palidecode.geometry.masks import crop_masks

WIDTH, HEIGHT, SCALE = 960, 600, 3
HORIZON = 372
FOLDER = Path(__file__).parents[2] / "palidecode" / "demo"
NAME = "harbour.png"


class Layer:
    """One object on a transparent sheet, drawn SCALE times larger."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (WIDTH * SCALE, HEIGHT * SCALE))
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points: list[tuple[float, float]], fill: str) -> None:
        self.pen.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: str) -> None:
        box = [(x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE]
        self.pen.ellipse(box, fill=fill)

    def box(self, x1: float, y1: float, x2: float, y2: float, fill: str) -> None:
        self.pen.rectangle([v * SCALE for v in (x1, y1, x2, y2)], fill=fill)

    def line(self, points: list[tuple[float, float]], fill: str, width: float) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.pen.line(scaled, fill=fill, width=round(width * SCALE), joint="curve")


def gradient(top: str, bottom: str, height: int) -> Image.Image:
    ends = [
        np.array(Image.new("RGB", (1, 1), color))[0, 0].astype(float) for color in (top, bottom)
    ]
    share = np.linspace(0, 1, height)[:, None]
    rows = ends[0] * (1 - share) + ends[1] * share
    return Image.fromarray(np.repeat(rows[:, None], WIDTH, axis=1).round().astype(np.uint8))


def background(rng: np.random.Generator) -> Image.Image:
    """Draw sky, sun, clouds, hills and sea."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.paste(gradient("#33558b", "#ffd3a1", HORIZON), (0, 0))
    image.paste(gradient("#e0a583", "#20496b", HEIGHT - HORIZON), (0, HORIZON))
    glow = Layer()
    glow.ellipse(560, HORIZON - 46, 130, 130, "#ffe9b0")
    image = _over(image, _blurred(glow, "#ffe9b0", 60))
    sheet = Layer()
    sheet.ellipse(560, HORIZON - 46, 44, 44, "#fff3cf")
    for base, color, phase in ((46, "#8a7f9c", 0.3), (26, "#6c6a8c", 2.1)):
        ridge = [
            (x, HORIZON - base * (0.55 + 0.3 * math.sin(x / 97 + phase) + 0.15 * math.sin(x / 31)))
            for x in range(0, WIDTH + 8, 8)
        ]
        sheet.polygon([(0, HORIZON), *ridge, (WIDTH, HORIZON)], color)
    image = _over(image, sheet.image)
    clouds = Layer()
    for x, y, size in ((130, 70, 34), (400, 48, 24), (845, 120, 30)):
        for part in range(7):
            shift = (part - 3) * size * 0.8
            radius = size * (1 - abs(part - 3) / 4.5)
            clouds.ellipse(x + shift, y - radius * 0.3, size * 0.9, radius * 0.62, "#ffffff80")
    image = _over(image, _blurred(clouds, "#ffffff", 5))
    waves = Layer()
    for _ in range(420):
        depth = rng.random() ** 1.5
        y = HORIZON + 4 + depth * (HEIGHT - HORIZON - 6)
        x, reach = rng.uniform(0, WIDTH), 4 + 26 * depth
        near_sun = abs(x - 560) < 40 + 120 * depth
        waves.line([(x, y), (x + reach, y)], "#ffe2b866" if near_sun else "#ffffff24", 0.6 + depth)
    return _over(image, waves.image)


def _over(image: Image.Image, sheet: Image.Image) -> Image.Image:
    small = sheet.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return Image.alpha_composite(image.convert("RGBA"), small).convert("RGB")


def _blurred(layer: Layer, color: str, radius: float) -> Image.Image:
    """Blur only the opacity, as transparent pixels are black."""
    sheet = Image.new("RGBA", layer.image.size, color)
    sheet.putalpha(layer.image.getchannel("A").filter(ImageFilter.GaussianBlur(radius * SCALE)))
    return sheet


def lighthouse() -> Layer:
    layer = Layer()
    rock = [
        (690, 470),
        (712, 420),
        (742, 398),
        (788, 384),
        (838, 388),
        (880, 410),
        (918, 436),
        (948, 480),
    ]
    layer.polygon([*rock, (960, 492), (684, 492)], "#4b4a55")
    layer.polygon(
        [(712, 420), (742, 398), (788, 384), (800, 400), (752, 424), (730, 452)], "#66636d"
    )
    for part in range(6):
        top, bottom = 168 + part * 38, 168 + (part + 1) * 38
        reach = [22 + (y - 168) * 0.066 for y in (top, bottom)]
        corners = [
            (815 - reach[0], top),
            (815 + reach[0], top),
            (815 + reach[1], bottom),
            (815 - reach[1], bottom),
        ]
        layer.polygon(corners, "#d9483b" if part % 2 else "#fbf4e6")
        shade = [
            (815 + reach[0] * 0.35, top),
            corners[1],
            corners[2],
            (815 + reach[1] * 0.35, bottom),
        ]
        layer.polygon(shade, "#b33a33" if part % 2 else "#ddd3c4")
    layer.box(785, 160, 845, 168, "#39343f")
    layer.box(796, 128, 834, 160, "#ffe796")
    for x in (796, 808, 820, 832):
        layer.box(x, 128, x + 2, 160, "#39343f")
    layer.polygon([(788, 130), (815, 98), (842, 130)], "#d9483b")
    layer.polygon([(815, 98), (842, 130), (822, 130)], "#b33a33")
    layer.ellipse(815, 97, 4, 4, "#39343f")
    layer.box(806, 366, 824, 396, "#5b3a2e")
    for y in (196, 272, 332):
        layer.ellipse(808, y, 4, 6, "#39343f")
    return layer


def sailboat(x: float, y: float, size: float, sail: str, stripe: str) -> Layer:
    layer = Layer()

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + px * size, y + py * size) for px, py in points]

    layer.line(at((0, 2), (0, -118)), "#4a3327", 3 * size)
    belly = [
        (6 + 62 * math.sin(t) ** 0.9, -112 + 104 * t / (math.pi / 2))
        for t in np.linspace(0.02, math.pi / 2, 20)
    ]
    layer.polygon(at((5, -114), *belly, (5, -8)), sail)
    band = [(px, py) for px, py in belly if -62 < py < -34]
    layer.polygon(at((5, band[0][1]), *band, (5, band[-1][1])), stripe)
    layer.polygon(at((-5, -104), (-5, -10), (-46, -8)), "#fff6e6")
    layer.polygon(at((-5, -104), (-5, -10), (-18, -9)), "#e8dac6")
    hull = [
        (-58, 0),
        (66, 0),
        *[(66 - 24 * t, 26 * math.sin(t * math.pi / 2)) for t in np.linspace(0, 1, 8)],
        (-34, 26),
    ]
    layer.polygon(at(*hull), "#7d2f2b")
    layer.polygon(at((-58, 0), (66, 0), (64, 5), (-55, 5)), "#f4e9d8")
    return layer


def balloon() -> Layer:
    layer = Layer()
    colors = ("#e8593a", "#f7b733", "#2f9c95", "#f7b733", "#e8593a")
    cx, cy, rx, ry = 262, 150, 78, 84
    for part, color in enumerate(colors):
        left, right = -1 + 2 * part / 5, -1 + 2 * (part + 1) / 5
        edges = []
        for side, turn in ((left, 1), (right, -1)):
            heights = np.linspace(-1, 1, 40)[::turn]
            for h in heights:
                width = (
                    math.sqrt(max(0.0, 1 - h * h))
                    if h < 0.2
                    else math.sqrt(1 - 0.04) * (1 - (h - 0.2) * 0.95)
                )
                edges.append((cx + side * rx * width, cy + h * ry * (1 if h < 0.2 else 1.18)))
        layer.polygon(edges, color)
    bottom = cy + ry * 1.18
    for side in (-15, 15):
        layer.line([(cx + side * 1.1, bottom - 4), (cx + side * 0.7, bottom + 30)], "#5a4632", 1.6)
    layer.box(cx - 13, bottom + 28, cx + 13, bottom + 48, "#8a5a34")
    layer.box(cx - 15, bottom + 26, cx + 15, bottom + 31, "#5f3c22")
    return layer


def hut() -> Layer:
    layer = Layer()
    layer.polygon([(38, 470), (206, 470), (216, 520), (28, 520)], "#5d5a66")
    for x, y in ((40, 482), (84, 496), (128, 480), (160, 498), (60, 508), (186, 484)):
        layer.box(x, y, x + 18, y + 7, "#716d7a")
    layer.box(30, 460, 214, 472, "#6d4c36")
    layer.box(54, 402, 184, 462, "#c8674a")
    for y in range(408, 462, 9):
        layer.box(54, y, 184, y + 1.2, "#a9523b")
    layer.polygon([(42, 406), (119, 350), (196, 406)], "#3f4a5a")
    layer.polygon([(119, 350), (196, 406), (180, 406), (116, 360)], "#333c4a")
    layer.box(146, 352, 160, 380, "#7a6a60")
    layer.box(74, 420, 98, 444, "#ffe796")
    layer.box(85, 420, 87, 444, "#5b3a2e")
    layer.box(74, 431, 98, 433, "#5b3a2e")
    layer.box(122, 418, 150, 462, "#5b3a2e")
    layer.ellipse(145, 442, 2, 2, "#ffe796")
    return layer


def gull(x: float, y: float, size: float) -> Layer:
    layer = Layer()
    for side in (-1, 1):
        outer = [
            (x + side * (16 - 16 * math.cos(t)) * size, y - 11 * math.sin(t) * size)
            for t in np.linspace(0, 2.5, 16)
        ]
        inner = [(px - side * 1.0 * size, py + 4.6 * size) for px, py in outer[::-1]]
        tip = (outer[-1][0] + side * 4 * size, outer[-1][1] + 4 * size)
        layer.polygon([*outer, tip, *inner], "#f7f5f2")
    layer.ellipse(x, y + 1.5 * size, 4 * size, 3.2 * size, "#ffffff")
    return layer


def objects() -> list[tuple[str, Layer]]:
    """List the objects from the farthest to the nearest."""
    return [
        ("hot-air balloon", balloon()),
        ("gull", gull(420, 150, 1.05)),
        ("gull", gull(476, 112, 0.8)),
        ("sailboat", sailboat(640, 404, 0.62, "#f2c14e", "#d9483b")),
        ("lighthouse", lighthouse()),
        ("fisherman's hut", hut()),
        ("sailboat", sailboat(400, 486, 1.36, "#fdf6ea", "#2f7f9c")),
    ]


def main() -> None:
    """Write the picture, its ground truth and the answers to the package."""
    rng = np.random.default_rng(7)
    image = background(rng)
    sheets = []
    for label, layer in objects():
        image = _over(image, layer.image)
        alpha = layer.image.getchannel("A").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        sheets.append((label, np.asarray(alpha) > 127))
    image.save(FOLDER / NAME, optimize=True)
    _write(_visible(sheets))


def _visible(
    sheets: list[tuple[str, npt.NDArray[np.bool_]]],
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Remove the pixels that nearer objects cover."""
    visible = []
    for number, (label, mask) in enumerate(sheets):
        nearer = [other for _, other in sheets[number + 1 :]]
        covered = np.any(nearer, axis=0) if nearer else np.zeros_like(mask)
        visible.append((label, mask & ~covered))
    return visible


def _write(truth: list[tuple[str, npt.NDArray[np.bool_]]]) -> None:
    names = list(dict.fromkeys(label for label, _ in truth))
    annotations, boxes = [], []
    for number, (label, mask) in enumerate(truth, 1):
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        x, y, w, h = (float(v) for v in coco_mask.toBbox(rle))
        boxes.append([x, y, x + w, y + h])
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        annotations.append(
            {"id": number, "image_id": 1, "category_id": names.index(label) + 1, "iscrowd": 0}
            | {"bbox": [x, y, w, h], "area": int(mask.sum()), "segmentation": segmentation}
        )
    dataset = {
        "images": [{"id": 1, "file_name": NAME, "width": WIDTH, "height": HEIGHT}],
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for id_, name in enumerate(names, 1)],
    }
    (FOLDER / "truth.json").write_text(json.dumps(dataset, indent=1) + "\n")
    loc = xyxy_to_loc(boxes, (WIDTH, HEIGHT)).tolist()
    masks = np.stack([mask for _, mask in truth])
    codes = load_codec("palidecode-demo").encode(crop_masks(masks, boxes)).tolist()
    _write_answers(
        [
            ParsedObject(label, tuple(bins), tuple(code))
            for (label, _), bins, code in zip(truth, loc, codes, strict=True)
        ]
    )


def _write_answers(items: list[ParsedObject]) -> None:
    """Write an answer with masks, and one with boxes only and the flaws of real answers."""
    birds = [item._replace(seg=None) for item in items if item.label == "gull"]
    rest = [item for item in items if item.label != "gull"]
    spaced = format_objects(birds).replace("> gull", ">gull", 1)
    rows = [
        {
            "image": NAME,
            "prompt": "segment " + " ; ".join(dict.fromkeys(item.label for item in rest)),
            "output": format_objects(rest) + "<eos>",
        },
        {
            "image": NAME,
            "prompt": "detect gull",
            "output": f"two gulls: {spaced} ; <loc0210><loc04",
        },
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / "answers.jsonl").write_text(text)


if __name__ == "__main__":
    main()
