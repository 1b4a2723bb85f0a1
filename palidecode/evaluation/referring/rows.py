"""Rows of referring answers: the answer, its expression, and perhaps the true mask.

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

from palidecode.answers.jsonl import Problem
from palidecode.coco.reading import RunLengths, read_outline
from palidecode.coco.segmentations import read_mask
from palidecode.errors import InputError
from palidecode.evaluation.referring.refcoco import RefCoco, Truth, solid_box
from palidecode.files import check_size
from palidecode.geometry.rle import Rle, union
from palidecode.prompts import plain_expression
from palidecode.vocab import LOC_COUNT, LOC_PER_BOX, SEG_COUNT, SEG_PER_MASK, Vocabulary

# Some detokenizers put spaces between special tokens.
_ANSWER = re.compile(
    r"\s*" + r"<loc([0-9]{4})>\s*" * LOC_PER_BOX + r"<seg([0-9]{3})>\s*" * SEG_PER_MASK
)
_NOT_BOX_AND_MASK = "doesn't begin with four loc and sixteen seg tokens"
_TOKENS = LOC_PER_BOX + SEG_PER_MASK

Flags: TypeAlias = npt.NDArray[np.bool_]
AnyRow: TypeAlias = Mapping[str, Any]
"""A row of a file, its values not checked yet."""


class ReferringAnswer(NamedTuple):
    """The first twenty tokens of an answer, not checked yet, or the reason why there are none.

    Attributes
    ----------
    tokens : sequence of 20 int, or None
        Of text: bins y1, x1, y2, x2 and sixteen codes. Else ids of a vocabulary.
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


def bins_and_codes(
    answers: Sequence[ReferringAnswer], vocabulary: Vocabulary
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return answers as numbers.

    Returns
    -------
    numbers : ndarray of int64, shape (N, 20)
        Bins y1, x1, y2, x2 and sixteen codes; 0 for answers that can't be used.
    invalid : list of str
        The reason why an answer can't be used, or ``""``.
    """
    numbers = np.zeros((len(answers), _TOKENS), np.int64)
    invalid = [answer.invalid for answer in answers]
    rows = np.array([n for n, a in enumerate(answers) if a.tokens is not None], np.int64)
    if not len(rows):
        return numbers, invalid
    tokens = [answers[row].tokens or () for row in rows.tolist()]
    try:
        values = np.array(tokens, np.int64)
    except OverflowError:
        values = np.array([[min(max(i, -1), 1 << 40) for i in ids] for ids in tokens], np.int64)
    text = np.array([answers[row].text for row in rows.tolist()])
    offsets = [vocabulary.loc_offset] * LOC_PER_BOX + [vocabulary.seg_offset] * SEG_PER_MASK
    values[~text] -= np.array(offsets)
    limits = np.array([LOC_COUNT] * LOC_PER_BOX + [SEG_COUNT] * SEG_PER_MASK)
    strange: Flags = np.logical_or.reduce((values < 0) | (values >= limits), axis=1)
    empty: Flags = np.logical_or.reduce(values[:, 2:4] <= values[:, :2], axis=1)
    for index in np.flatnonzero(strange | empty).tolist():
        if not strange[index]:
            reason = "inverted or empty box"
        else:
            reason = "a loc or seg token out of range" if text[index] else _NOT_BOX_AND_MASK
        invalid[int(rows[index])] = reason
    values[strange | empty] = 0
    numbers[rows] = values
    return numbers, invalid


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
    if "segmentation" not in row:
        raise InputError(
            "needs 'segmentation': RLE or polygons, null for no target; or give RefCOCO's files"
        )
    given = row["segmentation"]
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
    number = row.get("id", row.get("sent_id", line))
    return Truth(
        id=number if isinstance(number, (int, str)) else line,
        image=str(row.get("image") or f"line-{line}"),
        size=width_height,
        rle=rle,
        bbox=solid_box(row.get("bbox")),
        expression=_expression(row),
    )


def _given_rle(given: Any, size: tuple[int, int]) -> tuple[Rle, int]:
    """Read the true mask and count skipped rings; compressed counts are checked later, together."""
    counts = given.get("counts") if isinstance(given, Mapping) else None
    if isinstance(counts, str) and given.get("size") == [size[1], size[0]]:
        return Rle(size=[size[1], size[0]], counts=counts), 0
    rle, skipped_rings = read_mask(read_outline(given), size)
    return union([], size) if rle is None else rle, skipped_rings


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
    """Return the first four loc and sixteen seg tokens, or the reason why there are none."""
    codec = row.get("codec")
    named = codec if isinstance(codec, str) else ""
    output, ids = row.get("output"), row.get("token_ids")
    if isinstance(output, str):
        match = _ANSWER.match(output)
        if match is not None:
            return ReferringAnswer(tuple(map(int, match.groups())), "", named, line)
    elif isinstance(ids, (list, tuple, np.ndarray)):
        first = list(ids[:_TOKENS])
        plain = set(map(type, first)) <= {int}  # quick; numpy's are no int
        if not plain and not all(isinstance(number, (int, np.integer)) for number in first):
            raise InputError("'token_ids' must be a list of integers")
        if len(first) == _TOKENS:
            return ReferringAnswer(first, "", named, line, text=False)
    else:
        raise InputError("needs 'output' (text) or 'token_ids' (a list of integers)")
    return ReferringAnswer(None, _NOT_BOX_AND_MASK, named, line)
