"""What is counted and drawn beside COCO's twelve numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """Precision, recall and F1 at IoU 0.5 of all predictions, whatever their score.

    Attributes
    ----------
    right, wrong, missed : int
        Predictions that found an object, that found none, and objects nobody found.
    """

    right: int
    wrong: int
    missed: int

    @property
    def precision(self) -> float:
        """Share of the predictions that are right; NaN without predictions."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else np.nan

    @property
    def recall(self) -> float:
        """Share of the objects that were found; NaN without objects."""
        return self.right / (self.right + self.missed) if self.right + self.missed else np.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else np.nan

    @property
    def values(self) -> Floats:
        """Precision, recall and F1."""
        return np.array([self.precision, self.recall, self.f1])


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class, or of the mean over classes.

    Attributes
    ----------
    name : str
    iou : float
        Threshold from which a prediction is right.
    recall, precision : ndarray of float64, shape (101,)
        COCO's grid: recall 0, 0.01, … 1, and the best precision at that recall or beyond.
    """

    name: str
    iou: float
    recall: Floats
    precision: Floats


@dataclass(frozen=True)
class Confusion:
    """Which class is taken for which, at IoU 0.5 and without regard to class.

    Attributes
    ----------
    names : list of str
        K classes that occur, then ``background``.
    counts : ndarray of int64, shape (K + 1, K + 1)
        Row: what it is; column: what was said. Last row: predictions on nothing; last column:
        objects nobody found.
    """

    names: list[str]
    counts: npt.NDArray[np.int64]


def best_f1(scores: Floats, right: npt.NDArray[np.bool_], objects: int) -> dict[str, float]:
    """F1 of keeping everything from a score on, at its best; equal scores stay together."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(right[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    f1 = 2 * found[ends] / (ends + 1 + objects)
    best = int(f1.argmax())
    hits = int(found[ends[best]])
    return {
        "score": float(scores[order[ends[best]]]),
        "f1": float(f1[best]),
        "precision": hits / int(ends[best] + 1),
        "recall": hits / objects,
    }
