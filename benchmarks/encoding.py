"""Speed of encoding COCO masks to seg codes: ``python benchmarks/encoding.py``

Encodes 1,000 RLE masks of 640×480 images (the usual size in COCO), and some of 4000×3000.
"""

from __future__ import annotations

import cv2
import numpy as np
from measure import Cell, Table, Target, at_least, in_turns, report
from PIL import Image
from pycocotools import mask as coco_mask

from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import DEMO_ID
from palidecode.finetune.encoding import crop_rles, encode_masks
from palidecode.finetune.rows import to_finetuning_rows
from palidecode.geometry.rle import Rle
from palidecode.vocab import MASK_SIDE

COUNT = 1000
LARGE_COUNT = 40
SIZE, LARGE = (640, 480), (4000, 3000)
SEED = 5


def scene(size: tuple[int, int], count: int) -> tuple[list[Rle], np.ndarray]:
    """Draw ragged blobs: RLE, and boxes (N, 4) of a tenth to two thirds of the image's sides."""
    rng = np.random.default_rng(SEED)
    width, height = size
    rles: list[Rle] = []
    boxes = np.empty((count, 4))
    for box in boxes:
        sides = np.exp(rng.uniform(np.log(0.1), np.log(0.66), 2)) * size
        corner = rng.uniform(0, 1, 2) * (np.array(size) - sides)
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radii = rng.uniform(0.6, 1, len(angles)) / 2
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + 0.5
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [np.rint(points * sides + corner).astype(np.int32)], 1)
        packed = coco_mask.encode(np.asfortranarray(mask))
        rles.append(Rle(size=[height, width], counts=packed["counts"].decode("ascii")))
        x, y, w, h = coco_mask.toBbox(packed).tolist()
        box[:] = x, y, x + w, y + h
    return rles, boxes


def decoded_crops(rles: list[Rle], boxes: np.ndarray) -> np.ndarray:
    """Crop the obvious way: decode the image, slice, resize with Pillow."""
    out = np.empty((len(rles), MASK_SIDE, MASK_SIDE), np.float32)
    for row, (rle, box) in enumerate(zip(rles, boxes, strict=True)):
        x1, y1, x2, y2 = np.rint(box).astype(int)
        crop = coco_mask.decode(rle)[y1:y2, x1:x2].astype(np.float32)
        image = Image.fromarray(crop)
        out[row] = image.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BILINEAR)
    return out


def dataset(rles: list[Rle], boxes: np.ndarray) -> dict[str, object]:
    """Make a COCO dataset of the masks, seven to an image."""
    width, height = SIZE
    images = range((len(rles) + 6) // 7)
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height} for i in images
        ],
        "annotations": [
            {
                "image_id": row // 7,
                "category_id": 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": rle,
            }
            for row, (rle, (x1, y1, x2, y2)) in enumerate(zip(rles, boxes.tolist(), strict=True))
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def crops_table() -> Table:
    """Measure the crops alone, of small and large images."""
    rows: list[list[Cell]] = []
    for size, count in ((SIZE, COUNT), (LARGE, LARGE_COUNT)):
        rles, boxes = scene(size, count)
        same = sum(map(np.array_equal, crop_rles(rles, boxes), decoded_crops(rles, boxes)))
        seconds = in_turns(
            {
                "whole": lambda r=rles, b=boxes: decoded_crops(r, b),  # type: ignore[misc]
                "ours": lambda r=rles, b=boxes: crop_rles(r, b),  # type: ignore[misc]
            }
        )
        rate = {name: count / taken for name, taken in seconds.items()}
        name = f"{size[0]}×{size[1]}"
        rows.append([name, rate["whole"], rate["ours"], rate["ours"] / rate["whole"]])
        rows[-1].append(f"{same / count:.1%}")
    columns = ("image", "decode, slice, Pillow", "**ours**: from the runs", "ratio", "equal")
    note = "Equal: masks whose 64×64 crop has the same value at every pixel."
    return Table("RLE to 64×64 crops: masks/s", columns, rows, note)


def codes_table(codec: MaskCodec) -> tuple[Table, list[Target]]:
    """Measure the whole way to codes and rows."""
    rles, boxes = scene(SIZE, COUNT)
    coco = dataset(rles, boxes)
    assert np.array_equal(
        codec.encode(decoded_crops(rles, boxes)), encode_masks(rles, boxes, codec)
    )
    seconds = in_turns(
        {
            "whole": lambda: codec.encode(decoded_crops(rles, boxes)),
            "ours": lambda: encode_masks(rles, boxes, codec),
            "rows": lambda: list(to_finetuning_rows(coco, "segment", codec=codec)),
        },
        pause=0.2,
    )
    rate = {name: COUNT / taken for name, taken in seconds.items()}
    rows: list[list[Cell]] = [
        ["decode, slice, Pillow, then our encoder", rate["whole"], 1.0],
        ["**ours**: `encode_masks`", rate["ours"], rate["ours"] / rate["whole"]],
        ["**ours**: `to_finetuning_rows`", rate["rows"], rate["rows"] / rate["whole"]],
    ]
    note = "Rows: checks, boxes, prompts and text included; 7 objects to an image."
    targets = [at_least("RLE of 640×480 to seg codes", rate["ours"], 1000, "masks/s")]
    columns = ("way", "masks/s", "÷ the first")
    return Table(f"{COUNT:,} RLE of 640×480 to seg codes", columns, rows, note), targets


def main() -> None:
    """Measure and print."""
    codes, targets = codes_table(load_codec(DEMO_ID))
    report("encoding", [crops_table(), codes], targets)


if __name__ == "__main__":
    main()
