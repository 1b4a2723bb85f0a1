"""Evaluate a model in training on rows that it isn't trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from palidecode.answers.parsing import parse
from palidecode.answers.scoring import DEFAULT_SCORE
from palidecode.coco.writing import to_coco
from palidecode.codec.protocol import MaskCodec
from palidecode.detections import Detections, decode
from palidecode.errors import InputError
from palidecode.evaluation.coco.engine import IouType
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.evaluation.referring.evaluate import evaluate_referring
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.prompts import split_verb
from palidecode.runtime.options import GrammarOptions
from palidecode.trainer.examples import Example
from palidecode.trainer.settings import Settings

DECIDING = ("segm AP", "bbox AP", "mIoU", "box accuracy")
"""Numbers by which the best weights are chosen; the first that there is."""


def check_validation(examples: Sequence[Example]) -> None:
    """Refuse rows that there is no number for.

    Raises
    ------
    InputError
        If a prompt is neither ``detect`` nor ``segment``, and the answer not one object, or if
        rows of both kinds are mixed.
    """
    for example in examples:
        if _kind(example) is None:
            raise InputError(
                f"line {example.line} of the validation rows: {example.prefix!r} is neither a "
                "detect nor a segment prompt, and its answer is no single object, so it has "
                "neither AP nor IoU; leave it out"
            )
        if _kind(example) != _kind(examples[0]):
            raise InputError(
                f"lines {examples[0].line} and {example.line} of the validation rows: referring "
                "expressions and detect or segment prompts have different numbers; use one kind"
            )


def _kind(example: Example) -> str | None:
    """Return the kind of a row: "classes", "referring", or None for others."""
    if split_verb(example.prefix)[0] is not None:
        return "classes"
    objects, issues = parse(example.suffix)
    referring = len(objects) == 1 and not issues and objects[0].loc is not None
    return "referring" if referring and not objects[0].label else None


def validate(
    decoder: PaliDecoder, examples: Sequence[Example], codec: MaskCodec | None, settings: Settings
) -> dict[str, float]:
    """Answer the prompts of some rows, and evaluate the answers against the rows' own.

    A model that is trained with noise boxes answers without an end, see `min_objects` of
    `GrammarOptions`.

    Returns
    -------
    dict of str to float
        ``bbox AP``, ``bbox AP50``, and ``segm …`` where rows ask to segment; for referring
        expressions ``mIoU``, where they have masks, and ``box accuracy`` at IoU 0.5. The truth is
        that of the rows: boxes in bins, masks as the codec decodes them.
    """
    referring = _kind(examples[0]) == "referring"
    noise = 0 if referring else settings.noise
    limit = max(len(example.answer) for example in examples) * 2
    if noise:
        limit = settings.longest - max(len(example.prompt) for example in examples)
    found = decoder.generate(
        [example.pictures for example in examples],
        [example.prefix for example in examples],
        limit,
        GrammarOptions(max_objects=noise, min_objects=noise) if noise else True,
        over="vocabulary" if noise else "allowed",
        batch_size=settings.batch_size,
        box_image=0,
    )
    names = [f"line-{example.line}" for example in examples]
    sizes = [example.size for example in examples]
    truth = decode([example.suffix for example in examples], sizes, codec, names=names)
    if referring:
        return _referring(truth, [answer.text for answer in found], codec)
    sized = [replace(one, size=size) for one, size in zip(found, sizes, strict=True)]
    read = decoder.read(sized, score="label" if noise else DEFAULT_SCORE)
    return _average_precision(truth, replace(read, names=names))


def _average_precision(truth: Detections, found: Detections) -> dict[str, float]:
    kinds: tuple[IouType, ...] = ("bbox", "segm") if truth.has_mask.any() else ("bbox",)
    numbers: dict[str, float] = {}
    for kind in kinds:
        dataset = to_coco(truth, segmentation="rle" if kind == "segm" else "none")
        result = evaluate_coco(dataset, found, kind)
        numbers |= {f"{kind} {name}": result.metrics[name] for name in ("AP", "AP50")}
    return numbers


def _referring(
    truth: Detections, answers: Sequence[str], codec: MaskCodec | None
) -> dict[str, float]:
    """Evaluate answers to referring expressions; each row of `truth` is one object."""
    masks = bool(truth.has_mask.all())
    rles = truth.to_rle(paste="big_vision") if masks else []  # as the evaluator pastes answers
    rows: list[dict[str, object]] = []
    for index, answer in enumerate(answers):
        x1, y1, x2, y2 = truth.xyxy[index].tolist()
        row: dict[str, object] = {"output": answer, "size": list(truth.sizes[index])}
        row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        rows.append(row | ({"segmentation": rles[index]} if masks else {}))
    result = evaluate_referring(rows, codec=codec, divisor=DEFAULT_DIVISOR)
    numbers = {"box accuracy": result.boxacc[0.5]}
    # Without a usable mask in any answer no mask is evaluated.
    return {"mIoU": result.miou if result.masks else 0.0, **numbers} if masks else numbers
