"""The only module that imports hotcoco: takes checked columns and returns its numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import hotcoco
import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.evaluation.coco.tables import Scene, Table
from palidecode.geometry.rle import Rle

Evaluator: TypeAlias = hotcoco.COCOeval
IouType: TypeAlias = Literal["bbox", "segm"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Shapes: TypeAlias = Floats | list[Rle]
"""Boxes (x, y, width, height), or RLEs."""

METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
"""COCO's twelve numbers, in COCO's order."""

BEST = 100
"""The number of predictions per image and category that COCO counts."""

NOTHING = -1.0
"""COCO's value of a number without ground truth."""

JsonRow: TypeAlias = dict[str, Any]
"""JSON values by name; documented where they are made."""


@dataclass(frozen=True)
class Settings:
    """Settings of COCO's numbers other than COCO's own; None keeps COCO's.

    Attributes
    ----------
    iou_thresholds : tuple of float, or None
    max_detections : tuple of 3 int, or None
    micro : bool
        Rank the predictions of all classes together, as pycocotools with ``useCats = 0``.
    """

    iou_thresholds: tuple[float, ...] | None = None
    max_detections: tuple[int, ...] | None = None
    micro: bool = False

    def __post_init__(self) -> None:
        ious, most = self.iou_thresholds, self.max_detections
        if ious is not None and not (ious and all(0 < iou <= 1 for iou in ious)):
            raise InputError(f"iou_thresholds must be numbers above 0, at most 1, got {ious}")
        if most is not None and not (len(most) == 3 and 0 < most[0] <= most[1] <= most[2]):
            raise InputError(
                "max_detections must be three whole numbers in ascending order, as 1, 10, 100; "
                f"got {most}"
            )


STANDARD = Settings()


class Engine:
    """One ground truth for several sets of predictions.

    Numbers images and categories from 1 in the scene's order, and annotations in the table's
    order, so that the engine never sees the ids of a file.
    """

    def __init__(self, scene: Scene, iou_type: IouType) -> None:
        self.scene = scene
        self.iou_type = iou_type
        truths = scene.truths
        masks: JsonRow = {} if truths.masks is None else {"segmentation": truths.masks}
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

    def evaluate(
        self, predicted: Table, scores: Floats | None = None, settings: Settings = STANDARD
    ) -> Evaluator:
        """Run hotcoco's evaluator on predictions; `scores` (N,) replace the table's."""
        if scores is not None:
            predicted = replace(predicted, score=scores)
        evaluator = hotcoco.COCOeval(self._truth, self._loaded(predicted), self.iou_type)
        if settings.iou_thresholds is not None:
            evaluator.params.iou_thrs = list(settings.iou_thresholds)
        if settings.max_detections is not None:
            evaluator.params.max_dets = list(settings.max_detections)
        evaluator.params.use_cats = not settings.micro
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summary_lines()
        return evaluator

    def matched(self, predicted: Table) -> Evaluator:
        """Match the 100 best predictions only: an evaluator for `stats_of_images`.

        It has no AR1 and AR10, and takes a third of the time for any other number.
        """
        evaluator = hotcoco.COCOeval(self._truth, self._loaded(predicted), self.iou_type)
        evaluator.params.max_dets = [BEST]
        evaluator.evaluate()
        return evaluator

    def _loaded(self, predicted: Table) -> hotcoco.COCO:
        if not len(predicted):
            return self._truth.load_res([])
        rows = np.column_stack(
            [predicted.image + 1, predicted.box, predicted.score, predicted.category + 1]
        )
        if self.iou_type == "bbox":
            return self._truth.load_res(rows)
        loaded = self._truth.load_res(rows, segmentation=cast(Any, predicted.masks))
        loaded.update_anns(ids=np.arange(1, len(predicted) + 1), area=predicted.area)
        return loaded


def stats_of(evaluator: Evaluator) -> Floats:
    """COCO's twelve numbers; -1 for numbers without ground truth."""
    return np.asarray(evaluator.stats, np.float64)


def class_precision(evaluator: Evaluator) -> Floats:
    """Precision of each class, shape (10 IoU thresholds, 101 recalls, K); -1 without objects."""
    return _accumulated(evaluator)["precision"][:, :, :, 0, -1]


def class_numbers(evaluator: Evaluator) -> tuple[Floats, Floats]:
    """Each class's AP, shape (10 IoU thresholds, K), and AR100, shape (K,); -1 without objects."""
    recall = _accumulated(evaluator)["recall"][:, :, 0, -1]
    return class_precision(evaluator).mean(axis=1), recall.mean(axis=0)


def _accumulated(evaluator: Evaluator) -> dict[str, Floats]:
    assert evaluator.eval is not None
    return evaluator.eval


def stats_of_images(evaluator: Evaluator, choices: list[list[int]]) -> Floats:
    """COCO's twelve numbers over choices of images' indices, each once, without new matching.

    Takes an evaluator of `Engine.matched`; returns (choices, 12), -1 for AR1, AR10 and numbers
    without ground truth.
    """
    slices = {str(n): [index + 1 for index in images] for n, images in enumerate(choices)}
    sliced = evaluator.slice_by(slices)
    return np.array([[sliced[name].get(metric, NOTHING) for metric in METRICS] for name in slices])


def overlaps(dt: Shapes, gt: Shapes, crowd: npt.NDArray[np.bool_]) -> Floats:
    """IoU of boxes (x, y, width, height) or RLEs, shape (D, G); for crowds, the share of D."""
    return hotcoco.mask.iou(dt, gt, crowd)  # type: ignore[arg-type]  # its stub knows no boxes
