"""Convert COCO datasets to fine-tuning rows: a prompt (prefix) and its answer (suffix)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.answers.assembler import ParsedObject
from palidecode.answers.parsing import format_objects
from palidecode.coco.reading import Source
from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.errors import InputError
from palidecode.finetune.objects import (
    DEFAULT_ABSENT,
    UNREADABLE,
    AnnotatedImage,
    Boxes,
    Classes,
    EmptyImages,
    EncodeReport,
    GroundTruth,
    Invalid,
    Order,
    RowOptions,
    TrueObject,
)
from palidecode.geometry.boxes import DEFAULT_DIVISOR, box_area
from palidecode.geometry.rle import Rle
from palidecode.prompts import Task, write_prompt
from palidecode.wording import many

CHUNK = 512
Row: TypeAlias = dict[str, Any]
"""JSON values by name; see `to_finetuning_rows`."""


class EncodedImage(NamedTuple):
    """One image's row and its sources.

    Attributes
    ----------
    row : dict
        image, prefix, suffix, width, height.
    labels : list of str, length N
    xyxy : ndarray of float64, shape (N, 4)
        The boxes before quantisation, in pixels.
    loc : ndarray of int16, shape (N, 4)
    rles : list of (Rle or None), length N
    codes : ndarray of uint8, shape (N, 16), or None
        None for detect.
    """

    row: Row
    labels: list[str]
    xyxy: npt.NDArray[np.float64]
    loc: npt.NDArray[np.int16]
    rles: list[Rle | None]
    codes: npt.NDArray[np.uint8] | None


class _Draft(NamedTuple):
    image: AnnotatedImage
    prefix: str
    objects: list[TrueObject]


def to_finetuning_rows(
    coco: Source,
    task: Task = "detect",
    *,
    codec: MaskCodec | None = None,
    classes: Classes = "all",
    absent: int = DEFAULT_ABSENT,
    order: Order = "given",
    seed: int = 0,
    max_objects: int | None = None,
    boxes: Boxes = "annotations",
    divisor: int = DEFAULT_DIVISOR,
    empty_images: EmptyImages = "keep",
    invalid: Invalid = "skip",
    categories: Sequence[str] | None = None,
    crowds: bool = False,
    report: EncodeReport | None = None,
) -> Iterator[Row]:
    """Convert a COCO dataset to rows of prefix and suffix, one per image.

    The prefix of an image doesn't ask for a class whose objects were all skipped (crowds, bad
    entries, objects over the cap): an answer without them would teach that there are none.

    Makes rows lazily and encodes 512 masks at a time. Memory grows with the JSON, which is loaded
    whole, and a list of its annotations by image; rows, masks and crops are not accumulated.

    Parameters
    ----------
    coco : path or dict
        A COCO dataset. Segmentations are polygons, RLE or compressed RLE.
    task : {"detect", "segment"}
        Boxes, or boxes and masks.
    codec : MaskCodec, optional
        The encoder for ``segment``; `load_codec()` by default. To fine-tune a Google checkpoint
        it must be Google's.
    classes : {"all", "present", "present+absent"}
        Classes in the prefix: every category, those in the image, or those and some absent ones.
        Always in the order of the categories, so that the order reveals nothing.
    absent : int
        Number of absent classes, with ``"present+absent"``.
    order : {"given", "left-to-right", "area", "shuffled"}
        Order of the objects in the suffix: as in the file, by x1 then y1, largest box first, or
        random.
    seed : int
        Seed of ``"shuffled"`` and of the choice of absent classes, combined with the image's
        index in the file.
    max_objects : int, optional
        Most objects in a suffix; the others are skipped and counted.
    boxes : {"annotations", "masks"}
        The ``bbox`` as given, or the tight box of the mask.
    divisor : {1024, 1023}
        Divisor of the loc bins; see `loc_to_xyxy`.
    empty_images : {"keep", "skip"}
        Images without objects give a row with the suffix ``""``, or none. With
        ``classes="present"`` they have nothing to ask for and never give a row.
    invalid : {"skip", "error"}
        Skip and count entries that can't be written, or raise at the first. Crowds and objects
        over the cap are always skipped and counted.
    categories : sequence of str, optional
        Names of the only categories to ask for; objects of others are skipped.
    crowds : bool
        Use crowds as objects; by default they are skipped and counted.
    report : EncodeReport, optional
        Filled while rows are taken.

    Yields
    ------
    dict
        ``image`` (file name), ``prefix``, ``suffix`` (without ``<eos>``), ``width`` and
        ``height``, and ``codec`` with codes: the id of their weights. ``palidecode decode``
        reads these rows too.

    Raises
    ------
    InputError
        For a file that isn't a COCO dataset, unknown options, and, with ``invalid="error"``, the
        first entry that can't be used.
    WeightsError
        If the codec's weights can't be found or used.

    Examples
    --------
    >>> dataset = {
    ...     "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
    ...     "annotations": [{"image_id": 1, "category_id": 3, "bbox": [320, 0, 320, 240]}],
    ...     "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    ... }
    >>> next(to_finetuning_rows(dataset))["suffix"]
    '<loc0000><loc0512><loc0512><loc1023> cat'
    """
    options = RowOptions(
        task=task,
        classes=classes,
        absent=absent,
        order=order,
        seed=seed,
        max_objects=max_objects,
        boxes=boxes,
        divisor=divisor,
        empty_images=empty_images,
        invalid=invalid,
        categories=categories,
        crowds=crowds,
    )
    report = report if report is not None else EncodeReport()
    truth = GroundTruth(coco, options, report)
    if task == "segment" and codec is None:
        codec = load_codec()
    return (encoded.row for chunk in encode_images(truth, codec) for encoded in chunk)


def encode_images(
    truth: GroundTruth, codec: MaskCodec | None, chunk: int = CHUNK
) -> Iterator[list[EncodedImage]]:
    """Encode images in blocks of about `chunk` objects (or images)."""
    drafts: list[_Draft] = []
    objects = 0
    for image in truth.images:
        draft = _draft(image, truth, np.random.default_rng([truth.options.seed, image.position]))
        if draft is None:
            truth.report.images_without_objects += 1
            continue
        drafts.append(draft)
        objects += len(draft.objects)
        if objects >= chunk or len(drafts) >= chunk:
            yield _finish(drafts, truth, codec)
            drafts, objects = [], 0
    if drafts:
        yield _finish(drafts, truth, codec)


def _draft(image: AnnotatedImage, truth: GroundTruth, rng: np.random.Generator) -> _Draft | None:
    """One image's prompt and ordered objects; None if it gives no row."""
    options = truth.options
    usable, unclear = truth.objects_of(image)
    objects = _ordered(usable, options.order, rng)
    cut = objects[options.max_objects :] if options.max_objects is not None else []
    objects = objects[: options.max_objects]
    truth.report.over_the_cap += len(cut)
    unclear.update(item.label for item in cut)
    present = {item.label for item in objects}
    asked = _asked(truth.classes, present, unclear - present, options, rng)
    if not objects and UNREADABLE in unclear:
        return None  # the row would teach that nothing is there
    if not asked or (not objects and options.empty_images == "skip"):
        return None
    return _Draft(image, write_prompt(options.task, asked), objects)


def _ordered(objects: list[TrueObject], order: Order, rng: np.random.Generator) -> list[TrueObject]:
    if order == "left-to-right":
        return sorted(objects, key=lambda item: (item.xyxy[0], item.xyxy[1]))
    if order == "area":
        return sorted(objects, key=lambda item: -float(box_area(item.xyxy[None])[0]))
    if order == "shuffled":
        return [objects[index] for index in rng.permutation(len(objects))]
    return objects


def _asked(
    classes: list[str],
    present: set[str],
    unclear: set[str],
    options: RowOptions,
    rng: np.random.Generator,
) -> list[str]:
    """Choose the classes of the prefix, in the dataset's order."""
    if options.classes == "all":
        return [name for name in classes if name not in unclear]
    asked = set(present)
    if options.classes == "present+absent":
        others = [name for name in classes if name not in present and name not in unclear]
        count = min(options.absent, len(others))
        asked.update(others[index] for index in rng.choice(len(others), count, replace=False))
    return [name for name in classes if name in asked]


def _finish(
    drafts: list[_Draft], truth: GroundTruth, codec: MaskCodec | None
) -> list[EncodedImage]:
    """Encode the crops of several images together, and write their suffixes."""
    crops = [item.crop for draft in drafts for item in draft.objects if item.crop is not None]
    made = codec.encode(np.stack(crops)) if crops and codec is not None else None
    finished, done = [], 0
    for image, prefix, objects in drafts:
        codes = None if made is None else made[done : done + len(objects)]
        done += len(objects)
        segs = [None] * len(objects) if codes is None else [tuple(c) for c in codes.tolist()]
        suffix = format_objects(
            ParsedObject(item.label, tuple(item.loc.tolist()), seg, (0, 0))
            for item, seg in zip(objects, segs, strict=True)
        )
        width, height = image.size
        row: Row = {"image": image.name, "prefix": prefix, "suffix": suffix}
        row |= {"width": width, "height": height}
        if codec is not None and codes is not None and len(codes):
            row["codec"] = codec.id
        finished.append(
            EncodedImage(
                row=row,
                labels=[item.label for item in objects],
                xyxy=np.array([item.xyxy for item in objects]).reshape(-1, 4),
                loc=np.array([item.loc for item in objects], np.int16).reshape(-1, 4),
                rles=[item.rle for item in objects],
                codes=codes,
            )
        )
    truth.report.images += len(finished)
    truth.report.objects += done
    return finished


def split_images(names: list[str], share: float, seed: int = 0) -> set[str]:
    """Choose the names of the images for the validation file, a share in (0, 1) of all.

    Rows of a repeated name go to the same side; each side gets at least one image.
    """
    if not 0 < share < 1:
        raise InputError(f"the share for validation must be between 0 and 1, got {share}")
    different = list(dict.fromkeys(names))
    if len(different) < 2:
        raise InputError(f"{many(len(different), 'image')} can't be split in two")
    count = min(max(round(share * len(different)), 1), len(different) - 1)
    chosen = np.random.default_rng(seed).permutation(len(different))[:count]
    return {different[index] for index in chosen}
