"""Read a model's answers: token ids and their probabilities to detections with scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from palidecode.answers.assembler import ParsedObject
from palidecode.answers.batch import join_results
from palidecode.answers.parsing import parse
from palidecode.codec.protocol import MaskCodec
from palidecode.detections import Detections, place_objects
from palidecode.errors import InputError
from palidecode.geometry.boxes import loc_to_xyxy
from palidecode.pipeline.scoring import RECIPES, Score, check_score, evidence_of, expected_bins
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.vocab import LOC_COUNT, LOC_PER_BOX

SUB_BIN_RADIUS = 12
"""Bins to each side that count for a sub-bin box."""


class UnreadablePictureWarning(UserWarning):
    """A picture of a batch can't be read; the others are answered without it."""


@dataclass(frozen=True)
class Generated:
    """The answer to one prompt about one picture.

    Attributes
    ----------
    prompt, text : str
        The text spells loc and seg tokens, and omits control tokens.
    token_ids : list of int
        ``<eos>`` included where the model wrote it.
    logprobs : list of float
        Natural log of each token's probability.
    end_logprobs : list of float
        Natural log of the probability that ``<eos>`` had in each token's place.
    size : tuple of 2 int
        Width and height of the picture in pixels; (0, 0) if it could not be read.
    finished : bool
        True if it ended with ``<eos>``, not at the limit.
    loc_probabilities : ndarray of float32, shape (L, 1024), or None
        The distribution of each loc token, if asked for.
    error : str
        The reason that there is no answer: the picture can't be read. Else ``""``.
    """

    prompt: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end_logprobs: list[float] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    finished: bool = False
    loc_probabilities: npt.NDArray[np.float32] | None = None
    error: str = ""

    def top_locs(self, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the k likeliest bins of every loc token and their probabilities, (L, k) each.

        Raises
        ------
        InputError
            If the answer was generated without ``loc_probabilities=True``.
        """
        if self.loc_probabilities is None:
            raise InputError("generate(…, loc_probabilities=True) keeps what top_locs needs")
        order = np.argsort(-self.loc_probabilities, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(self.loc_probabilities, order, 1)


def read_answers(
    answers: Sequence[Generated],
    per_picture: int,
    tokenizer: Tokenizer,
    *,
    codec: MaskCodec | None,
    codes_id: str,
    score: Score,
    sub_bin: bool,
    divisor: int,
    clip: bool,
) -> Detections:
    """Read answers as detections; see `PaliDecoder.read`."""
    recipe = RECIPES[check_score(score)]
    vocabulary = tokenizer.vocabulary
    results = [
        parse(answer.token_ids, vocabulary=vocabulary, detokenize=tokenizer.decode)
        for answer in answers
    ]
    scores: list[list[float]] = []
    for answer, result in zip(answers, results, strict=True):
        evidence = evidence_of(
            result.objects,
            answer.token_ids,
            answer.logprobs,
            answer.end_logprobs,
            tokenizer.is_separator,
            vocabulary,
        )
        scores.append([recipe(item) for item in evidence])
    detections = place_objects(
        join_results(results),
        len(answers),
        [answer.size if not answer.error else (1, 1) for answer in answers],
        codec,
        divisor,
        scores=scores,
        clip=clip,
        codes_id=codes_id,
    )
    if sub_bin and len(detections):
        bins = [
            _sub_bins(answer, result.objects, vocabulary.loc_offset)
            for answer, result in zip(answers, results, strict=True)
        ]
        sizes = detections.sizes[detections.image_index]
        xyxy = loc_to_xyxy(np.concatenate(bins), sizes, divisor=divisor, clip=clip)
        detections = replace(detections, xyxy=xyxy)
    return replace(
        detections,
        image_index=detections.image_index // per_picture,
        sizes=np.array([a.size for a in answers], np.int64).reshape(-1, 2)[::per_picture],
        issues=[(number // per_picture, issue) for number, issue in detections.issues],
    )


def _sub_bins(
    answer: Generated, objects: Sequence[ParsedObject], loc_offset: int
) -> npt.NDArray[np.float64]:
    """Expected y1, x1, y2, x2 of every object with a box, (N, 4), in bins."""
    starts = [item.span[0] for item in objects if item.loc is not None]
    if not starts:
        return np.zeros((0, LOC_PER_BOX))
    if answer.loc_probabilities is None:
        raise InputError("sub_bin needs answers generated with loc_probabilities=True")
    bins = np.array(answer.token_ids) - loc_offset
    is_loc = (bins >= 0) & (bins < LOC_COUNT)
    number = np.cumsum(is_loc) - 1  # index of a loc token among the loc tokens
    rows = (number[starts][:, None] + np.arange(LOC_PER_BOX)).ravel()
    modes = bins[is_loc][rows]
    mean = expected_bins(modes, answer.loc_probabilities[rows], SUB_BIN_RADIUS)
    mean, modes = mean.reshape(-1, 2, 2), modes.reshape(-1, 2, 2)  # top left, bottom right
    # Means of two sides that are nearer than the radius may cross: keep their bins.
    crossed = (mean[:, 1] <= mean[:, 0])[:, None]
    return np.where(crossed, modes, mean).reshape(-1, LOC_PER_BOX)
