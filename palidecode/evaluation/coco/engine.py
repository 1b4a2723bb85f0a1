"""The only module that imports hotcoco: takes checked columns and returns its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import hotcoco
import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.evaluation.coco.federated import FREQUENCIES
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

LVIS_NUMBERS = ("APr", "APc", "APf", "AR300")
"""The numbers that LVIS has and COCO hasn't."""

NOT_LVIS = ("AR1", "AR10", "AR100")
"""The numbers that COCO has and LVIS hasn't."""

_LVIS_KEYS = {"AR300": "AR@300", "ARs": "ARs@300", "ARm": "ARm@300", "ARl": "ARl@300"}
"""hotcoco's names of LVIS's numbers."""

_SELECTIONS = {
    "AP": ("precision", None, 0, -1),
    "AP50": ("precision", 0.5, 0, -1),
    "AP75": ("precision", 0.75, 0, -1),
    "APs": ("precision", None, 1, -1),
    "APm": ("precision", None, 2, -1),
    "APl": ("precision", None, 3, -1),
    "AR1": ("recall", None, 0, 0),
    "AR10": ("recall", None, 0, 1),
    "AR100": ("recall", None, 0, 2),
    "ARs": ("recall", None, 1, -1),
    "ARm": ("recall", None, 2, -1),
    "ARl": ("recall", None, 3, -1),
}
"""Of which array each number is the mean, and its IoU, area range and number of detections."""
_BLOCK = 256
"""Classes accumulated together: hotcoco takes 190 kB for each, and as much to hand them out."""

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


@dataclass(frozen=True)
class Numbers:
    """COCO's numbers, and those of each class; -1 for numbers without ground truth.

    Attributes
    ----------
    stats : ndarray of float64, shape (12,)
    ap : ndarray of float64, shape (10 IoU thresholds, K)
    ar : ndarray of float64, shape (K,)
        AR100.
    precision : ndarray of float64, shape (2, 101 recalls, K)
        At IoU 0.5 and 0.75.
    """

    stats: Floats
    ap: Floats
    ar: Floats
    precision: Floats


class Engine:
    """One ground truth for several sets of predictions.

    Numbers images and categories from 1 in the scene's order, and annotations in the table's
    order, so that the engine never sees the ids of a file.
    """

    def __init__(self, scene: Scene, iou_type: IouType) -> None:
        self.scene = scene
        self.iou_type = iou_type
        self._federated = scene.federated
        truths = scene.truths
        masks: JsonRow = {} if truths.masks is None else {"segmentation": truths.masks}
        if iou_type == "bbox":
            masks = {}
        self._truth = hotcoco.COCO.from_arrays(
            [
                {"id": n + 1, "width": int(image.width), "height": int(image.height)}
                | self._labelled(n)
                for n, image in enumerate(scene.images)
            ],
            [
                {"id": n + 1, "name": item["name"], "frequency": item.get("frequency")}
                for n, item in enumerate(scene.categories)
            ],
            truths.image + 1,
            truths.category + 1,
            truths.box,
            area=truths.area,
            iscrowd=truths.crowd,
            **masks,
        )

    def _labelled(self, image: int) -> JsonRow:
        """Return LVIS's keys of an image; none where the ground truth is COCO's."""
        if self._federated is None:
            return {}
        absent = self._federated.negative[image]
        negative = range(len(self.scene.categories)) if absent is None else absent
        return {
            "neg_category_ids": [index + 1 for index in negative],
            "not_exhaustive_category_ids": [
                index + 1 for index in self._federated.not_exhaustive[image]
            ],
        }

    def numbers(
        self, predicted: Table, scores: Floats | None = None, settings: Settings = STANDARD
    ) -> Numbers:
        """Compute COCO's numbers; `scores` (N,) replace the table's."""
        loaded = self._loaded(predicted, scores)
        ids = list(range(1, len(self.scene.categories) + 1))
        if settings.micro or len(ids) <= _BLOCK:
            return self._block(loaded, settings)[0]
        blocks = [
            self._block(loaded, settings, ids[first : first + _BLOCK])
            for first in range(0, len(ids), _BLOCK)
        ]
        stats = _means(np.sum([sums for _, sums in blocks], axis=0))
        parts = [part for part, _ in blocks]
        return Numbers(
            stats,
            np.concatenate([part.ap for part in parts], axis=1),
            np.concatenate([part.ar for part in parts]),
            np.concatenate([part.precision for part in parts], axis=2),
        )

    def lvis(self, numbers: Numbers) -> Floats:
        """Compute `LVIS_NUMBERS`; -1 without ground truth."""
        frequency = np.array([item.get("frequency") for item in self.scene.categories])
        groups = [numbers.ap[:, frequency == group] for group in FREQUENCIES]
        return np.array([_known_mean(values) for values in (*groups, numbers.ar)])

    def _block(
        self, loaded: hotcoco.COCO, settings: Settings, ids: list[int] | None = None
    ) -> tuple[Numbers, Floats]:
        """Compute the numbers of some classes; and the sum and count of each mean, (2, 12)."""
        evaluator = self._evaluator(loaded)
        params = evaluator.params
        if settings.iou_thresholds is not None:
            params.iou_thrs = list(settings.iou_thresholds)
        if settings.max_detections is not None:
            params.max_dets = list(settings.max_detections)
        params.use_cats = not settings.micro
        if ids is not None:
            params.cat_ids = ids
        evaluator.evaluate()
        evaluator.accumulate()
        found = evaluator.eval
        assert found is not None
        ious = np.asarray(params.iou_thrs)
        chosen = [int(np.abs(ious - iou).argmin()) for iou in (0.5, 0.75)]
        precision = found["precision"][:, :, :, 0, -1]
        sums = _sums(found, ious, () if self._federated is None else NOT_LVIS)
        stats = _means(sums)
        if self._federated is None:
            evaluator.summary_lines()
            stats = np.asarray(evaluator.stats, np.float64)
        numbers = Numbers(
            stats,
            precision.mean(axis=1),
            found["recall"][:, :, 0, -1].mean(axis=0),
            precision[chosen].copy(),  # no view, which would keep all of it
        )
        return numbers, sums

    def _evaluator(self, loaded: hotcoco.COCO) -> Evaluator:
        federated = self._federated is not None
        return hotcoco.COCOeval(self._truth, loaded, self.iou_type, lvis_style=federated)

    def evaluate(self, predicted: Table, scores: Floats | None = None) -> Evaluator:
        """Match predictions with hotcoco's evaluator; `scores` (N,) replace the table's."""
        evaluator = self._evaluator(self._loaded(predicted, scores))
        evaluator.evaluate()
        return evaluator

    def confusion(self, predicted: Table, scores: Floats | None = None) -> Ints:
        """Count how often an object of a class was detected as which class, at IoU 0.5.

        Returns
        -------
        ndarray of int64, shape (C, 3)
            Class of the object, class of the prediction, and their count, if any; K stands for
            the background. Crowds are no objects.
        """
        truths, background = self.scene.truths, len(self.scene.categories)
        if truths.crowd.any():
            solid = replace(self.scene, truths=truths.take(~truths.crowd))
            return Engine(solid, self.iou_type).confusion(predicted, scores)
        evaluator = self._evaluator(self._loaded(predicted, scores))
        evaluator.params.use_cats = False
        evaluator.evaluate()
        found = evaluator.image_diagnostics(iou_thr=0.5)
        excused = np.zeros(len(predicted), np.bool_)
        if self._federated is not None:  # hotcoco knows the rule only class by class
            excused = self._federated.excused(predicted.image, predicted.category)
        wrong = [
            number
            for number, its in found["dt_status"].items()
            if its == "fp" and not excused[number - 1]
        ]
        pairs = [
            *((truths.category[of - 1], number) for number, of in found["dt_match"].items()),
            *((background, number) for number in wrong),
        ]
        cells = [(of, predicted.category[number - 1]) for of, number in pairs]
        cells += [
            (truths.category[number - 1], background)
            for number, its in found["gt_status"].items()
            if its == "fn"
        ]
        where, count = np.unique(
            np.array(cells, np.int64).reshape(-1, 2), axis=0, return_counts=True
        )
        return np.column_stack([where, count])

    def counts(self, predicted: Table, scores: Floats | None = None) -> tuple[Floats, Ints, Ints]:
        """Count the true and the false positives of each class at COCO's IoU thresholds.

        Returns
        -------
        iou : ndarray of float64, shape (T,)
        right, wrong : ndarray of int64, shape (T, K)
            Predictions inside crowds, or beyond the 100 best of an image and class, are neither;
            nor what LVIS excuses.
        """
        evaluator = self._counted(predicted, scores)
        evaluator.accumulate()
        found, iou = evaluator.eval, np.asarray(evaluator.params.iou_thrs)
        assert found is not None
        truths, classes = self.scene.truths, len(self.scene.categories)
        objects = np.bincount(truths.category[~truths.crowd], minlength=classes)
        recall = np.maximum(found["recall"][:, :, 0, 0], 0.0)  # `NOTHING` without objects
        right = np.rint(recall * objects).astype(np.int64)
        made = np.bincount(predicted.category, minlength=classes)
        return iou, right, made - right - self._ignored(predicted, scores, iou)

    def _ignored(self, predicted: Table, scores: Floats | None, iou: Floats) -> Ints:
        """Count the predictions of each class that count in nothing, (T, K) or (1, K)."""
        truths, classes = self.scene.truths, len(self.scene.categories)
        crowded = np.isin(predicted.image, truths.image[truths.crowd])
        if self._federated is not None:
            partly = [bool(one) for one in self._federated.not_exhaustive]
            crowded |= np.array(partly)[predicted.image]
        pair = predicted.image * classes + predicted.category
        pairs, count = np.unique(pair[~crowded], return_counts=True)
        beyond = np.bincount(pairs % classes, np.maximum(count - self.scene.best, 0), classes)
        ignored = beyond.astype(np.int64)[None]
        if not crowded.any():
            return ignored
        here = predicted.take(crowded)
        evaluator = self._counted(here, None if scores is None else scores[crowded])
        rows = []
        for threshold in iou.tolist():
            status = evaluator.image_diagnostics(iou_thr=threshold)["dt_status"]
            neither = np.ones(len(here), np.bool_)
            neither[np.fromiter(status, np.int64, len(status)) - 1] = False
            rows.append(np.bincount(here.category[neither], minlength=classes))
        return ignored + np.array(rows)

    def _counted(self, predicted: Table, scores: Floats | None) -> Evaluator:
        """Match the best predictions that count to objects of any size."""
        evaluator = self._evaluator(self._loaded(predicted, scores))
        params = evaluator.params
        params.max_dets = [self.scene.best]
        params.area_rng, params.area_rng_lbl = [[0, 1e10]], ["all"]
        evaluator.evaluate()
        return evaluator

    def matched(self, predicted: Table) -> Evaluator:
        """Match the best predictions that count only: an evaluator for `stats_of_images`.

        It has no AR1 and AR10, and takes a third of the time for any other number.
        """
        evaluator = self._evaluator(self._loaded(predicted))
        evaluator.params.max_dets = [self.scene.best]
        evaluator.evaluate()
        return evaluator

    def _loaded(self, predicted: Table, scores: Floats | None = None) -> hotcoco.COCO:
        if scores is not None:
            predicted = replace(predicted, score=scores)
        if not len(predicted):
            return self._truth.load_res([])
        rows = np.column_stack(
            [predicted.image + 1, predicted.box, predicted.score, predicted.category + 1]
        )
        masks = None if self.iou_type == "bbox" else cast(Any, predicted.masks)
        loaded = self._truth.load_res(rows, segmentation=masks)
        if masks is not None or (predicted.area != predicted.box[:, 2:].prod(axis=1)).any():
            # Without boxes in the file, the size of a prediction is its mask's.
            loaded.update_anns(ids=np.arange(1, len(predicted) + 1), area=predicted.area)
        return loaded


def _means(sums: Floats) -> Floats:
    """Return the means of `_sums`; -1 without a value."""
    total, counts = sums
    means: Floats = np.divide(total, counts, out=np.full(len(total), NOTHING), where=counts > 0)
    return means


def _known_mean(values: Floats) -> float:
    known = values[values != NOTHING]
    return float(known.mean()) if len(known) else NOTHING


def _sums(found: Mapping[str, Floats], ious: Floats, unknown: Sequence[str]) -> Floats:
    """Sum and count of the values that each of COCO's twelve numbers is the mean of, (2, 12).

    Those of `unknown` numbers are 0.
    """
    sums = np.zeros((2, len(METRICS)))
    for column, name in enumerate(METRICS):
        if name in unknown:
            continue
        array, iou, area, most = _SELECTIONS[name]
        values = found[array][..., area, most]
        if iou is not None:
            values = values[np.isclose(ious, iou)]
        known = values != NOTHING
        sums[:, column] = values[known].sum(), known.sum()
    return sums


def stats_of_images(evaluator: Evaluator, choices: list[list[int]], names: Sequence[str]) -> Floats:
    """Compute numbers over choices of images' indices, each once, without new matching.

    Takes an evaluator of `Engine.matched`, and the names of the numbers, of `METRICS` or
    `LVIS_NUMBERS`; returns (choices, names), -1 for AR1, AR10 and numbers without ground truth.
    """
    slices = {str(n): [index + 1 for index in images] for n, images in enumerate(choices)}
    sliced = evaluator.slice_by(slices)
    keyed = [(name, _LVIS_KEYS.get(name, name)) for name in names]
    return np.array(
        [[sliced[n].get(name, sliced[n].get(key, NOTHING)) for name, key in keyed] for n in slices]
    )


def overlaps(dt: Shapes, gt: Shapes, crowd: npt.NDArray[np.bool_]) -> Floats:
    """IoU of boxes (x, y, width, height) or RLEs, shape (D, G); for crowds, the share of D."""
    return hotcoco.mask.iou(dt, gt, crowd)  # type: ignore[arg-type]  # its stub knows no boxes
