"""Many answers at once, into columns.

Token ids are read with numpy over the whole batch; an answer with anything odd in it is read
again by the complete parser, so both ways give the same objects and issues.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from palidecode.decode.assembler import ParsedObject, ParseIssue
from palidecode.decode.parsing import Answer, Detokenize, as_ids, parse
from palidecode.errors import InputError, ParseError
from palidecode.vocab import (
    LOC_COUNT,
    LOC_PER_BOX,
    PALIGEMMA,
    SEG_COUNT,
    SEG_PER_MASK,
    Vocabulary,
)

_TEXT, _LOC, _SEG, _CONTROL = 0, 1, 2, 3


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
    plain: dict[int, tuple[ParsedObject, ...]] = {}
    issues: list[tuple[int, ParseIssue]] = []
    with_ids = [row for row, answer in enumerate(answers) if not isinstance(answer, str)]
    fast = _IdColumns([], [], [])
    if with_ids and detokenize is not None:
        arrays = [as_ids(answers[row]) for row in with_ids]  # type: ignore[arg-type]
        fast = _read_ids(arrays, with_ids, vocabulary, detokenize)
    done = set(fast.answers)
    for row, answer in enumerate(answers):
        if row in done:
            continue
        try:
            found = parse(answer, strict=strict, vocabulary=vocabulary, detokenize=detokenize)
        except (ParseError, InputError) as error:
            raise type(error)(f"answer {row}: {error}") from None
        plain[row] = found.objects
        if found.issues:
            issues.extend([(row, issue) for issue in found.issues])
    columns = _columns(plain, issues)
    return columns if not done else _merge(columns, fast)


def _columns(
    plain: dict[int, tuple[ParsedObject, ...]], issues: list[tuple[int, ParseIssue]]
) -> ParsedBatch:
    """Objects to columns; those without a box have no row."""
    objects = list(chain.from_iterable(plain.values()))
    counts = [len(found) for found in plain.values()]
    index = np.repeat(np.fromiter(plain, np.int64, len(plain)), counts)
    if any(item.loc is None for item in objects):
        boxed = [item.loc is not None for item in objects]
        index = index[np.asarray(boxed, np.bool_)]
        objects = [item for item, keep in zip(objects, boxed, strict=True) if keep]
    labels, locs, segs, _ = zip(*objects, strict=True) if objects else ((), (), (), ())
    has_mask = np.fromiter((seg is not None for seg in segs), np.bool_, len(objects))
    loc = np.fromiter(chain.from_iterable(locs), np.int16, LOC_PER_BOX * len(objects))
    codes = np.zeros((len(objects), SEG_PER_MASK), np.uint8)
    if has_mask.any():
        flat = chain.from_iterable([seg for seg in segs if seg is not None])
        codes[has_mask] = np.fromiter(flat, np.uint8).reshape(-1, SEG_PER_MASK)
    return ParsedBatch(loc.reshape(-1, LOC_PER_BOX), codes, has_mask, list(labels), index, issues)


class _IdColumns(NamedTuple):
    """What was read from clean answers: the answers, and rows for `_columns`."""

    answers: list[int]
    parts: list[npt.NDArray[np.int64]]  # loc (N, 4), codes (N, 16), has_mask (N,), answer (N,)
    labels: list[str]


def _read_ids(
    arrays: list[npt.NDArray[np.int64]],
    rows: list[int],
    vocabulary: Vocabulary,
    detokenize: Detokenize,
) -> _IdColumns:
    """Read the answers that consist of whole, well separated, distinct objects only."""
    end = np.array([vocabulary.eos])
    ids = np.concatenate([part for array in arrays for part in (array, end)])
    lengths = np.fromiter((len(array) + 1 for array in arrays), np.int64, len(arrays))
    owner = np.repeat(np.arange(len(arrays)), lengths)
    kinds = _kinds(ids, vocabulary)
    cut = np.flatnonzero((kinds[1:] != kinds[:-1]) | (owner[1:] != owner[:-1])) + 1
    starts = np.concatenate([[0], cut])
    sizes = np.diff(np.append(starts, len(ids)))
    kind, of = kinds[starts], owner[starts]
    first = np.concatenate([[True], of[1:] != of[:-1]])
    last = np.append(first[1:], True)
    # Every object is a loc run of 4, maybe a seg run of 16, maybe a text run.
    before = np.concatenate([[_CONTROL], kind[:-1]])
    before[first] = _CONTROL
    fine = np.select(
        [kind == _LOC, kind == _SEG, kind == _TEXT],
        [
            (sizes == LOC_PER_BOX) & (first | (before == _TEXT)),
            (sizes == SEG_PER_MASK) & (before == _LOC),
            (before == _LOC) | (before == _SEG),
        ],
        last & ~first,
    )
    text = np.flatnonzero(kind == _TEXT)
    # A run of text that another object follows must end in a separator, the last must not.
    follows = kind[np.minimum(text + 1, len(kind) - 1)] == _LOC
    label_of, separated, table = _labels(ids, starts[text], sizes[text], detokenize)
    fine[text] &= separated == follows
    objects = np.flatnonzero((kind == _LOC) & (sizes == LOC_PER_BOX))
    loc = ids[starts[objects][:, None] + np.arange(LOC_PER_BOX)] - vocabulary.loc_offset
    fine[objects] &= (loc[:, 2] > loc[:, 0]) & (loc[:, 3] > loc[:, 1])
    fine[objects] &= ~_repeated(loc, of[objects])
    clean = np.bitwise_and.reduceat(fine, np.flatnonzero(first))
    kept = clean[of[objects]]
    objects, loc = objects[kept], loc[kept]
    after = np.minimum(objects + 1, len(kind) - 1)
    has_mask = kind[after] == _SEG
    codes = np.zeros((len(objects), SEG_PER_MASK), np.int64)
    places = starts[after[has_mask]][:, None] + np.arange(SEG_PER_MASK)
    codes[has_mask] = ids[places] - vocabulary.seg_offset
    label_run = np.minimum(after + has_mask, len(kind) - 1)
    names = np.full(len(kind), len(table))
    names[text] = label_of
    numbers = names[label_run]
    table = [*table, ""]
    answers = np.asarray(rows)[of[objects]]
    done = np.asarray(rows)[clean].tolist()
    return _IdColumns(
        done, [loc, codes, has_mask, answers], [table[number] for number in numbers.tolist()]
    )


def _kinds(ids: npt.NDArray[np.int64], vocabulary: Vocabulary) -> npt.NDArray[np.int8]:
    """The class of every token."""
    kinds = np.zeros(len(ids), np.int8)
    loc, seg = ids - vocabulary.loc_offset, ids - vocabulary.seg_offset
    kinds[(loc >= 0) & (loc < LOC_COUNT)] = _LOC
    kinds[(seg >= 0) & (seg < SEG_COUNT)] = _SEG
    control = (ids < 0) | (ids == vocabulary.pad) | (ids == vocabulary.eos)
    kinds[control | (ids == vocabulary.bos)] = _CONTROL
    return kinds


def _labels(
    ids: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    detokenize: Detokenize,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], list[str]]:
    """For each run of text: the number of its label, whether a separator ends it, the labels.

    Each distinct run is detokenized once.
    """
    known: dict[bytes, int] = {}
    numbers, separators, table = [], [], []
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        run = ids[start : start + size]
        key = run.tobytes()
        number = known.get(key)
        if number is None:
            number = known[key] = len(table)
            text = detokenize(run.tolist())
            head, separator, tail = text.partition(";")
            odd = bool(tail.strip()) or "\n" in text or not head.strip()
            table.append(head.strip())
            # Neither True nor False: equal to no expectation, so the answer is read again.
            separators.append(2 if odd else int(bool(separator)))
        numbers.append(number)
    label_of = np.asarray(numbers, np.int64)
    return label_of, np.asarray(separators, np.int64)[label_of], table  # type: ignore[return-value]


def _repeated(loc: npt.NDArray[np.int64], owner: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Boxes that an answer has more than once: perhaps duplicates."""
    key = ((owner * 1024 + loc[:, 0]) * 1024 + loc[:, 1]) * 1024 + loc[:, 2]
    key = key * 1024 + loc[:, 3]
    order = np.argsort(key, kind="stable")
    same = np.zeros(len(key), np.bool_)
    same[order[1:]] = key[order[1:]] == key[order[:-1]]
    return same


def _merge(plain: ParsedBatch, fast: _IdColumns) -> ParsedBatch:
    """Rows of both ways in the order of the answers."""
    loc, codes, has_mask, answers = fast.parts
    index = np.concatenate([plain.answer_index, answers])
    labels = plain.labels + fast.labels
    parts = (
        np.concatenate([plain.loc, loc.astype(np.int16)]),
        np.concatenate([plain.codes, codes.astype(np.uint8)]),
        np.concatenate([plain.has_mask, has_mask.astype(np.bool_)]),
    )
    if len(plain.answer_index) and len(answers):
        order = np.argsort(index, kind="stable")
        index, labels = index[order], [labels[row] for row in order.tolist()]
        parts = (parts[0][order], parts[1][order], parts[2][order])
    return ParsedBatch(*parts, labels, index, plain.issues)
