"""Rows of referring answers: the answer, its expression, and perhaps the true mask or box.

A row that can't be used is a `Problem` with its line number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.answers.row_files import Problem
from palidecode.coco.reading import RunLengths, read_outline
from palidecode.coco.segmentations import read_mask
from palidecode.errors import InputError
from palidecode.evaluation.referring.refcoco import RefCoco, Truth, solid_box
from palidecode.files import check_size
from palidecode.geometry.rle import Rle, union
from palidecode.prompts import plain_expression
from palidecode.vocab import LOC_COUNT, LOC_PER_BOX, SEG_COUNT, SEG_PER_MASK, Vocabulary

# Some detokenizers put spaces between special tokens.
_BOX = r"\s*" + r"<loc([0-9]{4})>\s*" * LOC_PER_BOX
_ANSWER = re.compile(_BOX + r"<seg([0-9]{3})>\s*" * SEG_PER_MASK)
_BOX_ALONE = re.compile(_BOX + r"(?!\s*<seg)")
_NOT_BOX_AND_MASK = "doesn't begin with four loc and sixteen seg tokens"
_TOKENS = LOC_PER_BOX + SEG_PER_MASK

Flags: TypeAlias = npt.NDArray[np.bool_]
AnyRow: TypeAlias = Mapping[str, Any]
"""A row of a file, its values not checked yet."""


class ReferringAnswer(NamedTuple):
    """The first twenty tokens of an answer, not checked yet, or the reason why there are none.

    Attributes
    ----------
    tokens : sequence of int, or None
        Of text: bins y1, x1, y2, x2 and sixteen codes, or four bins of a box without a mask. Else
        at most twenty ids of a vocabulary.
    invalid : str
        The reason why there are none, or ``""``.
    codec : str
        Id of the weights that the codes belong to; ``""`` if the row has none.
    line : int
        Number of the row, from 1.
    text : bool
        True if the answer is text.
    """

    tokens: Sequence[int] | None
    invalid: str = ""
    codec: str = ""
    line: int = 0
    text: bool = True


MISSING = ReferringAnswer(None, "no prediction")


class Tokens(NamedTuple):
    """Answers as numbers.

    Attributes
    ----------
    numbers : ndarray of int64, shape (N, 20)
        Bins y1, x1, y2, x2 and sixteen codes; 0 for answers that can't be used.
    boxed : ndarray of bool, shape (N,)
        True for a usable box.
    masked : ndarray of bool, shape (N,)
        True for a usable box and mask.
    invalid : list of str
        The reason why an answer can't be used, or ``""``.
    """

    numbers: npt.NDArray[np.int64]
    boxed: Flags
    masked: Flags
    invalid: list[str]

    def take(self, rows: Sequence[int]) -> Tokens:
        """Return some of the answers."""
        chosen = np.asarray(rows, np.int64)
        columns = self.numbers[chosen], self.boxed[chosen], self.masked[chosen]
        return Tokens(*columns, [self.invalid[row] for row in rows])


def bins_and_codes(answers: Sequence[ReferringAnswer], vocabulary: Vocabulary) -> Tokens:
    """Return answers as numbers."""
    numbers = np.zeros((len(answers), _TOKENS), np.int64)
    boxed, masked = np.zeros((2, len(answers)), np.bool_)
    invalid = [answer.invalid for answer in answers]
    rows = np.array([n for n, a in enumerate(answers) if a.tokens is not None], np.int64)
    if not len(rows):
        return Tokens(numbers, boxed, masked, invalid)
    tokens = [[*(answers[row].tokens or ())] for row in rows.tolist()]
    tokens = [ids + [-1] * (_TOKENS - len(ids)) for ids in tokens]
    try:
        values = np.array(tokens, np.int64)
    except OverflowError:
        values = np.array([[min(max(i, -1), 1 << 40) for i in ids] for ids in tokens], np.int64)
    text = np.array([answers[row].text for row in rows.tolist()])
    offsets = [vocabulary.loc_offset] * LOC_PER_BOX + [vocabulary.seg_offset] * SEG_PER_MASK
    values[~text] -= np.array(offsets)
    limits = np.array([LOC_COUNT] * LOC_PER_BOX + [SEG_COUNT] * SEG_PER_MASK)
    outside = (values < 0) | (values >= limits)
    # A box alone is followed by no seg token; text has none there, ids any other.
    alone = np.where(text, values[:, LOC_PER_BOX] < 0, outside[:, LOC_PER_BOX])
    outside[alone, LOC_PER_BOX:] = False
    values[alone, LOC_PER_BOX:] = 0
    strange: Flags = np.logical_or.reduce(outside, axis=1)
    empty: Flags = np.logical_or.reduce(values[:, 2:4] <= values[:, :2], axis=1)
    for index in np.flatnonzero(strange | empty).tolist():
        if not strange[index]:
            reason = "inverted or empty box"
        else:
            reason = "a loc or seg token out of range" if text[index] else _NOT_BOX_AND_MASK
        invalid[int(rows[index])] = reason
    values[strange | empty] = 0
    numbers[rows] = values
    boxed[rows] = ~(strange | empty)
    masked[rows] = boxed[rows] & ~alone
    return Tokens(numbers, boxed, masked, invalid)


def read_lines(
    predictions: str | os.PathLike[str] | Sequence[AnyRow], problems: list[Problem]
) -> Iterator[tuple[int, AnyRow]]:
    """Yield rows with their line numbers; lines that are no row become problems."""
    if not isinstance(predictions, (str, os.PathLike)):
        lines: Iterator[tuple[int, Any]] = enumerate(predictions, 1)
    else:
        lines = _lines(predictions, problems)
    for line, row in lines:
        if isinstance(row, Mapping):
            yield line, row
        else:
            problems.append(Problem(line, "not a JSON object with 'output' or 'token_ids'"))


def _lines(path: str | os.PathLike[str], problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    try:
        with Path(path).open("rb") as file:
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    yield line, json.loads(text.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    problems.append(Problem(line, f"not JSON ({error})"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def own_pairs(
    rows: Iterator[tuple[int, AnyRow]], problems: list[Problem]
) -> Iterator[tuple[Truth, ReferringAnswer]]:
    """Yield the truth and the answer of rows that contain both."""
    for line, row in rows:
        try:
            yield _own_truth(line, row, problems), _answer_of(line, row)
        except (TypeError, ValueError) as error:
            problems.append(Problem(line, str(error)))


def _own_truth(line: int, row: AnyRow, problems: list[Problem]) -> Truth:
    if "segmentation" not in row and "bbox" not in row:
        raise InputError(
            "needs 'segmentation' (RLE or polygons, null for no target) or 'bbox'; or give "
            "RefCOCO's files"
        )
    given = row.get("segmentation")
    size = row.get("size") or row.get("image_size_wh")
    if row.get("width") is not None or row.get("height") is not None:
        size = [row.get("width"), row.get("height")]
    if size is None and isinstance(given, Mapping):
        outline = read_outline(given)
        size = outline.size[::-1] if isinstance(outline, RunLengths) else None
    if size is None:
        raise InputError("the size of the picture is not known: give 'width' and 'height'")
    width_height = check_size(size)
    rle, skipped_rings = _given_rle(given, width_height)
    if skipped_rings:
        problems.append(Problem(line, f"skipped {skipped_rings} polygon rings of under 3 points"))
    box = solid_box(row.get("bbox"))
    if rle is None and (box is None or not min(box[2:])):
        rle = union([], width_height)  # no target
    number = row.get("id", row.get("sent_id", line))
    return Truth(
        id=number if isinstance(number, (int, str)) else line,
        image=str(row.get("image") or f"line-{line}"),
        size=width_height,
        rle=rle,
        bbox=box,
        expression=_expression(row),
    )


def _given_rle(given: Any, size: tuple[int, int]) -> tuple[Rle | None, int]:
    """Read the true mask and count skipped rings; compressed counts are checked later, together."""
    counts = given.get("counts") if isinstance(given, Mapping) else None
    if isinstance(counts, str) and given.get("size") == [size[1], size[0]]:
        return Rle(size=[size[1], size[0]], counts=counts), 0
    return read_mask(read_outline(given), size)


def answers_by_id(
    rows: Iterator[tuple[int, AnyRow]], refcoco: RefCoco, problems: list[Problem]
) -> dict[int, ReferringAnswer]:
    """Return the answer to every expression; others, and second ones, become problems."""
    answers: dict[int, ReferringAnswer] = {}
    for line, row in rows:
        try:
            number = _sentence_of(row, refcoco)
            if number in answers:
                raise InputError(f"a second prediction for sent_id {number}; the first counts")
            answers[number] = _answer_of(line, row)
        except (TypeError, ValueError) as error:
            problems.append(Problem(line, str(error)))
    return answers


def _sentence_of(row: AnyRow, refcoco: RefCoco) -> int:
    number, ref = row.get("sent_id"), row.get("ref_id")
    if type(number) is int:
        if number in refcoco.truths:
            return number
        if number in refcoco.unusable:
            raise InputError(f"sent_id {number} was skipped: {refcoco.unusable[number]}")
        other = refcoco.other_splits.get(number)
        raise InputError(
            f"sent_id {number} is of split {other}" if other else f"no sent_id {number} in the refs"
        )
    if type(ref) is not int:
        raise InputError("needs 'sent_id', or 'ref_id' and the expression as 'prompt'")
    wanted = plain_expression(_expression(row))
    fitting = [
        n
        for n in refcoco.of_ref.get(ref, [])
        if plain_expression(refcoco.truths[n].expression) == wanted
    ]
    if len(fitting) != 1:
        raise InputError(
            f"{len(fitting)} expressions of ref_id {ref} in this split read {wanted!r}; "
            "give 'sent_id'"
        )
    return fitting[0]


def _expression(row: AnyRow) -> str:
    given = row.get("expression") or row.get("prompt") or row.get("prefix")
    return given if isinstance(given, str) else ""


def _answer_of(line: int, row: AnyRow) -> ReferringAnswer:
    """Return the first four loc and sixteen seg tokens, or four loc, or why there are none."""
    codec = row.get("codec")
    named = codec if isinstance(codec, str) else ""
    output, ids = row.get("output"), row.get("token_ids")
    if isinstance(output, str):
        match = _ANSWER.match(output) or _BOX_ALONE.match(output)
        if match is not None:
            tokens = tuple(map(int, match.groups()))
            return ReferringAnswer(tokens, "", named, line)
    elif isinstance(ids, (list, tuple, np.ndarray)):
        first = list(ids[:_TOKENS])
        plain = set(map(type, first)) <= {int}  # quick; numpy's are no int
        if not plain and not all(isinstance(number, (int, np.integer)) for number in first):
            raise InputError("'token_ids' must be a list of integers")
        if len(first) >= LOC_PER_BOX:
            return ReferringAnswer(first, "", named, line, text=False)
    else:
        raise InputError("needs 'output' (text) or 'token_ids' (a list of integers)")
    return ReferringAnswer(None, _NOT_BOX_AND_MASK, named, line)
