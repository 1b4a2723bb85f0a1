"""COCO annotations as they are: the usable ones become objects, the others are counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.answers.parsing import label_problem
from palidecode.coco.mask_reading import read_mask
from palidecode.coco.reading import (
    BoxRow,
    CocoFile,
    ImageRow,
    Key,
    Row,
    Source,
    index_by_id,
    is_box,
    no_collection,
    note_federated,
    read_dataset,
)
from palidecode.coco.skips import Skips
from palidecode.errors import InputError, warn
from palidecode.files import check_size, inside, picture_size
from palidecode.finetune.encoding import crop_rles, encode_boxes
from palidecode.geometry.boxes import DEFAULT_DIVISOR, check_divisor, xywh_to_xyxy
from palidecode.geometry.masks import rounded_corners
from palidecode.geometry.rle import Rle
from palidecode.prompts import Task

Classes: TypeAlias = Literal["all", "present", "present+absent"]
Order: TypeAlias = Literal["given", "left-to-right", "area", "shuffled"]
Boxes: TypeAlias = Literal["annotations", "masks"]
EmptyImages: TypeAlias = Literal["keep", "skip"]
Invalid: TypeAlias = Literal["skip", "error"]

DEFAULT_ABSENT = 5
UNREADABLE = ""
"""The label of annotations that can't be read."""
# Gemma's tokenizer reads <image>, <mask>, <b> … and [@BOS@] as tokens, and U+2581 as a space.
_TOKEN_LIKE = re.compile("<[^<>]*>|<loc|<seg|\\[@BOS@\\]|\u2581")


@dataclass(frozen=True)
class RowOptions:
    """Options of `to_finetuning_rows`, which explains them."""

    task: Task = "detect"
    classes: Classes = "all"
    absent: int = DEFAULT_ABSENT
    order: Order = "given"
    seed: int = 0
    max_objects: int | None = None
    boxes: Boxes = "annotations"
    divisor: int = DEFAULT_DIVISOR
    empty_images: EmptyImages = "keep"
    invalid: Invalid = "skip"
    categories: Sequence[str] | None = None
    crowds: bool = False

    def __post_init__(self) -> None:
        choices = {
            "task": Task,
            "classes": Classes,
            "order": Order,
            "boxes": Boxes,
            "empty_images": EmptyImages,
            "invalid": Invalid,
        }
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                known = ", ".join(map(repr, get_args(choice)))
                raise InputError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        check_divisor(self.divisor)
        for name, least in (("absent", 0), ("seed", 0), ("max_objects", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(f"{name} must be a whole number from {least} up, got {value!r}")

    @property
    def reads_masks(self) -> bool:
        """True if an annotation must have a segmentation."""
        return self.task == "segment" or self.boxes == "masks"


@dataclass
class EncodeReport:
    """Counts of rows and objects, and of everything skipped, by reason.

    Attributes
    ----------
    images, objects : int
        Rows, and objects in their suffixes.
    crowds : int
        Crowd annotations: one mask over many objects can't be one object of an answer.
    degenerate_boxes : int
        Boxes without area: as given, in loc bins, or (under segment) in whole pixels.
    empty_masks, masks_outside_box : int
        Masks without a pixel, and masks without a pixel inside their box.
    bad_rings : int
        Polygon rings of fewer than three points; the other rings of their object are used.
    no_segmentation : int
        Annotations without a mask if one is needed.
    unknown_images, unknown_categories : int
        Annotations of an image or a category that the dataset doesn't have.
    bad_labels : Counter of str
        Category names that can't be written into an answer (``;``, newlines, text that reads
        as a token), with the number of their annotations.
    unreadable : int
        Annotations whose box or segmentation can't be read, and categories that can't be.
    over_the_cap : int
        Objects cut by `max_objects`.
    bad_images : int
        Image entries without a usable id, name or size.
    images_without_objects : int
        Images that gave no row because they have no objects, or none that can be read.
    rotated : int
        Objects with ``attributes.rotation``: their box is the one before the rotation.
    grouping : list of str
        Categories without annotations that only group others, as their ``supercategory``.
    examples : dict of str to str
        The first skipped entry of each reason, and what is wrong with it.
    """

    images: int = 0
    objects: int = 0
    crowds: int = 0
    degenerate_boxes: int = 0
    empty_masks: int = 0
    masks_outside_box: int = 0
    bad_rings: int = 0
    no_segmentation: int = 0
    unknown_images: int = 0
    unknown_categories: int = 0
    bad_labels: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    over_the_cap: int = 0
    bad_images: int = 0
    images_without_objects: int = 0
    rotated: int = 0
    grouping: list[str] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)

    def left_out(self) -> dict[str, Any]:
        """The counts above 0 of skipped entries, by reason."""
        made = ("images", "objects", "rotated", "grouping", "examples")
        return {name: value for name, value in vars(self).items() if value and name not in made}


class AnnotatedImage(NamedTuple):
    """An image of the dataset.

    Attributes
    ----------
    position : int
        Offset in the dataset's images.
    name : str
    size : tuple of int
    annotations : list of (int, BoxRow)
        Offset in the dataset's annotations, and the annotation.
    unclear : set of str
        Labels of annotations that can't be read.
    """

    position: int
    name: str
    size: tuple[int, int]
    annotations: list[tuple[int, BoxRow]]
    unclear: set[str]


class TrueObject(NamedTuple):
    """An annotation that can be written.

    Attributes
    ----------
    label : str
    xyxy : ndarray of float64, shape (4,)
        In pixels.
    loc : ndarray of int16, shape (4,)
        Never without area.
    rle : Rle or None
        None where no mask was needed.
    crop : ndarray of float32, shape (64, 64), or None
        What the codec encodes; None under detect.
    """

    label: str
    xyxy: npt.NDArray[np.float64]
    loc: npt.NDArray[np.int16]
    rle: Rle | None
    crop: npt.NDArray[np.float32] | None


class _Unusable(Exception):
    """An entry that can't become part of a row: the report's name for it, and the reason."""

    def __init__(self, counter: str, reason: str) -> None:
        super().__init__(reason)
        self.counter = counter


class GroundTruth:
    """A COCO dataset, checked and sorted by image, with the options and the report.

    Images without a size take that of their picture, if the directory of the pictures is given.

    Attributes
    ----------
    images : list of AnnotatedImage
        The usable ones.
    classes : list of str
        Category names that can be written, in the dataset's order.
    names : dict of int to str
        Names of the categories by id, including those that can't be written.
    """

    def __init__(
        self,
        coco: Source,
        options: RowOptions,
        report: EncodeReport,
        pictures: Path | None = None,
    ) -> None:
        self._pictures = pictures
        self.options, self.report = options, report
        skips = Skips()
        kind = Row if options.reads_masks else BoxRow
        with no_collection():
            read = read_dataset(
                coco, kind, skips, needs=("images", "categories"), unused=("id", "area", "score")
            )
        self.where = read.where
        for skip in skips.skipped:
            self._refuse(skip.examples[0])
            counter = "bad_images" if skip.side == "image" else "unreadable"
            self._count(counter, skip.count)
            report.examples.setdefault(counter, skip.examples[0])
        if options.classes != "present":
            note_federated(read, skips)
        for skip in skips.noted:
            warn(f"{read.where}: {skip} ({skip.such_as})")
        self.names = {item["id"]: item["name"] for item in read.categories}
        self.classes = self._classes()
        if options.categories is not None:
            self.classes = self._wanted(options.categories)
        used = {self.names.get(row.category_id) for row in read.annotations.rows}
        named = [item.get("supercategory") for item in read.categories]
        groups = {name for name in named if isinstance(name, str)}
        report.grouping = [name for name in self.classes if name in groups and name not in used]
        self.images = self._images(read)

    def objects_of(self, image: AnnotatedImage) -> tuple[list[TrueObject], set[str]]:
        """Return an image's usable objects, and the labels of those that were skipped."""
        objects: list[TrueObject] = []
        unclear, asked = set(image.unclear), set(self.classes)
        for offset, annotation in image.annotations:
            label = self.names.get(annotation.category_id)
            if label is not None and label not in asked:
                if self.options.categories is None:
                    self.report.bad_labels[label] += 1
                continue
            try:
                if label is None:
                    reason = f"there is no category {annotation.category_id}"
                    raise _Unusable("unknown_categories", reason)
                if annotation.iscrowd and not self.options.crowds:
                    self.report.crowds += 1
                    unclear.add(label)
                    continue
                objects.append(self._read_object(annotation, label, image.size))
                self.report.rotated += annotation.rotated
            except _Unusable as problem:
                unclear.update([label] if label else [])
                if problem.counter in ("unreadable", "unknown_categories"):
                    unclear.add(UNREADABLE)
                self._skip(problem, f"annotations[{offset}] (of {image.name})")
        return objects, unclear

    def check_pictures(self, folder: Path) -> list[tuple[int, str]]:
        """Remove the images whose picture in `folder` is missing or has another size.

        Returns the position of each removed image in the dataset, and the reason.
        """
        kept, problems = [], []
        for image in self.images:
            try:
                size = picture_size(inside(folder, image.name))
                if size != image.size:
                    (width, height), (given_width, given_height) = size, image.size
                    raise InputError(
                        f"{image.name} is {width}×{height} in {folder} but "
                        f"{given_width}×{given_height} in the COCO file"
                    )
            except InputError as error:
                problems.append((image.position, str(error)))
            else:
                kept.append(image)
        self.images = kept
        return problems

    def _skip(self, problem: _Unusable, what: str) -> None:
        """Count a problem, or raise it if the options ask for that."""
        self._refuse(f"{what}: {problem}")
        self._count(problem.counter, 1)
        self.report.examples.setdefault(problem.counter, f"{what}: {problem}")

    def _count(self, counter: str, more: int) -> None:
        setattr(self.report, counter, getattr(self.report, counter) + more)

    def _refuse(self, problem: str) -> None:
        if self.options.invalid == "error":
            raise InputError(f"{self.where}: {problem}; invalid='skip' skips such entries")

    def _classes(self) -> list[str]:
        good = []
        for number, name in self.names.items():
            if name in good:  # categories of one name are one class of a prompt
                continue
            problem = name_problem(name)
            if problem is None:
                good.append(name)
                continue
            if self.options.categories is None:
                self._refuse(f"category {number}: the name {name!r} has {problem}; rename it")
                self.report.bad_labels[name] += 0
        if not good:
            raise InputError(f"{self.where}: no category has a name that can be written")
        return good

    def _wanted(self, names: Sequence[str]) -> list[str]:
        """Return the chosen classes, in the dataset's order."""
        unknown = [name for name in names if name not in self.classes]
        if unknown or not names:
            what = f"no category is called {unknown[0]!r}" if unknown else "no category is named"
            shown = ", ".join(map(repr, self.classes[:8]))
            raise InputError(f"{self.where}: {what}; the dataset has {shown} …")
        return [name for name in self.classes if name in names]

    def _images(self, read: CocoFile[BoxRow]) -> list[AnnotatedImage]:
        images: list[AnnotatedImage] = []
        usable: list[ImageRow] = []
        for offset, image in read.images.numbered():
            try:
                name, size = _name_and_size(image, self._pictures)
            except _Unusable as problem:
                self._skip(problem, f"images[{offset}]")
                continue
            images.append(AnnotatedImage(offset, name, size, [], set()))
            usable.append(image)
        index_of = index_by_id(usable)
        for offset, row in read.annotations.numbered():
            index = index_of.get(row.image_id)
            if index is not None:
                images[index].annotations.append((offset, row))
            else:
                unknown = _Unusable("unknown_images", f"there is no image {row.image_id!r}")
                self._skip(unknown, f"annotations[{offset}]")
        for broken in read.annotations.broken:
            image_id, category = broken.image_id, broken.category_id
            index = index_of.get(image_id) if isinstance(image_id, Key) else None
            if index is not None:
                images[index].unclear.add(UNREADABLE)
                if isinstance(category, int):
                    images[index].unclear.update(filter(None, [self.names.get(category)]))
        return images

    def _read_object(self, annotation: BoxRow, label: str, size: tuple[int, int]) -> TrueObject:
        options = self.options
        rle = self._read_mask(annotation, size) if options.reads_masks else None
        xyxy = _read_box(annotation, rle if options.boxes == "masks" else None)
        if (xyxy[2:] <= xyxy[:2]).any():
            raise _Unusable("degenerate_boxes", f"the box {xyxy.tolist()} (xyxy) has no area")
        loc = encode_boxes(xyxy[None], size, options.divisor)[0]
        if (loc[2:] <= loc[:2]).any():
            raise _Unusable(
                "degenerate_boxes", f"the box {xyxy.tolist()} (xyxy) is thinner than a loc bin"
            )
        if options.task == "detect" or rle is None:
            return TrueObject(label, xyxy, loc, rle, None)
        x1, y1, x2, y2 = rounded_corners(xyxy, size)
        if x2 <= x1 or y2 <= y1:
            raise _Unusable(
                "degenerate_boxes", f"the box {xyxy.tolist()} (xyxy) contains no whole pixel"
            )
        crop = crop_rles([rle], xyxy[None])[0]
        if not crop.any():
            raise _Unusable("masks_outside_box", f"no mask pixel in the box {xyxy.tolist()} (xyxy)")
        return TrueObject(label, xyxy, loc, rle, crop)

    def _read_mask(self, annotation: BoxRow, size: tuple[int, int]) -> Rle:
        outline = annotation.segmentation if isinstance(annotation, Row) else None
        try:
            rle, skipped_rings = read_mask(outline, size)
        except InputError as error:
            raise _Unusable("unreadable", f"the segmentation can't be read: {error}") from error
        if rle is None:
            raise _Unusable("no_segmentation", "no segmentation")
        if not coco_mask.area(rle):
            raise _Unusable("empty_masks", "the mask has no pixel")
        if skipped_rings:
            self._refuse(f"polygon rings of fewer than three points: {skipped_rings}")
            self._count("bad_rings", skipped_rings)
        return rle


def name_problem(name: str) -> str | None:
    """Describe why a category's name can't be in prompts and answers; None if it can."""
    if not name:
        return "no letters"
    marker = _TOKEN_LIKE.search(name)
    if marker:
        return f"text that a tokenizer reads as a token ({marker.group()!r})"
    return label_problem(name) or (None if name.isprintable() else "characters that don't print")


def _name_and_size(image: ImageRow, pictures: Path | None) -> tuple[str, tuple[int, int]]:
    name = image.file_name
    if not name or not name.isprintable():
        raise _Unusable("bad_images", f"'file_name' must be printable text, got {name!r}")
    try:
        if pictures is not None and min(image.width, image.height) < 1:
            return name, picture_size(inside(pictures, name))
        return name, check_size((image.width, image.height))
    except InputError as error:
        raise _Unusable("bad_images", str(error)) from error


def _read_box(annotation: BoxRow, rle: Rle | None) -> npt.NDArray[np.float64]:
    """Return the annotation's box, or its mask's tight one; xyxy in pixels."""
    box = annotation.bbox if rle is None else coco_mask.toBbox(rle)
    if box is None or not is_box(box):
        raise _Unusable("unreadable", f"bbox must be four finite numbers, got {box}")
    xyxy: npt.NDArray[np.float64] = xywh_to_xyxy([box])[0]
    return xyxy
