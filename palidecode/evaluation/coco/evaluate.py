"""COCO evaluation of answers of vision-language models; hotcoco computes the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from palidecode.coco.categories import Match
from palidecode.coco.reading import Source, no_collection
from palidecode.coco.skips import Skips
from palidecode.errors import InputError, warn
from palidecode.evaluation.coco.duplicates import repeats
from palidecode.evaluation.coco.engine import (
    LVIS_NUMBERS,
    NOTHING,
    STANDARD,
    Engine,
    IouType,
    Settings,
)
from palidecode.evaluation.coco.result import CocoEvaluation, random_orders
from palidecode.evaluation.coco.subsets import SubsetOptions, subsets
from palidecode.evaluation.coco.tables import (
    Scene,
    Table,
    only_labelled,
    read_answers,
    read_scene,
)

if TYPE_CHECKING:
    from palidecode.detections import Detections

Scores: TypeAlias = Literal["file", "ignore"]


class UnscoredWarning(UserWarning):
    """Predictions have no scores, so their AP is a mean over random orders."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate_coco` and `compare_coco`, which explain them."""

    categories: Sequence[str | int] | None = None
    match: Match = "exact"
    merge_duplicates: float | None = None
    scores: Scores = "file"
    orders: int = 10
    bootstrap: int = 0
    confidence: float = 0.95
    seed: int = 0
    scale_to_truth: bool = False
    crowds: bool = False
    settings: Settings = STANDARD
    nms: float | None = None
    score_thresholds: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.scores not in ("file", "ignore"):
            raise InputError(f"scores must be 'file' or 'ignore', got {self.scores!r}")
        if self.orders < 1:
            raise InputError(f"orders must be at least 1, got {self.orders}")
        if self.seed < 0:
            raise InputError(f"a seed is a whole number from 0, got {self.seed}")
        if self.bootstrap and self.settings != STANDARD:
            raise InputError(
                "bootstrap resamples COCO's own numbers; leave out iou_thresholds, max_detections "
                "and micro"
            )
        _ = self.subsets  # checks them

    @property
    def subsets(self) -> SubsetOptions:
        """Options of the AP of some of the predictions."""
        return SubsetOptions(self.nms, tuple(self.score_thresholds))


def evaluate_coco(
    gt: Source,
    predictions: Source | Detections,
    iou_type: IouType = "bbox",
    *,
    categories: Sequence[str | int] | None = None,
    match: Match = "exact",
    merge_duplicates: float | None = None,
    scores: Scores = "file",
    orders: int = 10,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    scale_to_truth: bool = False,
    crowds: bool = False,
    iou_thresholds: Sequence[float] | None = None,
    max_detections: Sequence[int] | None = None,
    micro: bool = False,
    nms: float | None = None,
    score_thresholds: Sequence[float] = (),
) -> CocoEvaluation:
    """Evaluate boxes or masks against COCO ground truth.

    Parameters
    ----------
    gt : path or dict
        A COCO dataset.
    predictions : path, list, dict or Detections
        `Detections` are matched by the names of their images, else by ids, else in order if number
        and sizes are the ground truth's. A COCO results list, or a dataset as `palidecode decode`
        writes it. A dataset has ids of its own, so its images are matched by ``file_name`` and
        its categories by name. If its ``info``, or one of its images, has ``asked``, a list of
        names, only these categories were asked for, and only they are evaluated there.
    iou_type : {"bbox", "segm"}
    categories : sequence of str or int, optional
        Names or ids; evaluate only these.
    match : {"exact", "loose"}
        Rule for mapping a dataset's names to categories; see `CategoryMap`.
    merge_duplicates : float, optional
        Skip predictions that overlap a better one of the same image and class by at least this
        IoU.
    scores : {"file", "ignore"}
        ``"ignore"`` treats all predictions as unscored.
    orders : int
        Number of random orders; without scores, AP is the mean over them.
    bootstrap : int
        Resamples for intervals; 0 for none. `CocoEvaluation.bootstrap` computes them later.
    confidence : float
        Confidence level of the intervals.
    seed : int
        Seed of the orders and of the bootstrap.
    scale_to_truth : bool
        Scale the predictions of pictures that have another size in the ground truth; otherwise
        they are noted.
    crowds : bool
        Count crowds as objects; by default predictions inside them are neither right nor wrong.
    iou_thresholds : sequence of float, optional
        IoU thresholds of `CocoEvaluation.stats`; 0.50, 0.55, … 0.95 by default. AP50 and AP75
        are -1 unless 0.5 and 0.75 are among them.
    max_detections : sequence of 3 int, optional
        Best predictions of an image and class that AR1, AR10 and AR100 count; AP and the other
        numbers take the last. (1, 10, 100) by default.
    micro : bool
        Rank the predictions of all classes together, and match them regardless of class, in
        `CocoEvaluation.stats`: pycocotools' ``useCats = 0``. Everything else in the result keeps
        COCO's own settings.
    nms : float, optional
        An IoU, in (0, 1]: compute the AP of the predictions that NMS leaves, too. ``AP@nms0.5``
        removes predictions that overlap a better one of their class, as `merge_duplicates` does
        from every number; ``NMS-AP@0.5`` is OVDEval's (Yao et al. 2023): of the predictions of
        any class on an object, above that IoU, only the best stays.
    score_thresholds : sequence of float
        Compute the AP of the predictions with at least each of these scores, too:
        ``AP@score0.3``. Both are in `CocoEvaluation.subsets`.

    Returns
    -------
    CocoEvaluation

    Warns
    -----
    UnscoredWarning
        If the predictions have no scores, or all the same score.

    Raises
    ------
    InputError
        If a file is not ground truth or predictions. Single bad rows are skipped and listed in
        `CocoEvaluation.skipped`.

    Examples
    --------
    >>> cats = [{"id": 1, "name": "cat"}]
    >>> image = {"id": 7, "file_name": "a.jpg", "width": 64, "height": 64}
    >>> box = {"image_id": 7, "category_id": 1, "bbox": [8, 8, 32, 32]}
    >>> truth = {"images": [image], "categories": cats, "annotations": [box | {"id": 1}]}
    >>> result = evaluate_coco(truth, [box | {"score": 0.9}])
    >>> round(float(result.stats[0]), 6), result.rates.right
    (1.0, 1)
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
        Settings(
            None if iou_thresholds is None else tuple(iou_thresholds),
            None if max_detections is None else tuple(max_detections),
            micro,
        ),
        nms=nms,
        score_thresholds=tuple(score_thresholds),
    )
    return evaluate(gt, predictions, iou_type, options)


def evaluate(
    gt: Source, predictions: Source | Detections, iou_type: IouType, options: EvaluateOptions
) -> CocoEvaluation:
    """Do the work of `evaluate_coco`."""
    check_iou_type(iou_type)
    skips = Skips()
    scene, predicted, unscored = _both_sides(gt, predictions, iou_type, options, skips)
    if unscored and options.score_thresholds:
        raise InputError("score_thresholds need scores that differ; these predictions have none")
    engine = Engine(scene, iou_type)
    drawn = (
        random_orders(len(predicted), options.orders, options.seed)
        if unscored
        else [predicted.score]
    )
    each = [engine.numbers(predicted, order) for order in drawn]
    others = each
    if options.settings != STANDARD:
        others = [engine.numbers(predicted, order, options.settings) for order in drawn]
    stats = np.array([other.stats for other in others])
    lvis = {}
    if scene.federated is not None:
        means = np.mean([engine.lvis(other) for other in others], axis=0)
        lvis = dict(zip(LVIS_NUMBERS, means.tolist(), strict=True))
    result = CocoEvaluation(
        iou_type=iou_type,
        stats=stats.mean(axis=0),
        spread=stats.std(axis=0),
        unscored=unscored,
        orders=options.orders if unscored else 0,
        skipped=skips.skipped,
        noted=skips.noted,
        seed=options.seed,
        engine=engine,
        predicted=predicted,
        settings=options.settings,
        lvis=lvis,
        subsets=subsets(engine, predicted, drawn, options.subsets, options.settings),
        _class_ap=_known([numbers.ap for numbers in each]),
        _class_ar=_known([numbers.ar for numbers in each]),
        _precision=None if unscored else each[0].precision,
    )
    if options.bootstrap:
        result.intervals.update(
            result.bootstrap(options.bootstrap, options.seed, options.confidence)
        )
    return result


def _both_sides(
    gt: Source,
    predictions: Source | Detections,
    iou_type: IouType,
    options: EvaluateOptions,
    skips: Skips,
) -> tuple[Scene, Table, bool]:
    """Read what the options ask for: the truth, the predictions, and True without scores."""
    with no_collection():
        scene = read_scene(gt, iou_type == "segm", skips, options.crowds)
        if hasattr(predictions, "image_index"):  # Detections: files are evaluated without them
            from palidecode.evaluation.coco.objects import as_predictions

            predictions = as_predictions(cast("Detections", predictions), scene)
        predicted, asked = read_answers(
            predictions, scene, options.match, skips, options.scale_to_truth
        )
    if scene.federated is not None and (options.settings.max_detections or options.settings.micro):
        raise InputError("max_detections and micro can't be combined with LVIS's evaluation")
    predicted = only_labelled(scene, predicted, skips)
    if asked:
        scene, predicted = _only_asked(scene, predicted, asked, skips)
    if options.categories is not None:
        scene, predicted = _only_categories(scene, predicted, options.categories)
    unscored = _unscored(predicted, options.scores, skips)
    if options.merge_duplicates is not None:
        again = repeats(predicted, scene, options.merge_duplicates)
        skips.add_many("prediction", "merged", predicted.offset[again])
        predicted = predicted.take(~again)
    _note_extremes(scene, predicted, skips)
    return scene, predicted, unscored


def check_iou_type(iou_type: str) -> None:
    """Refuse other types than boxes and masks."""
    if iou_type not in ("bbox", "segm"):
        raise InputError(f"iou_type must be 'bbox' or 'segm', got {iou_type!r}")


def _known(values: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Mean over orders of the predictions; NaN for numbers without ground truth."""
    mean = np.mean(values, axis=0)
    return np.where(mean == NOTHING, np.nan, mean)


def _unscored(predicted: Table, scores: str, skips: Skips) -> bool:
    """True if the predictions have no useful scores; warns unless they are ignored."""
    if not len(predicted):
        return False
    unknown = np.isnan(predicted.score)
    if scores == "ignore":
        return True
    if unknown.any() and not unknown.all():
        first = skips.at("prediction", int(predicted.offset[unknown][0]))
        raise InputError(
            f"predictions without a score: {int(unknown.sum()):,} of {len(predicted):,} (first "
            f"{first}); score all of them, or evaluate without scores: scores='ignore'"
        )
    if unknown.all():
        why = "have no scores"
    elif len(predicted) > 1 and (predicted.score == predicted.score[0]).all():
        why = f"all have the score {predicted.score[0]:g}"
    else:
        return False
    warn(
        f"the predictions {why}: AP depends on their order, so it is the mean over random "
        "orders, and can't be compared with AP of scored predictions; precision, recall and F1 "
        "can",
        UnscoredWarning,
    )
    return True


def _only_asked(
    scene: Scene, predicted: Table, asked: dict[int, set[int]], skips: Skips
) -> tuple[Scene, Table]:
    """Keep the truths and predictions of categories that each image's prompt asked for."""
    truths = scene.truths
    keep = _asked_for(truths, asked)
    skips.add_many("truth", "not_asked", truths.offset[~keep])
    asked_for = _asked_for(predicted, asked)
    skips.add_many("prediction", "not_asked", predicted.offset[~asked_for])
    return replace(scene, truths=truths.take(keep)), predicted.take(asked_for)


def _asked_for(table: Table, asked: dict[int, set[int]]) -> npt.NDArray[np.bool_]:
    pairs = zip(table.image.tolist(), table.category.tolist(), strict=True)
    return np.array([category in asked.get(image, (category,)) for image, category in pairs], bool)


def _only_categories(
    scene: Scene, predicted: Table, wanted: Sequence[str | int]
) -> tuple[Scene, Table]:
    """Keep the truths and predictions of some categories."""
    keys: dict[str | int, set[int]] = {}
    for index, item in enumerate(scene.categories):
        for key in (item["name"], item["id"]):
            keys.setdefault(key, set()).add(index)
    unknown = [name for name in wanted if name not in keys]
    if unknown or not wanted:
        shown = ", ".join(repr(item["name"]) for item in scene.categories[:8])
        what = f"no category is called {unknown[0]!r}" if unknown else "no category is named"
        raise InputError(f"{what}; the ground truth has {shown} …")
    indices = np.array(sorted(set().union(*(keys[name] for name in wanted))))
    renamed = np.full(len(scene.categories), -1)
    renamed[indices] = np.arange(len(indices))
    kept = replace(
        scene,
        categories=[scene.categories[index] for index in indices.tolist()],
        truths=_of_categories(scene.truths, renamed),
        federated=scene.federated and scene.federated.renumbered(renamed),
    )
    return kept, _of_categories(predicted, renamed)


def _of_categories(table: Table, renamed: npt.NDArray[np.int64]) -> Table:
    kept = table.take(renamed[table.category] >= 0)
    return replace(kept, category=renamed[kept.category])


def _note_extremes(scene: Scene, predicted: Table, skips: Skips) -> None:
    """Note images without a prediction, and predictions beyond the 100 that COCO counts."""
    silent = np.ones(len(scene.images), np.bool_)
    silent[predicted.image] = False
    silent &= np.bincount(scene.truths.image, minlength=len(silent)) > 0
    images = np.flatnonzero(silent)
    names = (image.file_name or f"id {image.id}" for image in map(scene.images.__getitem__, images))
    skips.note("image", "no_answer", images, names)
    key = predicted.image * len(scene.categories) + predicted.category
    if len(predicted) and np.unique(key, return_counts=True)[1].max() > scene.best:
        # Without scores, the last ones of the file; each random order has others.
        order = np.lexsort((np.arange(len(key)), -np.nan_to_num(predicted.score), key))
        firsts = np.searchsorted(key[order], key[order])
        beyond = order[np.arange(len(order)) - firsts >= scene.best]
        skips.note("prediction", "clipped", np.sort(predicted.offset[beyond]))
