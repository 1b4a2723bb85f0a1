"""One row per object as CSV and Parquet, and CreateML's JSON."""

from __future__ import annotations

import json
import os
from typing import Any

from palidecode import interop
from palidecode.detections.tables import write_csv as write_columns
from palidecode.files import replacing
from palidecode.formats.objects import ConvertReport, Dataset, visible


def write_csv(dataset: Dataset, path: str | os.PathLike[str], report: ConvertReport) -> None:
    """Write a header and one line per object; unknown values are empty."""
    columns = _columns(dataset, report)
    columns["crowd"] = list(map(int, columns["crowd"]))
    write_columns(columns, path)


def write_parquet(dataset: Dataset, path: str | os.PathLike[str], report: ConvertReport) -> None:
    """Write one row per object; unknown values are null.

    Raises
    ------
    InputError
        If pyarrow isn't installed.
    """
    arrow = interop.load("pyarrow")
    parquet = interop.load("pyarrow.parquet")
    kinds = {"width": arrow.int64(), "height": arrow.int64(), "crowd": arrow.bool_()}
    kinds |= dict.fromkeys(("score", "x1", "y1", "x2", "y2"), arrow.float64())
    columns = _columns(dataset, report)
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in columns])
    with replacing(path, "wb") as file:
        parquet.write_table(arrow.table(columns, schema=schema), file)


def _columns(dataset: Dataset, report: ConvertReport) -> dict[str, list[Any]]:
    """Return a column per property; masks as COCO has them, in JSON."""
    rows = [(picture, item) for picture in dataset.pictures for item in picture.objects]
    report.objects += len(rows)
    ids = [picture.id for picture, _ in rows]
    corners = {name: [i.box[n] for _, i in rows] for n, name in enumerate(("x1", "y1", "x2", "y2"))}
    return {
        "image": [picture.name for picture, _ in rows],
        "image_id": [None if name is None else str(name) for name in ids],
        "width": [picture.width for picture, _ in rows],
        "height": [picture.height for picture, _ in rows],
        "label": [item.label for _, item in rows],
        "score": [item.score for _, item in rows],
        **corners,
        "crowd": [item.crowd for _, item in rows],
        "segmentation": [None if i.mask is None else json.dumps(i.mask) for _, i in rows],
    }


def write_createml(dataset: Dataset, path: str | os.PathLike[str], report: ConvertReport) -> None:
    """Write CreateML's JSON: pictures with labels and boxes, given by centre and size."""
    pictures = [
        {
            "image": picture.name,
            "annotations": [
                {
                    "label": item.label,
                    "coordinates": {
                        "x": round((x1 + x2) / 2, 3),
                        "y": round((y1 + y2) / 2, 3),
                        "width": round(x2 - x1, 3),
                        "height": round(y2 - y1, 3),
                    },
                }
                for item, (x1, y1, x2, y2) in visible(picture, report)
            ],
        }
        for picture in dataset.pictures
    ]
    with replacing(path) as file:
        json.dump(pictures, file, ensure_ascii=False)
        file.write("\n")
