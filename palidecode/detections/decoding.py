"""Answers to `Detections`: decode texts, and place parsed objects in their images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from palidecode.answers.batch import ParsedBatch, parse_batch
from palidecode.answers.parsing import Answer, Detokenize
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.detections.columns import ImageId
from palidecode.detections.objects import Detections
from palidecode.errors import InputError
from palidecode.geometry.boxes import DEFAULT_DIVISOR, check_sizes, loc_to_xyxy
from palidecode.vocab import PALIGEMMA, Vocabulary
from palidecode.wording import many


def decode(
    answers: Answer | Sequence[Answer],
    sizes: npt.ArrayLike,
    codec: MaskCodec | None = None,
    divisor: int = DEFAULT_DIVISOR,
    *,
    names: Sequence[str] | None = None,
    image_ids: Sequence[ImageId | None] | None = None,
    scores: Sequence[Sequence[float] | None] | None = None,
    clip: bool = False,
    codes_id: str | None = None,
    strict: bool = False,
    vocabulary: Vocabulary = PALIGEMMA,
    detokenize: Detokenize | None = None,
) -> Detections:
    """Decode answers of a PaliGemma model to boxes in pixels, labels and masks.

    Parameters
    ----------
    answers : list of str, or of token ids (lists or arrays); or one str
        One per image.
    sizes : array_like of int, shape (B, 2) or (2,)
        Width and height of every image in pixels, or one pair for all.
    codec : MaskCodec, optional
        From `load_codec`. Without it the default weights are loaded when masks are asked for.
    divisor : {1024, 1023}
        Number of bins per side of the image; see `loc_to_xyxy`.
    names, image_ids : sequence, optional
        File name and COCO id of every image, which writers and `evaluate_coco` use.
    scores : sequence of (sequence of float or None), optional
        One number for each box of each answer; None or NaN if unknown.
    clip : bool
        Keep the boxes inside the image.
    codes_id : str, optional
        Id of the weights that the codes belong to; by default those of the `codec` given, else
        ``google-oid``.
    strict : bool
        Raise on the first issue instead of listing it in ``issues``.
    vocabulary, detokenize
        For answers of token ids; see `palidecode.parse`.

    Returns
    -------
    Detections
        One row for each object that has a box, in the order of the answers.

    Raises
    ------
    InputError
        If the number of sizes, names, ids or scores doesn't fit, or sizes aren't positive.
    ParseError
        With ``strict=True``.

    Examples
    --------
    >>> found = decode(["<loc0046><loc0538><loc0795><loc1022> cat"], sizes=[(640, 480)])
    >>> found.xyxy.tolist(), found.labels
    ([[336.25, 21.5625, 638.75, 372.65625]], ['cat'])
    """
    if isinstance(answers, str):
        answers = [answers]
    batch = parse_batch(
        answers,  # type: ignore[arg-type]
        strict=strict,
        vocabulary=vocabulary,
        detokenize=detokenize,
    )
    return place_objects(
        batch,
        len(answers),
        sizes,
        codec,
        divisor,
        names=names,
        image_ids=image_ids,
        scores=scores,
        clip=clip,
        codes_id=codes_id,
    )


def place_objects(
    batch: ParsedBatch,
    count: int,
    sizes: npt.ArrayLike,
    codec: MaskCodec | None = None,
    divisor: int = DEFAULT_DIVISOR,
    *,
    names: Sequence[str] | None = None,
    image_ids: Sequence[ImageId | None] | None = None,
    scores: Sequence[Sequence[float] | None] | None = None,
    clip: bool = False,
    codes_id: str | None = None,
) -> Detections:
    """Place the parsed objects of `count` answers in their images; see `decode`."""
    per_image = _sizes_of(sizes, count)
    index = batch.answer_index
    return Detections(
        xyxy=loc_to_xyxy(batch.loc, per_image[index], divisor=divisor, clip=clip),
        labels=batch.labels,
        scores=_scores_of(scores, index, count),
        image_index=index,
        sizes=per_image,
        codes=batch.codes,
        has_mask=batch.has_mask,
        codec=codec,
        codes_id=codes_id or (codec.id if codec is not None else GOOGLE_ID),
        issues=batch.issues,
        names=[] if names is None else list(names),
        image_ids=[] if image_ids is None else list(image_ids),
    )


def _sizes_of(sizes: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """Check sizes, and repeat a single one for every answer."""
    if count == 0:
        return np.zeros((0, 2), np.int64)
    checked = check_sizes(sizes, count)
    if (checked != np.rint(checked)).any():
        raise InputError("sizes must be whole numbers of pixels")
    return np.broadcast_to(checked, (count, 2)).astype(np.int64)


def _scores_of(
    scores: Sequence[Sequence[float] | None] | None, index: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float32]:
    out = np.full(len(index), np.nan, np.float32)
    if scores is None:
        return out
    if len(scores) != count:
        raise InputError(f"lists of scores ({len(scores)}) must be as many as answers ({count})")
    for answer, values in enumerate(scores):
        if values is None:
            continue
        first, last = np.searchsorted(index, [answer, answer + 1])
        if len(values) != last - first:
            raise InputError(
                f"answer {answer} has {many(last - first, 'box', 'boxes')} but "
                f"{many(len(values), 'score')}"
            )
        out[first:last] = values
    return out
