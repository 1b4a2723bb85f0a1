"""The page of a comparison: two sets of predictions of the same pictures, side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from palidecode.evaluation.coco.comparison import CocoComparison
from palidecode.evaluation.coco.measures import F1_AT, RATES
from palidecode.evaluation.coco.result import CocoEvaluation
from palidecode.report.gallery import (
    MOST_PICTURES,
    SIDE,
    Ints,
    Thumbnails,
    best_rows,
    by_image,
    canvas,
    copy_side,
    largest,
    prediction_rows,
    shapes,
)
from palidecode.report.page import TABS, write_page

_BOTH, _NEITHER, _CROWD, _FIRST, _SECOND = range(5)
"""States of an object: detected by both, by neither, a crowd, by the first or second alone."""
_HEADLINE = ("AP", "AP50", "AP75", "AR100", "AR300", *RATES)
_RATES = {
    "precision": "share of the predictions that are right",
    "recall": "share of the objects that are detected",
    "F1": "balance of precision and recall",
}


def write_comparison(
    path: str | os.PathLike[str],
    results: Mapping[str, CocoComparison],
    *,
    images: str | os.PathLike[str] | None = None,
    truth_name: str = "ground truth",
    names: tuple[str, str] = ("A", "B"),
    facts: Sequence[Sequence[tuple[str, str]]] = ((), ()),
) -> None:
    """Write comparisons of the same predictions as one self-contained HTML page.

    Parameters
    ----------
    path : path
    results : mapping of str to CocoComparison
        A tab for each of ``bbox`` and ``segm``.
    images : path, optional
        The folder of the pictures; without it boxes are drawn on blank canvases.
    truth_name, names : str, tuple of 2 str
        Headings of the ground truth and of the predictions.
    facts
        How the two predictions were made; see `made_with`.
    """
    most = max((result.first.images for result in results.values()), default=0)
    thumbnails = Thumbnails(images, copy_side(most))
    kinds, sections = {}, {}
    for kind, result in results.items():
        states, objects = _states(result)
        pictures, notices = _pictures(result, states, objects, thumbnails)
        classes = [item["name"] for item in result.first.scene.categories]
        kinds[kind] = {"classes": classes, "curves": [], "pictures": pictures}
        sections[kind] = {
            "result": result,
            "numbers": _numbers(result),
            "classes": _classes(result, states, objects),
            "only": [int(np.count_nonzero(states == state)) for state in (_FIRST, _SECOND)],
            "neither": int(np.count_nonzero(states == _NEITHER)),
            "masks": kind == "segm",
            "notices": notices,
        }
    notices = thumbnails.notices()
    if images is None:
        notices.append("Boxes are drawn on blank canvases: --images DIR shows the pictures.")
    write_page(
        path,
        "compare.html",
        {"thumbs": thumbnails.encoded, "kinds": kinds, "compare": True},
        truth_name=truth_name,
        names=names,
        facts=facts,
        tabs=TABS,
        sections=sections,
        headline=_HEADLINE,
        picture_notices=notices,
    )


def _states(result: CocoComparison) -> tuple[Ints, tuple[Ints, Ints]]:
    """Return the state of each object, and its row in the truths of the first and second.

    An object that one of them wasn't asked for is left out.
    """
    a, b = result.first.scene.truths, result.second.scene.truths
    _, in_a, in_b = np.intersect1d(a.offset, b.offset, return_indices=True)
    missed = result.first.matches.missed[in_a], result.second.matches.missed[in_b]
    table = np.array([[_BOTH, _FIRST], [_SECOND, _NEITHER]])
    states = table[missed[0].astype(np.int64), missed[1].astype(np.int64)]
    return np.where(a.crowd[in_a], _CROWD, states), (in_a, in_b)


def _pictures(
    result: CocoComparison, states: Ints, objects: tuple[Ints, Ints], thumbnails: Thumbnails
) -> tuple[list[dict[str, object]], list[str]]:
    """Prepare the pictures, those with most differences first."""
    a, b, total = result.first, result.second, result.first.images
    image = a.scene.truths.image[objects[0]]
    shared = by_image(image, total)
    rows = by_image(a.predicted.image, total), by_image(b.predicted.image, total)
    alone = np.isin(states, (_FIRST, _SECOND))
    differ = np.bincount(image[alone], minlength=total)
    neither = np.bincount(image[states == _NEITHER], minlength=total)
    order = np.lexsort((-neither, -differ))[:MOST_PICTURES].tolist()
    pictures = []
    for index in order:
        its = rows[0][index], rows[1][index]
        pictures.append(_picture(result, index, shared[index], states, objects, its, thumbnails))
    notices = []
    if len(order) < total:
        notices.append(
            f"{len(order):,} of {total:,} pictures are here, those that differ most. The numbers "
            "count all pictures."
        )
    return pictures, notices


def _picture(
    result: CocoComparison,
    index: int,
    shared: Ints,
    states: Ints,
    objects: tuple[Ints, Ints],
    rows: tuple[Ints, Ints],
    thumbnails: Thumbnails,
) -> dict[str, object]:
    """One picture as the page's script reads it; ``others`` are the second predictions."""
    sides = result.first, result.second
    image, truths = sides[0].scene.images[index], sides[0].scene.truths
    drawn = shared[np.isin(objects[0][shared], largest(truths, objects[0][shared]))]
    kept = [best_rows(side.predicted, row) for side, row in zip(sides, rows, strict=True)]
    thumb = thumbnails.of(image)
    boxes = [side.predicted.box[row] for side, row in zip(sides, kept, strict=True)]
    size = canvas(image, thumb, truths.box[objects[0][drawn]], *boxes)
    scale = SIDE / max(size)
    index_of = [{row: n for n, row in enumerate(of[drawn].tolist())} for of in objects]
    predictions = [
        prediction_rows(side, row, image, scale, numbers)
        for side, row, numbers in zip(sides, kept, index_of, strict=True)
    ]
    outlines = shapes(truths, objects[0][drawn], image, scale)
    return {
        "name": image.file_name or f"image {image.id}",
        "thumb": None if thumb is None else thumb[0],
        "width": round(size[0] * scale, 1),
        "height": max(1.0, round(size[1] * scale, 1)),
        "counts": [_counts(side, row) for side, row in zip(sides, rows, strict=True)],
        "only": [int(np.count_nonzero(states[shared] == one)) for one in (_FIRST, _SECOND)],
        "truths": [
            [int(truths.category[objects[0][row]]), int(states[row]), *shape]
            for row, shape in zip(drawn.tolist(), outlines, strict=True)
        ],
        "predictions": predictions[0],
        "others": predictions[1],
    }


def _counts(side: CocoEvaluation, rows: Ints) -> list[int]:
    """Count the right and the wrong predictions."""
    kinds: npt.NDArray[np.str_] = side.matches.kind[rows]
    right, ignored = np.count_nonzero(kinds == "ok"), np.count_nonzero(kinds == "ignored")
    return [int(right), int(len(rows) - right - ignored)]


def _numbers(result: CocoComparison) -> list[dict[str, object]]:
    """List every number: of both, their difference, its interval, and what that means."""
    texts = result.first.meanings | _RATES | F1_AT
    rows: list[dict[str, object]] = []
    for name, of_a, of_b, change in result.changes():
        if np.isnan(change):
            continue
        interval = result.intervals.get(name)
        clear = interval is not None and (interval.low > 0 or interval.high < 0)
        better = "B is better" if change > 0 else "A is better"
        rows.append(
            {
                "name": name,
                "a": float(of_a),
                "b": float(of_b),
                "change": float(change),
                "interval": interval,
                "clear": clear,
                "verdict": better if clear else "no clear difference" if interval else "",
                "text": texts[name],
            }
        )
    return rows


def _classes(
    result: CocoComparison, states: Ints, objects: tuple[Ints, Ints]
) -> list[dict[str, object]]:
    """Return a row per class, with the number of objects that one side alone detects."""
    truths = result.first.scene.truths
    of: dict[str, list[int]] = {}
    names = [item["name"] for item in result.first.scene.categories]
    for category, state in zip(truths.category[objects[0]].tolist(), states.tolist(), strict=True):
        counts = of.setdefault(names[category], [0] * 5)
        counts[state] += 1
    return [
        {**row, "only_a": counts[_FIRST], "only_b": counts[_SECOND], "neither": counts[_NEITHER]}
        for row in result.rows()
        for counts in (of.get(row["category"], [0] * 5),)
    ]
