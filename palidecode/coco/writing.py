"""Write detections as COCO JSON: datasets, results lists, and files larger than memory."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from palidecode.answers.rows import other_size
from palidecode.coco.categories import CategoryMap, Match, Unmapped, check_categories
from palidecode.coco.skips import Skip
from palidecode.detections import Detections, ImageId
from palidecode.errors import InputError
from palidecode.files import replacing, writes_through
from palidecode.geometry.masks import DEFAULT_PASTE, Paste, check_paste
from palidecode.version import __version__

Segmentation: TypeAlias = Literal["polygons", "exact", "rle", "none"]
Dataset: TypeAlias = dict[str, Any]
Categories: TypeAlias = Sequence[Mapping[str, Any]] | Sequence[str] | Mapping[str, Any]

_KINDS = ("polygons", "exact", "rle", "none")
FILE_START = '{"annotations": ['
_CHUNK = 512  # objects; `Detections` keeps the fields of as many
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass
class CocoReport:
    """Counts of a conversion: what was written, and what was skipped or changed.

    Attributes
    ----------
    images, annotations : int
        Images and annotations that were written.
    empty_boxes : int
        Objects whose box is inverted or empty, written without the side that it lacks.
    dropped_boxes : int
        The same, skipped on request (`CocoOptions.drop_empty`).
    infinite_boxes : int
        Objects skipped because their box is infinite or NaN: COCO can't represent it.
    empty_masks : int
        Objects whose mask has no pixel; their box is kept.
    small_parts : int
        Polygon parts below `min_area`.
    crowds : int
        Crowd annotations that were not read.
    unmapped : Counter of str
        Labels without a category whose objects were skipped.
    skipped : list of Skip
        Rows that `from_coco` or `from_coco_results` could not read, with examples.
    noted : list of Skip
        Oddities of rows that they did read.
    """

    images: int = 0
    annotations: int = 0
    empty_boxes: int = 0
    dropped_boxes: int = 0
    infinite_boxes: int = 0
    empty_masks: int = 0
    small_parts: int = 0
    crowds: int = 0
    unmapped: Counter[str] = field(default_factory=Counter)
    skipped: list[Skip] = field(default_factory=list)
    noted: list[Skip] = field(default_factory=list)

    def add(self, other: CocoReport) -> None:
        """Add the counts of another report."""
        for name, count in vars(other).items():
            if isinstance(count, int):
                setattr(self, name, getattr(self, name) + count)
        self.unmapped.update(other.unmapped)
        self.skipped += other.skipped
        self.noted += other.noted

    def left_out(self) -> dict[str, object]:
        """Counts that aren't 0, for messages and for ``info.left_out`` of a dataset."""
        counts: dict[str, object] = {
            "dropped_boxes": self.dropped_boxes,
            "infinite_boxes": self.infinite_boxes,
            "empty_masks": self.empty_masks,
            "small_parts": self.small_parts,
            "crowds": self.crowds,
            "unmapped_labels": dict(self.unmapped),
            "skipped": sum(skip.count for skip in self.skipped),
        }
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class MaskFormat:
    """Format of the masks in a COCO file.

    Attributes
    ----------
    segmentation : {"polygons", "exact", "rle", "none"}
        Smooth sub-pixel rings, rings along pixel edges, compressed RLE, or boxes only.
    simplify, min_area : float
        For polygons; see `Detections.to_polygons`. Holes are keyholed: COCO has no holes.
    paste : {"subpixel", "big_vision"}
        For RLE, ``"exact"`` and the masks' areas; see `Detections.to_rle`.
    """

    segmentation: Segmentation = "polygons"
    simplify: float = 0.0
    min_area: float = 0.0
    paste: Paste = DEFAULT_PASTE

    def __post_init__(self) -> None:
        check_paste(self.paste)
        if self.segmentation not in _KINDS:
            raise InputError(
                f"segmentation must be one of {', '.join(_KINDS)}, got {self.segmentation!r}"
            )


@dataclass(frozen=True)
class CocoOptions:
    """Options of a COCO file; see `to_coco`. Plain values, so that a run's header can hold them."""

    categories: Categories | None = None
    match: Match = "exact"
    unmapped: Unmapped = "keep"
    aliases: Mapping[str, str] | None = None
    form: MaskFormat = field(default_factory=MaskFormat)
    drop_empty: bool = False

    def __post_init__(self) -> None:
        if self.categories is not None:
            object.__setattr__(self, "categories", check_categories(self.categories))

    def map(self) -> CategoryMap:
        """Return the categories that labels are mapped to."""
        return CategoryMap(
            self.categories, match=self.match, unmapped=self.unmapped, aliases=self.aliases
        )


def to_coco(
    detections: Detections,
    *,
    categories: Categories | None = None,
    segmentation: Segmentation = "polygons",
    file_names: Sequence[str] | None = None,
    image_ids: Sequence[ImageId] | None = None,
    match: Match = "exact",
    unmapped: Unmapped = "keep",
    aliases: Mapping[str, str] | None = None,
    simplify: float = 0.0,
    min_area: float = 0.0,
    paste: Paste = DEFAULT_PASTE,
    drop_empty: bool = False,
    report: CocoReport | None = None,
) -> Dataset:
    """Convert detections to a COCO dataset: info, images, annotations, categories.

    Parameters
    ----------
    detections : Detections
    categories : list of dict or str, or a COCO dataset, optional
        The categories to map labels to. Without it every label becomes one, in order of
        appearance; no label becomes ``object``.
    segmentation : {"polygons", "exact", "rle", "none"}
        How masks are written: see `MaskFormat`. Objects without a mask have ``[]``.
    file_names : sequence of str, optional
        One per image; by default the detections' ``names``, and the image's id where unknown.
    image_ids : sequence of int or str, optional
        One per image; by default the detections' own, and the next of 1, 2, 3 … where unknown.
    match, unmapped, aliases
        How labels find their category: see `CategoryMap`.
    simplify, min_area : float
        For polygons, in pixels and square pixels.
    paste : {"subpixel", "big_vision"}
        For RLE, ``"exact"`` and areas: see `Detections.to_rle`.
    drop_empty : bool
        Skip objects whose box is inverted or empty. By default they are written without the side
        that they lack (``[x, y, 0, 0]``) and without a mask, so that evaluators count them as
        wrong.
    report : CocoReport, optional
        Counts are added to it. They are also in ``info``.

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
    form = MaskFormat(segmentation, simplify, min_area, paste)
    options = CocoOptions(categories, match, unmapped, aliases, form, drop_empty)
    images = images_of(detections, file_names, image_ids)
    return dataset_of(detections, options, images, CocoReport() if report is None else report)


def dataset_of(
    detections: Detections, options: CocoOptions, images: list[Dataset], report: CocoReport
) -> Dataset:
    """Return detections as a COCO dataset; `images` are those of `images_of`."""
    mapping = options.map()
    annotations: list[Dataset] = []
    for found in annotations_of(
        detections, mapping.id_of, options.form, lambda image: report, options.drop_empty
    ):
        ids = {"image_id": images[found.image]["id"], "category_id": found.category}
        annotations.append({"id": len(annotations) + 1, **ids, **found.fields(), "iscrowd": 0})
    report.annotations += len(annotations)
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
    image_ids: Sequence[ImageId] | None = None,
    match: Match = "exact",
    unmapped: Unmapped = "drop",
    aliases: Mapping[str, str] | None = None,
    default_score: float = 1.0,
    paste: Paste = DEFAULT_PASTE,
    drop_empty: bool = False,
    report: CocoReport | None = None,
) -> list[Dataset]:
    """Convert detections to a COCO results list, as evaluators load it.

    Parameters
    ----------
    detections, categories, segmentation, image_ids, match, aliases, drop_empty, report
        As for `to_coco`. Give the categories of the ground truth, and its image ids where the
        detections don't have them.
    unmapped : {"drop", "keep", "error"}
        Evaluators don't know new categories, so by default those rows are skipped and
        counted in `report`.
    default_score : float
        For rows whose score isn't known: results must have one.
    paste : {"subpixel", "big_vision"}
        See `Detections.to_rle`.

    Returns
    -------
    list of dict
        ``image_id``, ``category_id``, ``bbox``, ``score``, and ``segmentation`` where there
        is a mask.
    """
    report = report if report is not None else CocoReport()
    mapping = CategoryMap(categories, match=match, unmapped=unmapped, aliases=aliases)
    ids = [image["id"] for image in images_of(detections, image_ids=image_ids)]
    results = []
    form = MaskFormat(segmentation, paste=paste)
    found_in = annotations_of(detections, mapping.id_of, form, lambda image: report, drop_empty)
    for found in found_in:
        row = {"image_id": ids[found.image], "category_id": found.category, **found.fields()}
        if not row["segmentation"]:
            del row["segmentation"]
        results.append({**row, "score": row.get("score", default_score)})
    report.annotations += len(results)
    return results


def images_of(
    detections: Detections,
    file_names: Sequence[str] | None = None,
    image_ids: Sequence[ImageId] | None = None,
) -> list[Dataset]:
    """Return COCO image entries; by default with the names and ids of the detections.

    Raises
    ------
    InputError
        For names or ids of another number, and repeated ids.
    """
    count = len(detections.sizes)
    ids = _numbered(detections.image_ids if image_ids is None else image_ids)
    names = detections.names if file_names is None else file_names
    if len(ids) != count or len(names) != count:
        raise InputError(
            f"image_ids ({len(ids)}) and file_names ({len(names)}) must be as many as the images "
            f"({count})"
        )
    if len(set(ids)) != count:
        twice = next(number for number, times in Counter(ids).items() if times > 1)
        raise InputError(
            f"image_ids must all be different, {twice!r} is there twice; image_ids=range(1, "
            f"{count + 1}) numbers the images anew"
        )
    return [
        {"id": number, "file_name": name or str(number), "width": width, "height": height}
        for number, name, (width, height) in zip(ids, names, detections.sizes.tolist(), strict=True)
    ]


def _numbered(ids: Sequence[ImageId | None]) -> list[ImageId]:
    """Give unknown ids the next free of 1, 2, 3 …"""
    taken = set(ids)
    free = (number for number in itertools.count(1) if number not in taken)
    return [
        next(free) if given is None else given if isinstance(given, str) else int(given)
        for given in ids
    ]


class Annotation(NamedTuple):
    """An object as COCO writes it, without ids of an output.

    Attributes
    ----------
    image : int
        Index of its image in the detections.
    category : int
    bbox : list of 4 float
        x, y, width, height in pixels.
    area : float
    segmentation : list or dict
        Polygons, RLE, or [] without a mask.
    score : float or None
    """

    image: int
    category: int
    bbox: list[float]
    area: float
    segmentation: Any
    score: float | None

    def fields(self) -> Dataset:
        """The values that an annotation shares with a result, without its ids."""
        found = {"bbox": self.bbox, "area": self.area, "segmentation": self.segmentation}
        return found if self.score is None else {**found, "score": self.score}

    def text(self) -> str:
        """JSON of `fields` and ``iscrowd``, without the opening brace: ids go before it."""
        # msgspec writes floats several times as fast as Python.
        numbers = msgspec.json.encode((*self.bbox, self.area)).decode()
        x, y, width, height, area = numbers[1:-1].split(",")
        segmentation = _segmentation_text(self.segmentation) if self.segmentation else "[]"
        score = "" if self.score is None else f', "score": {self.score!r}'
        return (
            f'"bbox": [{x}, {y}, {width}, {height}], "area": {area}, '
            f'"segmentation": {segmentation}{score}, "iscrowd": 0}}'
        )


def annotations_of(
    detections: Detections,
    category_of: Callable[[str], int | None],
    form: MaskFormat,
    report_of: Callable[[int], CocoReport],
    drop_empty: bool = False,
) -> Iterator[Annotation]:
    """Yield the objects in order; those that COCO can't represent are skipped and counted.

    `category_of` a label is None where its objects are skipped. `report_of` an image counts what
    is skipped or changed in it. Inverted and empty boxes lose the sides that they lack, and their
    mask.
    """
    finite = np.asarray(np.isfinite(detections.xyxy).all(axis=1))
    solid = np.asarray((detections.xyxy[:, 2:] > detections.xyxy[:, :2]).all(axis=1))
    ids = list(map(category_of, detections.labels))
    known = np.fromiter((number is not None for number in ids), np.bool_, len(ids))
    for row in np.flatnonzero(~(finite & solid & known)).tolist():
        report = report_of(int(detections.image_index[row]))
        if not known[row]:
            report.unmapped[detections.labels[row]] += 1
        elif not finite[row]:
            report.infinite_boxes += 1
        else:
            report.dropped_boxes += drop_empty
            report.empty_boxes += not drop_empty
    kept = np.flatnonzero(finite & known & (solid | (not drop_empty)))
    for start in range(0, len(kept), _CHUNK):
        rows = kept[start : start + _CHUNK]
        part = detections.select(rows)
        part = replace(part, has_mask=part.has_mask & solid[rows])
        masks, pixels = _segmentations(part, form, report_of)
        corners = np.round(part.xyxy.astype(np.float64), 3)
        sides = np.round(np.maximum(corners[:, 2:] - corners[:, :2], 0.0), 3)
        boxes = np.concatenate([corners[:, :2], sides], axis=1).tolist()
        areas = zip(sides.prod(axis=1).tolist(), pixels, strict=True)
        columns = zip(
            part.image_index.tolist(),
            [ids[row] for row in rows.tolist()],
            boxes,
            [round(box, 3) if mask is None else mask for box, mask in areas],
            masks,
            [score if math.isfinite(score) else None for score in part.scores.tolist()],
            strict=True,
        )
        yield from map(Annotation._make, columns)


def _segmentations(
    part: Detections, form: MaskFormat, report_of: Callable[[int], CocoReport]
) -> tuple[list[Any], list[float | None]]:
    """COCO's ``segmentation`` and the mask's area of every object; [] and None without a mask."""
    areas: list[float | None] = [None] * len(part)
    masks: list[Any] = [[] for _ in areas]
    if form.segmentation == "none" or not part.has_mask.any():
        return masks, areas
    if form.segmentation == "rle":
        for row, rle in enumerate(part.to_rle(paste=form.paste)):
            if rle is not None:
                masks[row], areas[row] = rle, float(coco_mask.area(rle))
    else:
        polygons = part.to_polygons(
            "smooth" if form.segmentation == "polygons" else "exact",
            simplify=form.simplify,
            min_area=form.min_area,
            holes="keyhole",
            paste=form.paste,
        )
        pairs = zip(polygons, part.crops(paste=form.paste), strict=True)
        for row, (rings, crop) in enumerate(pairs):
            if rings is not None and crop is not None:
                masks[row], areas[row] = rings.to_coco(), float(np.count_nonzero(crop.mask))
                if rings.dropped:
                    report_of(int(part.image_index[row])).small_parts += rings.dropped
    for row, area in enumerate(areas):
        if area == 0:
            report_of(int(part.image_index[row])).empty_masks += 1
    return masks, areas


def _info(report: CocoReport) -> Dataset:
    info: Dataset = {"description": f"palidecode {__version__}"}
    if report.empty_boxes:
        info["empty_boxes"] = report.empty_boxes
    if report.left_out():
        info["left_out"] = report.left_out()
    return info


class CocoWriter:
    """Writes a COCO dataset piece by piece; memory doesn't grow with the file.

    The file appears at `path` when the ``with`` block ends well, and not otherwise.

    Parameters
    ----------
    path : str or path
    categories, match, unmapped, aliases, drop_empty
        As for `to_coco`.
    form : MaskFormat
        How masks are written.
    info : mapping, optional
        More for the dataset's ``info``.

    Attributes
    ----------
    report : CocoReport
    categories : CategoryMap
        With those that were added.
    ids : dict of str to (int or str)
        Ids of the images that were written, by name.

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
        drop_empty: bool = False,
        info: Mapping[str, object] | None = None,
    ) -> None:
        self.report = CocoReport()
        self._more = dict(info or {})
        self._form, self._drop_empty = form or MaskFormat(), drop_empty
        self.categories = CategoryMap(categories, match=match, unmapped=unmapped, aliases=aliases)
        self.ids: dict[str, ImageId] = {}
        self._sizes: dict[str, Sequence[int]] = {}  # of the images that `add` wrote
        self._given: set[ImageId] = set()  # ids that images brought along
        self._last = 0  # of the ids that were counted
        # On the disk of the output, and without a name: only one disk can be full.
        self._folder = None if writes_through(path) else os.path.dirname(os.path.realpath(path))
        self._opening: AbstractContextManager[IO[Any]] = replacing(path)
        self._file: IO[str]
        self._images: IO[str]

    @classmethod
    def of(
        cls, path: str | os.PathLike[str], options: CocoOptions, info: Mapping[str, object]
    ) -> CocoWriter:
        """Return a writer with the options of a run."""
        return cls(
            path,
            categories=options.categories,
            match=options.match,
            unmapped=options.unmapped,
            aliases=options.aliases,
            form=options.form,
            drop_empty=options.drop_empty,
            info=info,
        )

    def __enter__(self) -> CocoWriter:
        # Images wait in a file of their own: COCO wants each kind in one list.
        with ExitStack() as stack:
            self._file = stack.enter_context(self._opening)
            with self._waiting():
                self._images = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._folder)
            self._file.write(FILE_START)
            stack.pop_all()
        return self

    def add(self, detections: Detections, file_names: Sequence[str] | None = None) -> None:
        """Write some images, also those without objects, and their annotations.

        Images keep the detections' names and ids; `file_names` has precedence. Images of a name
        that was written before are not written again: several answers about one picture become
        annotations of one image.

        Raises
        ------
        InputError
            For an id that another image has, names of another number than the images, and an image
            that had another size before.
        """
        names = file_names or detections.names
        if len(names) != len(detections.sizes):
            raise InputError(
                f"file_names ({len(names)}) must be as many as the images ({len(detections.sizes)})"
            )
        columns = list(zip(names, detections.sizes.tolist(), detections.image_ids, strict=True))
        for name, size, _ in columns:
            first = self._sizes.setdefault(name, size) if name else size
            if size != first:
                raise InputError(other_size(name, size, first))
        ids = [json_line(self.add_image(name, size, number)) for name, size, number in columns]
        of, drop = self.categories.id_of, self._drop_empty
        for found in annotations_of(detections, of, self._form, lambda image: self.report, drop):
            self.add_annotations([ids[found.image]], [found.category], [found.text()])

    def add_image(self, name: str, size: Sequence[int], image_id: ImageId | None = None) -> ImageId:
        """Return the id of an image, `image_id` if it has one; it is written where it is new."""
        number = self.ids.get(name)
        if number is None:
            number = self._new_id(name, image_id)
            self.report.images += 1
            with self._waiting():
                self._images.write(
                    f'{_start(self.report.images)}{{"id": {json_line(number)}, '
                    f'"file_name": {json_line(name or str(number))}, '
                    f'"width": {size[0]}, "height": {size[1]}}}'
                )
            if name:
                self.ids[name] = number
        return number

    def _new_id(self, name: str, given: ImageId | None) -> ImageId:
        """Return an id that no image has: the given one, or the next of 1, 2, 3 …"""
        if given is None:
            self._last = next(n for n in itertools.count(self._last + 1) if n not in self._given)
            return self._last
        if given in self._given or (isinstance(given, int) and 0 < given <= self._last):
            raise InputError(
                f"image {name!r} has the id {given!r}, which another image has; "
                "dataclasses.replace(detections, image_ids=[]) numbers the images anew"
            )
        self._given.add(given)
        return given

    def add_annotations(
        self, images: Iterable[ImageId], categories: Iterable[int], texts: Iterable[str]
    ) -> None:
        """Write annotations: ids of images (as JSON) and categories, and each `Annotation.text`."""
        first = self.report.annotations + 1
        lines = [
            f'{{"id": {number}, "image_id": {image}, "category_id": {category}, {text}'
            for number, (image, category, text) in enumerate(
                zip(images, categories, texts, strict=True), first
            )
        ]
        if lines:
            self._file.write(_start(first) + ",\n".join(lines))
            self.report.annotations += len(lines)

    def __exit__(self, *problem: Any) -> None:
        failed: Exception | None = None
        try:
            if problem[0] is None:
                self._write_rest()
        except (OSError, InputError) as error:
            problem, failed = sys.exc_info(), error
        with suppress(OSError):
            self._images.close()
        self._opening.__exit__(*problem)  # turns a full disk into an InputError
        if failed is not None:
            raise failed

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Name the disk of the images, where it isn't the output's."""
        try:
            yield
        except OSError as error:
            if self._folder is not None:
                raise
            reason = error.strerror or error
            raise InputError(f"the folder of temporary files (TMPDIR): {reason}") from error

    def _write_rest(self) -> None:
        """Write everything after the annotations."""
        self._file.write('],\n"images": [')
        with self._waiting():
            self._images.seek(0)
        while block := self._images.read(1 << 20):
            self._file.write(block)
        self._file.write(f'],\n"categories": {json_line(self.categories.categories)},\n')
        self._file.write(f'"info": {json_line(_info(self.report) | self._more)}}}\n')


def _start(number: int) -> str:
    """Return what goes before the element of a list with this number, from 1."""
    return ",\n" if number > 1 else "\n"


def _segmentation_text(segmentation: object) -> str:
    """JSON of polygons or RLE without spaces."""
    text = msgspec.json.encode(segmentation).decode()
    if isinstance(segmentation, list) and "n" in text:  # null, as msgspec writes NaN
        raise ValueError("a segmentation holds a number that is not finite")
    return text


def json_line(value: object) -> str:
    """JSON in one line of text that is valid UTF-8."""
    if type(value) is int:
        return str(value)  # json builds an encoder for each number
    text = _ENCODER.encode(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair: a file's name that is no UTF-8
            return json.dumps(value, allow_nan=False)
    return text
