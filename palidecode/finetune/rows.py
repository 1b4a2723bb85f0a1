"""COCO datasets to fine-tuning rows: what the model reads (prefix) and shall answer (suffix)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from palidecode.answers.assembler import ParsedObject
from palidecode.answers.parsing import format_objects
from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.errors import InputError
from palidecode.finetune.objects import (
    DEFAULT_ABSENT,
    AnnotatedImage,
    Boxes,
    Classes,
    Coco,
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

CHUNK = 512


class EncodedImage(NamedTuple):
    """One image's row, and what it was made from.

    Attributes
    ----------
    row : dict
        image, prefix, suffix, width, height.
    labels : list of str, length N
    xyxy : ndarray of float64, shape (N, 4)
        The boxes before they became bins, in pixels.
    loc : ndarray of int16, shape (N, 4)
    rles : list of (Rle or None), length N
    codes : ndarray of uint8, shape (N, 16), or None
        None under detect.
    """

    row: dict[str, Any]
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
    coco: Coco,
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
    report: EncodeReport | None = None,
) -> Iterator[dict[str, Any]]:
    """A COCO dataset to rows of prefix and suffix, one per image.

    A class is not asked for in an image where all of its objects were left out (crowds, bad
    entries, those over the cap): an answer without them would teach that there are none.

    Rows are made when they are asked for, and 512 masks are encoded at a time. What grows
    with the file is the JSON itself, which is loaded whole, and a list of its annotations by
    image; rows, masks and crops don't add up.

    Parameters
    ----------
    coco : path or dict
        A COCO dataset. Segmentations are polygons, RLE or compressed RLE.
    task : {"detect", "segment"}
        Boxes, or boxes and masks.
    codec : MaskCodec, optional
        What makes the seg codes, for ``segment``; `load_codec()` by default. To fine-tune a
        Google checkpoint it must be Google's.
    classes : {"all", "present", "present+absent"}
        Which classes the prefix asks for: every category, those in the image, or those and
        some that aren't there. Always in the order of the categories, so that the order gives
        nothing away.
    absent : int
        How many absent classes, with ``"present+absent"``.
    order : {"given", "left-to-right", "area", "shuffled"}
        Of the objects in the suffix: as in the file, by x1 then y1, largest box first, or
        at random.
    seed : int
        For ``"shuffled"`` and the choice of absent classes; together with the image's place
        in the file it settles both.
    max_objects : int, optional
        The first so many in that order; the others are cut and counted.
    boxes : {"annotations", "masks"}
        ``bbox`` as given, or the tight box of the mask.
    divisor : {1024, 1023}
        Of the loc bins; see `loc_to_xyxy`.
    empty_images : {"keep", "skip"}
        What to do with images without objects: a row whose suffix is ``""``, or none. With
        ``classes="present"`` there is nothing to ask for, and never a row.
    invalid : {"skip", "error"}
        Leave out what can't be written and count it, or raise at the first. Crowds and
        objects over the cap are always left out and counted.
    report : EncodeReport, optional
        Is filled while rows are taken.

    Yields
    ------
    dict
        ``image`` (file name), ``prefix``, ``suffix`` (without ``<eos>``), ``width`` and
        ``height``, and ``codec`` where there are codes: the id of the weights they belong to.
        ``palidecode decode`` reads these rows too.

    Raises
    ------
    InputError
        For a file that is no COCO dataset, unknown options, and, with ``invalid="error"``, the
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
    )
    report = report if report is not None else EncodeReport()
    truth = GroundTruth(coco, options, report)
    if task == "segment" and codec is None:
        codec = load_codec()
    return (encoded.row for chunk in encode_images(truth, codec) for encoded in chunk)


def encode_images(
    truth: GroundTruth, codec: MaskCodec | None, chunk: int = CHUNK
) -> Iterator[list[EncodedImage]]:
    """Rows with what they were made from, for `chunk` objects (or images) or a few more at once."""
    drafts: list[_Draft] = []
    objects = 0
    for place, image in enumerate(truth.images):
        draft = _draft(image, truth, np.random.default_rng([truth.options.seed, place]))
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
    """One image's prompt and objects, in order; None where there is nothing to write."""
    options = truth.options
    found, unclear = truth.objects_of(image)
    objects = _ordered(found, options.order, rng)
    cut = objects[options.max_objects :] if options.max_objects is not None else []
    objects = objects[: options.max_objects]
    truth.report.over_the_cap += len(cut)
    unclear.update(item.label for item in cut)
    present = {item.label for item in objects}
    asked = _asked(truth.classes, present, unclear - present, options, rng)
    if not asked or (not objects and options.empty_images == "skip"):
        return None
    return _Draft(image, write_prompt(options.task, asked), objects)


def _ordered(objects: list[TrueObject], order: Order, rng: np.random.Generator) -> list[TrueObject]:
    if order == "left-to-right":
        return sorted(objects, key=lambda item: (item.xyxy[0], item.xyxy[1]))
    if order == "area":
        return sorted(objects, key=lambda item: -float(box_area(item.xyxy[None])[0]))
    if order == "shuffled":
        return [objects[place] for place in rng.permutation(len(objects))]
    return objects


def _asked(
    classes: list[str],
    present: set[str],
    unclear: set[str],
    options: RowOptions,
    rng: np.random.Generator,
) -> list[str]:
    """What the prefix asks for, in the dataset's order."""
    if options.classes == "all":
        return [name for name in classes if name not in unclear]
    asked = set(present)
    if options.classes == "present+absent":
        others = [name for name in classes if name not in present and name not in unclear]
        count = min(options.absent, len(others))
        asked.update(others[place] for place in rng.choice(len(others), count, replace=False))
    return [name for name in classes if name in asked]


def _finish(
    drafts: list[_Draft], truth: GroundTruth, codec: MaskCodec | None
) -> list[EncodedImage]:
    """Encode the crops of several images at once, and write their suffixes."""
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
        row: dict[str, Any] = {"image": image.name, "prefix": prefix, "suffix": suffix}
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
    """The names of the images that go into the validation file.

    Parameters
    ----------
    names : list of str
        File names; one that comes several times goes to one side with all its rows.
    share : float
        Of the images, above 0 and below 1; at least one image stays on each side.
    seed : int
    """
    if not 0 < share < 1:
        raise InputError(f"the share for validation must lie between 0 and 1, got {share}")
    different = list(dict.fromkeys(names))
    if len(different) < 2:
        raise InputError(f"{len(different)} images can't be split in two")
    count = min(max(round(share * len(different)), 1), len(different) - 1)
    chosen = np.random.default_rng(seed).permutation(len(different))[:count]
    return {different[place] for place in chosen}
