"""Log probabilities of a chat completion: the tokens in its text, and the scores of objects.

``logprobs.content`` lists, for every token, ``token``, perhaps its ``bytes``, ``logprob`` and
``top_logprobs``, the likeliest tokens in its place. Source: OpenAI's API reference, "The chat
completion object".
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from palidecode.answers.parsing import parse
from palidecode.answers.scoring import DEFAULT_SCORE, RECIPES, evidence_of
from palidecode.vocab import LOC_BINS, LOC_PER_BOX, PALIGEMMA, SEG_CODES

TokenEntry: TypeAlias = Mapping[str, object]

_ENDS = ("<eos>", "</s>", "<end_of_turn>")
_IMPOSSIBLE = -1e9
_WORD, _SEPARATOR = 3, 4  # ids that are no special tokens


def scores_of_text(text: str, tokens: Sequence[TokenEntry]) -> list[float]:
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
    starts = starts_in(_utf8(text), tokens)
    if starts is None:
        return [math.nan for item in objects if item.loc is not None]
    ids = [_known_id(token) for token in tokens]
    placed = []
    for item in objects:
        first, stop = (len(_utf8(text[:at])) for at in item.span)
        span = max(0, bisect_right(starts, first) - 1), bisect_left(starts, stop)
        placed.append(item._replace(span=span))
    ends = [end_logprob(token.get("top_logprobs")) for token in tokens]
    logprobs = [logprob_of(token) for token in tokens]
    evidence = evidence_of(placed, ids, logprobs, ends, lambda token: token == _SEPARATOR)
    recipe = RECIPES[DEFAULT_SCORE]
    # Another tokenizer may spell loc tokens in pieces.
    return [recipe(item) if len(item.loc) == LOC_PER_BOX else math.nan for item in evidence]


def starts_in(text: bytes, tokens: Sequence[TokenEntry]) -> list[int] | None:
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


def _known_id(entry: TokenEntry) -> int:
    """Return PaliGemma's id of a loc or seg token; all other text is `_WORD` or `_SEPARATOR`."""
    special = special_id(entry)
    if special is not None:
        return special
    return _SEPARATOR if ";" in str(entry.get("token")) else _WORD


def special_id(entry: TokenEntry) -> int | None:
    """Return PaliGemma's id of a loc, seg or end token; None for all other text."""
    token = str(entry.get("token")).strip()
    if token in LOC_BINS:
        return PALIGEMMA.loc_offset + LOC_BINS[token]
    if token in SEG_CODES:
        return PALIGEMMA.seg_offset + SEG_CODES[token]
    return PALIGEMMA.eos if token in _ENDS else None


def end_logprob(top: object) -> float:
    """Log probability of an end among the likeliest tokens; minus infinity without one."""
    listed = [item for item in top if isinstance(item, Mapping)] if isinstance(top, list) else []
    ends = (logprob_of(item) for item in listed if item.get("token") in _ENDS)
    return max(ends, default=-math.inf)


def logprob_of(token: TokenEntry) -> float:
    """Log probability of a token, at most 0 and finite; NaN where it isn't a number."""
    value = token.get("logprob")
    if not isinstance(value, (int, float)) or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    return float(min(0, max(value, _IMPOSSIBLE)))  # a whole number may be too large for a float


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
