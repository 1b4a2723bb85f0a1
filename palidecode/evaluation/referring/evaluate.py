"""Referring segmentation: one expression, one mask, measured as big_vision's evaluator does.

The protocol is that of PaliGemma's RefCOCO numbers: the first four loc and sixteen seg tokens
of an answer, bins divided by 1023, corners truncated with ``int()``, the field resized
bilinearly and compared with 0, the IoU computed in the full resolution of the image. An answer
that can't be used has IoU 0.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.answers.jsonl import Problem
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
    answers_by_id,
    bins_and_codes,
    own_pairs,
    read_lines,
)
from palidecode.geometry.boxes import check_divisor, paired_iou
from palidecode.geometry.masks import paste_big_vision, whole_corners
from palidecode.geometry.rle import check_rle, read_runs, runs_in_window
from palidecode.vocab import LOC_PER_BOX, PALIGEMMA, Vocabulary

BOX_THRESHOLDS = (0.5, 0.75)
PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
DIVISOR = 1023
_BATCH = 512  # samples; their fields are 8 MB
SCORES = (
    *("miou", "ciou", "giou"),
    *(f"boxacc@{at}" for at in BOX_THRESHOLDS),
    *(f"precision@{at}" for at in PRECISION_THRESHOLDS),
)
"""The flat names of a result's shares."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class ReferringSample(NamedTuple):
    """One expression's answer against its truth.

    Attributes
    ----------
    id : int or str
        ``sent_id``, the row's ``id``, or the number of its line.
    image, expression : str
    iou : float
        Of the masks, in the full resolution; 0 for an invalid answer.
    box_iou : float
        Of the boxes, in fractions of the image.
    intersection, union : int
        In pixels.
    target : bool
        True if the true mask has a pixel.
    invalid : str
        The reason why the answer can't be used; ``""`` for a valid answer.
    """

    id: int | str
    image: str
    expression: str
    iou: float
    box_iou: float
    intersection: int
    union: int
    target: bool
    invalid: str = ""


@dataclass(frozen=True)
class ReferringResult:
    """Result of `evaluate_referring`; shares are in [0, 1].

    Attributes
    ----------
    miou : float
        Mean IoU of the masks over the samples with a target; invalid answers count 0.
    ciou : float
        Sum of the intersections over the sum of the unions, of all samples.
    giou : float
        Mean IoU over all samples as GRES defines it: a sample without a target has 1 if the
        prediction is empty too, else 0. Without such samples it equals `miou`.
    boxacc : dict of float to float
        Share of samples with a target whose box reaches an IoU of 0.5 and 0.75.
    precision : dict of float to float
        Share of samples with a target whose mask reaches an IoU of 0.5, 0.6 … 0.9.
    invalid : int
        Answers without a usable box and mask, of samples with a target; `missing` included.
    missing : int
        Expressions of the split without a prediction.
    no_target : int
        Samples whose true mask is empty.
    total : int
        Samples.
    codec : str
        Id of the weights that decoded the masks.
    samples : list of ReferringSample
    problems : list of Problem
        Rows that were skipped, with line and reason.
    skipped : tuple of Skip
        Rows of RefCOCO's files that were skipped.
    """

    miou: float
    ciou: float
    giou: float
    boxacc: dict[float, float]
    precision: dict[float, float]
    invalid: int
    missing: int
    no_target: int
    total: int
    codec: str
    samples: list[ReferringSample]
    problems: list[Problem]
    skipped: tuple[Skip, ...] = ()

    def scores(self) -> dict[str, float]:
        """The shares under flat names: ``miou``, ``boxacc@0.5``, ``precision@0.9`` …"""
        shares = (self.miou, self.ciou, self.giou, *self.boxacc.values(), *self.precision.values())
        return dict(zip(SCORES, shares, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Return all but the samples for JSON; None for numbers that can't be computed."""
        reasons = Counter(sample.invalid for sample in self.samples if sample.invalid)
        skipped = {"skipped": [skip.as_dict() for skip in self.skipped]} if self.skipped else {}
        return {
            **{k: None if math.isnan(v) else v for k, v in self.scores().items()},
            "invalid": self.invalid,
            "missing": self.missing,
            "no_target": self.no_target,
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
) -> ReferringResult:
    """Evaluate answers to referring expressions against masks.

    Follows big_vision's RefCOCO evaluator for ``miou``, ``boxacc`` and ``invalid``; ``ciou``,
    ``giou`` and ``precision`` are those of the literature.

    Parameters
    ----------
    predictions : path of a JSONL file, or list of dict
        ``output`` (text) or ``token_ids`` (without the prompt). With `refs`: also ``sent_id``,
        or ``ref_id`` and the expression in ``prompt``. Without: also ``segmentation`` (RLE or
        polygons in the full resolution; null or [] for no target), ``bbox`` (x, y, width,
        height in pixels; by default the mask's tight box) and ``width`` and ``height``, or
        ``size``, unless an RLE contains them.
    refs, instances : path or content, optional
        RefCOCO's ``refs(unc).p`` and ``instances.json``; see `read_refcoco`.
    split : str
        Split of `refs` to evaluate.
    codec : MaskCodec, optional
        The default weights are loaded without it.
    divisor : {1023, 1024}
        Number of bins per side of the image. The protocol's is 1023.
    threshold : float
        A pixel is mask if its field is above it. The protocol's is 0.
    missing : {"zero", "skip"}
        Evaluate expressions of the split without a prediction as invalid answers, or skip them.
        `ReferringResult.missing` counts them both ways.
    vocabulary : Vocabulary
        For ``token_ids``.

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
    >>> result = evaluate_referring([row], codec=load_codec("palidecode-demo"))
    >>> result.boxacc[0.75], result.invalid, result.total
    (1.0, 0, 1)
    """
    check_divisor(divisor)
    if missing not in ("zero", "skip"):
        raise InputError(f"missing must be 'zero' or 'skip', got {missing!r}")
    if (refs is None) != (instances is None):
        raise InputError("RefCOCO's truth is two files: give refs and instances, or neither")
    problems: list[Problem] = []
    rows = read_lines(predictions, problems)
    lacking = 0
    skipped: tuple[Skip, ...] = ()
    if refs is None or instances is None:
        pairs = list(own_pairs(rows, problems))
    else:
        refcoco = read_refcoco(refs, instances, split)
        answers, skipped = answers_by_id(rows, refcoco, problems), refcoco.skipped
        lacking = len(refcoco.truths) - len(answers)
        pairs = [
            (truth, answers.get(number, MISSING))
            for number, truth in refcoco.truths.items()
            if number in answers or missing == "zero"
        ]
    if not pairs:
        raise InputError(_nothing(problems))
    named = {answer.codec for _, answer in pairs} - {""}
    codes_id = named.pop() if len(named) == 1 else codec.id if codec is not None else GOOGLE_ID
    used = load_codec() if codec is None else codec
    how = _Protocol(used, codes_id, divisor, threshold, vocabulary)
    samples: list[ReferringSample] = []
    for start in range(0, len(pairs), _BATCH):
        samples += _measure(pairs[start : start + _BATCH], how, problems)
    if not samples:
        raise InputError(_nothing(problems))
    return replace(_summary(samples, lacking, used.id, problems), skipped=skipped)


def _nothing(problems: Sequence[Problem]) -> str:
    first = f"; line {problems[0].line}: {problems[0].reason}" if problems else ""
    return f"no prediction to evaluate{first}"


def _summary(
    samples: list[ReferringSample], missing: int, codec: str, problems: list[Problem]
) -> ReferringResult:
    target = np.array([sample.target for sample in samples])
    iou = np.array([sample.iou for sample in samples])
    box_iou = np.array([sample.box_iou for sample in samples])[target]
    unions = sum(sample.union for sample in samples)
    shared = sum(sample.intersection for sample in samples)
    # Without a target the union is the prediction: an empty one is right.
    empty = np.array([sample.union == 0 for sample in samples])
    return ReferringResult(
        miou=_mean(iou[target]),
        ciou=shared / unions if unions else math.nan,
        giou=_mean(np.where(target, iou, empty)),
        boxacc={at: _mean(box_iou >= at) for at in BOX_THRESHOLDS},
        precision={at: _mean(iou[target] >= at) for at in PRECISION_THRESHOLDS},
        invalid=sum(bool(sample.invalid) and sample.target for sample in samples),
        missing=missing,
        no_target=int((~target).sum()),
        total=len(samples),
        codec=codec,
        samples=samples,
        problems=problems,
    )


def _mean(values: Floats | npt.NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else math.nan


@dataclass(frozen=True)
class _Protocol:
    """Options of reading answers; see `evaluate_referring`."""

    codec: MaskCodec
    codes_id: str
    divisor: int
    threshold: float
    vocabulary: Vocabulary


def _measure(
    pairs: Sequence[tuple[Truth, ReferringAnswer]], how: _Protocol, problems: list[Problem]
) -> list[ReferringSample]:
    """Measure some samples; those whose true mask is damaged become problems."""
    pairs, runs = _sound(pairs, problems)
    if not pairs:
        return []
    numbers, invalid = bins_and_codes([answer for _, answer in pairs], how.vocabulary)
    sizes = np.array([truth.size for truth, _ in pairs], np.int64)
    # In this order of operations: v / 1023 · h and v · h / 1023 differ before int().
    boxes = numbers[:, :LOC_PER_BOX] / how.divisor
    pixels = (boxes * np.tile(sizes[:, ::-1], 2)).astype(np.int64)[:, [1, 0, 3, 2]]
    empty = (pixels[:, 2:] <= pixels[:, :2]).any(axis=1)
    for row in np.flatnonzero(empty).tolist():
        invalid[row] = invalid[row] or "box without a whole pixel"
    usable = np.array([not reason for reason in invalid])
    area = np.array([int(own[1::2].sum()) for own in runs])
    shared, predicted = np.zeros_like(area), np.zeros_like(area)
    rows = np.flatnonzero(usable)
    fields = _fields(numbers[rows, LOC_PER_BOX:], how)
    for row, field in zip(rows.tolist(), fields, strict=True):
        size = pairs[row][0].size
        mask = paste_big_vision(field, pixels[row], size, threshold=how.threshold).mask
        window = runs_in_window(runs[row], size[1], whole_corners(pixels[row]))
        shared[row], predicted[row] = np.count_nonzero(mask & window), np.count_nonzero(mask)
    unions = predicted + area - shared
    box_iou = paired_iou(boxes, _true_boxes([truth for truth, _ in pairs], sizes))
    columns = zip(
        (shared / np.maximum(unions, 1)).tolist(),
        box_iou.tolist(),
        shared.tolist(),
        unions.tolist(),
        (area > 0).tolist(),
        invalid,
        strict=True,
    )
    return [
        ReferringSample(truth.id, truth.image, truth.expression, *values)
        for (truth, _), values in zip(pairs, columns, strict=True)
    ]


def _sound(
    pairs: Sequence[tuple[Truth, ReferringAnswer]], problems: list[Problem]
) -> tuple[Sequence[tuple[Truth, ReferringAnswer]], list[Ints]]:
    """Return the samples whose true mask can be read, and its run lengths."""
    try:
        runs, ends = read_runs([truth.rle for truth, _ in pairs])
    except InputError:
        sound = []
        for truth, answer in pairs:
            try:
                check_rle(truth.rle)
            except InputError as error:
                problems.append(Problem(answer.line, str(error)))
            else:
                sound.append((truth, answer))
        pairs = sound
        runs, ends = read_runs([truth.rle for truth, _ in pairs])
    return pairs, [own.ravel() for own in np.split(runs, ends)[:-1]]


def _fields(codes: Ints, how: _Protocol) -> npt.NDArray[np.float32]:
    count = len(codes)
    # `Detections` warns if the codec is not the one of the codes.
    return Detections(
        xyxy=np.zeros((count, 4), np.float32),
        labels=[""] * count,
        scores=np.full(count, np.nan, np.float32),
        image_index=np.zeros(count, np.int64),
        sizes=np.ones((1, 2), np.int64),
        codes=codes.astype(np.uint8),
        has_mask=np.ones(count, np.bool_),
        codec=how.codec,
        codes_id=how.codes_id,
    ).fields()


def _true_boxes(truths: Sequence[Truth], sizes: Ints) -> Floats:
    """Return y1, x1, y2, x2 in fractions of the image."""
    xywh = np.array(
        [coco_mask.toBbox(t.rle) if t.bbox is None else t.bbox for t in truths], np.float64
    )
    corners = np.concatenate([xywh[:, 1::-1], (xywh[:, :2] + xywh[:, 2:])[:, ::-1]], axis=1)
    scaled: Floats = corners / np.tile(sizes[:, ::-1], 2)
    return scaled
