"""Comparison of two sets of predictions on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from palidecode.coco.categories import Match
from palidecode.coco.reading import Source
from palidecode.evaluation.coco.bootstrap import (
    Interval,
    centred,
    percentiles,
    resampled_rates,
    share_above,
)
from palidecode.evaluation.coco.engine import METRICS, IouType, JsonRow
from palidecode.evaluation.coco.evaluate import EvaluateOptions, evaluate
from palidecode.evaluation.coco.measures import RATES
from palidecode.evaluation.coco.result import CocoEvaluation


@dataclass(frozen=True)
class CocoComparison:
    """Differences of second predictions minus first; made by `compare_coco`.

    Attributes
    ----------
    first, second : CocoEvaluation
    differences : ndarray of float64, shape (12,)
        Of COCO's numbers, in COCO's order; NaN if a number can't be computed.
    intervals : dict of str to Interval
        Of the differences, including ``precision``, ``recall``, ``F1`` and the AP of subsets, from
        the same resamples
        for both: the difficulty of an image affects both and cancels out.
    better : dict of str to float
        Share of the same resamples in which the second is better; ties count half. An interval
        of confidence 0.95 without 0 means a share of at least 0.975, or at most 0.025.
    """

    first: CocoEvaluation
    second: CocoEvaluation
    differences: npt.NDArray[np.float64]
    intervals: dict[str, Interval] = field(default_factory=dict)
    better: dict[str, float] = field(default_factory=dict)

    def changes(self) -> list[tuple[str, float, float, float]]:
        """Return the name, both values and the difference of every number; NaN if unknown."""
        both = zip(self.first.numbers.items(), self.second.numbers.values(), strict=True)
        return [(name, a, b, b - a) for (name, a), b in both]

    def rows(self) -> list[JsonRow]:
        """One row for each class, the largest change of AP first.

        Returns
        -------
        list of dict
            ``category``, ``category_id``, ``objects``, ``AP_first``, ``AP_second``,
            ``AP_difference``, ``F1_first``, ``F1_second``, ``F1_difference``; None if a
            number can't be computed.
        """
        before = {row["category_id"]: row for row in self.first.rows()}
        after = {row["category_id"]: row for row in self.second.rows()}
        rows = []
        for number in sorted(before.keys() | after.keys()):
            a, b = before.get(number, {}), after.get(number, {})
            row: JsonRow = {"category": (a or b)["category"], "category_id": number}
            row["objects"] = (a or b)["objects"]
            for name in ("AP", "F1"):
                row[f"{name}_first"], row[f"{name}_second"] = a.get(name), b.get(name)
                row[f"{name}_difference"] = _minus(b.get(name), a.get(name))
            rows.append(row)
        return sorted(rows, key=lambda row: -abs(row["AP_difference"] or 0))

    def as_dict(self) -> JsonRow:
        """Convert everything to JSON values."""
        return {
            "first": self.first.as_dict(),
            "second": self.second.as_dict(),
            "differences": {n: None if np.isnan(v) else v for n, _, _, v in self.changes()},
            "intervals": {name: interval.as_dict() for name, interval in self.intervals.items()},
            "better": self.better,
            "classes": self.rows(),
        }


def compare_coco(
    gt: Source,
    first: Source,
    second: Source,
    iou_type: IouType = "bbox",
    *,
    categories: Sequence[str | int] | None = None,
    match: Match = "exact",
    merge_duplicates: float | None = None,
    scores: Literal["file", "ignore"] = "file",
    orders: int = 10,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    scale_to_truth: bool = False,
    crowds: bool = False,
    nms: float | None = None,
    score_thresholds: Sequence[float] = (),
) -> CocoComparison:
    """Compare two sets of predictions on the same ground truth, paired by image.

    Parameters
    ----------
    gt, iou_type, categories, match, merge_duplicates, scores, orders, seed, scale_to_truth, crowds
        As for `evaluate_coco`.
    nms, score_thresholds
        As for `evaluate_coco`: their AP of both is in `CocoComparison.changes`.
    first, second : path, list or dict
        Predictions; differences are second minus first.
    bootstrap : int
        Resamples for the intervals; 0 for none.
    confidence : float
        Confidence level of the intervals.

    Returns
    -------
    CocoComparison

    Warns
    -----
    UnscoredWarning
        If one of them has no scores. Then both are compared without scores, because an AP of
        random orders can't be compared with an AP of scores.

    Raises
    ------
    InputError
        As `evaluate_coco`.
    """
    options = EvaluateOptions(
        categories,
        match,
        merge_duplicates,
        scores,
        orders,
        bootstrap,
        confidence,
        seed,
        scale_to_truth,
        crowds,
        nms=nms,
        score_thresholds=tuple(score_thresholds),
    )
    return compare(gt, first, second, iou_type, options)


def compare(
    gt: Source, first: Source, second: Source, iou_type: IouType, options: EvaluateOptions
) -> CocoComparison:
    """Do the work of `compare_coco`."""
    # Reads the ground truth twice: skipped rows belong to one of the two evaluations.
    points = replace(options, bootstrap=0)
    a, b = results = [evaluate(gt, source, iou_type, points) for source in (first, second)]
    if a.unscored != b.unscored and len(a.predicted) and len(b.predicted):
        return compare(gt, first, second, iou_type, replace(options, scores="ignore"))
    bootstrap, seed, confidence = options.bootstrap, options.seed, options.confidence
    changed = np.array([*b.ranked.values()]) - np.array([*a.ranked.values()])
    differences = changed[: len(METRICS)]
    if not bootstrap:
        return CocoComparison(a, b, differences)
    # The images, and so the halves, are the same; the categories asked for may differ.
    samples = [r.resampled(bootstrap, seed) for r in results]
    rates = [resampled_rates(r.image_counts, bootstrap, seed) for r in results]
    columns = (*a.ranked, *RATES)
    drawn = np.concatenate(
        [centred(samples[1] - samples[0], changed, a.images), rates[1] - rates[0]], axis=1
    )
    changes = np.concatenate([changed, b.rates.values - a.rates.values])
    intervals = percentiles(drawn, columns, changes, confidence, least=-1.0)
    return CocoComparison(a, b, differences, intervals, share_above(drawn, columns, intervals))


def _minus(second: float | None, first: float | None) -> float | None:
    return None if first is None or second is None else second - first
