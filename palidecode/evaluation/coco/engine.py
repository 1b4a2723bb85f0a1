"""The only room that talks to hotcoco: sound columns in, its numbers out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeAlias

import hotcoco
import numpy as np
import numpy.typing as npt

from palidecode.evaluation.coco.tables import Scene, Table

IouType: TypeAlias = Literal["bbox", "segm"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
"""COCO's twelve numbers, in COCO's order."""

BEST = 100
"""How many predictions of an image and category COCO looks at."""

NOTHING = -1.0
"""COCO's value of a number that has no ground truth to be computed from."""


class Engine:
    """One ground truth for several sets of predictions.

    Images and categories are numbered from 1 in the scene's order, annotations in the table's,
    so that whatever ids a file uses, the engine gets ones that it can't trip over.
    """

    def __init__(self, scene: Scene, iou_type: IouType) -> None:
        self.scene = scene
        self.iou_type = iou_type
        truths = scene.truths
        masks: dict[str, Any] = {} if truths.masks is None else {"segmentation": truths.masks}
        if iou_type == "bbox":
            masks = {}
        self._truth = hotcoco.COCO.from_arrays(
            [
                {"id": n + 1, "width": int(image.width), "height": int(image.height)}
                for n, image in enumerate(scene.images)
            ],
            [{"id": n + 1, "name": item["name"]} for n, item in enumerate(scene.categories)],
            truths.image + 1,
            truths.category + 1,
            truths.box,
            area=truths.area,
            iscrowd=truths.crowd,
            **masks,
        )

    def evaluate(self, found: Table, scores: Floats | None = None) -> Any:
        """hotcoco's evaluator of some predictions, run.

        Parameters
        ----------
        found : Table
        scores : ndarray of float64, shape (N,), optional
            Instead of the table's.
        """
        if scores is not None:
            found = replace(found, score=scores)
        evaluator = hotcoco.COCOeval(self._truth, self._loaded(found), self.iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summary_lines()
        return evaluator

    def matched(self, found: Table) -> Any:
        """An evaluator for `stats_of_images`: matched, for the 100 best predictions alone.

        AR1 and AR10 can't be had of it, and any other number costs a third.
        """
        evaluator = hotcoco.COCOeval(self._truth, self._loaded(found), self.iou_type)
        evaluator.params.max_dets = [BEST]
        evaluator.evaluate()
        return evaluator

    def _loaded(self, found: Table) -> Any:
        if not len(found):
            return self._truth.load_res([])
        rows = np.column_stack([found.image + 1, found.box, found.score, found.category + 1])
        if self.iou_type == "bbox":
            return self._truth.load_res(rows)
        loaded = self._truth.load_res(rows, segmentation=found.masks)
        loaded.update_anns(ids=np.arange(1, len(found) + 1), area=found.area)
        return loaded


def stats_of(evaluator: Any) -> Floats:
    """The twelve numbers; -1 where there is nothing to compute one from."""
    return np.asarray(evaluator.stats, np.float64)


def class_precision(evaluator: Any) -> Floats:
    """Precision of each class, shape (10 IoU thresholds, 101 recalls, K); -1 without truth."""
    found: Floats = evaluator.eval["precision"][:, :, :, 0, -1]
    return found


def class_numbers(evaluator: Any) -> tuple[Floats, Floats]:
    """Each class's AP, shape (10 IoU thresholds, K), and AR100, shape (K,); -1 without truth."""
    recall: Floats = evaluator.eval["recall"][:, :, 0, -1]
    return class_precision(evaluator).mean(axis=1), recall.mean(axis=0)


def stats_of_images(evaluator: Any, choices: list[list[int]]) -> Floats:
    """The twelve numbers of several choices of images, nothing matched again.

    Parameters
    ----------
    evaluator
        From `Engine.matched`.
    choices : list of list of int
        Places of images, each at most once.

    Returns
    -------
    ndarray of float64, shape (choices, 12)
        -1 for AR1, AR10, and what there is no object for.
    """
    slices = {str(number): [place + 1 for place in places] for number, places in enumerate(choices)}
    found = evaluator.slice_by(slices)
    return np.array([[found[name].get(metric, NOTHING) for metric in METRICS] for name in slices])


def overlaps(dt: Any, gt: Any, crowd: npt.NDArray[np.bool_]) -> Floats:
    """IoU of boxes (x, y, width, height) or RLEs, shape (D, G); of crowds, the share covered."""
    found: Floats = hotcoco.mask.iou(dt, gt, crowd)
    return found
