"""Parse answers into objects and format objects as answers.

Well-formed text takes a shortcut of slices and lookups; any other answer is read by the
`Assembler`, which knows every issue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.answers.assembler import Assembler, IssueKind, ParsedObject, ParseIssue, Span
from palidecode.errors import InputError, ParseError
from palidecode.prompts import SEPARATOR
from palidecode.vocab import (
    CONTROL_TOKENS,
    LOC_BINS,
    LOC_COUNT,
    LOC_PER_BOX,
    PALIGEMMA,
    SEG_CODES,
    SEG_COUNT,
    SEG_PER_MASK,
    Vocabulary,
    loc_token,
    seg_token,
)

Detokenize: TypeAlias = Callable[[list[int]], str]
Ids: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
Answer: TypeAlias = str | Ids

_EOS = "<eos>"
# Control tokens that chat templates and other tokenizers leave: <end_of_turn>, </s>, <|im_end|> …
_FOREIGN = (
    r"</?s>|<unk>|<mask>|<image>|<unused[0-9]{1,2}>|<(?:start|end)_of_[a-z]{1,8}>"
    r"|<\|[A-Za-z0-9_]{1,20}\|>"
)
_TOKEN = re.compile(rf"<loc([0-9]{{1,8}})>|<seg([0-9]{{1,8}})>|<eos>|<pad>|<bos>|;|\n|({_FOREIGN})")
_LABEL_BREAK = re.compile(rf"[;\n]|{_FOREIGN}")
_FOREIGN_TOKEN = re.compile(_FOREIGN)
_CUT_TOKEN = re.compile(r"<(?:loc|seg)[0-9]{0,8}\Z")
_CUT_TOKEN_LENGTH = 12

_LOC_LENGTH = len(loc_token(0))
_LOC_BLOCK = LOC_PER_BOX * _LOC_LENGTH
_SEG_LENGTH = len(seg_token(0))
_SEG_BLOCK = SEG_PER_MASK * _SEG_LENGTH
_SEG_START, _SEG_STOP = "<seg", ">"
# Codes by their digits: splitting a block of seg tokens between the digits is faster than
# slicing it. Sixteen keys fill the block's length only if all are complete.
_CODES_BY_DIGITS = {
    token.removeprefix(_SEG_START).removesuffix(_SEG_STOP): code
    for token, code in SEG_CODES.items()
}
_DIGITS = slice(_LOC_BLOCK + len(_SEG_START), _LOC_BLOCK + _SEG_BLOCK - len(_SEG_STOP))
_new_object = tuple.__new__  # the class's own __new__ takes twice as long


class ParseResult(NamedTuple):
    """The objects and the issues of an answer, both in order."""

    objects: tuple[ParsedObject, ...]
    issues: tuple[ParseIssue, ...]


def parse(
    answer: Answer,
    *,
    strict: bool = False,
    vocabulary: Vocabulary = PALIGEMMA,
    detokenize: Detokenize | None = None,
) -> ParseResult:
    """Parse one answer of a PaliGemma model.

    Raises on nothing that a model can emit, and drops nothing silently: anything that doesn't
    fit ``<loc>×4 [<seg>×16] label`` joined by `` ; `` becomes a `ParseIssue`.

    Parameters
    ----------
    answer : str, or sequence or 1-D array of int
        The text of the answer, special tokens included, or its token ids.
        Negative ids count as padding.
    strict : bool
        Raise on the first issue instead of listing it.
    vocabulary : Vocabulary
        Token ids, for answers of ids; PaliGemma's by default.
    detokenize : callable, optional
        Turns a list of label token ids into text, for answers of ids. Without it labels
        are ``""``, with an issue. The text it returns is never read as loc and seg tokens.

    Raises
    ------
    ParseError
        With ``strict=True``, on the first issue.
    InputError
        If `answer` is neither text nor integer ids.

    Examples
    --------
    >>> result = parse("<loc0046><loc0538><loc0795><loc1022> cat")
    >>> result.objects[0].label, result.objects[0].loc
    ('cat', (46, 538, 795, 1022))
    >>> parse("Sure! <loc0001><loc0002><loc0003><loc0004> dog").issues[0].kind.value
    'stray_text'
    """
    if isinstance(answer, str):
        objects = _parse_clean(answer)
        if objects is not None:
            return ParseResult(objects, ())
        assembler = Assembler()
        feed_text(assembler, answer, 0)
        close_text(assembler, answer)
        result = result_of(assembler, answer)
    else:
        ids = as_ids(answer)
        assembler = Assembler(spaces_known=False)
        feed_ids(assembler, ids, 0, vocabulary, detokenize)
        assembler.close()
        result = result_of(assembler, "")
    if strict and result.issues:
        kind, span, text = result.issues[0]
        shown = f": {text[:80]!r}" if text else ""
        raise ParseError(f"{kind.value} at {span[0]}–{span[1]} of the answer{shown}")
    return result


def format_objects(objects: Iterable[ParsedObject]) -> str:
    """Write objects as the answer of a model; the inverse of `parse`.

    Parameters
    ----------
    objects : iterable of ParsedObject
        Their spans are ignored.

    Returns
    -------
    str
        ``<loc>×4 <seg>×16 label`` joined by `` ; ``, without ``<eos>``.

    Raises
    ------
    InputError
        For a label that `parse` would read differently (a ``;``, a newline, token-like text,
        white space at its ends), for numbers out of range, and for an object that has neither
        box nor mask.
    """
    return SEPARATOR.join([_format_object(index, item) for index, item in enumerate(objects)])


def is_foreign(text: str) -> bool:
    """Return True if a text contains a control token of another format."""
    return "<" in text and _FOREIGN_TOKEN.search(text) is not None


def label_problem(label: str) -> str | None:
    """Describe why a label can't be written into an answer; None if it can."""
    if label != label.strip():
        return "white space at its ends"
    if ";" in label or "\n" in label:
        return "a ';' or a newline, which end a label"
    if "<" in label and (_TOKEN.search(label) or _CUT_TOKEN.search(label)):
        return "text that reads as a token"
    return None


def _format_object(index: int, item: ParsedObject) -> str:
    label, loc, seg, _ = item
    problem = label_problem(label)
    if problem:
        raise InputError(f"object {index}: the label {label!r} has {problem}; rename it")
    parts: list[str] = []
    if loc is not None:
        _check_numbers(index, "loc", loc, LOC_PER_BOX, LOC_COUNT)
        parts.extend(map(loc_token, loc))
    if seg is not None:
        _check_numbers(index, "seg", seg, SEG_PER_MASK, SEG_COUNT)
        parts.extend(map(seg_token, seg))
    if not parts:
        raise InputError(f"object {index} ({label!r}) has neither loc nor seg: nothing to write")
    if label:
        parts.append(" " + label)
    return "".join(parts)


def _check_numbers(index: int, name: str, values: Sequence[int], length: int, count: int) -> None:
    integers = isinstance(values, Sequence | np.ndarray) and all(
        isinstance(value, int | np.integer) for value in values
    )
    if not integers or len(values) != length or not all(0 <= value < count for value in values):
        raise InputError(
            f"object {index}: {name} must be {length} integers in 0 … {count - 1}, got {values}"
        )


def _parse_clean(text: str) -> tuple[ParsedObject, ...] | None:
    """Objects of well-formed text; None if the `Assembler` must read it."""
    body = text[: -len(_EOS)] if text.endswith(_EOS) else text
    segments = body.split(SEPARATOR)
    count = len(segments)
    if body.count(";") != count - 1 or "\n" in body:
        return None
    if count > 1 and len(set(segments)) != count:
        return None
    bins, codes, start = LOC_BINS, _CODES_BY_DIGITS, 0
    objects = []
    try:
        for segment in segments:
            loc = (
                bins[segment[:9]],
                bins[segment[9:18]],
                bins[segment[18:27]],
                bins[segment[27:36]],
            )
            if loc[2] <= loc[0] or loc[3] <= loc[1]:
                return None
            label_start, seg = _LOC_BLOCK, None
            if segment.startswith(_SEG_START, _LOC_BLOCK):
                digits = segment[_DIGITS].split(_SEG_STOP + _SEG_START)
                seg = itemgetter(*digits)(codes)
                label_start += _SEG_BLOCK
                if segment[label_start - 1 : label_start] != _SEG_STOP:
                    return None
            label = segment[label_start + 1 :]
            length = len(segment)
            if length > label_start and (
                segment[label_start] != " " or not label or label.strip() != label or "<" in label
            ):
                return None
            span = (start, start + length)
            objects.append(_new_object(ParsedObject, (label, loc, seg, span)))
            start += length + 3
    except KeyError:
        return None
    return tuple(objects)


def feed_text(assembler: Assembler, text: str, base: int) -> None:
    """Send the events of a piece of text that starts at offset `base` of the answer."""
    done = 0
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        if start > done:
            assembler.text(text[done:start], base + done, base + start)
        done = end
        token = match.group()
        if token == ";":
            assembler.separator(base + start, base + end)
        elif token == "\n":
            assembler.newline(base + start, base + end)
        elif token in CONTROL_TOKENS:
            assembler.control(token, base + start, base + end)
        elif match.group(3) is not None:
            assembler.foreign(base + start, base + end)
        elif match.group(1) is not None:
            assembler.loc(LOC_BINS.get(token, -1), base + start, base + end)
        else:
            assembler.seg(SEG_CODES.get(token, -1), base + start, base + end)
    if done < len(text):
        assembler.text(text[done:], base + done, base + len(text))


def close_text(assembler: Assembler, text: str, base: int = 0) -> None:
    """End an answer, perhaps inside a token; its last piece `text` began at offset `base`."""
    tail = _CUT_TOKEN.search(text, max(0, len(text) - _CUT_TOKEN_LENGTH))
    if tail is None:
        assembler.close()
        return
    assembler.drop_text_from(base + tail.start())
    assembler.close((base + tail.start(), base + len(text)))


def feed_ids(
    assembler: Assembler,
    ids: npt.NDArray[np.int64],
    base: int,
    vocabulary: Vocabulary,
    detokenize: Detokenize | None,
) -> None:
    """Send the events of token ids that start at offset `base` of the answer."""
    text_start: int | None = None
    control = {vocabulary.pad: "<pad>", vocabulary.eos: _EOS, vocabulary.bos: "<bos>"}
    values = ids.tolist()
    for offset, token in enumerate(values):
        loc, seg = token - vocabulary.loc_offset, token - vocabulary.seg_offset
        if not vocabulary.is_special(token):
            text_start = offset if text_start is None else text_start
            continue
        if text_start is not None:
            _feed_run(assembler, values[text_start:offset], base + text_start, detokenize)
            text_start = None
        here = base + offset
        if 0 <= loc < LOC_COUNT:
            assembler.loc(loc, here, here + 1)
        elif 0 <= seg < SEG_COUNT:
            assembler.seg(seg, here, here + 1)
        else:
            assembler.control(control.get(token, "<pad>"), here, here + 1)
    if text_start is not None:
        _feed_run(assembler, values[text_start:], base + text_start, detokenize)


def _feed_run(
    assembler: Assembler, run: list[int], start: int, detokenize: Detokenize | None
) -> None:
    """Send label tokens; their text may contain separators but never loc and seg tokens."""
    end = start + len(run)
    if detokenize is None:
        assembler.undecoded(start, end)
        return
    # Tokens that decode to "" count as white space.
    text, done = detokenize(run) or " ", 0
    for match in _LABEL_BREAK.finditer(text):
        assembler.text(text[done : match.start()], start, end)
        if match.group() == ";":
            assembler.separator(start, end)
        elif match.group() == "\n":
            assembler.newline(start, end)
        else:
            assembler.foreign(start, end)
        done = match.end()
    assembler.text(text[done:], start, end)


def as_ids(answer: Ids) -> npt.NDArray[np.int64]:
    """Convert one answer's token ids to a 1-D int64 array."""
    try:
        ids = np.asarray(answer)
    except (TypeError, ValueError) as error:
        raise InputError(f"an answer must be text or integer token ids: {error}") from error
    if ids.size == 0 and ids.ndim == 1:
        return np.zeros(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(
            f"an answer must be text or a flat list of integer token ids, got "
            f"{type(answer).__name__} of shape {ids.shape} and dtype {ids.dtype}; "
            "for several answers use parse_batch or decode"
        )
    return ids.astype(np.int64, copy=False)


def result_of(assembler: Assembler, text: str) -> ParseResult:
    """The assembler's objects and issues, in the order of the answer."""
    return ParseResult(tuple(assembler.objects), issues_of(assembler, text))


def issues_of(assembler: Assembler, text: str) -> tuple[ParseIssue, ...]:
    """The assembler's issues in order, each with its text."""
    ordered = sorted(assembler.issues, key=lambda issue: issue[1:])
    return tuple(_issue(kind, (start, end), text) for kind, start, end in ordered)


def _issue(kind: IssueKind, span: Span, text: str) -> ParseIssue:
    return ParseIssue(kind, span, text[span[0] : span[1]])
