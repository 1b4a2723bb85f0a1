"""COCO datasets and results lists to `Detections`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from palidecode.coco.categories import Category
from palidecode.coco.mask_reading import read_mask
from palidecode.coco.reading import (
    MAX_SCORE,
    AnyRow,
    ImageRow,
    Row,
    Xywh,
    index_by_id,
    is_box,
    no_collection,
    read_dataset,
    read_predictions,
    sized_images,
)
from palidecode.coco.skips import Side, Skips
from palidecode.coco.writing import CocoReport
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.geometry.boxes import xywh_to_xyxy
from palidecode.geometry.rle import Rle
from palidecode.vocab import SEG_PER_MASK


def from_coco(
    dataset: str | os.PathLike[str] | Mapping[str, Any],
    *,
    crowds: bool = False,
    report: CocoReport | None = None,
) -> Detections:
    """Read a COCO dataset: its images with names and ids, boxes, labels, and masks as RLE.

    Rows that can't be read are skipped, listed in `report`, and named in a warning.

    Parameters
    ----------
    dataset : path or dict
    crowds : bool
        Read crowd annotations too; by default they are skipped and counted in `report`.
    report : CocoReport, optional
        Is filled with what was skipped.

    Warns
    -----
    SkippedRowsWarning
        If some rows can't be read.

    Raises
    ------
    InputError
        If the file is no COCO dataset, or no image or annotation of it can be read.
    """
    skips = Skips()
    with no_collection():
        read = read_dataset(
            dataset, Row, skips, needs=("images", "categories"), unused=("id", "area")
        )
    rows = [item for item in read.annotations.numbered() if crowds or not item[1].iscrowd]
    if report is not None:
        report.crowds += len(read.annotations.rows) - len(rows)
    images = sized_images(read, skips)
    detections = _detections(rows, images, read.categories, "truth", skips)
    _tell(detections, skips, read.where, report)
    return detections


def from_coco_results(
    results: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    dataset: str | os.PathLike[str] | Mapping[str, Any],
    *,
    report: CocoReport | None = None,
) -> Detections:
    """Read a COCO results list as detections of the images of its dataset.

    Rows that can't be read are skipped, listed in `report`, and named in a warning.

    Parameters
    ----------
    results : path or list of dict
    dataset : path or dict
    report : CocoReport, optional
        Is filled with what was skipped.

    Warns
    -----
    SkippedRowsWarning
        If some rows can't be read, or their image or category is unknown.

    Raises
    ------
    InputError
        If the files are no COCO results and dataset, or no row can be read.
    """
    skips = Skips()
    with no_collection():
        read = read_predictions(results, Row, skips)
        if not read.is_list:
            raise InputError(f"{read.where}: COCO results are a list; for a dataset use from_coco")
        truth = read_dataset(dataset, AnyRow, skips, needs=("images", "categories"))
    images = sized_images(truth, skips)
    rows = read.annotations.numbered()
    detections = _detections(rows, images, truth.categories, "prediction", skips)
    _tell(detections, skips, read.where, report)
    return detections


class SoundRow(NamedTuple):
    """An annotation that can be used: the index of its image, its label, box and mask."""

    row: Row
    image_index: int
    label: str
    box: Xywh
    rle: Rle | None


def sound_rows(
    rows: Sequence[tuple[int, Row]],
    images: list[ImageRow],
    categories: list[Category],
    side: Side,
    skips: Skips,
) -> Iterator[SoundRow]:
    """Yield the rows (offset, row) that can be used; skip the others."""
    index_of = index_by_id(images)
    names = {item["id"]: item["name"] for item in categories}
    for offset, row in rows:
        at, index = skips.at(side, offset), index_of.get(row.image_id)
        if index is None:
            example = f"{at} is about image {row.image_id!r}"
            skips.add(side, "unknown_image", offset, example)
        elif row.category_id not in names:
            number = str(row.category_id)
            skips.add_many(side, "unknown_category", [offset], [number], {number: 1})
        elif row.score is not None and not abs(row.score) <= MAX_SCORE:
            skips.add(side, "bad_score", offset, f"{at}: {row.score}")
        else:
            image = images[index]
            try:
                rle, skipped_rings = read_mask(row.segmentation, (image.width, image.height))
            except InputError as error:
                skips.add(side, "bad_mask", offset, f"{at}: {error}")
                continue
            box = coco_mask.toBbox(rle).tolist() if row.bbox is None and rle else row.bbox
            if box is None:
                skips.add(side, "no_box", offset, at)
                continue
            if not is_box(box):
                skips.add(side, "bad_box", offset, f"{at}: {list(box)}")
                continue
            if skipped_rings:
                skips.note(side, "bad_ring", [offset])
            yield SoundRow(row, index, names[row.category_id], box, rle)


def _detections(
    rows: Sequence[tuple[int, Row]],
    images: list[ImageRow],
    categories: list[Category],
    side: Side,
    skips: Skips,
) -> Detections:
    sound = list(sound_rows(rows, images, categories, side, skips))
    rles = [item.rle for item in sound]
    scores = [np.nan if item.row.score is None else item.row.score for item in sound]
    sizes = np.array([(image.width, image.height) for image in images], np.int64)
    return Detections(
        xyxy=xywh_to_xyxy([item.box for item in sound]).astype(np.float32),
        labels=[item.label for item in sound],
        scores=np.array(scores, np.float32),
        image_index=np.array([item.image_index for item in sound], np.int64),
        sizes=sizes.reshape(-1, 2),
        codes=np.zeros((len(sound), SEG_PER_MASK), np.uint8),
        has_mask=np.fromiter((rle is not None for rle in rles), np.bool_, len(rles)),
        rles=rles,
        names=[image.file_name or "" for image in images],
        image_ids=[image.id for image in images],
    )


def _tell(detections: Detections, skips: Skips, where: str, report: CocoReport | None) -> None:
    """Report what was skipped; an error if nothing is left."""
    if not len(detections) and any(skip.side in ("truth", "prediction") for skip in skips.skipped):
        raise InputError(f"{where}: no row can be read: {skips}")
    if report is not None:
        report.skipped += skips.skipped
        report.noted += skips.noted
    skips.warn(where)
