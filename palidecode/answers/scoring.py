"""Scores of objects from the probabilities of their tokens.

PaliGemma writes no confidence. The recipes combine probabilities in different ways; the best
one depends on the checkpoint: compare them with `palidecode evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from palidecode.answers.assembler import ParsedObject
from palidecode.errors import InputError
from palidecode.vocab import (
    LOC_PER_BOX,
    PALIGEMMA,
    SEG_COUNT,
    SEG_PER_MASK,
    Vocabulary,
)

Score: TypeAlias = Literal["label", "box", "objectness", "mean", "product"]

DEFAULT_SCORE: Score = "product"

# A box token mostly hesitates between two neighbouring bins; at full weight that would hide the
# label's probability. Chosen on validation scenes with the bundled model: 0, 0.1, 0.25, 0.5, 1.
_BOX_SHARE = 0.1


@dataclass(frozen=True)
class Evidence:
    """Natural logs of the probabilities of one object's tokens.

    Attributes
    ----------
    loc : list of float
        Of the four loc tokens.
    label : list of float
        Of the label's tokens; empty for an object without a label.
    rest : list of float
        Of the mask's tokens, if any.
    end : float
        Of an end of the answer before this object.
    """

    loc: list[float]
    label: list[float]
    rest: list[float]
    end: float


def _label(e: Evidence) -> float:
    return math.exp(sum(e.label))


def _box(e: Evidence) -> float:
    return math.exp(sum(e.loc))


def _objectness(e: Evidence) -> float:
    return -math.expm1(min(e.end, 0.0))  # NaN stays: unknown


def _mean(e: Evidence) -> float:
    every = e.loc + e.rest + e.label
    return math.exp(sum(every) / len(every))


def _product(e: Evidence) -> float:
    box = math.exp(sum(e.loc) / len(e.loc))
    return _objectness(e) * _label(e) * math.pow(box, _BOX_SHARE)


RECIPES: dict[Score, Callable[[Evidence], float]] = {
    "label": _label,  # PaliGemma 2's report, appendix C
    "box": _box,
    "objectness": _objectness,
    "mean": _mean,
    "product": _product,
}
"""``label``: the likelihood of the label's tokens, as in the PaliGemma 2 report; ``box``: the
joint probability of the four loc tokens; ``objectness``: 1 − P(end) where the object begins;
``mean``: the geometric mean over all its tokens; ``product``: objectness × label × the
geometric mean of the loc tokens to the power of 0.1, the best of them for the bundled model."""


def check_score(score: str) -> Score:
    """Return the recipe's name, or raise an `InputError` that lists them all."""
    for name in RECIPES:
        if name == score:
            return name
    raise InputError(f"score must be one of {', '.join(RECIPES)}, got {score!r}")


def evidence_of(
    objects: Sequence[ParsedObject],
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    end_logprobs: Sequence[float],
    separators: Callable[[int], bool],
    vocabulary: Vocabulary = PALIGEMMA,
) -> list[Evidence]:
    """Collect the evidence of each object that has a box.

    The objects are parsed from token ids, so that their spans count tokens. `separators` takes a
    token id and returns True if its text contains a ``;``.
    """
    v, collected = vocabulary, []
    behind = 0  # index at which the answer could have ended before this object
    for item in objects:
        start, stop = item.span
        before = reversed(range(behind, start))
        behind = next((t for t in before if separators(token_ids[t])), behind)
        cut = next((t for t in range(start, stop) if separators(token_ids[t])), stop)
        # By kind, not by position: without the grammar there may be too many of a kind.
        inside = range(start, cut)
        loc = [t for t in inside if v.is_loc(token_ids[t])]
        seg = [t for t in inside if 0 <= token_ids[t] - v.seg_offset < SEG_COUNT]
        words = [t for t in inside if not v.is_special(token_ids[t])]
        if item.loc is not None:
            collected.append(
                Evidence(
                    loc=[logprobs[t] for t in loc[:LOC_PER_BOX]],
                    label=[logprobs[t] for t in words],
                    rest=[logprobs[t] for t in seg[:SEG_PER_MASK]],
                    end=end_logprobs[behind] if behind < len(end_logprobs) else -math.inf,
                )
            )
        behind = cut
    return collected
