"""The evaluator of training loops: collects batches, and evaluates them together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from palidecode.coco.categories import Match
from palidecode.coco.writing import to_coco
from palidecode.detections import Detections, ImageId
from palidecode.errors import InputError
from palidecode.evaluation.coco.engine import IouType
from palidecode.evaluation.coco.evaluate import EvaluateOptions, Scores, check_iou_type, evaluate
from palidecode.evaluation.coco.result import CocoEvaluation
from palidecode.wording import many


class CocoEvaluator:
    """Collects the detections of a training loop's batches, and evaluates them together.

    `compute` gives what `evaluate_coco` gives for all batches at once. Crowds aren't known to
    `Detections`: where a ground truth has them, join the detections and evaluate its file,
    ``evaluate_coco(file, Detections.concat(found))``.

    Parameters
    ----------
    iou_type : {"bbox", "segm"}
    match, scores
        See `evaluate_coco`.

    Raises
    ------
    InputError
        For unknown options.

    Examples
    --------
    >>> from palidecode import decode
    >>> truth = decode(["<loc0100><loc0200><loc0700><loc0800> cat"], (64, 64))
    >>> evaluator = CocoEvaluator()
    >>> answers = ["<loc0101><loc0200><loc0700><loc0800> cat"]
    >>> evaluator.update(decode(answers, (64, 64), scores=[[0.9]]), truth)
    >>> result = evaluator.compute()
    >>> result.rates.right, result.rates.wrong, result.rates.missed
    (1, 0, 0)
    """

    def __init__(
        self, iou_type: IouType = "bbox", *, match: Match = "exact", scores: Scores = "file"
    ) -> None:
        check_iou_type(iou_type)
        self._iou_type = iou_type
        self._options = EvaluateOptions(match=match, scores=scores)
        self.reset()

    def reset(self) -> None:
        """Forget all batches; an epoch starts with it."""
        self._found: list[Detections] = []
        self._truths: list[Detections] = []
        self._seen: set[ImageId] = set()

    def update(self, detections: Detections, truth: Detections) -> None:
        """Add a batch.

        Parameters
        ----------
        detections, truth : Detections
            Of the same images: by their names if both sides have them, else by their ids, else
            in order.

        Raises
        ------
        InputError
            If the images differ, or one was added before.
        """
        order = _order(detections, truth)
        keys: list[ImageId] = [name for name in truth.names if name]
        keys += [number for number in truth.image_ids if number is not None]
        again = [key for key in keys if key in self._seen]
        if again:
            raise InputError(f"{again[0]!r} was added before; reset() begins another epoch")
        self._seen.update(keys)
        self._found += [detections.image(index) for index in order]
        self._truths.append(truth)

    def compute(self) -> CocoEvaluation:
        """Evaluate all batches; more may follow.

        Raises
        ------
        InputError
            Before the first `update`, and without any object in the truths.
        """
        truth, found = Detections.concat(self._truths), Detections.concat(self._found)
        if not len(truth):
            raise InputError("there are no true objects to evaluate: update() adds batches")
        dataset = to_coco(truth, segmentation="rle")
        ids = [image["id"] for image in dataset["images"]]  # equal scores are ranked by them
        found = replace(found, names=[], image_ids=ids)
        return evaluate(dataset, found, self._iou_type, self._options)


def _order(detections: Detections, truth: Detections) -> list[int]:
    """Return the index in `detections` of each image of `truth`."""
    for column in ("names", "image_ids"):
        ours, theirs = getattr(detections, column), getattr(truth, column)
        if any(value in ("", None) for value in (*ours, *theirs)):
            continue
        index = {value: number for number, value in enumerate(ours)}
        differ = set(ours) ^ set(theirs)
        if differ or len(index) < len(ours) or len(ours) != len(theirs):
            example = f"; {min(map(str, differ))!r} is on one side only" if differ else ""
            raise InputError(f"the images of detections and truth differ by {column}{example}")
        return [index[value] for value in theirs]
    if not np.array_equal(detections.sizes, truth.sizes):
        raise InputError(
            f"detections of {many(len(detections.sizes), 'image')} and a truth of "
            f"{len(truth.sizes)}: without names or ids their number and sizes must agree"
        )
    return list(range(len(truth.sizes)))
