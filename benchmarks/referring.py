"""Speed of evaluating referring answers: ``python benchmarks/referring.py``

Evaluates 2,000 predictions on 640×480, mask decoding included. Both ways get the same token ids
and the same true masks as RLE.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from measure import Table, at_least, at_most, in_turns, report
from PIL import Image
from pycocotools import mask as coco_mask

from palidecode import evaluate_referring, load_codec
from palidecode.codec.weights import DEMO_ID
from palidecode.geometry.masks import paste_big_vision
from palidecode.geometry.rle import Rle, crop_to_rle
from palidecode.vocab import LOC_COUNT, PALIGEMMA, SEG_COUNT, SEG_PER_MASK

COUNT = 2_000
SIZE = WIDTH, HEIGHT = 640, 480
SEED = 5
Sample = tuple[list[int], Rle, list[float]]


def problem(fields: np.ndarray, codes: np.ndarray) -> list[Sample]:
    """Draw token ids, true masks and true boxes (y1, x1, y2, x2 as fractions of the image)."""
    rng = np.random.default_rng(SEED)
    sides = np.exp(rng.uniform(np.log(48), np.log(450), (COUNT, 2)))
    corners = rng.uniform(0, 1, (COUNT, 2)) * (np.array(SIZE) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    samples: list[Sample] = []
    for number, box in enumerate(boxes):
        true = np.clip(box + rng.normal(0, 8, 4), 0, [*SIZE, *SIZE])
        shape = int(rng.integers(COUNT)) if number % 10 == 0 else number
        rle = crop_to_rle(paste_big_vision(fields[shape], true, SIZE), SIZE)
        fractions = (true / [*SIZE, *SIZE])[[1, 0, 3, 2]]
        loc = np.rint((box / [*SIZE, *SIZE])[[1, 0, 3, 2]] * (LOC_COUNT - 1)).astype(int)
        ids = [*(loc + PALIGEMMA.loc_offset), *(codes[number] + PALIGEMMA.seg_offset)]
        samples.append(([int(number) for number in ids], rle, fractions.tolist()))
    return samples


def whole_images(samples: list[Sample], fields: np.ndarray) -> list[float]:
    """Evaluate like big_vision, sample by sample on whole images: mIoU, boxacc, invalid."""
    ious, box_ious, invalid = [], [], 0
    for number, (ids, rle, true) in enumerate(samples):
        truth = coco_mask.decode(rle) > 0
        loc = np.array(ids[:4]) - PALIGEMMA.loc_offset
        seg = np.array(ids[4:20]) - PALIGEMMA.seg_offset
        valid = len(loc) + len(seg) == 20
        valid = valid and bool((loc >= 0).all() and (loc < LOC_COUNT).all())
        valid = valid and bool((seg >= 0).all() and (seg < SEG_COUNT).all())
        valid = valid and bool(loc[2] > loc[0] and loc[3] > loc[1])
        y1, x1, y2, x2 = (loc if valid else np.zeros(4)) / (LOC_COUNT - 1)
        high = max(min(y2, true[2]) - max(y1, true[0]), 0.0)
        wide = max(min(x2, true[3]) - max(x1, true[1]), 0.0)
        areas = (y2 - y1) * (x2 - x1) + (true[2] - true[0]) * (true[3] - true[1])
        box_ious.append(high * wide / (areas - high * wide))
        y1, x1, y2, x2 = int(y1 * HEIGHT), int(x1 * WIDTH), int(y2 * HEIGHT), int(x2 * WIDTH)
        if not valid or x2 <= x1 or y2 <= y1:
            invalid += 1
            ious.append(0.0)
            continue
        field = Image.fromarray(fields[number])
        mask = np.asarray(field.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)) > 0
        both = (truth[y1:y2, x1:x2] & mask).sum()
        ious.append(both / (truth.sum() + mask.sum() - both))
    total = len(ious)
    shares = [sum(iou >= least for iou in box_ious) / total for least in (0.5, 0.75)]
    return [float(sum(ious) / total), *shares, float(invalid)]


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    codec = load_codec(DEMO_ID)
    codes = np.random.default_rng(SEED).integers(0, SEG_COUNT, (COUNT, SEG_PER_MASK))
    fields = codec.decode(codes)
    samples = problem(fields, codes)
    # A box in a row is x, y, width, height in pixels.
    boxes = [
        [x1 * WIDTH, y1 * HEIGHT, (x2 - x1) * WIDTH, (y2 - y1) * HEIGHT]
        for _, _, (y1, x1, y2, x2) in samples
    ]
    rows: list[dict[str, Any]] = [
        {"token_ids": ids, "size": list(SIZE), "segmentation": rle, "bbox": box}
        for (ids, rle, _), box in zip(samples, boxes, strict=True)
    ]
    expected = whole_images(samples, fields)
    result = evaluate_referring(rows, codec=codec)
    numbers = [result.miou, *result.boxacc.values(), result.invalid]
    assert np.allclose(numbers, expected, rtol=0, atol=1e-12), (numbers, expected)
    seconds = in_turns(
        {
            "codec": lambda: codec.decode(codes),
            "loop": lambda: whole_images(samples, codec.decode(codes)),
            "ours": lambda: evaluate_referring(rows, codec=codec),
        },
        rounds=5,
    )
    loop, ours = seconds["loop"], seconds["ours"]
    note = (
        f"Same numbers: mIoU {result.miou:.6f}, box accuracy {result.boxacc[0.5]:.4f} and "
        f"{result.boxacc[0.75]:.4f}, {result.invalid} invalid. Ours also gives cIoU, gIoU, "
        "precision and every sample's row."
    )
    table = Table(
        f"{COUNT:,} answers on 640×480",
        ("way", "seconds", "÷ ours"),
        [
            ["the mask codec alone", seconds["codec"], seconds["codec"] / ours],
            ["big_vision's loop in numpy and Pillow", loop, loop / ours],
            ["**ours**: `evaluate_referring`", ours, 1.0],
        ],
        note,
    )
    targets = [
        at_least("referring evaluation: the loop's seconds ÷ ours", loop / ours, 1.5, "×"),
        at_most("referring evaluation: seconds ÷ the codec's", ours / seconds["codec"], 1.3, "×"),
    ]
    report("referring", [table], targets)


if __name__ == "__main__":
    main()
