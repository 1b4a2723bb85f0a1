"""COCO rows as checked columns; rows that can't be used are skipped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, compress, repeat
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.coco.categories import Category, CategoryMap, Match, check_unique, one_per_name
from palidecode.coco.mask_reading import Mask, as_rle, empty_rle, read_masks
from palidecode.coco.reading import (
    MAX_COORDINATE,
    MAX_SCORE,
    BoxRow,
    CocoFile,
    ImageRow,
    Key,
    Outline,
    Row,
    Source,
    index_by_id,
    read_dataset,
    read_predictions,
)
from palidecode.coco.skips import Side, Skips
from palidecode.errors import InputError
from palidecode.evaluation.coco.federated import (
    BEST_OF_PICTURE,
    Federated,
    beyond_best,
    read_federated,
)
from palidecode.evaluation.coco.sides import compare_sizes, index_by_name, note_units

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BEST = 100
"""The number of predictions per image and category that COCO counts."""


@dataclass(frozen=True)
class Table:
    """Annotations or predictions, column by column.

    Attributes
    ----------
    offset : ndarray of int64, shape (N,)
        Offset in the file's list.
    image, category : ndarray of int64, shape (N,)
        Index into `Scene.images` and `Scene.categories`.
    box : ndarray of float64, shape (N, 4)
        x, y, width, height in pixels.
    area : ndarray of float64, shape (N,)
        Decides between small, medium and large.
    score : ndarray of float64, shape (N,)
        NaN for unknown scores.
    crowd : ndarray of bool, shape (N,)
    masks : list of (Mask or None), or None
    ids : list or None
        The annotations' ids in the file.
    """

    offset: Ints
    image: Ints
    category: Ints
    box: Floats
    area: Floats
    score: Floats
    crowd: Bools
    masks: list[Mask | None] | None = None
    ids: list[Key | None] | None = None

    def __len__(self) -> int:
        return len(self.offset)

    def take(self, rows: npt.NDArray[Any]) -> Table:
        """Return some of the rows, given by a mask or by indices."""
        if rows.dtype == np.bool_ and rows.all():
            return self
        chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        names = ("offset", "image", "category", "box", "area", "score", "crowd")
        columns: dict[str, Any] = {name: getattr(self, name)[chosen] for name in names}
        for name in ("masks", "ids"):
            value = getattr(self, name)
            columns[name] = None if value is None else [value[row] for row in chosen.tolist()]
        return Table(**columns)


@dataclass(frozen=True)
class Scene:
    """The ground truth.

    Attributes
    ----------
    images : list of ImageRow
        In the order of their ids: evaluators break ties between pictures by it.
    categories : list of dict
        In the order of their ids.
    truths : Table
    masks : bool
        Whether masks were read.
    where : str
        Name of the file, for messages.
    listed : list of int or str
        Ids of the images in the order of the file.
    federated : Federated, or None
        What LVIS's pictures are labelled for; None for a ground truth that is COCO's.
    """

    images: list[ImageRow]
    categories: list[Category]
    truths: Table
    masks: bool
    where: str = ""
    listed: list[Key] = field(default_factory=list)
    federated: Federated | None = None

    @property
    def best(self) -> int:
        """Number of predictions per image and category that count."""
        return BEST if self.federated is None else BEST_OF_PICTURE

    @property
    def sizes(self) -> Ints:
        """Width and height of every image, shape (B, 2)."""
        return np.array([(i.width, i.height) for i in self.images], np.int64).reshape(-1, 2)


def read_scene(source: Source, masks: bool, skips: Skips, crowds: bool = False) -> Scene:
    """Read and check the ground truth; `crowds` counts crowds as objects."""
    read = read_dataset(
        source, Row if masks else BoxRow, skips, name="the ground truth", unused=("score",)
    )
    images, categories, rows = read.images.rows, read.categories, read.annotations.rows
    for kind, items in (("images", images), ("categories", categories)):
        if not items:
            raise InputError(f"{read.where}: has no {kind}: there is nothing to evaluate")
    for image in images if masks else ():
        if min(image.width, image.height) < 1:
            raise InputError(
                f"{read.where}: image {image.id!r}: masks need the picture's width and height, "
                f"got {image.width}×{image.height}"
            )
    check_unique([row.id for row in rows if row.id is not None], f"{read.where}: annotations")
    listed = [image.id for image in images]
    images = _sorted(images)
    categories = sorted(categories, key=itemgetter("id"))
    federated = read_federated(images, categories, read.where)
    skips.note("image", "lvis", [n for n, image in read.images.numbered() if image.federated])
    scene = Scene(images, categories, _empty(), masks, read.where, listed, federated)
    image_index = _find(index_by_id(images), rows, "image_id")
    category = _find({c["id"]: n for n, c in enumerate(categories)}, rows, "category_id")
    table = _table(read, image_index, category, scene, "truth", skips)
    # Rows without attributes, the usual ones, cost no call.
    turned = (row.attributes is not None and row.rotated for row in rows)
    rotated = np.fromiter(turned, np.bool_, len(rows))
    skips.note("truth", "rotated", read.annotations.offsets[rotated])
    if crowds:
        table = replace(table, crowd=np.zeros(len(table), np.bool_))
    elif table.crowd.all():
        skips.note("truth", "all_crowds", table.offset)
    return replace(scene, truths=table)


def read_answers(
    source: Source, scene: Scene, match: Match, skips: Skips, scale: bool = False
) -> tuple[Table, dict[int, set[int]]]:
    """Read and check predictions about the scene; see `compare_sizes` for `scale`.

    Returns
    -------
    predictions : Table
    asked : dict of int to set of int
        Indices of the categories that the prompts of an image asked for; only images whose file
        contains them.
    """
    read = read_predictions(source, Row if scene.masks else BoxRow, skips)
    if read.is_list:
        images = index_by_id(scene.images)
        categories = {item["id"]: n for n, item in enumerate(scene.categories)}
    else:
        images = index_by_name(read.images.rows, scene.images, read.where, skips)
        mapping = _by_category_name(scene, match)
        index_of = {item["id"]: n for n, item in enumerate(scene.categories)}
        mapped = {item["id"]: mapping.id_of(item["name"]) for item in read.categories}
        categories = {n: index_of[known] for n, known in mapped.items() if known is not None}
    image = _find(images, read.annotations.rows, "image_id")
    category = _find(categories, read.annotations.rows, "category_id")
    if len(image) and (image < 0).all():
        raise InputError(
            f"{read.where}: no prediction ({len(image):,}) is about an image of the ground "
            f"truth (the first is about {read.annotations.rows[0].image_id!r})"
        )
    compare_sizes(read, images, scene.images, skips, scale)
    table = _table(read, image, category, scene, "prediction", skips)
    note_units(table.box, _extents(scene)[table.image], table.offset, skips)
    return table, _asked(read, images, scene, match)


def only_labelled(scene: Scene, predicted: Table, skips: Skips) -> Table:
    """Keep the predictions that LVIS counts; all of them where the ground truth is COCO's."""
    if scene.federated is None:
        return predicted
    beyond = beyond_best(predicted.image, predicted.score)
    skips.add_many("prediction", "beyond_300", predicted.offset[beyond])
    predicted, truths = predicted.take(~beyond), scene.truths
    annotated = truths.image, truths.category
    counted = scene.federated.counted(
        predicted.image, predicted.category, annotated, len(scene.categories)
    )
    skips.add_many("prediction", "not_labelled", predicted.offset[~counted])
    return predicted.take(counted)


def _sorted(images: list[ImageRow]) -> list[ImageRow]:
    if all(isinstance(image.id, int) for image in images):
        return sorted(images, key=attrgetter("id"))
    return sorted(images, key=lambda image: str(image.id))


def _extents(scene: Scene) -> Ints:
    """Return the sizes of the images; of unknown ones, the ends of their objects."""
    sizes, truths = scene.sizes, scene.truths
    ends = np.zeros(sizes.shape)
    np.maximum.at(ends, truths.image, truths.box[:, :2] + truths.box[:, 2:])
    return np.where(sizes > 0, sizes, ends.astype(np.int64))


def _find(index_of: Mapping[Any, int], rows: list[BoxRow], key: str) -> Ints:
    """Return the index of every row's image or category; -1 for unknown ones."""
    indices = map(index_of.get, map(attrgetter(key), rows), repeat(-1))
    return np.fromiter(indices, np.int64, len(rows))


def _by_category_name(scene: Scene, match: Match) -> CategoryMap:
    """Map names to the ground truth's categories; an unused one of the same name is no matter."""
    used = {scene.categories[n]["id"] for n in np.unique(scene.truths.category).tolist()}
    way_out = "rename one of them, or give the predictions as a results list, which has ids"
    named = one_per_name(scene.categories, used, f"{scene.where}: ", way_out)
    return CategoryMap(named, match=match, unmapped="drop")


def _asked(
    read: CocoFile[BoxRow], images: Mapping[Key, int], scene: Scene, match: Match
) -> dict[int, set[int]]:
    """Return the indices of the categories that each image's prompts asked for."""
    everywhere = read.asked
    if everywhere is None and not any(image.asked for image in read.images.rows):
        return {}
    mapping = _by_category_name(scene, match)
    index_of = {item["id"]: n for n, item in enumerate(scene.categories)}

    def indices(names: list[str]) -> set[int]:
        ids = {mapping.id_of(name) for name in names}
        return {index_of[known] for known in ids if known is not None}

    asked: dict[int, set[int]] = {}
    if everywhere is not None:
        asked = {n: indices(everywhere) for n in range(len(scene.images))}
    own: dict[int, set[int]] = {}
    for image in read.images.rows:
        if image.asked is not None and image.id in images:
            # Several images may be one picture, asked about with several prompts.
            own.setdefault(images[image.id], set()).update(indices(image.asked))
    return asked | own


def _empty() -> Table:
    none = np.zeros(0)
    index = none.astype(np.int64)
    return Table(index, index, index, none.reshape(0, 4), none, none, none.astype(np.bool_))


def _table(
    read: CocoFile[BoxRow], image: Ints, category: Ints, scene: Scene, side: Side, skips: Skips
) -> Table:
    """Return the columns of the usable rows."""
    rows, count = read.annotations.rows, len(read.annotations.rows)
    keep = _known(read, image, category, side, skips)
    score = area = np.full(count, np.nan)
    crowd = np.zeros(count, np.bool_)
    if side == "prediction" and count:
        values = list(map(attrgetter("score"), rows))
        score = np.array(values, np.float64)
        if np.isnan(score).any() or np.abs(score).max() > MAX_SCORE:
            known = np.array([value is not None for value in values])
            bad = keep & known & ~(np.abs(score) <= MAX_SCORE)
            skips.add_many(side, "bad_score", read.annotations.offsets[bad])
            keep &= ~bad
    elif count:
        area = np.array([row.area for row in rows], np.float64)
        crowd = np.fromiter((bool(row.iscrowd) for row in rows), np.bool_, count)
    table = Table(
        offset=read.annotations.offsets,
        image=image,
        category=category,
        box=_boxes(rows),
        area=area,
        score=score,
        crowd=crowd,
        ids=[row.id for row in rows] if side == "truth" else None,
    ).take(keep)
    kept = rows if len(table) == count else list(compress(rows, keep.tolist()))
    return _with_boxes(_with_masks(table, kept, scene, side, skips), scene, side, skips)


def _known(read: CocoFile[BoxRow], image: Ints, category: Ints, side: Side, skips: Skips) -> Bools:
    """Return True for rows whose image and category are known; skip the others."""
    rows, offsets = read.annotations.rows, read.annotations.offsets
    unknown = np.flatnonzero(image < 0)
    shown = (
        f"{skips.at(side, offset)} is about image {rows[row].image_id!r}"
        for row, offset in zip(unknown.tolist(), offsets[unknown].tolist(), strict=True)
    )
    skips.add_many(side, "unknown_image", offsets[unknown], shown)
    names = {item["id"]: item["name"] for item in read.categories} if side == "prediction" else {}
    unknown = np.flatnonzero((category < 0) & (image >= 0))
    ids = [rows[row].category_id for row in unknown.tolist()]
    counts = Counter(names.get(number, str(number)) for number in ids)
    skips.add_many(side, "unknown_category", offsets[unknown], counts, dict(counts))
    return (image >= 0) & (category >= 0)


def _boxes(rows: list[BoxRow]) -> Floats:
    """Return x, y, width, height of every row; NaN without a box."""
    boxes = list(map(attrgetter("bbox"), rows))
    if not any(boxes):
        return np.full((len(rows), 4), np.nan)
    if None in boxes:
        boxes = [box or (np.nan,) * 4 for box in boxes]
    return np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(rows)).reshape(-1, 4)


def _with_masks(table: Table, rows: list[BoxRow], scene: Scene, side: Side, skips: Skips) -> Table:
    """Check the masks that are needed; fill in boxes and areas from them."""
    no_box = np.asarray(np.isnan(table.box).all(axis=1))
    if not (scene.masks or no_box.any()):
        return table
    outlines: list[Outline] = [getattr(row, "segmentation", None) for row in rows]
    if not scene.masks:  # only to find the boxes of rows without one
        outlines = [mask if no else None for mask, no in zip(outlines, no_box, strict=True)]
    sizes = scene.sizes[table.image]
    read = read_masks(outlines, sizes)
    missing = read.missing if scene.masks else np.zeros(len(table), np.bool_)
    if scene.masks and len(table) and missing.all():
        raise InputError(
            f"no {'annotation' if side == 'truth' else 'prediction'} has a mask; "
            "evaluate the boxes instead: iou_type='bbox'"
        )
    skips.add_many(side, "bad_mask", table.offset[read.damaged])
    skips.note(side, "bad_ring", table.offset[read.bad_rings])
    keep = ~read.damaged
    if side == "truth":
        skips.add_many(side, "no_mask", table.offset[missing])
        keep &= ~missing
    else:
        skips.note(side, "no_mask", table.offset[missing])
        for row in np.flatnonzero(missing).tolist():
            read.masks[row] = empty_rle(*sizes[row].tolist())
    # As pycocotools: where results have boxes, a prediction's size is its box's.
    by_mask = np.isnan(table.area) if side == "truth" else no_box
    if side == "prediction" and len(table) and not no_box[0]:
        by_mask = np.zeros(len(table), np.bool_)
    measured = np.flatnonzero((no_box | (by_mask & scene.masks)) & keep)
    measured = measured[[read.masks[row] is not None for row in measured.tolist()]]
    box, area = table.box, table.area
    if len(measured):
        rles = [
            as_rle(mask, *size)
            for mask, size in zip(
                map(read.masks.__getitem__, measured.tolist()),
                sizes[measured].tolist(),
                strict=True,
            )
            if mask is not None
        ]
        pixels, unknown = read.pixels[measured], np.isnan(read.pixels[measured])
        pixels[unknown] = coco_mask.area(list(compress(rles, unknown.tolist())))
        box[measured] = np.where(no_box[measured, None], coco_mask.toBbox(rles), box[measured])
        area[measured] = np.where(by_mask[measured], pixels, area[measured])
    return replace(table, box=box, area=area, masks=read.masks).take(keep)


def _with_boxes(table: Table, scene: Scene, side: Side, skips: Skips) -> Table:
    """Check the boxes and fill in missing areas."""
    box = table.box
    none = np.isnan(box).all(axis=1)
    skips.add_many(side, "no_box", table.offset[none])
    with np.errstate(invalid="ignore"):
        strange = ~none & ~(np.abs(box) <= MAX_COORDINATE).all(axis=1)
    skips.add_many(side, "bad_box", table.offset[strange])
    keep = ~none & ~strange
    negative = keep & (box[:, 2:] < 0).any(axis=1)
    if side == "truth":
        skips.add_many(side, "negative_box", table.offset[negative])
        keep &= ~negative
    else:
        # A wrong answer stays a wrong answer; the engine gets a box that nothing matches.
        skips.note(side, "negative_box", table.offset[negative])
        box[negative, 2:] = 0
    empty = keep & ~negative & (box[:, 2:] == 0).any(axis=1)
    skips.note(side, "empty_box", table.offset[empty])
    sizes = scene.sizes[table.image]
    with np.errstate(over="ignore", invalid="ignore"):
        outside = ((box[:, :2] >= sizes) & (sizes > 0)).any(axis=1)
        outside |= (box[:, :2] + box[:, 2:] <= 0).any(axis=1)
        sides = box[:, 2] * box[:, 3]
    skips.note(side, "outside", table.offset[keep & outside & ~empty & ~negative])
    area = np.where(np.isnan(table.area), sides, table.area)
    wrong = keep & ~((area >= 0) & np.isfinite(area)) & ~np.isnan(table.area)
    skips.add_many(side, "bad_area", table.offset[wrong])
    keep &= ~wrong
    return replace(table, box=box, area=area).take(keep)
