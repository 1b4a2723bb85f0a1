"""Random true masks."""

import numpy as np
from pycocotools import mask as coco_mask


def encoded(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def blob(rng, width, height):
    """A true mask: an ellipse, now and then cut off by the picture's edge."""
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    ry, rx = rng.uniform(0.5, 1, 2) * rng.uniform(1, [height + 1, width + 1])
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
