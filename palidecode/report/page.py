"""The report page: an evaluation's numbers in the template.

The page is one file: it loads no script, font or picture, and its content security policy forbids
any. Only its own script may run, allowed by hash, so a label that is a script stays a label.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import numpy as np

from palidecode.coco.reading import read_info
from palidecode.evaluation.coco.engine import NOT_LVIS
from palidecode.evaluation.coco.measures import F1_AT, Confusion, Curve
from palidecode.evaluation.coco.result import MEANINGS, CocoEvaluation
from palidecode.files import replacing
from palidecode.report.embedding import digest, embedded, joined
from palidecode.report.gallery import MOST_BYTES, Gallery, Thumbnails, copy_side, gallery
from palidecode.version import __version__
from palidecode.wording import many

MOST_CONFUSED = 30
"""Classes with their own row in the confusion matrix; the others share one."""

_MOST_PAIRS = 10
_SHOWN_PROMPTS = 5
_FACTS = {
    "model": "model",
    "prompts": "prompts",
    "score": "scores",
    "description": "made by",
}

TABS = {"bbox": "Boxes", "segm": "Masks"}

# Word, TIDE's name, meaning.
ERRORS = (
    ("localisation", "Loc", "of the right class, but fits badly (IoU 0.1 to 0.5)"),
    ("class", "Cls", "on an object of another class"),
    ("both", "Both", "on an object of another class, but fits badly"),
    ("duplicate", "Dupe", "on an object that is already detected"),
    ("background", "Bkg", "on nothing"),
    ("missed", "Miss", "absent: the object is not detected"),
)


def write_report(
    path: str | os.PathLike[str],
    results: Mapping[str, CocoEvaluation],
    *,
    images: str | os.PathLike[str] | None = None,
    truth_name: str = "ground truth",
    predictions_name: str = "predictions",
    below: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    """Write evaluations of the same predictions as one self-contained HTML page.

    `results` gives a tab for each of ``bbox`` and ``segm``. Without `images`, the folder of the
    pictures, boxes are drawn on blank canvases. `below` describes the numbers below their limit,
    `facts` says how the predictions were made; see `made_with`.
    """
    most = max((result.images for result in results.values()), default=0)
    thumbnails = Thumbnails(images, copy_side(most))
    share = MOST_BYTES // max(len(results), 1)
    galleries = {kind: gallery(result, thumbnails, share) for kind, result in results.items()}
    notices = thumbnails.notices()
    if images is None:
        notices.append("Boxes are drawn on blank canvases: --images DIR shows the pictures.")
    kinds = {
        kind: {
            "classes": [item["name"] for item in result.scene.categories],
            "curves": [curve.name for curve in _curves_at(result, 0.5)[1:]],
            "pictures": galleries[kind].pictures,
        }
        for kind, result in results.items()
    }
    write_page(
        path,
        "page.html",
        {"thumbs": thumbnails.encoded, "kinds": kinds},
        truth_name=truth_name,
        predictions_name=predictions_name,
        below=below,
        tabs=TABS,
        sections={kind: _section(r, kind, galleries[kind]) for kind, r in results.items()},
        picture_notices=notices,
        meanings=MEANINGS,
        facts=facts,
    )


def write_page(
    path: str | os.PathLike[str],
    template: str,
    data: Mapping[str, object],
    *,
    beside: bool = False,
    **variables: object,
) -> None:
    """Render a template with the style, the script and its data, and write the page.

    `beside` lets the page load pictures from its own folder.
    """
    script = joined("report/shared.js", "report/page.js")
    html = _template(template).render(
        variables,
        beside=beside,
        version=__version__,
        style=joined("report/page.css"),
        script=script,
        script_hash=digest(script),
        data=embedded(data),
    )
    with replacing(path) as file:
        file.write(html)


def made_with(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """List how a file of predictions was made: words and values for the top of a page.

    The model, prompts, score recipe and version are those of a COCO file's ``info``; the date is
    that of the file.
    """
    info = read_info(path) if os.fspath(path).endswith(".json") else {}
    facts = [(word, _listed(info.get(key))) for key, word in _FACTS.items()]
    day = datetime.fromtimestamp(os.stat(path).st_mtime).astimezone()
    facts.append(("date", day.strftime("%Y-%m-%d %H:%M %z")))
    return [(word, text) for word, text in facts if text]


def _listed(value: object) -> str:
    if not isinstance(value, list):
        return value if isinstance(value, str) else ""
    shown = [str(item) for item in value[:_SHOWN_PROMPTS]]
    more = len(value) - len(shown)
    return " · ".join(shown) + (f" · and {more:,} more" if more else "")


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("palidecode", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "count": _count, "many": many, "signed": _signed}
    return environment.get_template(name)


def _section(result: CocoEvaluation, kind: str, pictures: Gallery) -> dict[str, object]:
    """Collect the template's variables for one evaluation."""
    # Needs an extra; the page of `write_view` has no plots.
    from palidecode.report.plots import calibration_svg, curves_svg, f1_svg, kinds_svg, sizes_svg

    curves = {iou: _curves_at(result, iou) for iou in (0.5, 0.75)}
    gains: Mapping[str, float] = result.tide.get("delta_ap", {})
    errors: list[dict[str, Any]] = [
        {"word": word, "count": result.kinds.get(word, 0), "gain": gains.get(name), "text": text}
        for word, name, text in ERRORS
    ]
    calibration = result.calibration
    return {
        "result": result,
        "headline": _headline(result),
        "metrics": _metrics(result),
        "score_free": [
            {
                "name": name,
                "value": None if np.isnan(value) else value,
                "interval": None,
                "spread": 0,
                "text": F1_AT[name],
            }
            for name, value in result.score_free.numbers.items()
        ],
        "subsets": [
            {
                "name": some.name,
                "value": None if np.isnan(some.ap) else some.ap,
                "interval": result.intervals.get(some.name),
                "spread": 0,
                "text": some.text,
            }
            for some in result.subsets
        ],
        "errors": errors,
        "ignored": result.kinds.get("ignored", 0),
        "kinds_plot": kinds_svg([(e["word"], e["count"], e["gain"]) for e in errors], f"{kind}-k"),
        "curves": [
            (iou, curves_svg(shown, f"{kind}-c{round(iou * 100)}"))
            for iou, shown in curves.items()
            if shown
        ],
        "curve_names": [curve.name for curve in curves[0.5][1:]],
        "calibration": calibration,
        "calibration_plot": (
            None if calibration is None else calibration_svg(calibration["bins"], f"{kind}-e")
        ),
        "f1_plot": f1_svg(result.score_free, f"{kind}-f"),
        "sizes_plot": sizes_svg(result.sizes, f"{kind}-s"),
        "classes": result.rows(),
        "confusion": _confusion(result.confusion),
        "notices": pictures.notices,
        "shown": len(pictures.pictures),
        "masks": kind == "segm",
    }


def _curves_at(result: CocoEvaluation, iou: float) -> list[Curve]:
    return [curve for curve in result.curves if curve.iou == iou]


def _headline(result: CocoEvaluation) -> list[dict[str, object]]:
    """The headline numbers: value, range and meaning."""
    rates = result.rates
    shown = ("AP", "AP50", "AP75", "AR100", "AR300")
    numbers = [row for row in _metrics(result) if row["name"] in shown]
    total = rates.right + rates.wrong
    objects = rates.right + rates.missed
    for name, value, text in (
        ("precision", rates.precision, f"right: {rates.right:,} of {many(total, 'prediction')}"),
        ("recall", rates.recall, f"detected: {rates.right:,} of {many(objects, 'object')}"),
        ("F1", rates.f1, "balance of precision and recall"),
    ):
        known = None if np.isnan(value) else value
        interval = result.intervals.get(name)
        numbers.append(
            {"name": name, "value": known, "interval": interval, "spread": 0, "text": text}
        )
    return numbers


def _metrics(result: CocoEvaluation) -> list[dict[str, object]]:
    numbers = result.as_dict()
    values = numbers["metrics"] | (numbers["lvis"] or {})
    return [
        {
            "name": name,
            "value": value,
            "interval": result.intervals.get(name),
            "spread": numbers["spread"].get(name, 0)
            if result.unscored and value is not None
            else 0,
            "text": result.meanings[name],
        }
        for name, value in values.items()
        if not (result.lvis and name in NOT_LVIS)
    ]


def _confusion(confusion: Confusion) -> dict[str, object]:
    """The confusion matrix with shares of each row; the least confused classes share a row.

    Returns
    -------
    dict
        ``names``, ``cells`` (rows of count and share), ``pairs`` (true class, predicted class,
        count), ``merged`` (number of classes in the row ``others``).
    """
    row, column, count = confusion.cells.T
    names = list(confusion.names)
    classes = len(names) - 1
    wrong = row != column
    between = np.flatnonzero(wrong & (row < classes) & (column < classes))
    most = between[np.argsort(-count[between], kind="stable")][:_MOST_PAIRS]
    pairs = [(names[row[cell]], names[column[cell]], int(count[cell])) for cell in most]
    merged = max(classes - MOST_CONFUSED, 0)
    group = np.arange(classes + 1)
    if merged:
        weight = np.zeros(classes + 1, np.int64)
        for side in (row, column):
            np.add.at(weight, side[wrong], count[wrong])
        kept = np.sort(np.argsort(-weight[:classes], kind="stable")[:MOST_CONFUSED])
        group[:] = len(kept)
        group[kept] = np.arange(len(kept))
        group[classes] = len(kept) + 1
        names = [*(names[index] for index in kept.tolist()), f"{merged:,} others", names[-1]]
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (group[row], group[column]), count)
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = [
        list(zip(row, share, strict=True))
        for row, share in zip(counts.tolist(), (counts / total).round(3).tolist(), strict=True)
    ]
    return {"names": names, "cells": cells, "pairs": pairs, "merged": merged}


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _count(value: int) -> str:
    return f"{value:,}"
