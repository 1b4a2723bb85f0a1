"""Predictions with every kind of error, made from a truth: what a middling model might say."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask


def noisy_predictions(
    truth: dict[str, Any], seed: int = 0, masks: bool = True
) -> list[dict[str, Any]]:
    """A results list: shifted, missing, repeated, misnamed and invented objects.

    Some classes are harder than others, and scores know a little about quality.
    """
    rng = np.random.default_rng(seed)
    images = {image["id"]: image for image in truth["images"]}
    ids = [item["id"] for item in truth["categories"]]
    hard = dict(zip(ids, rng.beta(1.2, 2.2, len(ids)).tolist(), strict=True))
    found: list[dict[str, Any]] = []
    for row in truth["annotations"]:
        image, trouble = images[row["image_id"]], hard[row["category_id"]]
        if rng.random() < 0.05 + 0.4 * trouble:
            continue
        for again in range(1 + (rng.random() < 0.06)):
            far = rng.random() < 0.05 + 0.25 * trouble
            shift = rng.normal(0, 0.22 if far else 0.015 + 0.05 * trouble, 4)
            wrong = rng.random() < 0.03 + 0.25 * trouble
            category = int(rng.choice(ids)) if wrong else row["category_id"]
            quality = 0.93 - 3.2 * np.abs(shift).mean() - 0.25 * wrong - 0.3 * bool(again)
            found.append(_answer(row, image, category, shift, quality + rng.normal(0, 0.08), masks))
    for image in truth["images"]:
        if rng.random() < 0.15:
            invented = {"image_id": image["id"], "bbox": _somewhere(rng, image)}
            score = rng.uniform(0.1, 0.6)
            found.append(_answer(invented, image, int(rng.choice(ids)), np.zeros(4), score, masks))
    return found


def _answer(
    row: dict[str, Any],
    image: dict[str, Any],
    category: int,
    shift: npt.NDArray[np.float64],
    score: float,
    masks: bool,
) -> dict[str, Any]:
    width, height = image["width"], image["height"]
    x, y, w, h = row["bbox"]
    dx, dy, dw, dh = shift
    left, top = x + dx * w, y + dy * h
    right, bottom = left + w * (1 + dw), top + h * (1 + dh)
    left, right = np.clip([left, right], 0, width).tolist()
    top, bottom = np.clip([top, bottom], 0, height).tolist()
    answer = {
        "image_id": row["image_id"],
        "category_id": category,
        "bbox": [round(v, 2) for v in (left, top, right - left, bottom - top)],
        "score": round(float(np.clip(score, 0.02, 0.99)), 3),
    }
    if masks:
        answer["segmentation"] = _moved_mask(row, (left, top, right, bottom), width, height)
    return answer


def _moved_mask(
    row: dict[str, Any], box: tuple[float, float, float, float], width: int, height: int
) -> dict[str, Any]:
    """The object's mask stretched to the box; an ellipse for what isn't there."""
    left, top, right, bottom = box
    if "segmentation" in row:
        outline = row["segmentation"]
        if isinstance(outline, list):
            outline = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
        x, y, w, h = row["bbox"]
        a, b = (right - left) / max(w, 1e-6), (bottom - top) / max(h, 1e-6)
        matrix = np.array([[a, 0, left - a * x], [0, b, top - b * y]])
        mask = cv2.warpAffine(coco_mask.decode(outline), matrix, (width, height))
    else:
        ys, xs = np.mgrid[:height, :width] + 0.5
        middle = ((left + right) / 2, (top + bottom) / 2)
        radii = max((right - left) / 2, 1), max((bottom - top) / 2, 1)
        mask = ((xs - middle[0]) / radii[0]) ** 2 + ((ys - middle[1]) / radii[1]) ** 2 <= 1
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [height, width], "counts": rle["counts"].decode()}


def _somewhere(rng: np.random.Generator, image: dict[str, Any]) -> list[float]:
    size = np.array([image["width"], image["height"]])
    sides = size * rng.uniform(0.1, 0.35, 2)
    corner = rng.uniform(0, 1, 2) * (size - sides)
    return [*corner.tolist(), *sides.tolist()]


def drawn_truth(
    count: int, seed: int = 0, names: tuple[str, ...] = ("disc", "box", "bar")
) -> tuple[dict[str, Any], list[npt.NDArray[np.uint8]]]:
    """A small dataset with polygons, and its pictures: plain shapes on plain ground."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
    }
    pictures = []
    for number in range(count):
        width, height = (160, 120) if number % 3 else (90, 140)
        picture = np.full((height, width, 3), rng.integers(90, 220, 3), np.uint8)
        name = f"picture {number:03}.png"
        truth["images"].append(
            {"id": number + 1, "file_name": name, "width": width, "height": height}
        )
        for _ in range(rng.integers(1, 5)):
            kind = int(rng.integers(len(names)))
            sides = rng.uniform(14, 50, 2)
            corner = rng.uniform(0, 1, 2) * ([width, height] - sides)
            angles = np.linspace(0, 2 * np.pi, (4, 24, 6)[kind % 3], endpoint=False) + 0.8
            ring = corner + sides / 2 + sides / 2 * np.stack([np.cos(angles), np.sin(angles)], 1)
            cv2.fillPoly(picture, [ring.round().astype(np.int32)], rng.integers(0, 256, 3).tolist())
            (x, y), (right, bottom) = ring.min(axis=0).tolist(), ring.max(axis=0).tolist()
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": kind + 1,
                    "bbox": [x, y, right - x, bottom - y],
                    "area": (right - x) * (bottom - y),
                    "iscrowd": 0,
                    "segmentation": [ring.ravel().tolist()],
                }
            )
        pictures.append(picture)
    return truth, pictures
