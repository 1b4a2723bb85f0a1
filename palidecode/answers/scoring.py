"""Scores of objects from the probabilities of their tokens.

PaliGemma writes no confidence. The recipes combine probabilities in different ways; the best
one depends on the checkpoint: compare them with `palidecode evaluate`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from palidecode.answers.assembler import ParsedObject
from palidecode.answers.parsing import parse
from palidecode.errors import InputError
from palidecode.vocab import (
    LOC_BINS,
    LOC_COUNT,
    LOC_PER_BOX,
    PALIGEMMA,
    SEG_CODES,
    SEG_COUNT,
    SEG_PER_MASK,
    Vocabulary,
)

Score: TypeAlias = Literal["label", "box", "objectness", "mean", "product"]

DEFAULT_SCORE: Score = "product"

# A box token mostly hesitates between two neighbouring bins; at full weight that would hide the
# label's probability. Chosen on validation scenes with the bundled model: 0, 0.1, 0.25, 0.5, 1.
_BOX_SHARE = 0.1

_ENDS = ("<eos>", "</s>", "<end_of_turn>")
_IMPOSSIBLE = -1e9
_WORD, _SEPARATOR = 3, 4  # ids that are no special tokens


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
    return -math.expm1(min(0.0, e.end))


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
        loc = [t for t in inside if 0 <= token_ids[t] - v.loc_offset < LOC_COUNT]
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


def scores_of_text(text: str, tokens: Sequence[Mapping[str, object]]) -> list[float]:
    """Score the objects of an answer by the log probabilities that a chat completion lists.

    The recipe is `DEFAULT_SCORE`. An end of the answer counts as impossible where ``top_logprobs``
    doesn't list one.

    Parameters
    ----------
    text : str
    tokens : sequence of mapping
        ``token``, perhaps its ``bytes``, ``logprob`` and ``top_logprobs``.

    Returns
    -------
    list of float
        One per object with a box; NaN where tokens and text don't fit.
    """
    objects = parse(text).objects
    starts = _starts(_utf8(text), tokens)
    if starts is None:
        return [math.nan for item in objects if item.loc is not None]
    ids = [_known_id(str(token.get("token")).strip()) for token in tokens]
    placed = []
    for item in objects:
        first, stop = (len(_utf8(text[:at])) for at in item.span)
        span = max(0, bisect_right(starts, first) - 1), bisect_left(starts, stop)
        placed.append(item._replace(span=span))
    ends = [_end_logprob(token.get("top_logprobs")) for token in tokens]
    logprobs = [_logprob(token) for token in tokens]
    evidence = evidence_of(placed, ids, logprobs, ends, lambda token: token == _SEPARATOR)
    recipe = RECIPES[DEFAULT_SCORE]
    # Another tokenizer may spell loc tokens in pieces.
    return [recipe(item) if len(item.loc) == LOC_PER_BOX else math.nan for item in evidence]


def _starts(text: bytes, tokens: Sequence[Mapping[str, object]]) -> list[int] | None:
    """Return where each token starts in a text, its end for those after it; None if they differ.

    White space between tokens may be missing on either side.
    """
    at, starts = 0, []
    for token in tokens:
        data = token.get("bytes")  # of a part of a character
        try:
            piece = bytes(data) if isinstance(data, list) else b""
        except (TypeError, ValueError):
            return None
        piece = piece or _utf8(str(token.get("token")).replace("▁", " "))
        if not text.startswith(piece, at):
            piece = piece.strip()
            at = len(text) - len(text[at:].lstrip())
        starts.append(at)
        if text.startswith(piece, at):
            at += len(piece)
        elif at < len(text):
            return None
    return starts if not text[at:].strip() else None


def _known_id(token: str) -> int:
    """Return PaliGemma's id of a loc or seg token; all other text is `_WORD` or `_SEPARATOR`."""
    if token in LOC_BINS:
        return PALIGEMMA.loc_offset + LOC_BINS[token]
    if token in SEG_CODES:
        return PALIGEMMA.seg_offset + SEG_CODES[token]
    if token in _ENDS:
        return PALIGEMMA.eos
    return _SEPARATOR if ";" in token else _WORD


def _end_logprob(top: object) -> float:
    """Return the log probability of an end among the best tokens, minus infinity without one."""
    listed = [item for item in top if isinstance(item, Mapping)] if isinstance(top, list) else []
    return max((_logprob(item) for item in listed if item.get("token") in _ENDS), default=-math.inf)


def _logprob(token: Mapping[str, object]) -> float:
    value = token.get("logprob")
    if not isinstance(value, (int, float)):
        return math.nan
    return math.nan if math.isnan(value) else float(min(0, max(value, _IMPOSSIBLE)))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
