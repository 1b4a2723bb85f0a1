"""COCO JSON out of detections: datasets, results lists, large files. `coco_reading` reads them."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from palidecode.coco.categories import CategoryMap, Match, Unmapped
from palidecode.coco.skips import Skip
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import replacing
from palidecode.geometry.polygons import Polygons

Segmentation: TypeAlias = Literal["polygons", "exact", "rle", "none"]
Dataset: TypeAlias = dict[str, Any]
Categories: TypeAlias = Sequence[Mapping[str, Any]] | Sequence[str] | Mapping[str, Any]

_KINDS = ("polygons", "exact", "rle", "none")
FILE_START = '{"annotations": ['
_CHUNK = 512  # rows; `Detections` keeps the fields of as many


@dataclass
class CocoReport:
    """What a conversion left out or changed; everything else is in the file.

    Attributes
    ----------
    images, annotations : int
        How many were written.
    empty_boxes : int
        Inverted and empty boxes, left out: COCO can't say them.
    empty_masks : int
        Objects whose mask has no pixel; their box is kept.
    small_parts : int
        Polygon parts below `min_area`.
    crowds : int
        Crowd annotations that were not read.
    unmapped : Counter of str
        Labels without a category that were left out.
    skipped : list of Skip
        Rows that `from_coco` or `from_coco_results` could not read, with examples.
    """

    images: int = 0
    annotations: int = 0
    empty_boxes: int = 0
    empty_masks: int = 0
    small_parts: int = 0
    crowds: int = 0
    unmapped: Counter[str] = field(default_factory=Counter)
    skipped: list[Skip] = field(default_factory=list)

    def left_out(self) -> dict[str, Any]:
        """What isn't 0, for messages and for ``info.left_out`` of a dataset."""
        counts: dict[str, Any] = {
            "empty_boxes": self.empty_boxes,
            "empty_masks": self.empty_masks,
            "small_parts": self.small_parts,
            "crowds": self.crowds,
            "unmapped_labels": dict(self.unmapped),
            "skipped": sum(skip.count for skip in self.skipped),
        }
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class MaskFormat:
    """How masks are written.

    Attributes
    ----------
    segmentation : {"polygons", "exact", "rle", "none"}
        Smooth sub-pixel rings, rings along pixel edges, compressed RLE, or boxes only.
    simplify, min_area : float
        For polygons; see `Detections.to_polygons`. Holes are keyholed: COCO has no holes.
    """

    segmentation: Segmentation = "polygons"
    simplify: float = 0.0
    min_area: float = 0.0

    def __post_init__(self) -> None:
        if self.segmentation not in _KINDS:
            raise InputError(
                f"segmentation must be one of {', '.join(_KINDS)}, got {self.segmentation!r}"
            )


def to_coco(
    detections: Detections,
    *,
    categories: Categories | None = None,
    segmentation: Segmentation = "polygons",
    file_names: Sequence[str] | None = None,
    image_ids: Sequence[int] | None = None,
    match: Match = "exact",
    unmapped: Unmapped = "keep",
    aliases: Mapping[str, str] | None = None,
    simplify: float = 0.0,
    min_area: float = 0.0,
    report: CocoReport | None = None,
) -> Dataset:
    """Detections to a COCO dataset: info, images, annotations, categories.

    Parameters
    ----------
    detections : Detections
    categories : list of dict or str, or a COCO dataset, optional
        The categories to map labels to. Without it every label becomes one, in order of
        appearance; no label becomes ``object``.
    segmentation : {"polygons", "exact", "rle", "none"}
        How masks are written: see `MaskFormat`. Objects without a mask have ``[]``.
    file_names : sequence of str, optional
        One per image; the image's id by default.
    image_ids : sequence of int, optional
        One per image; 1, 2, 3 … by default.
    match, unmapped, aliases
        How labels find their category: see `CategoryMap`.
    simplify, min_area : float
        For polygons, in pixels and square pixels.
    report : CocoReport, optional
        What was left out is added to it; it also stands in ``info.left_out``.

    Returns
    -------
    dict
        ``bbox`` is x, y, width, height in pixels; ``area`` the mask's pixels, or the box's
        area without one; ``iscrowd`` 0; ``score`` where it is known.

    Raises
    ------
    InputError
        For names or ids of another number than the images, repeated ids, unknown options.
    """
    report = report if report is not None else CocoReport()
    mapping = CategoryMap(categories, match=match, unmapped=unmapped, aliases=aliases)
    images = images_of(detections, file_names, image_ids)
    form = MaskFormat(segmentation, simplify, min_area)
    ids = [image["id"] for image in images]
    annotations: list[dict[str, Any]] = []
    for annotation in annotations_of(detections, ids, mapping, form, report):
        annotations.append({"id": len(annotations) + 1, **annotation, "iscrowd": 0})
    report.images += len(images)
    return {
        "info": _info(report),
        "images": images,
        "annotations": annotations,
        "categories": mapping.categories,
    }


def to_coco_results(
    detections: Detections,
    *,
    categories: Categories | None = None,
    segmentation: Segmentation = "rle",
    image_ids: Sequence[int] | None = None,
    match: Match = "exact",
    unmapped: Unmapped = "drop",
    aliases: Mapping[str, str] | None = None,
    default_score: float = 1.0,
    report: CocoReport | None = None,
) -> list[dict[str, Any]]:
    """Detections to a COCO results list, as evaluators load it.

    Parameters
    ----------
    detections, categories, segmentation, image_ids, match, aliases, report
        As for `to_coco`. Give the categories and image ids of the ground truth.
    unmapped : {"drop", "keep", "error"}
        Evaluators don't know new categories, so the default is to leave those rows out,
        counted in `report`.
    default_score : float
        For rows whose score isn't known: results must have one.

    Returns
    -------
    list of dict
        ``image_id``, ``category_id``, ``bbox``, ``score``, and ``segmentation`` where there
        is a mask.
    """
    report = report if report is not None else CocoReport()
    mapping = CategoryMap(categories, match=match, unmapped=unmapped, aliases=aliases)
    ids = [image["id"] for image in images_of(detections, None, image_ids)]
    results = []
    for found in annotations_of(detections, ids, mapping, MaskFormat(segmentation), report):
        if not found["segmentation"]:
            del found["segmentation"]
        found.setdefault("score", default_score)
        results.append(found)
    return results


def images_of(
    detections: Detections,
    file_names: Sequence[str] | None,
    image_ids: Sequence[int] | None,
) -> list[dict[str, Any]]:
    """COCO image entries, or an `InputError` where names or ids don't fit."""
    count = len(detections.sizes)
    ids = range(1, count + 1) if image_ids is None else image_ids
    names = [str(number) for number in ids] if file_names is None else file_names
    if len(ids) != count or len(names) != count:
        raise InputError(
            f"{count} images need as many image_ids ({len(ids)}) and file_names ({len(names)})"
        )
    if len(set(ids)) != count:
        raise InputError("image_ids must all be different")
    return [
        {"id": int(number), "file_name": name, "width": width, "height": height}
        for number, name, (width, height) in zip(ids, names, detections.sizes.tolist(), strict=True)
    ]


def annotations_of(
    detections: Detections,
    image_ids: Sequence[int],
    mapping: CategoryMap,
    form: MaskFormat,
    report: CocoReport,
) -> Iterator[dict[str, Any]]:
    """What annotations and results share, row by row; rows that can't be said are counted."""
    sides = detections.xyxy[:, 2:] - detections.xyxy[:, :2]
    solid = (sides > 0).all(axis=1) if len(detections) else np.zeros(0, np.bool_)
    ids = [mapping.id_of(label) for label in detections.labels]
    report.empty_boxes += int((~solid).sum())
    report.unmapped.update(mapping.left_out)
    mapping.left_out.clear()
    kept = np.flatnonzero(solid & np.fromiter((i is not None for i in ids), np.bool_, len(ids)))
    for start in range(0, len(kept), _CHUNK):
        rows = kept[start : start + _CHUNK]
        part = detections.select(rows)
        masks, areas = _segmentations(part, form, report)
        corners = np.round(part.xyxy.astype(np.float64), 3).tolist()
        scores = part.scores.tolist()
        for row, place in enumerate(rows.tolist()):
            x1, y1, x2, y2 = corners[row]
            width, height = round(x2 - x1, 3), round(y2 - y1, 3)
            found: dict[str, Any] = {
                "image_id": image_ids[int(part.image_index[row])],
                "category_id": ids[place],
                "bbox": [x1, y1, width, height],
                "area": round(width * height, 3) if areas[row] is None else areas[row],
                "segmentation": masks[row],
            }
            if not math.isnan(scores[row]):
                found["score"] = scores[row]
            report.annotations += 1
            yield found


def _segmentations(
    part: Detections, form: MaskFormat, report: CocoReport
) -> tuple[list[Any], list[float | None]]:
    """COCO's ``segmentation`` and the mask's area of every row; [] and None without a mask."""
    areas: list[float | None] = [None] * len(part)
    masks: list[Any] = [[] for _ in areas]
    if form.segmentation == "none" or not part.has_mask.any():
        return masks, areas
    rles = part.to_rle()
    polygons: list[Polygons | None] = [None] * len(part)
    if form.segmentation != "rle":
        polygons = part.to_polygons(
            "smooth" if form.segmentation == "polygons" else "exact",
            simplify=form.simplify,
            min_area=form.min_area,
            holes="keyhole",
        )
    for row, rle in enumerate(rles):
        if rle is None:
            continue
        area = areas[row] = float(coco_mask.area(rle))
        report.empty_masks += area == 0
        rings = polygons[row]
        masks[row] = rle if rings is None else rings.to_coco()
        report.small_parts += 0 if rings is None else rings.dropped
    return masks, areas


def _info(report: CocoReport) -> dict[str, Any]:
    from palidecode.version import __version__

    info: dict[str, Any] = {"description": f"palidecode {__version__}"}
    if report.left_out():
        info["left_out"] = report.left_out()
    return info


class CocoWriter:
    """Writes a COCO dataset piece by piece; memory doesn't grow with the file.

    The file appears at `path` when the ``with`` block ends well, and not otherwise.

    Parameters
    ----------
    path : str or path
    categories, match, unmapped, aliases
        As for `to_coco`.
    form : MaskFormat
        How masks are written.
    info : mapping, optional
        More for the dataset's ``info``.

    Examples
    --------
    >>> import os, tempfile
    >>> from palidecode import decode
    >>> path = os.path.join(tempfile.mkdtemp(), "coco.json")
    >>> with CocoWriter(path) as writer:
    ...     writer.add(decode(["<loc0000><loc0000><loc0512><loc0512> cat"], [(64, 64)]), ["a.jpg"])
    >>> writer.report.annotations, os.path.exists(path)
    (1, True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        categories: Categories | None = None,
        match: Match = "exact",
        unmapped: Unmapped = "keep",
        aliases: Mapping[str, str] | None = None,
        form: MaskFormat | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.report = CocoReport()
        self._more = dict(info or {})
        self._form = form or MaskFormat()
        self._mapping = CategoryMap(categories, match=match, unmapped=unmapped, aliases=aliases)
        self._ids: dict[str, int] = {}
        self._opening: AbstractContextManager[IO[Any]] = replacing(path)
        self._file: IO[str]
        self._images: IO[str]

    def __enter__(self) -> CocoWriter:
        self._file = self._opening.__enter__()
        self._file.write(FILE_START)
        # Images wait in a file of their own: COCO wants each kind in one list.
        self._images = tempfile.TemporaryFile("w+", encoding="utf-8")
        return self

    def add(self, detections: Detections, file_names: Sequence[str] | None = None) -> None:
        """Write some images, also those without objects, and their annotations.

        Images of a name that was written before are not written again: several answers about
        one picture become annotations of one image.
        """
        names = file_names or [""] * len(detections.sizes)
        ids = [self._add_image(image) for image in images_of(detections, names, None)]
        written = self.report.annotations
        for found in annotations_of(detections, ids, self._mapping, self._form, self.report):
            written += 1
            start = ",\n" if written > 1 else "\n"
            self._file.write(start + _line({"id": written, **found, "iscrowd": 0}))

    def _add_image(self, image: dict[str, Any]) -> int:
        """The id of an image; it is written where its name is new."""
        name = image["file_name"]
        number = self._ids.get(name)
        if number is None:
            number = self.report.images = self.report.images + 1
            image |= {"id": number, "file_name": name or str(number)}
            self._images.write((",\n" if number > 1 else "\n") + _line(image))
            if name:
                self._ids[name] = number
        return number

    def __exit__(self, *problem: Any) -> None:
        try:
            if problem[0] is None:
                self._write_rest()
        except OSError:
            problem = sys.exc_info()  # a full disk is told of as anywhere else
        with suppress(OSError):
            self._images.close()
        self._opening.__exit__(*problem)

    def _write_rest(self) -> None:
        """Everything after the annotations."""
        self._file.write('],\n"images": [')
        self._images.seek(0)
        while block := self._images.read(1 << 20):
            self._file.write(block)
        self._file.write(f'],\n"categories": {_line(self._mapping.categories)},\n')
        self._file.write(f'"info": {_line(_info(self.report) | self._more)}}}\n')


def _line(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair: a file's name that is no UTF-8
            return json.dumps(value, allow_nan=False)
    return text
