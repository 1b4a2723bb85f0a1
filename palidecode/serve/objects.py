"""Objects and issues of answers as JSON values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from palidecode.answers.assembler import ParsedObject, ParseIssue
from palidecode.answers.parsing import parse
from palidecode.coco.writing import to_coco
from palidecode.detections import Detections
from palidecode.pipeline import PaliDecoder
from palidecode.pipeline.reading import Generated
from palidecode.serve.options import Options, Segmentation

Json: TypeAlias = dict[str, Any]


def objects_of(
    detections: Detections,
    segmentation: Segmentation,
    tokens: Sequence[tuple[int, int]],
    min_score: float = 0.0,
) -> list[Json]:
    """Return detections as JSON values.

    Parameters
    ----------
    detections : Detections
    segmentation : {"polygons", "rle", "none"}
        Of ``mask``: rings ``[x1, y1, x2, y2, …]`` in pixels with holes as keyholes, COCO's RLE,
        or None.
    tokens : sequence of (int, int)
        The span of each object in its answer.
    min_score : float
        Objects below it are left out; those without a score stay.
    """
    masks: list[Any] = [None] * len(detections)
    if segmentation == "rle":
        masks = list(detections.to_rle())
    elif segmentation == "polygons":
        rings = detections.to_polygons(holes="keyhole")
        masks = [None if item is None else {"polygons": item.to_coco()} for item in rings]
    columns = zip(
        detections.labels,
        detections.xyxy.tolist(),
        detections.scores.tolist(),
        masks,
        tokens,
        strict=True,
    )
    return [
        {
            "label": label,
            "box": [round(side, 3) for side in box],
            "score": None if math.isnan(score) else score,
            "mask": mask,
            "tokens": list(span),
        }
        for label, box, score, mask, span in columns
        if not score < min_score
    ]


def issues_of(issues: Iterable[ParseIssue]) -> list[Json]:
    """Return issues as JSON values: kind, span and text."""
    return [
        {"kind": issue.kind.value, "span": list(issue.span), "text": issue.text} for issue in issues
    ]


def boxed(objects: Iterable[ParsedObject]) -> list[tuple[int, int]]:
    """Return the spans of the objects that have a box: the rows of their detections."""
    return [item.span for item in objects if item.loc is not None]


class Reader:
    """Reads answers of a model as the options of a request ask."""

    def __init__(self, decoder: PaliDecoder, options: Options) -> None:
        self._decoder, self._options = decoder, options

    def detections(self, answer: Generated) -> Detections:
        """Read an answer's objects."""
        o = self._options
        return self._decoder.read(
            [answer], score=o.score, sub_bin=o.sub_bin, divisor=o.divisor, clip=o.clip
        )

    def spans(self, answer: Generated) -> list[tuple[int, int]]:
        """Return the span in tokens of each object that has a box."""
        tokenizer = self._decoder.tokenizer
        result = parse(
            answer.token_ids, vocabulary=tokenizer.vocabulary, detokenize=tokenizer.decode
        )
        return boxed(result.objects)

    def objects(self, answer: Generated, rows: slice) -> list[Json]:
        """Return some of an answer's objects, in the order that it names them."""
        o = self._options
        part = self.detections(answer).select(rows)
        return objects_of(part, o.segmentation, self.spans(answer)[rows], o.min_score)

    def whole(self, answer: Generated) -> Json:
        """Return everything about an answer that has ended."""
        detections = self.detections(answer)
        return {
            "prompt": answer.prompt,
            "answer": answer.text,
            "finished": answer.finished,
            "width": answer.size[0],
            "height": answer.size[1],
            "objects": objects_of(
                detections,
                self._options.segmentation,
                self.spans(answer),
                self._options.min_score,
            ),
            "issues": issues_of(issue for _, issue in detections.issues),
        }

    def dataset(
        self, answer: Generated, name: str, categories: Sequence[str] | None = None
    ) -> Json:
        """Return an answer's objects as a COCO dataset.

        `name` is the picture's; the categories are those given, or of the labels.
        """
        detections = self.detections(answer)
        kept = detections.select(~(detections.scores < self._options.min_score))
        return to_coco(
            kept,
            categories=categories,
            segmentation=self._options.segmentation,
            file_names=[name],
        )
