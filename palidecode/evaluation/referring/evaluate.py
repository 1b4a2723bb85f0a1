"""Referring expressions: one expression, one mask or box, measured as big_vision's evaluator does.

The protocol is that of PaliGemma's RefCOCO numbers: the first four loc and sixteen seg tokens
of an answer, bins divided by 1023, corners truncated with ``int()``, the field resized
bilinearly and compared with 0, the IoU computed in the full resolution of the image. An answer
that can't be used has IoU 0. Answers that are boxes alone, and truths that are only a box, are
measured by the box.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.answers.row_files import Problem
from palidecode.coco.reading import no_collection
from palidecode.coco.skips import Skip
from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.evaluation.referring.refcoco import Truth, read_refcoco
from palidecode.evaluation.referring.rows import (
    MISSING,
    ReferringAnswer,
    Tokens,
    answers_by_id,
    bins_and_codes,
    open_answers,
    own_pairs,
)
from palidecode.geometry.boxes import check_divisor, paired_iou
from palidecode.geometry.masks import paste_big_vision, whole_corners
from palidecode.geometry.rle import Rle, check_rle, read_runs, runs_in_window, union
from palidecode.vocab import LOC_PER_BOX, PALIGEMMA, Vocabulary

BOX_THRESHOLDS = (0.5, 0.75)
PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
DIVISOR = 1023
_BATCH = 512  # samples; their fields are 8 MB
_NO_MASK: Final = "a box without a mask"
SCORES = (
    *("miou", "ciou", "giou", "n_acc", "t_acc"),
    *(f"boxacc@{at}" for at in BOX_THRESHOLDS),
    *(f"precision@{at}" for at in PRECISION_THRESHOLDS),
)
"""The flat names of a result's shares."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_Pair = tuple[Truth, ReferringAnswer]


class ReferringSample(NamedTuple):
    """One expression's answer against its truth.

    Attributes
    ----------
    id : int or str
        ``sent_id``, the row's ``id``, or the number of its line.
    image, expression : str
    iou : float or None
        Of the masks, in the full resolution; 0 for an invalid answer. None where masks aren't
        evaluated.
    box_iou : float
        Of the boxes, in fractions of the image.
    intersection, union : int
        In pixels.
    target : bool
        True if the true mask has a pixel, or the truth is only a box.
    predicted : bool
        True if the predicted mask has a pixel; where masks aren't evaluated, if there is a box.
    invalid : str
        The reason why the answer can't be used; ``""`` for a valid answer.
    """

    id: int | str
    image: str
    expression: str
    iou: float | None
    box_iou: float
    intersection: int
    union: int
    target: bool
    predicted: bool
    invalid: str = ""


@dataclass(frozen=True)
class ReferringResult:
    """Result of `evaluate_referring`; shares are in [0, 1].

    Attributes
    ----------
    miou : float
        Mean IoU of the masks over the samples with a target; invalid answers count 0. NaN, as
        `ciou`, `giou` and `precision`, where no mask is evaluated (see `masks`).
    ciou : float
        Sum of the intersections over the sum of the unions, of all samples.
    giou : float
        Mean IoU over all samples as GRES defines it: a sample without a target has 1 if the
        prediction is empty too, else 0. Without such samples it equals `miou`.
    n_acc, t_acc : float
        GRES's N-acc and T-acc: the share of samples without a target where nothing is predicted,
        and of samples with a target where something is. A missing prediction is wrong in both,
        and in `giou`.
    boxacc : dict of float to float
        Share of samples with a target whose box reaches an IoU of 0.5 and 0.75.
    precision : dict of float to float
        Share of samples with a target whose mask reaches an IoU of 0.5, 0.6 … 0.9.
    invalid : int
        Answers without a usable box and mask, of samples with a target; `missing` included. A box
        is enough where masks aren't evaluated.
    missing : int
        Expressions of the split without a prediction.
    no_target : int
        Samples whose true mask is empty.
    masks : int
        Samples whose masks are evaluated: none if every answer with a box is a box alone; else
        those whose truth has a mask, or is no target.
    total : int
        Samples.
    codec : str
        Id of the weights that decoded the masks; ``""`` where no mask is evaluated.
    samples : list of ReferringSample
    problems : list of Problem
        Rows that were skipped, with line and reason.
    skipped : tuple of Skip
        Rows of RefCOCO's files that were skipped.
    """

    miou: float
    ciou: float
    giou: float
    n_acc: float
    t_acc: float
    boxacc: dict[float, float]
    precision: dict[float, float]
    invalid: int
    missing: int
    no_target: int
    masks: int
    total: int
    codec: str
    samples: list[ReferringSample]
    problems: list[Problem]
    skipped: tuple[Skip, ...] = ()

    def scores(self) -> dict[str, float]:
        """The shares under flat names: ``miou``, ``boxacc@0.5``, ``precision@0.9`` …"""
        shares = (self.miou, self.ciou, self.giou, self.n_acc, self.t_acc)
        return dict(
            zip(SCORES, (*shares, *self.boxacc.values(), *self.precision.values()), strict=True)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all but the samples for JSON; None for numbers that can't be computed."""
        reasons = Counter(sample.invalid for sample in self.samples if sample.invalid)
        skipped = {"skipped": [skip.as_dict() for skip in self.skipped]} if self.skipped else {}
        return {
            **{k: None if math.isnan(v) else v for k, v in self.scores().items()},
            "invalid": self.invalid,
            "missing": self.missing,
            "no_target": self.no_target,
            "masks": self.masks,
            "total": self.total,
            "codec": self.codec,
            "unusable": dict(reasons),
            "problems": [problem._asdict() for problem in self.problems],
            **skipped,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict per sample, ready for a DataFrame."""
        return [sample._asdict() for sample in self.samples]


@no_collection()
def evaluate_referring(
    predictions: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    refs: str | os.PathLike[str] | Sequence[Mapping[str, Any]] | None = None,
    instances: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    split: str = "val",
    *,
    codec: MaskCodec | None = None,
    divisor: int = DIVISOR,
    threshold: float = 0.0,
    missing: Literal["zero", "skip"] = "zero",
    vocabulary: Vocabulary = PALIGEMMA,
    output_key: str | None = None,
    image_key: str | None = None,
    box_image: int | None = None,
) -> ReferringResult:
    """Evaluate answers to referring expressions against masks or boxes.

    Follows big_vision's RefCOCO evaluator for ``miou``, ``boxacc`` and ``invalid``; the others are
    those of the literature. Answers to ``detect`` prompts, which are boxes alone, and truths that
    are only a box have a box accuracy.

    Parameters
    ----------
    predictions : path of a file of rows, or list of dict
        Answers, as ``palidecode decode`` reads them. With `refs`: also ``sent_id``,
        or ``ref_id`` and the expression in ``prompt``. Without: also ``segmentation`` (RLE or
        polygons in the full resolution), ``bbox`` (x, y, width, height in pixels; by default
        the mask's tight box), or both, and ``width`` and ``height``, or ``size``, unless an RLE
        contains them. Null or [] and no ``bbox`` is no target.
    refs, instances : path or content, optional
        RefCOCO's ``refs(unc).p`` and ``instances.json``; see `read_refcoco`.
    split : str
        Split of `refs` to evaluate.
    codec : MaskCodec, optional
        Without it the default weights are loaded in float32 where masks are evaluated. Give one
        of ``load_codec(…, precision="float32")``: the protocol is float32.
    divisor : {1023, 1024}
        Number of bins per side of the image. The protocol's is 1023.
    threshold : float
        A pixel is mask if its field is above it. The protocol's is 0.
    missing : {"zero", "skip"}
        Evaluate expressions of the split without a prediction as invalid answers, or skip them.
        `ReferringResult.missing` counts them both ways.
    vocabulary : Vocabulary
        For ``token_ids``.
    output_key, image_key : str, optional
        Keys of the answers and of the pictures' names; by default ``output``, ``token_ids``,
        ``text`` … and ``image``, ``file_name`` … A ``text`` or ``answer`` without a loc token in
        any row is the expression.
    box_image : int, optional
        Index of the picture that the truth is about, of rows that name several.

    Returns
    -------
    ReferringResult

    Raises
    ------
    InputError
        For files that can't be read, and if nothing is left to evaluate.

    Examples
    --------
    >>> from palidecode import load_codec
    >>> row = {"output": "<loc0000><loc0000><loc1023><loc1023>" + "<seg040>" * 16,
    ...        "size": [640, 480], "segmentation": [[0, 0, 640, 0, 640, 480, 0, 480]]}
    >>> result = evaluate_referring([row], codec=load_codec("palidecode-demo", precision="float32"))
    >>> result.boxacc[0.75], result.invalid, result.total
    (1.0, 0, 1)
    """
    check_divisor(divisor)
    if missing not in ("zero", "skip"):
        raise InputError(f"missing must be 'zero' or 'skip', got {missing!r}")
    if (refs is None) != (instances is None):
        raise InputError("RefCOCO's truth is two files: give refs and instances, or neither")
    problems: list[Problem] = []
    keys = (output_key, image_key, box_image)
    lacking = 0
    skipped: tuple[Skip, ...] = ()
    with open_answers(predictions, *keys, problems) as (reader, rows):
        if refs is None or instances is None:
            pairs = list(own_pairs(rows, reader, problems))
        else:
            refcoco = read_refcoco(refs, instances, split)
            answers, skipped = answers_by_id(rows, reader, refcoco, problems), refcoco.skipped
            lacking = len(refcoco.truths) - len(answers)
            pairs = [
                (truth, answers.get(number, MISSING))
                for number, truth in refcoco.truths.items()
                if number in answers or missing == "zero"
            ]
    if not pairs:
        raise InputError(_nothing(problems))
    tokens = bins_and_codes([answer for _, answer in pairs], vocabulary)
    how = _Protocol(_codec_of(pairs, tokens, codec), divisor, threshold)
    samples: list[ReferringSample] = []
    for start in range(0, len(pairs), _BATCH):
        some = pairs[start : start + _BATCH]
        samples += _measure(some, tokens.take(range(start, start + len(some))), how, problems)
    if not samples:
        raise InputError(_nothing(problems))
    return replace(_summary(samples, lacking, how, problems), skipped=skipped)


def _codec_of(
    pairs: Sequence[_Pair], tokens: Tokens, codec: MaskCodec | None
) -> tuple[MaskCodec, str] | None:
    """Return the codec and the id of the codes; None if masks aren't evaluated.

    That is where answers are boxes alone, or truths.
    """
    alone = tokens.boxed & ~tokens.masked
    if (alone.any() and not tokens.masked.any()) or all(truth.rle is None for truth, _ in pairs):
        return None
    named = {answer.codec for _, answer in pairs} - {""}
    codes_id = named.pop() if len(named) == 1 else codec.id if codec is not None else GOOGLE_ID
    return load_codec(precision="float32") if codec is None else codec, codes_id


def _nothing(problems: Sequence[Problem]) -> str:
    first = f"; line {problems[0].line}: {problems[0].reason}" if problems else ""
    return f"no prediction to evaluate{first}"


def _summary(
    samples: list[ReferringSample], missing: int, how: _Protocol, problems: list[Problem]
) -> ReferringResult:
    target = np.array([sample.target for sample in samples])
    measured = np.array([sample.iou is not None for sample in samples])
    iou = np.array([sample.iou or 0.0 for sample in samples])
    box_iou = np.array([sample.box_iou for sample in samples])[target]
    unions = sum(sample.union for sample in samples)
    shared = sum(sample.intersection for sample in samples)
    something = np.array([sample.predicted for sample in samples])
    nothing = ~something & [sample.invalid != MISSING.invalid for sample in samples]
    of_targets = iou[target & measured]
    return ReferringResult(
        miou=_mean(of_targets),
        ciou=shared / unions if unions else math.nan,
        giou=_mean(np.where(target, iou, nothing)[measured]),
        n_acc=_mean(nothing[~target]),
        t_acc=_mean(something[target]),
        boxacc={at: _mean(box_iou >= at) for at in BOX_THRESHOLDS},
        precision={at: _mean(of_targets >= at) for at in PRECISION_THRESHOLDS},
        invalid=sum(bool(sample.invalid) and sample.target for sample in samples),
        missing=missing,
        no_target=int((~target).sum()),
        masks=int(measured.sum()),
        total=len(samples),
        codec=how.codec[0].id if how.codec is not None else "",
        samples=samples,
        problems=problems,
    )


def _mean(values: Floats | npt.NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else math.nan


@dataclass(frozen=True)
class _Protocol:
    """Options of measuring; see `evaluate_referring`. No codec: masks aren't evaluated."""

    codec: tuple[MaskCodec, str] | None
    divisor: int
    threshold: float


def _measure(
    pairs: Sequence[_Pair], tokens: Tokens, how: _Protocol, problems: list[Problem]
) -> list[ReferringSample]:
    """Measure some samples; those whose true mask is damaged become problems."""
    pairs, tokens, rles, runs = _sound(pairs, tokens, problems)
    if not pairs:
        return []
    numbers, boxed, masked, invalid = tokens
    measured = np.array([how.codec is not None and t.rle is not None for t, _ in pairs])
    sizes = np.array([truth.size for truth, _ in pairs], np.int64)
    # In this order of operations: v / 1023 · h and v · h / 1023 differ before int().
    boxes = numbers[:, :LOC_PER_BOX] / how.divisor
    pixels = (boxes * np.tile(sizes[:, ::-1], 2)).astype(np.int64)[:, [1, 0, 3, 2]]
    empty = (pixels[:, 2:] <= pixels[:, :2]).any(axis=1)
    for row in np.flatnonzero(boxed & measured & (empty | ~masked)).tolist():
        invalid[row] = "box without a whole pixel" if masked[row] else _NO_MASK
    usable = measured & masked & ~empty
    shared, predicted, area = _areas(runs, numbers, pixels, sizes, usable, how)
    unions = np.where(measured, predicted + area - shared, 0)
    box_iou = paired_iou(boxes, _true_boxes([truth for truth, _ in pairs], rles, sizes))
    iou = shared / np.maximum(unions, 1)
    only_box = np.array([truth.rle is None for truth, _ in pairs])
    columns = zip(
        [value if known else None for value, known in zip(iou.tolist(), measured, strict=True)],
        box_iou.tolist(),
        shared.tolist(),
        unions.tolist(),
        ((area > 0) | only_box).tolist(),
        np.where(measured, predicted > 0, boxed).tolist(),
        invalid,
        strict=True,
    )
    return [
        ReferringSample(truth.id, truth.image, truth.expression, *values)
        for (truth, _), values in zip(pairs, columns, strict=True)
    ]


def _areas(
    runs: Sequence[Ints],
    numbers: Ints,
    pixels: Ints,
    sizes: Ints,
    usable: npt.NDArray[np.bool_],
    how: _Protocol,
) -> tuple[Ints, Ints, Ints]:
    """Return the pixels that the masks share, those of the prediction, and those of the truth."""
    area = np.array([int(own[1::2].sum()) for own in runs])
    shared, predicted = np.zeros_like(area), np.zeros_like(area)
    rows = np.flatnonzero(usable)
    for row, field in zip(rows.tolist(), _fields(numbers[rows, LOC_PER_BOX:], how), strict=True):
        width, height = sizes[row].tolist()
        pasted = paste_big_vision(field, pixels[row], (width, height), threshold=how.threshold)
        window = runs_in_window(runs[row], height, whole_corners(pixels[row]))
        shared[row] = np.count_nonzero(pasted.mask & window)
        predicted[row] = np.count_nonzero(pasted.mask)
    return shared, predicted, area


def _sound(
    pairs: Sequence[_Pair], tokens: Tokens, problems: list[Problem]
) -> tuple[Sequence[_Pair], Tokens, list[Rle], list[Ints]]:
    """Return the samples whose true mask can be read, that mask, and its run lengths.

    The mask is empty where only the box is known.
    """
    rles = [union([], truth.size) if truth.rle is None else truth.rle for truth, _ in pairs]
    try:
        runs, ends = read_runs(rles)
    except InputError:
        sound = []
        for row, rle in enumerate(rles):
            try:
                check_rle(rle)
            except InputError as error:
                problems.append(Problem(pairs[row][1].line, str(error)))
            else:
                sound.append(row)
        tokens = tokens.take(sound)
        pairs, rles = [pairs[n] for n in sound], [rles[n] for n in sound]
        runs, ends = read_runs(rles)
    return pairs, tokens, rles, [own.ravel() for own in np.split(runs, ends)[:-1]]


def _fields(codes: Ints, how: _Protocol) -> npt.NDArray[np.float32]:
    if how.codec is None:
        return np.zeros((0, 64, 64), np.float32)
    count, (codec, codes_id) = len(codes), how.codec
    # `Detections` warns if the codec is not the one of the codes.
    return Detections(
        xyxy=np.zeros((count, 4), np.float32),
        labels=[""] * count,
        scores=np.full(count, np.nan, np.float32),
        image_index=np.zeros(count, np.int64),
        sizes=np.ones((1, 2), np.int64),
        codes=codes.astype(np.uint8),
        has_mask=np.ones(count, np.bool_),
        codec=codec,
        codes_id=codes_id,
    ).fields()


def _true_boxes(truths: Sequence[Truth], rles: Sequence[Rle], sizes: Ints) -> Floats:
    """Return y1, x1, y2, x2 in fractions of the image."""
    boxes = [
        coco_mask.toBbox(rle) if truth.bbox is None else truth.bbox
        for truth, rle in zip(truths, rles, strict=True)
    ]
    xywh = np.array(boxes, np.float64)
    corners = np.concatenate([xywh[:, 1::-1], (xywh[:, :2] + xywh[:, 2:])[:, ::-1]], axis=1)
    scaled: Floats = corners / np.tile(sizes[:, ::-1], 2)
    return scaled
