"""AP of some of the predictions: after NMS, and above score thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.evaluation.coco.duplicates import beaten, on_objects, repeats
from palidecode.evaluation.coco.engine import NOTHING, Engine, Settings
from palidecode.evaluation.coco.tables import Table

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SubsetOptions:
    """Subsets of the predictions whose AP is computed too.

    Attributes
    ----------
    nms : float, or None
        IoU of `AP@nms…` and `NMS-AP@…`, in (0, 1].
    score_thresholds : tuple of float
        The least scores of `AP@score…`.
    """

    nms: float | None = None
    score_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.nms is not None and not 0 < self.nms <= 1:
            raise InputError(f"nms is an IoU in (0, 1], got {self.nms!r}")
        if not np.isfinite(self.score_thresholds).all():
            raise InputError(f"score_thresholds are numbers, got {self.score_thresholds}")

    @property
    def meanings(self) -> dict[str, str]:
        """The numbers' names, and what they mean."""
        named = {}
        if self.nms is not None:
            named[f"AP@nms{self.nms:g}"] = f"AP after NMS of each class at IoU {self.nms:g}"
            named[f"NMS-AP@{self.nms:g}"] = (
                f"AP after OVDEval's NMS: of the predictions of any class on an object, above IoU "
                f"{self.nms:g}, only the best stays"
            )
        for least in self.score_thresholds:
            named[f"AP@score{least:g}"] = f"AP without predictions whose score is below {least:g}"
        return named


@dataclass(frozen=True)
class Subset:
    """COCO's numbers of some of the predictions.

    Attributes
    ----------
    name, text : str
        The name of its AP, and what that means.
    stats : ndarray of float64, shape (12,)
        As `CocoEvaluation.stats`.
    predicted : Table
        The predictions left, scored; without scores, those of the first random order.
    """

    name: str
    text: str
    stats: Floats
    predicted: Table

    @property
    def ap(self) -> float:
        """AP; NaN without objects."""
        return np.nan if self.stats[0] == NOTHING else float(self.stats[0])


def subsets(
    engine: Engine,
    predicted: Table,
    drawn: Sequence[Floats],
    options: SubsetOptions,
    settings: Settings,
) -> list[Subset]:
    """Compute COCO's numbers of each subset; `drawn` are the scores, of every random order."""
    made = []
    orders = [replace(predicted, score=scores) for scores in drawn]
    choices = _choices(engine, predicted, options)
    for (name, text), choose in zip(options.meanings.items(), choices, strict=True):
        tables = [order.take(choose(order)) for order in orders]
        stats = [engine.numbers(table, settings=settings).stats for table in tables]
        made.append(Subset(name, text, np.mean(stats, axis=0), tables[0]))
    return made


def _choices(
    engine: Engine, predicted: Table, options: SubsetOptions
) -> Iterator[Callable[[Table], Bools]]:
    """Return what tells the rows that stay, in the order of `SubsetOptions.meanings`."""
    iou = options.nms
    if iou is not None:
        groups = on_objects(engine, predicted, iou)
        yield lambda table: ~repeats(table, engine.scene, iou)
        yield lambda table: ~beaten(table.score, groups)
    yield from map(_reaching, options.score_thresholds)


def _reaching(least: float) -> Callable[[Table], Bools]:
    return lambda table: table.score >= least
