"""Speed of converting fields to COCO's RLE and polygons: ``python benchmarks/rle.py``

Converts 1,000 smooth 64×64 fields in boxes of an image of 1280×960.
"""

from __future__ import annotations

import cv2
import numpy as np
from measure import Cell, Table, Target, at_least, in_turns, missing, optional, report
from PIL import Image
from pycocotools import mask as coco_mask

from palidecode.geometry.masks import MaskCrop, paste_big_vision, paste_subpixel
from palidecode.geometry.polygons import exact_polygons, smooth_polygons
from palidecode.geometry.rle import Rle, crop_to_rle
from palidecode.vocab import MASK_SIDE

COUNT = 1000
SIZE = WIDTH, HEIGHT = 1280, 960
SEED = 3


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Draw fields (N, 64, 64) with soft edges, and boxes (N, 4) with sides of 16 to 640 px."""
    rng = np.random.default_rng(SEED)
    sides = np.exp(rng.uniform(np.log(16), np.log(640), (COUNT, 2)))
    corners = rng.uniform(0, 1, (COUNT, 2)) * (np.array(SIZE) - sides)
    fields = np.empty((COUNT, MASK_SIDE, MASK_SIDE), np.float32)
    for field in fields:
        drawn = np.zeros((MASK_SIDE, MASK_SIDE), np.float32)
        centre, axes = rng.integers(24, 40, 2).tolist(), rng.integers(14, 34, 2).tolist()
        cv2.ellipse(drawn, centre, axes, int(rng.integers(180)), 0, 360, 1.0, -1)
        corner = rng.integers(0, MASK_SIDE, (4, 2)).astype(np.int32)
        cv2.fillPoly(drawn, [corner], 1.0)
        # A decoder's fields are never exactly flat, so add a little noise.
        noise = rng.normal(0, 0.01, drawn.shape)
        field[:] = 2 * cv2.GaussianBlur(drawn, (0, 0), 1.5) - 1 + noise
    return fields, np.concatenate([corners, corners + sides], axis=1)


def demo_mask(field: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Paste like big_vision and the demo: Pillow's resize into an image of floats."""
    x1, y1, x2, y2 = (int(value) for value in box)
    image = np.zeros((HEIGHT, WIDTH), np.float32)
    resized = Image.fromarray(field).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)
    image[y1:y2, x1:x2] = np.asarray(resized)
    return image > 0


def demo_rle(field: np.ndarray, box: np.ndarray) -> Rle:
    """Encode that mask with pycocotools."""
    return _text(coco_mask.encode(np.asfortranarray(demo_mask(field, box), np.uint8)))


def canvas_rle(field: np.ndarray, box: np.ndarray, canvas: np.ndarray) -> Rle:
    """Resize with OpenCV into a reused canvas, and encode with pycocotools."""
    x1, y1, x2, y2 = (int(value) for value in box)
    canvas[:] = 0
    canvas[y1:y2, x1:x2] = cv2.resize(field, (x2 - x1, y2 - y1)) > 0
    return _text(coco_mask.encode(canvas))


def our_rle(field: np.ndarray, box: np.ndarray) -> Rle:
    """Encode the crop, without the whole image: the default paste."""
    return crop_to_rle(paste_subpixel(field, box, SIZE), SIZE)


def our_rle_as_big_vision(field: np.ndarray, box: np.ndarray) -> Rle:
    """Encode the crop, pasted as the evaluator does."""
    return crop_to_rle(paste_big_vision(field, box, SIZE), SIZE)


def _text(rle: dict[str, bytes]) -> Rle:
    return Rle(size=[HEIGHT, WIDTH], counts=rle["counts"].decode("ascii"))


def run_lengths(fields: np.ndarray, boxes: np.ndarray) -> tuple[Table, list[Target]]:
    """Measure three ways to RLE."""
    pairs = list(zip(fields, boxes, strict=True))
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    expected = [demo_rle(*pair) for pair in pairs]
    same = sum(
        our_rle_as_big_vision(*pair) == want for pair, want in zip(pairs, expected, strict=True)
    )
    canvas_same = sum(
        canvas_rle(*pair, canvas) == want for pair, want in zip(pairs, expected, strict=True)
    )
    seconds = in_turns(
        {
            "demo": lambda: [demo_rle(*pair) for pair in pairs[:100]],
            "canvas": lambda: [canvas_rle(*pair, canvas) for pair in pairs[:100]],
            "ours": lambda: [our_rle(*pair) for pair in pairs],
            "as big_vision": lambda: [our_rle_as_big_vision(*pair) for pair in pairs],
        }
    )
    whole = ("demo", "canvas")
    rate = {name: (100 if name in whole else COUNT) / taken for name, taken in seconds.items()}
    rows: list[list[Cell]] = [
        ["the demo's way: Pillow, whole image, pycocotools", rate["demo"], 1.0, "100%"],
        ["OpenCV on a reused canvas, pycocotools", rate["canvas"], rate["canvas"] / rate["demo"]],
        ["**ours**, as big_vision pastes", rate["as big_vision"]],
        ["**ours**, at pixel centres (default)", rate["ours"], rate["ours"] / rate["demo"], "–"],
    ]
    rows[1].append(f"{canvas_same / COUNT:.1%}")
    rows[2] += [rate["as big_vision"] / rate["demo"], f"{same / COUNT:.1%}"]
    columns = ("way", "masks/s", "÷ the demo's", "equal to big_vision's paste, byte for byte")
    note = "Whole-image ways are timed on the first 100 of the same masks."
    targets = [at_least("masks equal to big_vision's paste", 100 * same / COUNT, 100, "%")]
    return Table(f"{COUNT:,} masks on {WIDTH}×{HEIGHT} to RLE", columns, rows, note), targets


def rings(fields: np.ndarray, boxes: np.ndarray) -> Table:
    """Measure polygons of the same masks."""
    crops: list[MaskCrop] = [
        paste_subpixel(*pair, SIZE) for pair in zip(fields, boxes, strict=True)
    ]
    some = list(zip(fields[:100], boxes[:100], strict=True))
    whole = [demo_mask(*pair) for pair in some]
    calls = {
        "smooth": lambda: smooth_polygons(fields, boxes),
        "exact": lambda: exact_polygons(crops),
    }
    supervision = optional("supervision")
    if supervision is not None:
        trace = supervision.mask_to_polygons
        calls["given"] = lambda: [trace(mask) for mask in whole]
        calls["pasted"] = lambda: [trace(demo_mask(*pair)) for pair in some]
    seconds = in_turns(calls)
    rate = {n: (100 if n in ("given", "pasted") else COUNT) / s for n, s in seconds.items()}
    peer = rate.get("given")
    absent = missing("supervision")
    rows: list[list[Cell]] = [
        [name, rate.get(key, absent), rate[key] / peer if peer and key in rate else None]
        for key, name in (
            ("given", "supervision.mask_to_polygons, masks given"),
            ("pasted", "supervision.mask_to_polygons, from fields"),
            ("smooth", "**ours**, smooth, from fields"),
            ("exact", "**ours**, exact, from crops"),
        )
    ]
    columns = ("way", "masks/s", "÷ supervision, masks given")
    note = (
        "supervision's rings pass through pixel centres of the whole image and fill holes; our "
        "smooth ones are sub-pixel, valid and keep holes, our exact ones rasterise to the mask."
    )
    return Table("Polygons", columns, rows, note)


def main() -> None:
    """Measure and print."""
    fields, boxes = scene()
    # The codec takes several times as long as either, so they have no targets of their own.
    masks, targets = run_lengths(fields, boxes)
    report("rle", [masks, rings(fields, boxes)], targets)


if __name__ == "__main__":
    main()
