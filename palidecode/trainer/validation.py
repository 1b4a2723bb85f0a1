"""Evaluate a model in training on rows that it isn't trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from palidecode.answers.scoring import DEFAULT_SCORE
from palidecode.coco.writing import to_coco
from palidecode.codec.protocol import MaskCodec
from palidecode.detections import decode
from palidecode.errors import InputError
from palidecode.evaluation.coco.engine import IouType
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.prompts import split_verb
from palidecode.runtime.options import GrammarOptions
from palidecode.trainer.examples import Example
from palidecode.trainer.settings import Settings


def check_validation(examples: Sequence[Example]) -> None:
    """Refuse rows that AP can't be computed of.

    Raises
    ------
    InputError
        If a prompt is neither ``detect`` nor ``segment``.
    """
    for example in examples:
        if split_verb(example.prefix)[0] is None:
            raise InputError(
                f"line {example.line} of the validation rows: {example.prefix!r} is neither a "
                "detect nor a segment prompt, so its answer has no AP; leave it out"
            )


def validate(
    decoder: PaliDecoder, examples: Sequence[Example], codec: MaskCodec | None, settings: Settings
) -> dict[str, float]:
    """Answer the prompts of some rows, and evaluate the answers against the rows' own.

    A model that is trained with noise boxes answers without an end, see `GrammarOptions.fill`.

    Returns
    -------
    dict of str to float
        ``bbox AP``, ``bbox AP50``, and ``segm …`` where rows ask to segment. The truth is that of
        the rows: boxes in bins, masks as the codec decodes them.
    """
    names = [f"line-{example.line}" for example in examples]
    sizes = [example.size for example in examples]
    truth = decode([example.suffix for example in examples], sizes, codec, names=names)
    noise = settings.noise
    limit = max(len(example.answer) for example in examples) * 2
    if noise:
        limit = settings.longest - max(len(example.prompt) for example in examples)
    found = decoder.generate(
        [example.picture for example in examples],
        [example.prefix for example in examples],
        limit,
        GrammarOptions(max_objects=noise, fill=True) if noise else True,
        over="vocabulary" if noise else "allowed",
        batch_size=settings.batch_size,
    )
    read = replace(decoder.read(found, score="label" if noise else DEFAULT_SCORE), names=names)
    kinds: tuple[IouType, ...] = ("bbox", "segm") if truth.has_mask.any() else ("bbox",)
    numbers: dict[str, float] = {}
    for kind in kinds:
        dataset = to_coco(truth, segmentation="rle" if kind == "segm" else "none")
        result = evaluate_coco(dataset, read, kind)
        numbers |= {f"{kind} {name}": result.metrics[name] for name in ("AP", "AP50")}
    return numbers
