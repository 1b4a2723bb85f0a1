"""Detections as rows of a Ray Dataset, one per picture or answer, and the job that writes them.

==================  =============================================================================
``image``           the picture's name
``width, height``   in pixels; absent where it could not be used
``boxes``           x1, y1, x2, y2 in pixels, for each object
``labels``          one per object
``scores``          one per object, None where unknown
``codes``           the sixteen mask codes in hexadecimal, None without any
``rles``            COCO's compressed RLE, ``{"size": [height, width], "counts": …}``, or None
``issues``          parse issues: ``kind``, ``start``, ``stop``, ``text``
``reason``          why the row, or a part of it, was skipped; None otherwise
==================  =============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from palidecode.answers.assembler import IssueKind, ParseIssue
from palidecode.coco.shards import Result, key_of
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.runs.jobs import FailedBy, Job, Record, Worker
from palidecode.vocab import SEG_PER_MASK

Row = dict[str, Any]

OBJECT_COLUMNS = ("boxes", "labels", "scores", "codes", "rles", "issues")


def rows_of(result: Result) -> list[Row]:
    """Return a row for each row of a result, in order."""
    found = result.detections
    rows: list[Row] = [
        {"image": name, **{column: [] for column in OBJECT_COLUMNS}, "reason": None}
        for name in result.names
    ]
    for row, (width, height) in zip(result.rows, found.sizes.tolist(), strict=True):
        rows[row] |= {"width": width, "height": height}
    boxes, scores = found.xyxy.tolist(), found.scores.tolist()
    for number, (image, rle) in enumerate(
        zip(found.image_index.tolist(), found.to_rle(), strict=True)
    ):
        row, score = rows[result.rows[image]], scores[number]
        coded = found.has_mask[number] and (found.rles is None or found.rles[number] is None)
        row["boxes"].append(boxes[number])
        row["labels"].append(found.labels[number])
        row["scores"].append(None if math.isnan(score) else score)
        row["codes"].append(found.codes[number].tobytes().hex() if coded else None)
        row["rles"].append(rle)
    for image, issue in found.issues:
        start, stop = issue.span
        entry = {"kind": issue.kind.value, "start": start, "stop": stop, "text": issue.text}
        rows[result.rows[image]]["issues"].append(entry)
    for number, reason in result.reasons.items():
        rows[number]["reason"] = reason
    return rows


def detections_of(rows: Sequence[Mapping[str, Any]]) -> Detections:
    """Return the detections in rows, an image for each; masks are their RLE.

    Raises
    ------
    InputError
        For rows that are not as `rows_of` makes them.
    """
    try:
        return _detections_of(rows)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"a row is not one of palidecode's ({error!r})") from error


def _detections_of(rows: Sequence[Mapping[str, Any]]) -> Detections:
    objects = [
        (image, *one)
        for image, row in enumerate(rows)
        for one in zip(row["boxes"], row["labels"], row["scores"], row["rles"], strict=True)
    ]
    rles = [rle for *_, rle in objects]
    if not all(rle is None or isinstance(rle, dict) for rle in rles):
        raise TypeError("an RLE is a dict of 'size' and 'counts'")
    scores = [math.nan if score is None else score for _, _, _, score, _ in objects]
    return Detections(
        xyxy=np.array([box for _, box, *_ in objects], np.float32).reshape(-1, 4),
        labels=[label for _, _, label, *_ in objects],
        scores=np.array(scores, np.float32),
        image_index=np.array([image for image, *_ in objects], np.int64),
        sizes=np.array([(r["width"], r["height"]) for r in rows], np.int64).reshape(-1, 2),
        codes=np.zeros((len(objects), SEG_PER_MASK), np.uint8),
        has_mask=np.array([rle is not None for rle in rles], np.bool_),
        rles=rles if any(rles) else None,
        issues=[
            (image, ParseIssue(IssueKind(i["kind"]), (i["start"], i["stop"]), i["text"]))
            for image, row in enumerate(rows)
            for i in row["issues"]
        ],
        names=[row.get("image") or "" for row in rows],
    )


@dataclass(frozen=True)
class RowsJob(Job[Row]):
    """Writes detections that are rows already."""

    command: ClassVar[str] = "rows"
    columns: ClassVar[tuple[str, ...]] = ("image", "width", "height", *OBJECT_COLUMNS, "reason")
    once: ClassVar[bool] = False
    failed_by: ClassVar[FailedBy] = "image"
    batch_size: ClassVar[int] = 1024  # masks are RLE already: nothing is computed together

    def item(self, record: Record) -> Row:
        return dict(record)

    def key(self, item: Row) -> bytes:
        return key_of(item)

    def load(self, threads: int | None = None) -> Worker[Row]:
        return _write_rows


def _write_rows(items: Sequence[Row]) -> Result:
    rows = [row for row, item in enumerate(items) if "width" in item]
    found: Detections = detections_of([items[row] for row in rows])
    reasons = {row: item["reason"] for row, item in enumerate(items) if item.get("reason")}
    return Result(found, rows, [item.get("image") or "" for item in items], reasons)
