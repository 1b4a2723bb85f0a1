"""COCO annotations as they are: the usable ones become objects, the others are counted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.answers.parsing import label_problem
from palidecode.coco.categories import check_categories
from palidecode.coco.loading import read_segmentation
from palidecode.errors import InputError
from palidecode.files import check_size, inside, picture_size, read_json
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
Coco: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]

DEFAULT_ABSENT = 5
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
    no_segmentation : int
        Annotations without a mask if one is needed.
    unknown_images, unknown_categories : int
        Annotations of an image or a category that the dataset doesn't have.
    bad_labels : Counter of str
        Category names that can't be written into an answer (``;``, newlines, text that reads
        as a token), with the number of their annotations.
    unreadable : int
        Annotations whose box or segmentation can't be read.
    over_the_cap : int
        Objects cut by `max_objects`.
    bad_images : int
        Image entries without a usable id, name or size.
    images_without_objects : int
        Images that gave no row because they have no objects.
    """

    images: int = 0
    objects: int = 0
    crowds: int = 0
    degenerate_boxes: int = 0
    empty_masks: int = 0
    masks_outside_box: int = 0
    no_segmentation: int = 0
    unknown_images: int = 0
    unknown_categories: int = 0
    bad_labels: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    over_the_cap: int = 0
    bad_images: int = 0
    images_without_objects: int = 0

    def left_out(self) -> dict[str, Any]:
        """The counts above 0 of skipped entries, by reason."""
        made = ("images", "objects")
        return {name: value for name, value in vars(self).items() if value and name not in made}


class AnnotatedImage(NamedTuple):
    """An image, its position in the dataset, and its annotations as the file has them."""

    position: int
    name: str
    size: tuple[int, int]
    annotations: list[Any]


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
    """An entry that can't become part of a row: the report's name for it, and why."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class GroundTruth:
    """A COCO dataset, checked and sorted by image, with the options and the report.

    Attributes
    ----------
    images : list of AnnotatedImage
        The usable ones.
    classes : list of str
        Category names that can be written, in the dataset's order.
    names : dict
        Category id to name, the bad names too.
    """

    def __init__(self, coco: Coco, options: RowOptions, report: EncodeReport) -> None:
        self.options, self.report = options, report
        data = coco if isinstance(coco, Mapping) else read_json(coco)
        self.where = "dataset" if isinstance(coco, Mapping) else str(coco)
        if not isinstance(data, Mapping) or not isinstance(data.get("images"), list):
            raise InputError(f"{self.where}: a COCO dataset has 'images' and 'annotations'")
        annotations = data.get("annotations", [])
        if not isinstance(annotations, list):
            raise InputError(f"{self.where}: 'annotations' must be a list")
        self.names = {item["id"]: item["name"] for item in check_categories(data)}
        self.classes = self._classes()
        self._writable = set(self.classes)
        self.images = self._images(data["images"], annotations)

    def objects_of(self, image: AnnotatedImage) -> tuple[list[TrueObject], set[str]]:
        """An image's usable objects, and the labels of those that were left out."""
        objects: list[TrueObject] = []
        unclear: set[str] = set()
        for annotation in image.annotations:
            category = annotation.get("category_id")
            label = self.names.get(category) if isinstance(category, Hashable) else None
            if label is not None and label not in self._writable:
                self.report.bad_labels[label] += 1
                continue
            try:
                if label is None:
                    raise _Unusable("unknown_categories", f"there is no category {category!r}")
                if annotation.get("iscrowd"):
                    self.report.crowds += 1
                    unclear.add(label)
                    continue
                objects.append(_read_object(annotation, label, image.size, self.options))
            except _Unusable as problem:
                unclear.update([label] if label else [])
                self._leave_out(problem, f"annotation {annotation.get('id', '?')} of {image.name}")
        return objects, unclear

    def check_pictures(self, folder: Path) -> list[tuple[int, str]]:
        """Remove the images whose picture is missing or has another size.

        Parameters
        ----------
        folder : Path
            The directory of the pictures.

        Returns
        -------
        list of (int, str)
            Position of each removed image in the dataset, and the reason.
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

    def _leave_out(self, problem: _Unusable, what: str) -> None:
        """Count a problem, or raise it where that was asked for."""
        self._refuse(str(problem), what)
        setattr(self.report, problem.reason, getattr(self.report, problem.reason) + 1)

    def _refuse(self, why: str, what: str) -> None:
        if self.options.invalid == "error":
            raise InputError(f"{self.where}: {what}: {why}; invalid='skip' leaves such entries out")

    def _classes(self) -> list[str]:
        good = []
        for number, name in self.names.items():
            problem = name_problem(name)
            if problem is None:
                good.append(name)
                continue
            self._refuse(f"the name {name!r} has {problem}; rename it", f"category {number}")
            self.report.bad_labels[name] += 0
        if not good:
            raise InputError(f"{self.where}: no category has a name that can be written")
        return good

    def _images(self, images: list[Any], annotations: list[Any]) -> list[AnnotatedImage]:
        found: dict[Hashable, AnnotatedImage] = {}
        for place, image in enumerate(images):
            try:
                number, read = _read_image(place, image)
            except _Unusable as problem:
                self._leave_out(problem, f"image {place}")
                continue
            if number in found:
                raise InputError(f"{self.where}: several images have the id {number!r}")
            found[number] = read
        for place, annotation in enumerate(annotations):
            try:
                _image_of(annotation, found).annotations.append(annotation)
            except _Unusable as problem:
                self._leave_out(problem, f"annotation {place}")
        return list(found.values())


def name_problem(name: str) -> str | None:
    """Describe why a category's name can't be in prompts and answers; None if it can."""
    if not name:
        return "no letters"
    found = _TOKEN_LIKE.search(name)
    if found:
        return f"text that a tokenizer reads as a token ({found.group()!r})"
    return label_problem(name) or (None if name.isprintable() else "characters that don't print")


def _read_image(position: int, image: Any) -> tuple[Hashable, AnnotatedImage]:
    if not isinstance(image, Mapping):
        raise _Unusable("bad_images", f"not an object: {image!r}")
    number, name = image.get("id"), image.get("file_name")
    if number is None or not isinstance(number, Hashable):
        raise _Unusable("bad_images", f"an image needs an 'id', got {number!r}")
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise _Unusable("bad_images", f"'file_name' must be printable text, got {name!r}")
    try:
        size = check_size((image.get("width"), image.get("height")))
    except InputError as error:
        raise _Unusable("bad_images", str(error)) from error
    return number, AnnotatedImage(position, name, size, [])


def _image_of(annotation: Any, images: Mapping[Hashable, AnnotatedImage]) -> AnnotatedImage:
    if not isinstance(annotation, Mapping):
        raise _Unusable("unreadable", f"not an object: {annotation!r}")
    number = annotation.get("image_id")
    image = images.get(number) if isinstance(number, Hashable) else None
    if image is None:
        raise _Unusable("unknown_images", f"there is no image {number!r}")
    return image


def _read_object(
    annotation: Mapping[str, Any], label: str, size: tuple[int, int], options: RowOptions
) -> TrueObject:
    rle = _read_mask(annotation, size) if options.reads_masks else None
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
        raise _Unusable("degenerate_boxes", f"the box {xyxy.tolist()} (xyxy) holds no whole pixel")
    crop = crop_rles([rle], xyxy[None])[0]
    if not crop.any():
        raise _Unusable("masks_outside_box", f"no mask pixel in the box {xyxy.tolist()} (xyxy)")
    return TrueObject(label, xyxy, loc, rle, crop)


def _read_mask(annotation: Mapping[str, Any], size: tuple[int, int]) -> Rle:
    try:
        rle = read_segmentation(annotation.get("segmentation"), size)
    except (InputError, TypeError, ValueError, OverflowError) as error:
        raise _Unusable("unreadable", f"the segmentation can't be read: {error}") from error
    if rle is None:
        raise _Unusable("no_segmentation", "no segmentation")
    if not coco_mask.area(rle):
        raise _Unusable("empty_masks", "the mask has no pixel")
    return rle


def _read_box(annotation: Mapping[str, Any], rle: Rle | None) -> npt.NDArray[np.float64]:
    """The annotation's box, or its mask's tight one; xyxy in pixels."""
    box = annotation.get("bbox") if rle is None else coco_mask.toBbox(rle)
    try:
        values = np.asarray(box, np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise _Unusable("unreadable", f"bbox must be four finite numbers, got {box!r}")
    xyxy: npt.NDArray[np.float64] = xywh_to_xyxy(values[None])[0]
    return xyxy
