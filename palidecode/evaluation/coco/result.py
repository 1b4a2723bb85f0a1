"""The result of a COCO evaluation; computes everything but COCO's numbers on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from palidecode import interop
from palidecode.coco.skips import Skip
from palidecode.evaluation.coco.bootstrap import (
    Interval,
    centred,
    percentiles,
    resampled_rates,
    resampled_stats,
)
from palidecode.evaluation.coco.engine import (
    LVIS_NUMBERS,
    METRICS,
    NOT_LVIS,
    NOTHING,
    Engine,
    Evaluator,
    IouType,
    JsonRow,
    Settings,
)
from palidecode.evaluation.coco.matches import (
    Matches,
    Overlaps,
    best_overlaps,
    gallery_rows,
    match,
)
from palidecode.evaluation.coco.measures import (
    F1_AT,
    RATES,
    Confusion,
    Curve,
    Rates,
    ScoreFree,
    best_f1,
)
from palidecode.evaluation.coco.subsets import Subset
from palidecode.evaluation.coco.tables import Scene, Table
from palidecode.wording import many

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NUMBERS = (*METRICS, *RATES, *F1_AT, *LVIS_NUMBERS)
"""Names of `CocoEvaluation.numbers`, without those of its subsets; LVIS's only with its data."""

_CLASSES = 20  # shown in a notebook and a plot
MEANINGS = {
    "AP": "mean over IoU 0.50 to 0.95: rewards tight outlines",
    "AP50": "at IoU 0.5: rewards any rough match",
    "AP75": "at IoU 0.75: rewards close matches",
    "APs": "AP of objects below 32² px",
    "APm": "AP of objects of 32² to 96² px",
    "APl": "AP of objects above 96² px",
    "AR1": "recall with the best prediction of each picture and class",
    "AR10": "recall with the ten best predictions of each picture and class",
    "AR100": "share of objects detected, mean over IoU 0.50 to 0.95",
    "ARs": "AR100 of objects below 32² px",
    "ARm": "AR100 of objects of 32² to 96² px",
    "ARl": "AR100 of objects above 96² px",
}
"""COCO's numbers in words."""

LVIS_MEANINGS = {
    "APr": "AP of rare classes: in at most 10 of LVIS's training pictures",
    "APc": "AP of common classes: in 11 to 100 of them",
    "APf": "AP of frequent classes: in more than 100 of them",
    "AR300": "share of objects detected with the 300 best predictions of each picture, mean over "
    "IoU 0.50 to 0.95",
}
"""LVIS's numbers in words."""

SIZES = (("small", "below 32² px"), ("medium", "32² to 96² px"), ("large", "above 96² px"))


@dataclass(frozen=True)
class CocoEvaluation:
    """Boxes or masks compared with ground truth; made by `evaluate_coco`.

    Attributes
    ----------
    iou_type : {"bbox", "segm"}
    stats : ndarray of float64, shape (12,)
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl: COCO's numbers in
        COCO's order; -1 for numbers without ground truth. Without scores, means over random
        orders.
    spread : ndarray of float64, shape (12,)
        Standard deviation over those orders; 0 with scores.
    unscored : bool
        True if the predictions have no scores, or all the same score.
    orders : int
        Number of random orders in the means of `stats`; 0 with scores.
    intervals : dict of str to Interval
        Bootstrap intervals of COCO's numbers (AR1 and AR10 have none), ``precision``, ``recall``
        and ``F1``, if requested.
    skipped : tuple of Skip
        Rows that count in no number.
    noted : tuple of Skip
        Rows that are unusual but count.
    images, objects, predictions : int
        Numbers evaluated; crowds are not objects.
    settings : Settings
        Settings of `stats` other than COCO's own.
    lvis : dict of str to float
        APr, APc, APf (rare, common and frequent classes) and AR300 of an LVIS ground truth, which
        is evaluated by LVIS's rules; -1 for numbers without ground truth. Empty for others.
    subsets : list of Subset
        AP after NMS and above score thresholds, if requested.
    """

    iou_type: IouType
    stats: Floats
    spread: Floats
    unscored: bool
    orders: int
    skipped: tuple[Skip, ...]
    noted: tuple[Skip, ...]
    seed: int
    engine: Engine = field(repr=False)
    predicted: Table = field(repr=False)
    settings: Settings
    lvis: dict[str, float] = field(repr=False)
    subsets: list[Subset] = field(repr=False)
    _class_ap: Floats = field(repr=False)  # (10 IoU thresholds, K), NaN without objects
    _class_ar: Floats = field(repr=False)  # (K,)
    _precision: Floats | None = field(repr=False)  # (2 IoU thresholds, 101, K); None unscored
    intervals: dict[str, Interval] = field(default_factory=dict, repr=False)

    @property
    def scene(self) -> Scene:
        """The evaluated ground truth."""
        return self.engine.scene

    @property
    def images(self) -> int:
        """Number of images in the ground truth."""
        return len(self.scene.images)

    @property
    def objects(self) -> int:
        """Number of objects in the ground truth, without crowds."""
        return int((~self.scene.truths.crowd).sum())

    @property
    def predictions(self) -> int:
        """Number of evaluated predictions."""
        return len(self.predicted)

    @property
    def metrics(self) -> dict[str, float]:
        """`stats` by name."""
        return dict(zip(METRICS, self.stats.tolist(), strict=True))

    @property
    def ranked(self) -> dict[str, float]:
        """`metrics`, `lvis` and the AP of `subsets` by name; NaN if unknown."""
        named = self.metrics | self.lvis
        known = {name: np.nan if value == NOTHING else value for name, value in named.items()}
        return known | {some.name: some.ap for some in self.subsets}

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, as ``--min`` and `compare_coco` take them; NaN if unknown.

        `ranked`, then ``precision``, ``recall`` and ``F1`` at IoU 0.5, then the F1 of
        `score_free`.
        """
        rates = dict(zip(RATES, self.rates.values.tolist(), strict=True))
        return {**self.ranked, **rates, **self.score_free.numbers}

    @property
    def meanings(self) -> dict[str, str]:
        """The numbers of `ranked` in words."""
        named = MEANINGS
        if self.lvis:
            most = {name: text.replace("AR100", "AR300") for name, text in MEANINGS.items()}
            named = most | LVIS_MEANINGS
        return named | {some.name: some.text for some in self.subsets}

    @property
    def _printed(self) -> dict[str, float]:
        """`metrics` and `lvis`, without numbers that LVIS hasn't."""
        named = self.metrics | self.lvis
        return {name: named[name] for name in named if not (self.lvis and name in NOT_LVIS)}

    # -- to look at ----------------------------------------------------------------------

    def summary(self) -> str:
        """Return COCO's twelve numbers as pycocotools prints them, with a word on each."""
        title = self._title()
        if self.unscored:
            title += f"\nno scores: means of {self.orders} random orders ± standard deviation"
        if self.settings.micro:
            title += "; all classes ranked together"
        ious = self.settings.iou_thresholds or (0.5, 0.95)
        most = self.settings.max_detections or (1, 10, self.scene.best)
        every = f"{ious[0]:.2f}:{ious[-1]:.2f}"
        lines = []
        for row, name in enumerate(METRICS):
            if self.lvis and name in NOT_LVIS:
                continue
            kind = "Precision  (AP)" if row < 6 else "Recall     (AR)"
            iou = {"AP50": "0.50", "AP75": "0.75"}.get(name, every)
            area = {"s": "small", "m": "medium", "l": "large"}.get(name[-1], "all")
            limit = most[row - 6] if name in METRICS[6:9] else most[2]
            value = f"{self.stats[row]:.3f}"
            if self.unscored and self.stats[row] != NOTHING:
                value += f" ± {self.spread[row]:.3f}"
            lines.append(
                f" Average {kind} @[ IoU={iou:<9} | area={area:>6} | maxDets={limit:>3} ] = "
                f"{value:<6}  {name}: {self.meanings[name]}"
            )
        if self.lvis:
            lines.append(f" LVIS: {_listed((name, self.ranked[name]) for name in self.lvis)}")
        return "\n".join([title, *lines, self._at_50()])

    def __repr__(self) -> str:
        return self.summary()

    def _title(self) -> str:
        kind = "boxes" if self.iou_type == "bbox" else "masks"
        return (
            f"{kind}: {many(self.predictions, 'prediction')}, "
            f"{many(self.objects, 'object')}, {many(self.images, 'image')}"
        )

    def _at_50(self) -> str:
        rates = self.rates
        shares = zip(("precision", "recall", "F1"), rates.values.tolist(), strict=True)
        return (
            f"at IoU 0.5: {rates.right:,} right, {rates.wrong:,} wrong, {rates.missed:,} missed; "
            + _listed(shares)
            + "; classes averaged: "
            + _listed(self.score_free.numbers.items())
            + "".join(f"; {some.name} {_shown(_number(some.ap))}" for some in self.subsets)
        )

    def _repr_html_(self) -> str:
        """Return tables for notebooks: COCO's numbers, and the classes with most objects."""
        from palidecode.detections.tables import as_html

        numbers = [
            [name, _shown(_metric(value)), self.meanings[name]]
            for name, value in self._printed.items()
        ]
        columns = ("category", "objects", "predictions", "AP", "AP50", "precision", "recall", "F1")
        rows = sorted(self.rows(), key=lambda row: -row["objects"])
        classes = [[_shown(row[name]) for name in columns] for row in rows[:_CLASSES]]
        return as_html(
            f"{self._title()}; {self._at_50()}",
            [["number", "value", "meaning"], *numbers],
            len(numbers),
        ) + as_html("Classes", [list(columns), *classes], len(rows))

    def to_pandas(self) -> pandas.DataFrame:
        """Return `rows` as a DataFrame, one row per class (``pip install pandas``).

        Raises
        ------
        InputError
            If pandas isn't installed.
        """
        frame: pandas.DataFrame = interop.load("pandas").DataFrame(self.rows())
        return frame

    def plot(self) -> Figure:
        """Plot precision over recall, and AP of the classes with most objects.

        Without scores there are no curves. Needs matplotlib (``pip install matplotlib``).

        Returns
        -------
        matplotlib.figure.Figure
        """
        from palidecode.drawing import one_line

        rows = sorted(self.rows(), key=lambda row: -row["objects"])[:_CLASSES][::-1]
        figure = interop.new_figure(10, max(3.5, 0.25 * len(rows) + 1))
        left, right = figure.subplots(1, 2)
        for curve in [curve for curve in self.curves if curve.name == "all classes"]:
            left.plot(curve.recall, curve.precision, label=f"IoU {curve.iou:g}")
        if self.curves:
            left.legend()
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        left.set_title("all classes" if self.curves else "no curves without scores")
        right.barh(range(len(rows)), [row["AP"] or 0 for row in rows])
        right.set_yticks(range(len(rows)), [one_line(row["category"]) for row in rows])
        right.set(xlim=(0, 1), xlabel="AP")
        for text in right.get_yticklabels():
            text.set_parse_math(False)
        return figure

    # -- matching, which needs no order of the predictions ------------------------------

    @cached_property
    def overlaps(self) -> Overlaps:
        """The objects that each prediction overlaps best."""
        return best_overlaps(self.engine, self.predicted)

    @cached_property
    def _matching(self) -> Evaluator:
        """The engine's evaluator for the matching.

        Without scores, predictions are matched in the order of their IoU, so that the result
        doesn't depend on the order of the file.
        """
        return self.engine.evaluate(self.predicted, self._order)

    @property
    def _order(self) -> Floats | None:
        return self.overlaps.same if self.unscored else None

    @cached_property
    def matches(self) -> Matches:
        """The outcome of every prediction and every object."""
        return match(self._matching, self.engine, self.predicted, self.overlaps)

    @cached_property
    def rates(self) -> Rates:
        """Precision, recall and F1 over all classes together."""
        kinds = Counter(self.matches.kind.tolist())
        wrong = len(self.predicted) - kinds["ok"] - kinds["ignored"]
        return Rates(kinds["ok"], wrong, int(self.matches.missed.sum()))

    @cached_property
    def score_free(self) -> ScoreFree:
        """Precision, recall and F1 at ten IoU thresholds, classes averaged."""
        truths, classes = self.scene.truths, len(self.scene.categories)
        objects = np.bincount(truths.category[~truths.crowd], minlength=classes)
        return ScoreFree(*self.engine.counts(self.predicted, self._order), objects)

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Counts of each kind of prediction, and of missed objects."""
        counts = Counter(self.matches.kind.tolist())
        return {**counts, "missed": int(self.matches.missed.sum())}

    @cached_property
    def tide(self) -> JsonRow:
        """TIDE's errors as hotcoco computes them.

        ``delta_ap`` is the AP50 gained by fixing only this error, ``counts`` its count,
        ``ap_base`` is AP50. Without scores AP depends on the order, so there are only counts.
        """
        errors: JsonRow = self._matching.tide_errors()
        return {key: errors[key] for key in ("counts",)} if self.unscored else errors

    @cached_property
    def confusion(self) -> Confusion:
        """The confusion matrix of the classes."""
        cells = self.engine.confusion(self.predicted, self._order)
        background = len(self.scene.categories)
        used = np.flatnonzero(np.bincount(np.append(cells[:, :2].ravel(), background)))
        names = [self.scene.categories[index]["name"] for index in used[:-1].tolist()]
        cells[:, :2] = np.searchsorted(used, cells[:, :2])
        return Confusion([*names, "background"], cells)

    # -- numbers that need scores ----------------------------------------------------------------

    @cached_property
    def curves(self) -> list[Curve]:
        """Precision over recall at IoU 0.5 and 0.75: the mean over classes, then each class.

        Empty without scores, because such a curve shows the order of the predictions.
        """
        precision = self._precision
        if precision is None:
            return []
        used = np.flatnonzero(precision[0, 0] != NOTHING)
        recall = np.linspace(0, 1, precision.shape[1])
        curves = []
        for row, iou in enumerate((0.5, 0.75)):
            if len(used):
                mean = precision[row][:, used].mean(axis=1)
                curves.append(Curve("all classes", iou, recall, mean))
            for index in used.tolist():
                name = self.scene.categories[index]["name"]
                curves.append(Curve(name, iou, recall, precision[row, :, index]))
        return curves

    @cached_property
    def calibration(self) -> JsonRow | None:
        """Calibration of scores as probabilities of being right, in ten bins at IoU 0.5.

        Returns
        -------
        dict or None
            ``ece`` and ``mce`` (mean and largest gap), ``bins`` (list of dict). None without
            scores, or if they aren't probabilities.
        """
        scores = self.predicted.score
        if self.unscored or not len(scores) or scores.min() < 0 or scores.max() > 1:
            return None
        computed: JsonRow = self._matching.calibration()
        return computed

    @cached_property
    def best_threshold(self) -> dict[str, float] | None:
        """The score threshold with the best F1 at IoU 0.5.

        Returns
        -------
        dict or None
            ``score``, ``f1``, ``precision``, ``recall``; None without scores.
        """
        seen = self.matches.kind != "ignored"
        if self.unscored or not seen.any() or not self.objects:
            return None
        return best_f1(self.predicted.score[seen], self.matches.kind[seen] == "ok", self.objects)

    # -- tables ---------------------------------------------------------------------------

    def rows(self) -> list[JsonRow]:
        """One row for each class that has objects or predictions, ready for a DataFrame.

        Returns
        -------
        list of dict
            ``category``, ``category_id``, ``objects``, ``predictions``, ``AP``, ``AP50``,
            ``AP75``, ``AR100`` (None without objects), ``precision``, ``recall``, ``F1`` at
            IoU 0.5, and ``best_score`` with its ``best_F1`` (None without scores).
        """
        return self._rows

    @cached_property
    def _rows(self) -> list[JsonRow]:
        truths, predicted, matches = self.scene.truths, self.predicted, self.matches
        solid = ~truths.crowd
        rows = []
        for index, category in enumerate(self.scene.categories):
            of = (truths.category == index) & solid
            mine = predicted.category == index
            if not of.any() and not mine.any():
                continue
            kinds = matches.kind[mine]
            seen = kinds != "ignored"
            right = int((kinds == "ok").sum())
            rates = Rates(right, int(seen.sum()) - right, int(matches.missed[of].sum()))
            best = None
            if not self.unscored and of.any() and seen.any():
                best = best_f1(predicted.score[mine][seen], kinds[seen] == "ok", int(of.sum()))
            ap = self._class_ap[:, index]
            rows.append(
                {
                    "category": category["name"],
                    "category_id": category["id"],
                    "objects": int(of.sum()),
                    "predictions": int(mine.sum()),
                    "AP": _number(ap.mean()),
                    "AP50": _number(ap[0]),
                    "AP75": _number(ap[5]),
                    "AR100": None if self.lvis else _number(self._class_ar[index]),
                    "precision": _number(rates.precision),
                    "recall": _number(rates.recall),
                    "F1": _number(rates.f1),
                    "best_score": None if best is None else best["score"],
                    "best_F1": None if best is None else best["f1"],
                }
            )
        return rows

    @cached_property
    def sizes(self) -> list[JsonRow]:
        """Small, medium and large objects: ``size``, ``range``, ``objects``, ``AP``, ``AR``."""
        area = self.scene.truths.area[~self.scene.truths.crowd]
        counts = np.histogram(area, [0, 32**2, 96**2, np.inf])[0]
        return [
            {
                "size": name,
                "range": text,
                "objects": int(counts[index]),
                "AP": _metric(self.stats[3 + index]),
                "AR": _metric(self.stats[9 + index]),
            }
            for index, (name, text) in enumerate(SIZES)
        ]

    @cached_property
    def image_rows(self) -> list[JsonRow]:
        """One row for each image, the worst F1 first.

        Returns
        -------
        list of dict
            ``image_id``, ``file_name``, ``objects``, ``predictions``, ``right``, ``wrong``,
            ``missed``, ``F1`` (None without objects and predictions).
        """
        truths = self.scene.truths
        columns = zip(
            self.scene.images,
            self._per_image(truths.image[~truths.crowd]).tolist(),
            self._per_image(self.predicted.image).tolist(),
            *self.image_counts.T.tolist(),
            strict=True,
        )
        rows = [
            {
                "image_id": image.id,
                "file_name": image.file_name,
                "objects": objects,
                "predictions": predictions,
                "right": right,
                "wrong": wrong,
                "missed": missed,
                "F1": _number(Rates(right, wrong, missed).f1),
            }
            for image, objects, predictions, right, wrong, missed in columns
        ]
        return sorted(
            rows, key=lambda row: (2.0 if row["F1"] is None else row["F1"], -row["missed"])
        )

    @cached_property
    def image_counts(self) -> Ints:
        """Right and wrong predictions and missed objects of each image, shape (B, 3)."""
        kind, image = self.matches.kind, self.predicted.image
        right, counted = kind == "ok", kind != "ignored"
        images = image[right], image[counted & ~right], self.scene.truths.image[self.matches.missed]
        return np.stack([self._per_image(of) for of in images], axis=1)

    def _per_image(self, images: Ints) -> Ints:
        return np.bincount(images, minlength=self.images)

    @cached_property
    def match_rows(self) -> list[JsonRow]:
        """One row for each prediction and each missed object, worst first.

        Returns
        -------
        list of dict
            ``image_id``, ``file_name``, ``category``, ``score``, ``bbox``, ``kind`` (see
            `Matches`), ``iou``, ``truth_id``, ``truth_category``, ``truth_bbox``, ``place``.
        """
        return gallery_rows(self.scene, self.predicted, self.matches)

    def as_dict(self) -> JsonRow:
        """Convert everything but the rows of images and predictions to JSON values."""
        rates = self.rates
        return {
            "iou_type": self.iou_type,
            "images": self.images,
            "objects": self.objects,
            "predictions": self.predictions,
            "metrics": {name: _metric(value) for name, value in self.metrics.items()},
            "intervals": {name: interval.as_dict() for name, interval in self.intervals.items()},
            "lvis": {name: _metric(value) for name, value in self.lvis.items()} or None,
            "unscored": self.unscored,
            "orders": self.orders,
            "spread": dict(zip(METRICS, self.spread.tolist(), strict=True)),
            "at_iou_50": {
                "right": rates.right,
                "wrong": rates.wrong,
                "missed": rates.missed,
                "precision": _number(rates.precision),
                "recall": _number(rates.recall),
                "F1": _number(rates.f1),
            },
            "score_free": self.score_free.as_dict(),
            "subsets": {some.name: _number(some.ap) for some in self.subsets},
            "best_threshold": self.best_threshold,
            "kinds": self.kinds,
            "tide": self.tide,
            "calibration": self.calibration,
            "sizes": self.sizes,
            "classes": self.rows(),
            "confusion": self.confusion.as_dict(),
            "skipped": [skip.as_dict() for skip in self.skipped],
            "noted": [skip.as_dict() for skip in self.noted],
            "seed": self.seed,
        }

    def bootstrap(
        self, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
    ) -> dict[str, Interval]:
        """Compute intervals of COCO's numbers, precision, recall and F1 by resampling images.

        Parameters
        ----------
        resamples : int
        seed : int
        confidence : float
            Confidence level of the intervals.

        Returns
        -------
        dict of str to Interval
            By the names of `metrics` (without AR1 and AR10), ``precision``, ``recall`` and ``F1``,
            and the AP of `subsets`, for all numbers that can be computed.
        """
        ranked = self.ranked
        samples = centred(
            self.resampled(resamples, seed), np.array([*ranked.values()]), self.images
        )
        rates = resampled_rates(self.image_counts, resamples, seed)
        drawn = np.concatenate([samples, rates], axis=1)
        values = np.array([*ranked.values(), *self.rates.values])
        return percentiles(drawn, (*ranked, *RATES), values, confidence)

    def resampled(self, resamples: int, seed: int) -> Floats:
        """Compute `ranked` over random halves of the images, (resamples, numbers)."""
        names = (*METRICS, *self.lvis)
        stats = resampled_stats(self.engine, self.scored(), resamples, seed, names)
        others = [
            resampled_stats(self.engine, some.predicted, resamples, seed)[:, :1]
            for some in self.subsets
        ]
        return np.concatenate([stats, *others], axis=1)

    def scored(self) -> Table:
        """The predictions; without scores, in the first of the random orders."""
        if not self.unscored:
            return self.predicted
        return replace(self.predicted, score=random_orders(len(self.predicted), 1, self.seed)[0])


def random_orders(count: int, orders: int, seed: int) -> list[Floats]:
    """Draw distinct scores that put predictions into random orders."""
    rng = np.random.default_rng(seed)
    return [(rng.permutation(count) + 1) / (count + 1) for _ in range(orders)]


def _listed(numbers: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {_shown(_number(value))}" for name, value in numbers)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _metric(value: float) -> float | None:
    return None if value == NOTHING else float(value)
