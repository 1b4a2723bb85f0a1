"""Many answers at once, into columns.

Clean answers are read with numpy, all of them at once; an answer with anything odd in it is
left to the complete parser, so both ways give the same objects and issues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from palidecode.answers.assembler import ParsedObject, ParseIssue
from palidecode.answers.parsing import Answer, Detokenize, as_ids, parse
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

Result = TypeVar("Result")
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Bytes: TypeAlias = npt.NDArray[np.uint8]

_EOS = "<eos>"
_LOC_SPELLING = np.frombuffer(loc_token(0).encode(), np.uint8)
_SEG_SPELLING = np.frombuffer(seg_token(0).encode(), np.uint8)
# How the text after an object's tokens ends. Odd is neither: the answer is not clean.
_LAST, _SEPARATED, _ODD = 0, 1, 2


class ParsedBatch(NamedTuple):
    """Objects of many answers, one row per object with a box, in order.

    Attributes
    ----------
    loc : ndarray of int16, shape (N, 4)
        Bins y1, x1, y2, x2.
    codes : ndarray of uint8, shape (N, 16)
        Mask codes; 0 where `has_mask` is False.
    has_mask : ndarray of bool, shape (N,)
    labels : list of str
    answer_index : ndarray of int64, shape (N,)
        Which answer the row is of.
    issues : list of (int, ParseIssue)
        Every oddity, with the number of its answer. An object without a box has no row.
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
    """Read many answers: texts, token ids, or some of each.

    Parameters
    ----------
    answers : sequence of str, or of sequences or arrays of int; or an int array (B, T)
        Token ids may be padded with negative ids or the vocabulary's pad.
    strict, vocabulary, detokenize
        As for `palidecode.parse`.

    Raises
    ------
    ParseError
        With ``strict=True``, on the first issue, naming the answer.
    InputError
        For an answer that is neither text nor ids; `answers` that is one text.
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
    objects: dict[int, tuple[ParsedObject, ...]] = {}
    issues: list[tuple[int, ParseIssue]] = []
    for row, answer in enumerate(answers):
        if row in done:
            continue
        found = _named(
            row, parse, answer, strict=strict, vocabulary=vocabulary, detokenize=detokenize
        )
        objects[row] = found.objects
        issues.extend([(row, issue) for issue in found.issues])
    if objects:
        parts.append(_columns(objects))
    return _merge(parts, issues)


def _named(row: int, function: Callable[..., Result], answer: Answer, **options: Any) -> Result:
    """Call `function`; its errors name the answer."""
    try:
        return function(answer, **options)
    except (ParseError, InputError) as error:
        raise type(error)(f"answer {row}: {error}") from None


class _Part(NamedTuple):
    """The columns of some of the answers, and which answers these are."""

    answers: list[int]
    loc: npt.NDArray[np.int16]
    codes: Bytes
    has_mask: Bools
    labels: list[str]
    answer_index: Ints


class _Candidates(NamedTuple):
    """Objects as a clean answer would have them, and which answers are clean."""

    clean: Bools  # (A,)
    owner: Ints  # (N,) number of the answer
    loc: Ints  # (N, 4)
    codes: Ints  # (N, 16)
    has_mask: Bools  # (N,)
    label: Ints  # (N,) row of `table`
    table: list[str]


class _Layout(NamedTuple):
    """Where the objects of the joined answers begin and stop."""

    starts: Ints  # (N,)
    stops: Ints  # (N,) the next object's start, or the end of the answer
    owner: Ints  # (N,)
    first: Bools  # (N,) stands at the very start of its answer
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
    # Some room behind the end, so that every window lies inside.
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
    """Answers with more starts than there is room for: not clean, and they would cost memory."""
    counts = np.diff(np.cumsum(is_start)[np.maximum(ends - 1, 0)], prepend=0)
    crowded: Bools = counts * LOC_PER_BOX * len(_LOC_SPELLING) > lengths
    return crowded


def _spelled(chars: Bytes, places: Ints, spelling: Bytes, repeats: int, count: int) -> Ints:
    """Numbers of the `repeats` tokens that begin at each place; -1 for what isn't one."""
    windows = sliding_window_view(chars, repeats * len(spelling))[places]
    tokens = windows.reshape(len(places), repeats, len(spelling))
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
    """The label in the text behind an object's tokens, and how that text ends."""
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # what stood before wasn't tokens, and this is half a letter
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
    # Some padding behind the end, so that every window lies inside.
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
    """Which tokens are loc, which are seg, and the places of the control tokens."""
    pad, eos, bos = vocabulary.pad, vocabulary.eos, vocabulary.bos
    places = np.flatnonzero(ids <= max(pad, eos, bos))
    low = ids[places]
    controls = places[(low < 0) | (low == pad) | (low == eos) | (low == bos)]
    # One comparison instead of two: as an unsigned number, what is below 0 is very large.
    is_loc = (ids - vocabulary.loc_offset).view(np.uint64) < LOC_COUNT
    is_seg = (ids - vocabulary.seg_offset).view(np.uint64) < SEG_COUNT
    return is_loc, is_seg, controls


def _count(places: Ints, begins: Ints, stops: Ints) -> Ints:
    """How many of the sorted places lie in each range."""
    count: Ints = np.searchsorted(places, stops) - np.searchsorted(places, begins)
    return count


def _id_label(ids: list[int], detokenize: Detokenize) -> tuple[str, int]:
    """The label in the ids behind an object's tokens, and how they end."""
    text = detokenize(ids) if ids else ""
    label, separator, rest = text.partition(";")
    if rest.strip() or "\n" in text:
        return "", _ODD
    return label.strip(), _SEPARATED if separator else _LAST


class _Known(dict[bytes, int]):
    """Numbers the distinct texts behind objects, and reads each of them once."""

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
    """For each object: the number of its label, how its text ends; and the labels."""
    known = _Known(read)
    places = zip(begins.tolist(), stops.tolist(), strict=True)
    numbers = np.array([known[raw[begin:stop]] for begin, stop in places], np.int64)
    return numbers, np.array(known.endings, np.int64)[numbers], known.labels


def _clean(layout: _Layout, fine: Bools, loc: Ints, codes: Ints, count: int) -> Bools:
    """Which of the `count` answers consist of whole, distinct, upright objects only."""
    owner = layout.owner
    fine = fine & (loc.min(axis=1, initial=0) >= 0) & (codes.min(axis=1, initial=0) >= 0)
    fine &= (loc[:, 2] > loc[:, 0]) & (loc[:, 3] > loc[:, 1]) & ~_repeated(loc, owner)
    clean = np.zeros(count, np.bool_)
    clean[owner[layout.first]] = True
    clean[owner[~fine]] = False
    return clean


def _repeated(loc: Ints, owner: Ints) -> Bools:
    """Boxes that an answer has more than once: perhaps duplicates."""
    key = owner
    for column in loc.T:
        key = key * LOC_COUNT + column
    order = np.argsort(key, kind="stable")
    same = np.zeros(len(key), np.bool_)
    same[order[1:]] = key[order[1:]] == key[order[:-1]]
    return same


def _select(found: _Candidates, rows: list[int]) -> _Part:
    """The columns of the clean answers."""
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
    """Objects to columns; those without a box have no row."""
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
    """All rows in the order of the answers."""
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
