"""Match predictions to objects, and classify errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palidecode.coco.mask_reading import as_rle
from palidecode.evaluation.coco.engine import Engine, Evaluator, JsonRow, overlaps
from palidecode.evaluation.coco.tables import Scene, Table

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FOUND_AT = 0.5
"""Least IoU of a true positive."""

BACKGROUND_BELOW = 0.1
"""IoU below which a prediction is on background (TIDE's threshold)."""

KINDS = ("ok", "localisation", "class", "both", "duplicate", "background", "ignored", "missed")
"""Kinds of predictions and of objects; see `Matches.kind`."""


@dataclass(frozen=True)
class Overlaps:
    """The objects that each prediction overlaps best.

    Attributes
    ----------
    same, other : ndarray of float64, shape (N,)
        Largest IoU with an object of the same class, and of another one, without crowds.
    same_truth, other_truth : ndarray of int64, shape (N,)
        Row of that object in the ground truth's table; -1 if the IoU is 0.
    """

    same: Floats
    other: Floats
    same_truth: Ints
    other_truth: Ints


def best_overlaps(engine: Engine, predicted: Table) -> Overlaps:
    """Find the best overlaps of every prediction with the objects of its image."""
    scene, truths = engine.scene, engine.scene.truths
    count = len(predicted)
    best = Overlaps(np.zeros(count), np.zeros(count), np.full(count, -1), np.full(count, -1))
    solid = np.flatnonzero(~truths.crowd)
    by_image = group_rows(truths.image[solid], len(scene.images))
    for image, rows in enumerate(group_rows(predicted.image, len(scene.images))):
        objects = solid[by_image[image]]
        if not len(rows) or not len(objects):
            continue
        iou = image_iou(engine, predicted, rows, objects, image)
        alike = predicted.category[rows, None] == truths.category[objects]
        for chosen, value, truth in (
            (alike, best.same, best.same_truth),
            (~alike, best.other, best.other_truth),
        ):
            kept = np.where(chosen, iou, 0.0)
            column = kept.argmax(axis=1)
            value[rows] = kept[np.arange(len(rows)), column]
            truth[rows] = np.where(value[rows] > 0, objects[column], -1)
    return best


def group_rows(of: Ints, count: int) -> list[Ints]:
    """Return the rows of each of `count` images, in order."""
    order = np.argsort(of, kind="stable")
    return np.split(order, np.searchsorted(of[order], np.arange(1, count)))


def image_iou(engine: Engine, predicted: Table, rows: Ints, objects: Ints, image: int) -> Floats:
    """IoU of predictions and objects of an image, shape (rows, objects); none is a crowd."""
    truths = engine.scene.truths
    none = np.zeros(len(objects), np.bool_)
    if engine.iou_type == "bbox":
        return overlaps(predicted.box[rows], truths.box[objects], none)
    assert predicted.masks is not None
    assert truths.masks is not None
    size = engine.scene.images[image]
    width, height = int(size.width), int(size.height)
    dt = [as_rle(predicted.masks[row], width, height) for row in rows.tolist()]
    gt = [as_rle(truths.masks[row], width, height) for row in objects.tolist()]
    return overlaps(dt, gt, none)


@dataclass(frozen=True)
class Matches:
    """The outcome of every prediction and every object at IoU 0.5.

    Attributes
    ----------
    kind : ndarray of str, shape (N,)
        Of each prediction: ``ok``; ``localisation`` (right class, IoU 0.1 to 0.5); ``class``
        (on an object of another class, IoU ≥ 0.5); ``both`` (another class, IoU 0.1 to 0.5);
        ``duplicate`` (of an object that a better prediction matches); ``background`` (on
        nothing); ``ignored`` (inside a crowd, or beyond the 100 best of its image and class).
        The words are TIDE's (Bolya et al. 2020).
    truth : ndarray of int64, shape (N,)
        Row of the matched object or, without one, of the best overlap; -1 for none.
    iou : ndarray of float64, shape (N,)
        With that object.
    missed : ndarray of bool, shape (M,)
        Objects without a match. Crowds can't be missed.
    """

    kind: npt.NDArray[np.str_]
    truth: Ints
    iou: Floats
    missed: npt.NDArray[np.bool_]


def match(evaluator: Evaluator, engine: Engine, predicted: Table, best: Overlaps) -> Matches:
    """Combine the engine's matching at IoU 0.5 with TIDE's kinds of errors."""
    found_at = evaluator.image_diagnostics(iou_thr=FOUND_AT)
    count, objects = len(predicted), len(engine.scene.truths)
    truth = np.full(count, -1)
    for number, its in found_at["dt_match"].items():
        truth[number - 1] = its - 1
    status = found_at["dt_status"]
    seen = np.array([status.get(row + 1, "") for row in range(count)], dtype="<U2")
    kind = np.full(count, "background", dtype="<U12")
    far = (best.same < BACKGROUND_BELOW) & (best.other < BACKGROUND_BELOW)
    kind[~far] = "both"
    kind[best.same >= FOUND_AT] = "duplicate"
    kind[(best.other >= FOUND_AT) & (best.same < FOUND_AT)] = "class"
    kind[(best.same >= BACKGROUND_BELOW) & (best.same < FOUND_AT)] = "localisation"
    kind[seen == ""] = "ignored"
    kind[seen == "tp"] = "ok"
    closer = best.other > best.same
    nearest = np.where(closer, best.other_truth, best.same_truth)
    iou = np.where(closer, best.other, best.same)
    on_same = np.isin(kind, ("localisation", "duplicate"))
    nearest = np.where(on_same, best.same_truth, nearest)
    iou = np.where(on_same, best.same, iou)
    hit = np.flatnonzero(kind == "ok")
    iou[hit] = _iou_of(engine, predicted, hit, truth[hit], best)
    nearest[hit] = truth[hit]
    missed = np.zeros(objects, np.bool_)
    lost = [number - 1 for number, its in found_at["gt_status"].items() if its == "fn"]
    missed[lost] = True
    return Matches(kind, nearest, iou, missed)


def _iou_of(engine: Engine, predicted: Table, rows: Ints, objects: Ints, best: Overlaps) -> Floats:
    """IoU of pairs; mostly it is the best overlap, which is known."""
    iou = best.same[rows].copy()
    for index in np.flatnonzero(best.same_truth[rows] != objects).tolist():
        row, other = rows[index : index + 1], objects[index : index + 1]
        iou[index] = image_iou(engine, predicted, row, other, int(predicted.image[row[0]]))[0, 0]
    return iou


def gallery_rows(scene: Scene, predicted: Table, matches: Matches) -> list[JsonRow]:
    """One row for each prediction and each missed object, worst first.

    Returns
    -------
    list of dict
        ``image_id``, ``file_name``, ``category``, ``score`` (None if unknown), ``bbox``
        (x, y, width, height), ``kind``, ``iou``, ``truth_id``, ``truth_category``,
        ``truth_bbox`` (None for none), ``place`` in the file's list. First
        the most confident errors, then missed objects from the largest, then true positives
        from the lowest IoU.
    """
    truths = scene.truths
    names = [item["name"] for item in scene.categories]
    rows = []
    for row in range(len(predicted)):
        score = float(predicted.score[row])
        image = scene.images[predicted.image[row]]
        rows.append(
            {
                "image_id": image.id,
                "file_name": image.file_name,
                "category": names[predicted.category[row]],
                "score": None if np.isnan(score) else score,
                "bbox": predicted.box[row].tolist(),
                "kind": str(matches.kind[row]),
                "iou": float(matches.iou[row]),
                **_truth_of(truths, names, int(matches.truth[row])),
                "place": int(predicted.offset[row]),
            }
        )
    for row in np.flatnonzero(matches.missed).tolist():
        image = scene.images[truths.image[row]]
        truth = _truth_of(truths, names, row)
        rows.append(
            {
                "image_id": image.id,
                "file_name": image.file_name,
                "category": truth["truth_category"],
                "score": None,
                "bbox": None,
                "kind": "missed",
                "iou": 0.0,
                **truth,
                "place": None,
            }
        )
    return sorted(rows, key=_badness)


def _truth_of(truths: Table, names: list[str], row: int) -> JsonRow:
    if row < 0:
        return {"truth_id": None, "truth_category": None, "truth_bbox": None}
    assert truths.ids is not None
    return {
        "truth_id": truths.ids[row],
        "truth_category": names[truths.category[row]],
        "truth_bbox": truths.box[row].tolist(),
    }


def _badness(row: JsonRow) -> tuple[int, float]:
    if row["kind"] == "ok":
        return 2, row["iou"]
    if row["kind"] == "ignored":
        return 3, 0.0
    if row["kind"] == "missed":
        return 1, -row["truth_bbox"][2] * row["truth_bbox"][3]
    return 0, -(1.0 if row["score"] is None else row["score"])
