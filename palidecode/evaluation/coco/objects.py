"""`Detections` in place of a file of predictions, matched with the images of the truth."""

from __future__ import annotations

import math

import numpy as np

from palidecode.coco.categories import UNLABELLED
from palidecode.coco.writing import Dataset
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.evaluation.coco.tables import Scene


def as_predictions(found: Detections, scene: Scene) -> Dataset:
    """Return detections as a dataset of predictions about a scene.

    Its images are matched by name if all have one and the scene has names, else by id, else in
    the order of the ground truth's file.

    Raises
    ------
    InputError
        If none of the three is possible.
    """
    images = _images(found, scene)
    names = {name: number for number, name in enumerate(dict.fromkeys(found.labels), 1)}
    corners = np.round(found.xyxy.astype(np.float64), 3)  # as in files
    boxes = np.round(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1), 3)
    rows: list[Dataset] = [
        {"image_id": images[image]["id"], "category_id": names[label], "bbox": box}
        | ({} if math.isnan(score) else {"score": score})
        for image, label, box, score in zip(
            found.image_index.tolist(),
            found.labels,
            boxes.tolist(),
            found.scores.tolist(),
            strict=True,
        )
    ]
    if scene.masks:
        for row, rle in zip(rows, found.to_rle(), strict=True):
            row["segmentation"] = rle
    categories = [{"id": number, "name": name or UNLABELLED} for name, number in names.items()]
    return {"images": images, "annotations": rows, "categories": categories}


def _images(found: Detections, scene: Scene) -> list[Dataset]:
    images: list[Dataset] = [
        {"id": number, "width": width, "height": height}
        for number, (width, height) in enumerate(found.sizes.tolist(), 1)
    ]
    by_id = {image.id: image for image in scene.images}
    if all(found.names) and any(image.file_name for image in scene.images):
        name, values = "file_name", list[object](found.names)
    elif all(number is not None for number in found.image_ids):
        name, values = "id", list[object](found.image_ids)
    else:
        sizes = [[by_id[key].width, by_id[key].height] for key in scene.listed]
        if sizes != found.sizes.tolist():
            raise InputError(
                f"the images of the predictions ({len(images)}) have neither names nor ids, and "
                f"aren't those of the truth ({len(sizes)}) by number and sizes; give them names: "
                "decode(…, names=[…])"
            )
        name, values = "id", list[object](scene.listed)
    for image, value in zip(images, values, strict=True):
        image[name] = value
    return images
