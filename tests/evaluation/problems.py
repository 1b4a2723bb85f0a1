"""Random COCO problems: crowds, empty images, ties, no detections, polygons and RLE."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 160, 120


def problem(seed: int, masks: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth and results for it."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": int(n), "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT}
        for n in rng.permutation(50)[: rng.integers(1, 9)]
    ]
    categories = [{"id": 3 * n + 1, "name": f"c{n}"} for n in range(rng.integers(1, 5))]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(rng.integers(0, 9)):
            box = _box(rng)
            row = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": int(rng.choice([c["id"] for c in categories])),
                "bbox": box,
                "area": float(box[2] * box[3] * rng.uniform(0.5, 1)),
                "iscrowd": int(rng.random() < 0.15),
            }
            if masks:
                rings = not row["iscrowd"]
                row["segmentation"] = _segmentation(rng, box, polygons=rings, listed=True)
            annotations.append(row)
            for _ in range(rng.integers(0, 4)):
                moved = [max(1.0, v) for v in np.array(box) + rng.normal(0, 4, 4).round(1)]
                other = rng.random() < 0.2
                category = rng.choice([c["id"] for c in categories]) if other else None
                found = {
                    "image_id": image["id"],
                    "category_id": int(category or row["category_id"]),
                    # Few different scores, so that many tie.
                    "score": float(rng.integers(1, 6) / 5),
                }
                if masks:
                    found["segmentation"] = _segmentation(rng, moved, polygons=False)
                else:
                    found["bbox"] = [float(v) for v in moved]
                results.append(found)
    if seed % 10 == 0:
        results = []
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _box(rng: np.random.Generator) -> list[float]:
    sides = np.exp(rng.uniform(np.log(4), np.log(110), 2))
    corner = rng.uniform(0, 1, 2) * (np.array([WIDTH, HEIGHT]) - sides)
    return [float(v) for v in np.concatenate([corner, sides]).round(2)]


def _segmentation(
    rng: np.random.Generator, box: list[float], polygons: bool, listed: bool = False
) -> Any:
    """An octagon in a box, as one ring or as RLE, whose counts pycocotools may read as a list."""
    x, y, w, h = box
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    centre = np.array([x + w / 2, y + h / 2])
    radii = np.array([w / 2, h / 2]) * rng.uniform(0.8, 1.1)
    ring = centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ring = np.clip(ring, 0, [WIDTH, HEIGHT]).round(2).ravel().tolist()
    if polygons and rng.random() < 0.7:
        return [ring]
    rle = coco_mask.frPyObjects([ring], HEIGHT, WIDTH)[0]
    if listed and rng.random() < 0.5:
        mask = coco_mask.decode(rle)
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat, prepend=0))
        return {
            "size": [HEIGHT, WIDTH],
            "counts": np.diff(np.concatenate([[0], edges, [flat.size]])).tolist(),
        }
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def lvis_problem(seed: int, masks: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A federated ground truth as LVIS's, and results for it, more than 300 in some images."""
    rng = np.random.default_rng(seed)
    categories = [
        {"id": 3 * n + 1, "name": f"c{n}", "frequency": "rcf"[n % 3 if seed else 2]}
        for n in range(9)
    ]
    ids = [item["id"] for item in categories]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for n in range(8):
        here = [int(number) for number in rng.permutation(ids)]
        image = {"id": n + 1, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT}
        partly = [number for number in here[:3] if rng.random() < 0.4]
        image |= {"neg_category_ids": here[3:6], "not_exhaustive_category_ids": partly}
        images.append(image)
        for _ in range(rng.integers(1, 7)):
            box = _box(rng)
            row = {"id": len(annotations) + 1, "image_id": n + 1, "bbox": box}
            row |= {"category_id": int(rng.choice(here[:3])), "area": box[2] * box[3]}
            row["segmentation"] = _segmentation(rng, box, polygons=True)
            annotations.append(row)
            for _ in range(rng.integers(0, 180)):
                moved = [max(1.0, float(v)) for v in np.array(box) + rng.normal(0, 4, 4).round(1)]
                category = row["category_id"] if rng.random() < 0.6 else int(rng.choice(ids))
                found = {"image_id": n + 1, "category_id": category}
                found["score"] = float(rng.integers(1, 40) / 40)
                if masks:
                    found["segmentation"] = _segmentation(rng, moved, polygons=False)
                    if not coco_mask.area(found["segmentation"]):
                        continue  # lvis leaves it out, where palidecode calls it wrong
                else:
                    found["bbox"] = moved
                results.append(found)
    truth = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    return truth, results
