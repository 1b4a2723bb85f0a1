"""Rows to columns that the engine can trust; what can't be used is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from math import prod
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from hotcoco import mask as engine_mask

from palidecode.coco.categories import CategoryMap, Match, check_categories
from palidecode.coco.reading import ImageRow, Key, Read, Source, read_answers, read_truths
from palidecode.coco.segmentations import as_rle, empty_rle, sound_outlines
from palidecode.coco.skips import Skips
from palidecode.errors import InputError

_MAX_COORDINATE = 1e9
_MAX_SIDE, _MAX_PIXELS = 1 << 24, 1 << 29  # an RLE's runs are counted in 32 bits

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Table:
    """Annotations or predictions, column by column.

    Attributes
    ----------
    place : ndarray of int64, shape (N,)
        Position in the file's list.
    image, category : ndarray of int64, shape (N,)
        Position in `Scene.images` and `Scene.categories`.
    box : ndarray of float64, shape (N, 4)
        x, y, width, height in pixels.
    area : ndarray of float64, shape (N,)
        Decides between small, medium and large.
    score : ndarray of float64, shape (N,)
        NaN where there is none.
    crowd : ndarray of bool, shape (N,)
    masks : list or None
        COCO's segmentation.
    ids : list or None
        The annotations' ids in the file.
    """

    place: Ints
    image: Ints
    category: Ints
    box: Floats
    area: Floats
    score: Floats
    crowd: Bools
    masks: list[Any] | None = None
    ids: list[Key | None] | None = None

    def __len__(self) -> int:
        return len(self.place)

    def take(self, rows: npt.NDArray[Any]) -> Table:
        """Some of the rows, by mask or by position."""
        if rows.dtype == np.bool_ and rows.all():
            return self
        chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        names = ("place", "image", "category", "box", "area", "score", "crowd")
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
    """

    images: list[ImageRow]
    categories: list[dict[str, Any]]
    truths: Table
    masks: bool

    @property
    def sizes(self) -> Ints:
        """Width and height of every image, shape (B, 2)."""
        return np.array([(i.width, i.height) for i in self.images], np.int64).reshape(-1, 2)


def read_scene(source: Source, masks: bool, skips: Skips) -> Scene:
    """The ground truth, checked.

    Raises
    ------
    InputError
        If it can't be read, has no images or categories, or repeats an id.
    """
    read = read_truths(source, masks, skips)
    images, categories = read.images or [], check_categories(_dicts(read))
    for kind, found in (("images", images), ("categories", categories)):
        if not found:
            raise InputError(f"{read.where}: has no {kind}: there is nothing to evaluate")
    _unique([image.id for image in images], f"{read.where}: images")
    _check_sizes(images, masks, read.where)
    _unique([r.id for r in read.rows if r.id is not None], f"{read.where}: annotations")
    images = _sorted(images)
    categories = sorted(categories, key=lambda item: int(item["id"]))
    scene = Scene(images, categories, _empty(), masks)
    image = _find({i.id: n for n, i in enumerate(images)}, read.rows, "image_id")
    category = _find({c["id"]: n for n, c in enumerate(categories)}, read.rows, "category_id")
    table = _table(read, image, category, scene, "truth", skips)
    return replace(scene, truths=table)


def read_predictions(
    source: Source, scene: Scene, match: Match, skips: Skips
) -> tuple[Table, dict[int, set[int]]]:
    """Predictions about the scene, checked; and which categories were asked of which image.

    Raises
    ------
    InputError
        If they can't be read, or none is about an image of the scene.
    """
    read = read_answers(source, scene.masks, skips)
    if read.images is None:
        images: dict[Key, int] = {image.id: n for n, image in enumerate(scene.images)}
        categories = {item["id"]: n for n, item in enumerate(scene.categories)}
        names: dict[int, str] = {}
    else:
        _unique([image.id for image in read.images], f"{read.where}: images")
        images = _by_name(read.images, scene, read.where)
        mapping = CategoryMap(scene.categories, match=match, unmapped="drop")
        place_of = {item["id"]: n for n, item in enumerate(scene.categories)}
        names = {item.id: item.name for item in read.categories or []}
        mapped = {number: mapping.id_of(name) for number, name in names.items()}
        categories = {n: place_of[found] for n, found in mapped.items() if found is not None}
    image = _find(images, read.rows, "image_id")
    category = _find(categories, read.rows, "category_id")
    if len(image) and (image < 0).all():
        raise InputError(
            f"{read.where}: none of its {len(image):,} predictions is about an image of the "
            f"ground truth (the first is about {read.rows[0].image_id!r})"
        )
    table = _table(read, image, category, scene, "prediction", skips, names)
    return table, _asked(read, images, scene, match)


def _dicts(read: Read) -> list[dict[str, Any]]:
    return [{"id": item.id, "name": item.name} for item in read.categories or []]


def _sorted(images: list[ImageRow]) -> list[ImageRow]:
    if all(isinstance(image.id, int) for image in images):
        return sorted(images, key=attrgetter("id"))
    return sorted(images, key=lambda image: str(image.id))


def _check_sizes(images: list[ImageRow], masks: bool, where: str) -> None:
    for image in images:
        sides = (image.width, image.height)
        if not all(0 <= side <= _MAX_SIDE for side in sides) or prod(sides) > _MAX_PIXELS:
            raise InputError(f"{where}: image {image.id!r}: {sides[0]}×{sides[1]} is no size")
        if masks and (min(sides) < 1 or any(side != int(side) for side in sides)):
            raise InputError(
                f"{where}: image {image.id!r}: masks need the picture's width and height, "
                f"got {sides[0]}×{sides[1]}"
            )


def _unique(ids: Sequence[Key], what: str) -> None:
    if len(set(ids)) != len(ids):
        twice, count = Counter(ids).most_common(1)[0]
        raise InputError(f"{what}: the id {twice!r} is there {count} times; ids must be unique")


def _find(places: Mapping[Any, int], rows: list[Any], key: str) -> Ints:
    found = map(places.get, map(attrgetter(key), rows), repeat(-1))
    return np.fromiter(found, np.int64, len(rows))


def _by_name(images: list[ImageRow], scene: Scene, where: str) -> dict[Key, int]:
    """Images of a prediction dataset to the ground truth's: by file name, as ids are its own.

    Where a name isn't found, its last part is tried, if that is nobody else's.
    """
    exact = {image.file_name: n for n, image in enumerate(scene.images) if image.file_name}
    if not exact or not any(image.file_name for image in images):
        return {image.id: n for n, image in enumerate(scene.images)}
    counts = Counter(PurePosixPath(name).name for name in exact)
    short = {PurePosixPath(name).name: n for name, n in exact.items()}
    found: dict[Key, int] = {}
    for image in images:
        name = image.file_name or ""
        last = PurePosixPath(name).name
        place = exact.get(name, short.get(last) if counts[last] == 1 else None)
        if place is not None:
            found[image.id] = place
    if images and not found:
        raise InputError(
            f"{where}: none of its {len(images):,} pictures is in the ground truth (the first "
            f"is {images[0].file_name!r}, there it is {scene.images[0].file_name!r})"
        )
    return found


def _asked(
    read: Read, images: Mapping[Key, int], scene: Scene, match: Match
) -> dict[int, set[int]]:
    """Places of the categories that each image's prompt asked for; only images that say so."""
    if read.images is None or (read.asked is None and not any(i.asked for i in read.images)):
        return {}
    mapping = CategoryMap(scene.categories, match=match, unmapped="drop")
    place_of = {item["id"]: n for n, item in enumerate(scene.categories)}
    asked: dict[int, set[int]] = {}
    if read.asked is not None:
        everywhere = {mapping.id_of(name) for name in read.asked}
        asked = {n: {place_of[i] for i in everywhere if i} for n in range(len(scene.images))}
    for image in read.images:
        if image.asked is not None and image.id in images:
            found = {mapping.id_of(name) for name in image.asked}
            asked[images[image.id]] = {place_of[i] for i in found if i is not None}
    return asked


def _empty() -> Table:
    none = np.zeros(0)
    index = none.astype(np.int64)
    return Table(index, index, index, none.reshape(0, 4), none, none, none.astype(np.bool_))


def _table(
    read: Read,
    image: Ints,
    category: Ints,
    scene: Scene,
    side: str,
    skips: Skips,
    names: Mapping[int, str] | None = None,
) -> Table:
    """Columns of the usable rows."""
    rows, count = read.rows, len(read.rows)
    place = np.arange(count) if read.places is None else np.array(read.places, np.int64)
    keep = np.ones(count, np.bool_)

    def skip(which: Bools, reason: str, **more: Any) -> None:
        nonlocal keep
        skips.add_many(side, reason, place[which & keep], **more)
        keep = keep & ~which

    unknown = image < 0
    shown = (
        f"{skips.where(side, int(place[row]))} is about image {rows[row].image_id!r}"
        for row in np.flatnonzero(unknown).tolist()
    )
    skip(unknown, "unknown_image", examples=shown)
    unknown = category < 0
    counted: Counter[str] = Counter()
    for row in np.flatnonzero(unknown & keep).tolist():
        number = rows[row].category_id
        counted[(names or {}).get(number, str(number))] += 1
    skip(unknown, "unknown_category", examples=counted, names=dict(counted))
    masked = bool(rows) and hasattr(rows[0], "segmentation")
    score = np.full(count, np.nan)
    if side == "prediction":
        values = list(map(attrgetter("score"), rows))
        score = np.array(values, np.float64) if count else score
        if not np.isfinite(score).all():
            known = np.array([value is not None for value in values])
            skip(known & ~np.isfinite(score), "bad_score")
    area = np.full(count, np.nan)
    if side == "truth" and count:
        area = np.array([row.area for row in rows], np.float64)
    table = Table(
        place=place,
        image=image,
        category=category,
        box=_boxes(rows),
        area=area,
        score=score,
        crowd=(
            np.fromiter((bool(row.iscrowd) for row in rows), np.bool_, count)
            if side == "truth"
            else np.zeros(count, np.bool_)
        ),
        masks=[r.segmentation for r in rows] if masked else None,
        ids=[row.id for row in rows] if side == "truth" else None,
    )
    table = _with_masks(table if keep.all() else table.take(keep), scene, side, skips)
    return _with_boxes(table, scene, side, skips)


def _boxes(rows: list[Any]) -> Floats:
    """x, y, width, height; NaN where there is none."""
    boxes = list(map(attrgetter("bbox"), rows))
    if not any(boxes):
        return np.full((len(rows), 4), np.nan)
    if None in boxes:
        boxes = [box or (np.nan,) * 4 for box in boxes]
    return np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(rows)).reshape(-1, 4)


def _with_masks(table: Table, scene: Scene, side: str, skips: Skips) -> Table:
    """Masks checked where they are needed, and boxes and areas taken from them."""
    no_box = np.asarray(np.isnan(table.box).all(axis=1))
    if not (scene.masks or no_box.any()):
        return replace(table, masks=None)
    masks = table.masks or []
    if not scene.masks:
        # Boxes are evaluated, and some rows have none: their mask says where it is.
        masks = [mask if no else None for mask, no in zip(masks, no_box, strict=True)]
    sizes = scene.sizes[table.image]
    found = sound_outlines(masks, sizes)
    missing = found.missing if scene.masks else np.zeros(len(table), np.bool_)
    if scene.masks and len(table) and missing.all():
        raise InputError(
            f"no {'annotation' if side == 'truth' else 'prediction'} has a mask; "
            "evaluate the boxes instead: iou_type='bbox'"
        )
    skips.add_many(side, "bad_mask", table.place[found.damaged])
    skips.note(side, "bad_ring", table.place[found.bad_rings])
    keep = ~found.damaged
    if side == "truth":
        skips.add_many(side, "no_mask", table.place[missing])
        keep = keep & ~missing
    else:
        skips.note(side, "no_mask", table.place[missing])
        for row in np.flatnonzero(missing).tolist():
            found.masks[row] = empty_rle(*sizes[row].tolist())
    # As pycocotools: where results have boxes, a prediction's size is its box's.
    by_mask = np.isnan(table.area) if side == "truth" else no_box
    if side == "prediction" and len(table) and not no_box[0]:
        by_mask = np.zeros(len(table), np.bool_)
    measured = np.flatnonzero((no_box | (by_mask & scene.masks)) & keep)
    measured = measured[[found.masks[row] is not None for row in measured.tolist()]]
    box, area = table.box, table.area
    if len(measured):
        rles, pixels = [found.masks[row] for row in measured.tolist()], found.pixels[measured]
        unknown = np.flatnonzero(np.isnan(pixels)).tolist()
        for place in unknown:
            rles[place] = as_rle(rles[place], *sizes[measured[place]].tolist())
        pixels[unknown] = engine_mask.area([rles[place] for place in unknown])
        tight = engine_mask.to_bbox(rles)
        box[measured] = np.where(no_box[measured, None], tight, box[measured])
        area[measured] = np.where(by_mask[measured], pixels, area[measured])
    return replace(table, box=box, area=area, masks=found.masks).take(keep)


def _with_boxes(table: Table, scene: Scene, side: str, skips: Skips) -> Table:
    """Boxes checked, areas filled in."""
    box = table.box
    none = np.isnan(box).all(axis=1)
    skips.add_many(side, "no_box", table.place[none])
    with np.errstate(invalid="ignore"):
        strange = ~none & ~(np.abs(box) <= _MAX_COORDINATE).all(axis=1)
    skips.add_many(side, "bad_box", table.place[strange])
    keep = ~none & ~strange
    negative = keep & (box[:, 2:] < 0).any(axis=1)
    if side == "truth":
        skips.add_many(side, "negative_box", table.place[negative])
        keep &= ~negative
    else:
        # A wrong answer stays a wrong answer; the engine gets a box that nothing matches.
        skips.note(side, "negative_box", table.place[negative])
        box[negative, 2:] = 0
    empty = keep & ~negative & (box[:, 2:] == 0).any(axis=1)
    skips.note(side, "empty_box", table.place[empty])
    sizes = scene.sizes[table.image]
    with np.errstate(over="ignore", invalid="ignore"):
        outside = ((box[:, :2] >= sizes) & (sizes > 0)).any(axis=1)
        outside |= (box[:, :2] + box[:, 2:] <= 0).any(axis=1)
        sides = box[:, 2] * box[:, 3]
    skips.note(side, "outside", table.place[keep & outside & ~empty & ~negative])
    area = np.where(np.isnan(table.area), sides, table.area)
    wrong = keep & ~((area >= 0) & np.isfinite(area)) & ~np.isnan(table.area)
    skips.add_many(side, "bad_area", table.place[wrong])
    keep &= ~wrong
    return replace(table, box=box, area=area).take(keep)
