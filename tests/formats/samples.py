"""A COCO dataset with every kind of object, and the pictures that it is about."""

import json

import numpy as np
from PIL import Image

from palidecode.geometry.masks import MaskCrop
from palidecode.geometry.rle import crop_to_rle

RING = [10.0, 5.0, 40.0, 5.0, 40.0, 30.0, 10.0, 30.0]
CLASSES = ["cat", "salt & <pepper>", "it's: #1"]


def frame():
    """A mask in 80×60 with a hole and a second part."""
    mask = np.zeros((30, 40), np.bool_)
    mask[2:20, 3:25] = True
    mask[8:12, 8:14] = False
    mask[24:28, 30:38] = True
    return MaskCrop(20, 10, mask)


def dataset():
    rows = [
        {"image_id": 7, "category_id": 9, "bbox": [10, 5, 30, 25], "segmentation": [RING]},
        {
            "image_id": 7,
            "category_id": 3,
            "bbox": [23, 12, 35, 26],
            "segmentation": crop_to_rle(frame(), (80, 60)),
            "score": 0.75,
        },
        {"image_id": 8, "category_id": 5, "bbox": [4, 6, 10, 20], "score": 0.5},
    ]
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 80, "height": 60},
            {"id": 8, "file_name": "b.png", "width": 50, "height": 40},
            {"id": 9, "file_name": "c.png", "width": 50, "height": 40},
        ],
        "annotations": [row | {"id": n, "area": 1, "iscrowd": 0} for n, row in enumerate(rows, 1)],
        "categories": [
            {"id": 9, "name": CLASSES[2]},
            {"id": 3, "name": CLASSES[0]},
            {"id": 5, "name": CLASSES[1]},
        ],
    }


def write_samples(folder):
    """Write ``coco.json`` and the pictures, into ``images/``."""
    (folder / "coco.json").write_text(json.dumps(dataset()))
    (folder / "images").mkdir()
    for image in dataset()["images"]:
        blank = np.zeros((image["height"], image["width"], 3), np.uint8)
        Image.fromarray(blank).save(folder / "images" / image["file_name"])
