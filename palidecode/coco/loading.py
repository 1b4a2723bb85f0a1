"""Detections out of COCO JSON: datasets and results lists."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.coco.writing import CocoReport
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import check_size, read_json
from palidecode.geometry.boxes import xywh_to_xyxy
from palidecode.geometry.rle import Rle, check_rle, rings_to_rle
from palidecode.vocab import SEG_PER_MASK

_MAX_COORDINATE = 1e9  # as for the evaluation: what is beyond a billion pixels is no box
_MAX_SCORE = float(np.finfo(np.float32).max)


def from_coco(
    dataset: str | os.PathLike[str] | Mapping[str, Any],
    *,
    crowds: bool = False,
    report: CocoReport | None = None,
) -> Detections:
    """A COCO dataset to detections: its boxes, labels, and masks as RLE.

    Parameters
    ----------
    dataset : path or dict
    crowds : bool
        Read crowd annotations too; by default they are left out and counted in `report`.

    Raises
    ------
    InputError
        Naming the first annotation that can't be read.
    """
    data = dataset if isinstance(dataset, Mapping) else read_json(dataset)
    where = "dataset" if isinstance(dataset, Mapping) else str(dataset)
    if not isinstance(data, Mapping) or not isinstance(data.get("images"), list):
        kind = "a results list; use from_coco_results" if isinstance(data, list) else "no dataset"
        raise InputError(f"{where}: a COCO dataset has 'images' and 'annotations'; this is {kind}")
    rows = data.get("annotations") or []
    if not isinstance(rows, list):
        raise InputError(f"{where}: 'annotations' must be a list")
    solid = [
        row for row in rows if crowds or not isinstance(row, Mapping) or not row.get("iscrowd")
    ]
    if report is not None:
        report.crowds += len(rows) - len(solid)
    return _read_rows(solid, data, where)


def from_coco_results(
    results: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    dataset: str | os.PathLike[str] | Mapping[str, Any],
) -> Detections:
    """A COCO results list to detections of the images of its dataset.

    Raises
    ------
    InputError
        Naming the first row that can't be read, or whose image or category is unknown.
    """
    rows, where = results, "results"
    if isinstance(results, (str, os.PathLike)):
        rows, where = read_json(results), str(results)
    data = dataset if isinstance(dataset, Mapping) else read_json(dataset)
    if not isinstance(rows, list):
        raise InputError(f"{where}: COCO results are a list; for a dataset use from_coco")
    if not isinstance(data, Mapping):
        raise InputError("the dataset of COCO results has 'images' and 'categories'; this is none")
    return _read_rows(rows, data, where)


def _read_rows(rows: Sequence[Any], data: Mapping[str, Any], where: str) -> Detections:
    try:
        images = {image["id"]: place for place, image in enumerate(data["images"])}
        sizes = [
            check_size((int(image["width"]), int(image["height"]))) for image in data["images"]
        ]
        names = {item["id"]: str(item["name"]) for item in data["categories"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: images need id, width, height, categories id, name ({error!r})"
        ) from error
    labels, boxes, scores, index = [], [], [], []
    rles: list[Rle | None] = []
    for place, row in enumerate(rows):
        try:
            image = images[row["image_id"]]
            rle = read_segmentation(row.get("segmentation"), sizes[image])
            boxes.append(_read_box(row, rle))
            labels.append(names[row["category_id"]])
            scores.append(_read_score(row.get("score")))
            index.append(image)
            rles.append(rle)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"unknown {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{where}: annotation {place}: {reason}") from error
    return Detections(
        xyxy=xywh_to_xyxy(boxes).astype(np.float32),
        labels=labels,
        scores=np.asarray(scores, np.float32),
        image_index=np.asarray(index, np.int64),
        sizes=np.asarray(sizes, np.int64).reshape(-1, 2),
        codes=np.zeros((len(labels), SEG_PER_MASK), np.uint8),
        has_mask=np.fromiter((rle is not None for rle in rles), np.bool_, len(rles)),
        rles=rles,
    )


def _read_box(row: Mapping[str, Any], rle: Rle | None) -> npt.NDArray[np.float64]:
    box = row.get("bbox")
    if box is None and rle is not None:
        box = coco_mask.toBbox(rle)
    values = np.asarray(box, np.float64)
    if values.shape != (4,) or not (np.abs(values) <= _MAX_COORDINATE).all():
        raise ValueError(f"bbox must be four finite numbers, none above 1e9, got {box!r}")
    return values


def _read_score(score: Any) -> float:
    number = math.nan if score is None else float(score)
    if abs(number) > _MAX_SCORE:
        raise ValueError(f"score must be a finite number, got {score!r}")
    return number


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> Rle | None:
    """Polygons, RLE or compressed RLE to compressed RLE; None where there is none."""
    if not segmentation:
        return None
    width, height = size
    if isinstance(segmentation, Mapping):
        rle = check_rle(dict(segmentation))
        if rle["size"] != [height, width]:
            raise ValueError(f"an RLE of size {rle['size']} in an image of {[height, width]}")
        return rle
    return rings_to_rle(segmentation, size)
