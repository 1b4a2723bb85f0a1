"""Find exact and near duplicates within an image and class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palidecode.coco.mask_reading import as_rle
from palidecode.errors import InputError
from palidecode.evaluation.coco.engine import overlaps
from palidecode.evaluation.coco.tables import Scene, Table


def repeats(predicted: Table, scene: Scene, threshold: float) -> npt.NDArray[np.bool_]:
    """Mark predictions that repeat a better one of the same image and class, shape (N,).

    `threshold` is the least IoU of a duplicate, in (0, 1]. The best scored of several duplicates
    stays; without scores, the first.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"merge_duplicates is an IoU in (0, 1], got {threshold!r}")
    out = np.zeros(len(predicted), np.bool_)
    if not len(predicted):
        return out
    score = np.where(np.isnan(predicted.score), 0.0, predicted.score)
    key = predicted.image * len(scene.categories) + predicted.category
    order = np.lexsort((np.arange(len(predicted)), -score, key))
    for rows in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        if len(rows) == 1:
            continue
        if scene.masks and predicted.masks is not None:
            size = scene.images[predicted.image[rows[0]]]
            width, height = int(size.width), int(size.height)
            shapes = [as_rle(predicted.masks[row], width, height) for row in rows.tolist()]
            iou = overlaps(shapes, shapes, np.zeros(len(rows), np.bool_))
        else:
            boxes = predicted.box[rows]
            iou = overlaps(boxes, boxes, np.zeros(len(rows), np.bool_))
        kept: list[int] = []
        for index, row in enumerate(rows.tolist()):
            # Rounding may put the IoU of identical boxes just below 1.
            if kept and iou[index, kept].max() >= threshold - 1e-9:
                out[row] = True
            else:
                kept.append(index)
    return out
