"""Parse many answers into columns.

Well-formed answers are read together with numpy; an answer with any issue is left to `parse`,
so both ways give the same objects and issues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from palidecode.answers.assembler import ParsedObject, ParseIssue
from palidecode.answers.parsing import Answer, Detokenize, ParseResult, as_ids, is_foreign, parse
from palidecode.errors import InputError, ParseError
from palidecode.prompts import SEPARATOR
from palidecode.vocab import (
    LOC_COUNT,
    LOC_PER_BOX,
    PALIGEMMA,
    SEG_COUNT,
    SEG_PER_MASK,
    Vocabulary,
    loc_token,
    seg_token,
)

Value = TypeVar("Value")
Result = TypeVar("Result")
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Bytes: TypeAlias = npt.NDArray[np.uint8]

_EOS = "<eos>"
_LOC_SPELLING = np.frombuffer(loc_token(0).encode(), np.uint8)
_SEG_SPELLING = np.frombuffer(seg_token(0).encode(), np.uint8)
# Endings of the text after an object's tokens; odd if the answer is not well-formed.
_LAST, _SEPARATED, _ODD = 0, 1, 2


class ParsedBatch(NamedTuple):
    """Objects of many answers, one row per object with a box, in order.

    Attributes
    ----------
    loc : ndarray of int16, shape (N, 4)
        Bins y1, x1, y2, x2.
    codes : ndarray of uint8, shape (N, 16)
        Mask codes; 0 if `has_mask` is False.
    has_mask : ndarray of bool, shape (N,)
    labels : list of str
    answer_index : ndarray of int64, shape (N,)
        Index of the answer of each row.
    issues : list of (int, ParseIssue)
        Every issue, with the index of its answer. An object without a box has no row.
    """

    loc: npt.NDArray[np.int16]
    codes: npt.NDArray[np.uint8]
    has_mask: npt.NDArray[np.bool_]
    labels: list[str]
    answer_index: npt.NDArray[np.int64]
    issues: list[tuple[int, ParseIssue]]


def parse_batch(
    answers: Sequence[Answer],
    *,
    strict: bool = False,
    vocabulary: Vocabulary = PALIGEMMA,
    detokenize: Detokenize | None = None,
) -> ParsedBatch:
    """Parse many answers: texts, token ids, or a mixture.

    Parameters
    ----------
    answers : sequence of str, or of sequences or arrays of int; or an int array (B, T)
        Token ids may be padded with negative ids or the vocabulary's pad.
    strict, vocabulary, detokenize
        As for `palidecode.parse`.

    Raises
    ------
    ParseError
        With ``strict=True``, on the first issue, with the index of the answer.
    InputError
        If an answer is neither text nor ids, or if `answers` is one text.
    """
    if isinstance(answers, str):
        raise InputError("answers must be a list of answers; for one text use [text] or parse")
    texts: dict[int, str] = {}
    ids: dict[int, Ints] = {}
    for row, answer in enumerate(answers):
        if isinstance(answer, str):
            texts[row] = answer
        elif detokenize is not None:
            ids[row] = _named(row, as_ids, answer)
    parts = []
    if texts:
        parts.append(_select(_read_texts(list(texts.values())), list(texts)))
    if ids and detokenize is not None:
        parts.append(_select(_read_ids(list(ids.values()), vocabulary, detokenize), list(ids)))
    done = set().union(*(part.answers for part in parts))
    read = partial(parse, strict=strict, vocabulary=vocabulary, detokenize=detokenize)
    objects: dict[int, tuple[ParsedObject, ...]] = {}
    issues: list[tuple[int, ParseIssue]] = []
    for row, answer in enumerate(answers):
        if row in done:
            continue
        result = _named(row, read, answer)
        objects[row] = result.objects
        issues.extend([(row, issue) for issue in result.issues])
    if objects:
        parts.append(_columns(objects))
    return _merge(parts, issues)


def join_results(results: Sequence[ParseResult]) -> ParsedBatch:
    """Convert the results of `parse`, one per answer, to columns."""
    objects = {row: result.objects for row, result in enumerate(results)}
    issues = [(row, issue) for row, result in enumerate(results) for issue in result.issues]
    return _merge([_columns(objects)], issues)


def _named(row: int, function: Callable[[Value], Result], answer: Value) -> Result:
    """Call `function`; its errors name the answer's index."""
    try:
        return function(answer)
    except (ParseError, InputError) as error:
        raise type(error)(f"answer {row}: {error}") from None


class _Part(NamedTuple):
    """The columns of some of the answers, and the indices of these answers."""

    answers: list[int]
    loc: npt.NDArray[np.int16]
    codes: Bytes
    has_mask: Bools
    labels: list[str]
    answer_index: Ints


class _Candidates(NamedTuple):
    """Objects read as if all answers were well-formed, and a mask of those that are."""

    clean: Bools  # (A,)
    owner: Ints  # (N,) index of the answer
    loc: Ints  # (N, 4)
    codes: Ints  # (N, 16)
    has_mask: Bools  # (N,)
    label: Ints  # (N,) row of `table`
    table: list[str]


class _Layout(NamedTuple):
    """Start and end offsets of the objects in the joined answers."""

    starts: Ints  # (N,)
    stops: Ints  # (N,) the next object's start, or the end of the answer
    owner: Ints  # (N,)
    first: Bools  # (N,) begins at the start of its answer
    last: Bools  # (N,) the last of its answer


def _layout(is_start: Bools, firsts: Ints, ends: Ints) -> _Layout:
    starts = np.flatnonzero(is_start)
    owner = np.searchsorted(firsts, starts, side="right") - 1
    last = np.ones(len(starts), np.bool_)
    last[:-1] = owner[1:] != owner[:-1]
    stops = np.where(last, ends[owner], np.append(starts[1:], 0))
    return _Layout(starts, stops, owner, starts == firsts[owner], last)


def _read_texts(texts: list[str]) -> _Candidates:
    """Read texts as bytes: an object starts at every ``<`` that follows no ``>``."""
    raws = [text.removesuffix(_EOS).encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.fromiter(map(len, raws), np.int64, len(raws))
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    raw = b"".join(raws)
    # Padding, so that no window reaches past the end.
    room = LOC_PER_BOX * len(_LOC_SPELLING) + SEG_PER_MASK * len(_SEG_SPELLING)
    chars = np.frombuffer(raw + bytes(room), np.uint8)
    opens = chars == ord("<")
    is_start = opens.copy()
    is_start[1:] &= chars[:-1] != ord(">")
    is_start[firsts] = opens[firsts]
    if np.count_nonzero(is_start) * LOC_PER_BOX * len(_LOC_SPELLING) > len(raw):
        is_start[: len(raw)] &= ~np.repeat(_crowded(is_start, ends, lengths), lengths)
    layout = _layout(is_start, firsts, ends)
    loc = _spelled(chars, layout.starts, _LOC_SPELLING, LOC_PER_BOX, LOC_COUNT)
    after = layout.starts + LOC_PER_BOX * len(_LOC_SPELLING)
    has_mask = (after < layout.stops) & opens[np.minimum(after, len(raw))]
    codes = np.zeros((len(loc), SEG_PER_MASK), np.int64)
    codes[has_mask] = _spelled(chars, after[has_mask], _SEG_SPELLING, SEG_PER_MASK, SEG_COUNT)
    begins = after + has_mask * (SEG_PER_MASK * len(_SEG_SPELLING))
    label, endings, table = _labels(raw, begins, layout.stops, _text_label)
    fine = (begins <= layout.stops) & (endings == np.where(layout.last, _LAST, _SEPARATED))
    clean = _clean(layout, fine, loc, codes, len(texts))
    return _Candidates(clean, layout.owner, loc, codes, has_mask, label, table)


def _crowded(is_start: Bools, ends: Ints, lengths: Ints) -> Bools:
    """Mark answers with more starts than fit: malformed, and costly in memory."""
    counts = np.diff(np.cumsum(is_start)[np.maximum(ends - 1, 0)], prepend=0)
    crowded: Bools = counts * LOC_PER_BOX * len(_LOC_SPELLING) > lengths
    return crowded


def _spelled(chars: Bytes, offsets: Ints, spelling: Bytes, repeats: int, count: int) -> Ints:
    """Numbers of the `repeats` tokens from each offset; -1 for other text."""
    windows = sliding_window_view(chars, repeats * len(spelling))[offsets]
    tokens = windows.reshape(len(offsets), repeats, len(spelling))
    numbers = np.zeros(tokens.shape[:2], np.int64)
    odd = np.zeros(tokens.shape[:2], np.bool_)
    for column, char in enumerate(spelling.tolist()):
        if char == ord("0"):
            digits = tokens[:, :, column] - np.uint8(ord("0"))  # below "0" wraps to above 9
            odd |= digits > 9
            numbers = numbers * 10 + digits
        else:
            odd |= tokens[:, :, column] != char
    numbers[odd | (numbers >= count)] = -1
    return numbers


def _text_label(raw: bytes) -> tuple[str, int]:
    """The label in the text after an object's tokens, and the ending of that text."""
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # no tokens before it, so this may be half a letter
        return "", _ODD
    body = text.removesuffix(SEPARATOR)
    label = body[1:]
    blank = not body or (body[0] == " " and label and label == label.strip())
    if not blank or any(char in body for char in "<;\n"):
        return "", _ODD
    return label, _LAST if body == text else _SEPARATED


def _read_ids(arrays: list[Ints], vocabulary: Vocabulary, detokenize: Detokenize) -> _Candidates:
    """Read token ids: an object starts at every loc token that follows none."""
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    bounds = np.cumsum(lengths)
    firsts = bounds - lengths
    # Padding, so that no window reaches past the end.
    ids = np.concatenate([*arrays, np.full(LOC_PER_BOX + SEG_PER_MASK, -1)])
    is_loc, is_seg, controls = _kinds(ids, vocabulary)
    # An answer ends at its first control token; only more of them may follow.
    ends = np.minimum(controls[np.searchsorted(controls, firsts)], bounds)
    ended = _count(controls, ends, bounds) == bounds - ends
    is_start = is_loc.copy()
    is_start[1:] &= ~is_loc[:-1]
    is_start[firsts] = is_loc[firsts]
    layout = _layout(is_start, firsts, ends)
    loc = sliding_window_view(ids, LOC_PER_BOX)[layout.starts] - vocabulary.loc_offset
    loc[loc >= LOC_COUNT] = -1
    after = layout.starts + LOC_PER_BOX
    has_mask = (after < layout.stops) & is_seg[after]
    codes = np.zeros((len(loc), SEG_PER_MASK), np.int64)
    codes[has_mask] = sliding_window_view(ids, SEG_PER_MASK)[after[has_mask]]
    codes[has_mask] -= vocabulary.seg_offset
    codes[codes >= SEG_COUNT] = -1
    begins = after + SEG_PER_MASK * has_mask
    others = np.flatnonzero(~(is_loc | is_seg))
    fine = ended[layout.owner] & (begins <= layout.stops)
    fine &= _count(others, begins, layout.stops) == layout.stops - begins

    def read(raw: bytes) -> tuple[str, int]:
        return _id_label(np.frombuffer(raw, np.int64).tolist(), detokenize)

    width = ids.itemsize
    label, endings, table = _labels(
        ids.tobytes(), begins * width, np.where(fine, layout.stops, begins) * width, read
    )
    fine &= endings == np.where(layout.last, _LAST, _SEPARATED)
    clean = _clean(layout, fine, loc, codes, len(arrays))
    return _Candidates(clean, layout.owner, loc, codes, has_mask, label, table)


def _kinds(ids: Ints, vocabulary: Vocabulary) -> tuple[Bools, Bools, Ints]:
    """Masks of loc and seg tokens, and the indices of control tokens."""
    pad, eos, bos = vocabulary.pad, vocabulary.eos, vocabulary.bos
    indices = np.flatnonzero(ids <= max(pad, eos, bos))
    low = ids[indices]
    controls = indices[(low < 0) | (low == pad) | (low == eos) | (low == bos)]
    # One comparison instead of two: as unsigned, negative numbers are very large.
    is_loc = (ids - vocabulary.loc_offset).view(np.uint64) < LOC_COUNT
    is_seg = (ids - vocabulary.seg_offset).view(np.uint64) < SEG_COUNT
    return is_loc, is_seg, controls


def _count(offsets: Ints, begins: Ints, stops: Ints) -> Ints:
    """Count the sorted offsets in each range."""
    count: Ints = np.searchsorted(offsets, stops) - np.searchsorted(offsets, begins)
    return count


def _id_label(ids: list[int], detokenize: Detokenize) -> tuple[str, int]:
    """The label in the ids after an object's tokens, and their ending."""
    text = detokenize(ids) if ids else ""
    label, separator, rest = text.partition(";")
    if rest.strip() or "\n" in text or is_foreign(text):
        return "", _ODD
    return label.strip(), _SEPARATED if separator else _LAST


class _Known(dict[bytes, int]):
    """Numbers the distinct texts after objects and reads each of them once."""

    def __init__(self, read: Callable[[bytes], tuple[str, int]]) -> None:
        super().__init__()
        self.read = read
        self.labels: list[str] = []
        self.endings: list[int] = []

    def __missing__(self, key: bytes) -> int:
        label, ending = self.read(key)
        self.labels.append(label)
        self.endings.append(ending)
        self[key] = len(self.labels) - 1
        return self[key]


def _labels(
    raw: bytes, begins: Ints, stops: Ints, read: Callable[[bytes], tuple[str, int]]
) -> tuple[Ints, Ints, list[str]]:
    """The number of each object's label, the ending of its text, and all labels."""
    known = _Known(read)
    ranges = zip(begins.tolist(), stops.tolist(), strict=True)
    numbers = np.array([known[raw[begin:stop]] for begin, stop in ranges], np.int64)
    return numbers, np.array(known.endings, np.int64)[numbers], known.labels


def _clean(layout: _Layout, fine: Bools, loc: Ints, codes: Ints, count: int) -> Bools:
    """Mark the answers (of `count`) that have only complete, distinct, upright objects."""
    owner = layout.owner
    fine = fine & (loc.min(axis=1, initial=0) >= 0) & (codes.min(axis=1, initial=0) >= 0)
    fine &= (loc[:, 2] > loc[:, 0]) & (loc[:, 3] > loc[:, 1]) & ~_repeated(loc, owner)
    clean = np.zeros(count, np.bool_)
    clean[owner[layout.first]] = True
    clean[owner[~fine]] = False
    return clean


def _repeated(loc: Ints, owner: Ints) -> Bools:
    """Mark boxes that an answer repeats: perhaps duplicates."""
    key = owner
    for column in loc.T:
        key = key * LOC_COUNT + column
    order = np.argsort(key, kind="stable")
    same = np.zeros(len(key), np.bool_)
    same[order[1:]] = key[order[1:]] == key[order[:-1]]
    return same


def _select(found: _Candidates, rows: list[int]) -> _Part:
    """The columns of the well-formed answers."""
    keep = found.clean[found.owner]
    numbers = np.asarray(rows, np.int64)
    return _Part(
        numbers[found.clean].tolist(),
        found.loc[keep].astype(np.int16),
        found.codes[keep].astype(np.uint8),
        found.has_mask[keep],
        [found.table[number] for number in found.label[keep].tolist()],
        numbers[found.owner[keep]],
    )


def _columns(answers: dict[int, tuple[ParsedObject, ...]]) -> _Part:
    """Convert objects to columns; an object without a box has no row."""
    rows = [
        (row, label, loc, seg)
        for row, objects in answers.items()
        for label, loc, seg, _ in objects
        if loc is not None
    ]
    count = len(rows)
    index, labels, locs, segs = zip(*rows, strict=True) if rows else ((), (), (), ())
    has_mask = np.fromiter((seg is not None for seg in segs), np.bool_, count)
    loc = np.fromiter(chain.from_iterable(locs), np.int16, LOC_PER_BOX * count)
    codes = np.zeros((count, SEG_PER_MASK), np.uint8)
    if has_mask.any():
        flat = chain.from_iterable([seg for seg in segs if seg is not None])
        codes[has_mask] = np.fromiter(flat, np.uint8).reshape(-1, SEG_PER_MASK)
    boxes = loc.reshape(-1, LOC_PER_BOX)
    return _Part(list(answers), boxes, codes, has_mask, list(labels), np.array(index, np.int64))


def _merge(parts: list[_Part], issues: list[tuple[int, ParseIssue]]) -> ParsedBatch:
    """Join the parts, with rows in the order of the answers."""
    if not parts:
        parts = [_columns({})]
    loc, codes, has_mask, index = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("loc", "codes", "has_mask", "answer_index")
    )
    labels = list(chain.from_iterable(part.labels for part in parts))
    if len(parts) > 1:
        order = np.argsort(index, kind="stable")
        labels = [labels[row] for row in order.tolist()]
        loc, codes, has_mask, index = (column[order] for column in (loc, codes, has_mask, index))
    return ParsedBatch(loc, codes, has_mask, labels, index, issues)
