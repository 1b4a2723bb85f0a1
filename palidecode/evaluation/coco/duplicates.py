"""Find predictions that NMS removes: of an image and class, or on one object."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palidecode.coco.mask_reading import as_rle
from palidecode.errors import InputError
from palidecode.evaluation.coco.engine import Engine, overlaps
from palidecode.evaluation.coco.matches import group_rows, image_iou
from palidecode.evaluation.coco.tables import Scene, Table

Ints = npt.NDArray[np.int64]


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


def on_objects(engine: Engine, predicted: Table, threshold: float) -> list[Ints]:
    """Return the rows of the predictions on each object, of any class, above an IoU.

    Objects with one or none are left out; crowds are no objects.
    """
    truths, images = engine.scene.truths, len(engine.scene.images)
    solid = np.flatnonzero(~truths.crowd)
    objects_of = group_rows(truths.image[solid], images)
    found = []
    for image, rows in enumerate(group_rows(predicted.image, images)):
        objects = solid[objects_of[image]]
        if len(rows) > 1 and len(objects):
            over = image_iou(engine, predicted, rows, objects, image) > threshold
            found += [rows[column] for column in over.T if column.sum() > 1]
    return found


def beaten(score: npt.NDArray[np.float64], groups: list[Ints]) -> npt.NDArray[np.bool_]:
    """Mark predictions with a better one on each of their objects, shape (N,).

    OVDEval's NMS-AP leaves them out (Yao et al. 2023, ``eval.py``): a model that gives one box
    several labels is not rewarded for the right one among them.

    Parameters
    ----------
    score : ndarray of float64, shape (N,)
        Of equal ones, the first stays.
    groups : list of ndarray
        From `on_objects`.
    """
    lost, kept = np.zeros(len(score), np.bool_), np.zeros(len(score), np.bool_)
    for rows in groups:
        lost[rows] = True
        kept[rows[score[rows].argmax()]] = True
    return lost & ~kept
