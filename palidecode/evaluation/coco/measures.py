"""Results beside COCO's twelve numbers: rates, curves and confusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RATES = ("precision", "recall", "F1")
"""Numbers at IoU 0.5 that need no order of the predictions: `Rates.values`."""


@dataclass(frozen=True)
class Rates:
    """Precision, recall and F1 at IoU 0.5 of all predictions, regardless of score.

    Attributes
    ----------
    right, wrong, missed : int
        Numbers of true positives, false positives and false negatives.
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
        """Share of the objects that were detected; NaN without objects."""
        return self.right / (self.right + self.missed) if self.right + self.missed else np.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else np.nan

    @property
    def values(self) -> Floats:
        """Precision, recall and F1."""
        return np.array([self.precision, self.recall, self.f1])


F1_AT = {
    "F1@0.5": "F1 at IoU 0.5, classes averaged: no score decides it",
    "F1@0.95": "F1 at IoU 0.95, classes averaged: rewards exact outlines",
    "F1@mean": "mean of F1 at IoU 0.50 to 0.95, classes averaged",
}
"""The numbers of `ScoreFree.numbers`, in words."""


@dataclass(frozen=True)
class ScoreFree:
    """Precision, recall and F1 at COCO's ten IoU thresholds, regardless of score.

    Models without scores are compared by them, as Rex-Omni's ``fastevaluate`` does (Jiang et al.
    2025): precision and recall of each class, their means over the classes, then F1.

    Attributes
    ----------
    iou : ndarray of float64, shape (T,)
    right, wrong : ndarray of int64, shape (T, K)
        Numbers of true and false positives of each class.
    objects : ndarray of int64, shape (K,)
    """

    iou: Floats
    right: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.int64]
    objects: npt.NDArray[np.int64]

    @property
    def precision(self) -> Floats:
        """Mean over the classes that have objects, (T,); 0 for a class without predictions."""
        used = self.objects > 0
        right, made = self.right[:, used], (self.right + self.wrong)[:, used]
        return self._mean(right / np.maximum(made, 1))

    @property
    def recall(self) -> Floats:
        """Mean over the classes that have objects, (T,)."""
        used = self.objects > 0
        return self._mean(self.right[:, used] / self.objects[used])

    @property
    def f1(self) -> Floats:
        """Harmonic mean of `precision` and `recall`, (T,); NaN without objects."""
        precision, recall = self.precision, self.recall
        total = precision + recall
        return np.where(total == 0, 0.0, 2 * precision * recall / np.where(total == 0, 1, total))

    @property
    def micro(self) -> Floats:
        """F1 of all predictions together, (T,); at IoU 0.5 it is `Rates.f1`."""
        right, wrong = self.right.sum(axis=1), self.wrong.sum(axis=1)
        total = right + wrong + self.objects.sum()
        return np.where(total == 0, np.nan, 2 * right / np.maximum(total, 1))

    @property
    def numbers(self) -> dict[str, float]:
        """F1 at IoU 0.5 and 0.95, and its mean over the thresholds; see `F1_AT`."""
        f1 = self.f1
        return dict(zip(F1_AT, (float(f1[0]), float(f1[-1]), float(f1.mean())), strict=True))

    def as_dict(self) -> dict[str, object]:
        """Convert to JSON values: a list over the thresholds of each number, None for NaN."""
        columns = {
            "precision": self.precision,
            "recall": self.recall,
            "F1": self.f1,
            "F1_micro": self.micro,
        }
        numbers = {name: None if np.isnan(v) else v for name, v in self.numbers.items()}
        lists = {
            name: [None if np.isnan(v) else v for v in values.tolist()]
            for name, values in columns.items()
        }
        return {**numbers, "iou": self.iou.round(2).tolist(), **lists}

    def _mean(self, of_classes: Floats) -> Floats:
        shape = of_classes.shape
        return of_classes.mean(axis=1) if shape[1] else np.full(shape[0], np.nan)


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class, or of the mean over classes.

    Attributes
    ----------
    name : str
    iou : float
        Least IoU of a true positive.
    recall, precision : ndarray of float64, shape (101,)
        COCO's grid: recall 0, 0.01, … 1, and the best precision at that recall or beyond.
    """

    name: str
    iou: float
    recall: Floats
    precision: Floats


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix, matched at IoU 0.5 regardless of class.

    Attributes
    ----------
    names : list of str
        The K classes that occur, then ``background``.
    cells : ndarray of int64, shape (C, 3)
        The cells that aren't 0, row by row: row, column and count.
    """

    names: list[str]
    cells: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The whole matrix, shape (K + 1, K + 1).

        Rows: true class; columns: predicted class. Last row: predictions on nothing; last
        column: missed objects.
        """
        row, column, count = self.cells.T
        counts = np.zeros((len(self.names), len(self.names)), np.int64)
        counts[row, column] = count
        return counts

    def as_dict(self) -> dict[str, object]:
        """Convert to JSON values: `names`, and a list of each column of `cells`."""
        columns = ("true", "predicted", "count")
        return {"names": self.names, **dict(zip(columns, self.cells.T.tolist(), strict=True))}


def best_f1(scores: Floats, right: npt.NDArray[np.bool_], objects: int) -> dict[str, float]:
    """The best F1 over all score thresholds; equal scores stay together."""
    order = np.argsort(-scores, kind="stable")
    counts = np.cumsum(right[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    f1 = 2 * counts[ends] / (ends + 1 + objects)
    best = int(f1.argmax())
    hits = int(counts[ends[best]])
    return {
        "score": float(scores[order[ends[best]]]),
        "f1": float(f1[best]),
        "precision": hits / int(ends[best] + 1),
        "recall": hits / objects,
    }
