"""Rows of found objects in a Ray Dataset, one per picture or answer, and as Arrow tables.

==================  =============================================================================
``image``           the picture's name
``width, height``   in pixels; null where it could not be read
``boxes``           x1, y1, x2, y2 in pixels, for each object
``labels``          one per object
``scores``          one per object, null where unknown
``codes``           the sixteen mask codes in hexadecimal, null where there are none
``rles``            COCO's compressed RLE, ``{"size": [height, width], "counts": …}``, or null
``issues``          what was odd in the answer: ``kind``, ``start``, ``stop``, ``text``
``reason``          what was left out, and why; null when nothing was
==================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from palidecode.detections import Detections
from palidecode.runs.journal import Row
from palidecode.runs.prediction import PictureFile, picture_rows

if TYPE_CHECKING:
    import pyarrow as pa

OBJECT_COLUMNS = ("boxes", "labels", "scores", "codes", "rles", "issues")


def row_schema() -> pa.Schema:
    """The columns of found objects."""
    import pyarrow as pa

    rle = pa.struct({"size": pa.list_(pa.int64()), "counts": pa.string()})
    issue = {"kind": pa.string(), "start": pa.int64(), "stop": pa.int64(), "text": pa.string()}
    return pa.schema(
        {
            "image": pa.string(),
            "width": pa.int64(),
            "height": pa.int64(),
            "boxes": pa.list_(pa.list_(pa.float64())),
            "labels": pa.list_(pa.string()),
            "scores": pa.list_(pa.float64()),
            "codes": pa.list_(pa.string()),
            "rles": pa.list_(rle),
            "issues": pa.list_(pa.struct(issue)),
            "reason": pa.string(),
        }
    )


def found_rows(pictures: Sequence[PictureFile], found: Detections) -> list[Row]:
    """`picture_rows` with the masks as RLE, too: a row for each picture."""
    rows = picture_rows(pictures, found)
    rles: list[list[Any]] = [[] for _ in rows]
    for image, rle in zip(found.image_index.tolist(), found.to_rle(), strict=True):
        rles[image].append(rle)
    for row, masks in zip(rows, rles, strict=True):
        row["rles"] = masks
        row["codes"] = [mask if isinstance(mask, str) else None for mask in row.pop("masks")]
        row["issues"] = [
            {"kind": kind, "start": start, "stop": stop, "text": text}
            for kind, (start, stop), text in row["issues"]
        ]
    return rows


def failed_row(name: str | None, reason: str) -> Row:
    """The row of what could not be used at all."""
    return {"image": name, **{column: [] for column in OBJECT_COLUMNS}, "reason": reason}


def journal_row(record: Mapping[str, Any]) -> Row:
    """A row of a table back to one of `picture_rows`, with RLE for masks."""
    row = {name: record[name] for name in ("image", "width", "height", "boxes", "labels")}
    issues = [[i["kind"], (i["start"], i["stop"]), i["text"]] for i in record["issues"]]
    return row | {"scores": record["scores"], "masks": record["rles"], "issues": issues}


def to_table(rows: Iterable[Row]) -> pa.Table:
    """Rows as an Arrow table."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), row_schema())
