"""Rows of referring answers: the answer, its expression, and perhaps the true mask or box.

A row that can't be used is a `Problem` with its line number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.answers.row_files import Problem, open_rows
from palidecode.answers.rows import SIZE_KEYS, Picture, RowReader, candidates
from palidecode.coco.mask_reading import read_mask
from palidecode.coco.reading import RunLengths, read_outline
from palidecode.errors import InputError
from palidecode.evaluation.referring.refcoco import RefCoco, Truth, solid_box
from palidecode.files import check_size
from palidecode.geometry.rle import Rle, union
from palidecode.prompts import plain_expression
from palidecode.vocab import LOC_COUNT, LOC_PER_BOX, SEG_COUNT, SEG_PER_MASK, Vocabulary
from palidecode.wording import many

# Some detokenizers put spaces between special tokens.
_BOX = r"\s*" + r"<loc([0-9]{4})>\s*" * LOC_PER_BOX
_ANSWER = re.compile(_BOX + r"<seg([0-9]{3})>\s*" * SEG_PER_MASK)
_BOX_ALONE = re.compile(_BOX + r"(?!\s*<seg)")
NOT_BOX_AND_MASK = "doesn't begin with four loc and sixteen seg tokens"
_PERHAPS_EXPRESSION = ("text", "answer")
"""Keys of answers that are the expression in some data sets."""
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
            reason = "a loc or seg token out of range" if text[index] else NOT_BOX_AND_MASK
        invalid[int(rows[index])] = reason
    values[strange | empty] = 0
    numbers[rows] = values
    boxed[rows] = ~(strange | empty)
    masked[rows] = boxed[rows] & ~alone
    return Tokens(numbers, boxed, masked, invalid)


@contextmanager
def open_answers(
    predictions: str | os.PathLike[str] | Sequence[AnyRow],
    output_key: str | None,
    image_key: str | None,
    box_image: int | None,
    problems: list[Problem],
) -> Iterator[tuple[RowReader, Iterator[tuple[int, AnyRow]]]]:
    """Open rows, and return their reader and each row with its number.

    What is no row becomes a problem. The keys of the answers are chosen as `read_rows` does, but
    ``text`` and ``answer`` without a loc token in any row are the expression.
    """
    reader = RowReader.of(None, None, output_key, image_key, box_image)
    if not isinstance(predictions, (str, os.PathLike)):
        rows = list(_usable(enumerate(predictions, 1), problems))
        yield _chosen(reader, rows, ""), iter(rows)
        return
    with open_rows(predictions) as file:
        reader = _chosen(reader, candidates(file), f"{predictions}: ")
        reader = replace(reader, folder=os.path.dirname(predictions), blank=file.kind == "csv")
        yield reader, _usable(file.objects(), problems)


def _usable(
    rows: Iterable[tuple[int, Any] | Problem], problems: list[Problem]
) -> Iterator[tuple[int, AnyRow]]:
    for found in rows:
        if isinstance(found, Problem):
            problems.append(found)
            continue
        line, row = found
        if isinstance(row, Mapping):
            yield line, row
        else:
            problems.append(Problem(line, "not a JSON object with 'output' or 'token_ids'"))


def _chosen(reader: RowReader, rows: Iterable[tuple[int, AnyRow]], where: str) -> RowReader:
    """Choose the keys of the answers among those that aren't the expression."""
    expressions: dict[str, None] = {}

    def answers() -> Iterator[tuple[int, AnyRow]]:
        for line, row in rows:
            said = [key for key in _PERHAPS_EXPRESSION if _is_expression(row.get(key))]
            expressions.update(dict.fromkeys(said))
            yield line, {key: row[key] for key in row if key not in said} if said else row

    try:
        return reader.choose(answers(), where)
    except InputError as error:
        if not expressions:
            raise
        keys = " and ".join(map(repr, expressions))
        raise InputError(f"{error}; without a <loc…> token, {keys} is the expression") from error


def _is_expression(value: object) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and "<loc" not in text for text in texts)


def own_pairs(
    rows: Iterator[tuple[int, AnyRow]], reader: RowReader, problems: list[Problem]
) -> Iterator[tuple[Truth, ReferringAnswer]]:
    """Yield the truth and the answer of rows that contain both."""
    for line, row in rows:
        try:
            yield _own_truth(line, row, reader, problems), _answer_of(line, row, reader)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(Problem(line, str(error)))


def _own_truth(line: int, row: AnyRow, reader: RowReader, problems: list[Problem]) -> Truth:
    if "segmentation" not in row and "bbox" not in row:
        raise InputError(
            "needs 'segmentation' (RLE or polygons, null for no target) or 'bbox'; or give "
            "RefCOCO's files"
        )
    given, picture = row.get("segmentation"), _picture_of(row, reader)
    size = None
    if isinstance(given, Mapping) and all(row.get(key) is None for key in SIZE_KEYS):
        outline = read_outline(given)
        size = outline.size[::-1] if isinstance(outline, RunLengths) else None
    width_height = size or reader.size_of(row, picture)
    if width_height is None:
        raise InputError("the size of the picture is not known: give 'width' and 'height'")
    width_height = check_size(width_height)
    rle, skipped_rings = _given_rle(given, width_height)
    if skipped_rings:
        problems.append(
            Problem(line, f"skipped {many(skipped_rings, 'polygon ring')} of under 3 points")
        )
    box = solid_box(row.get("bbox"))
    if rle is None and (box is None or not min(box[2:])):
        rle = union([], width_height)  # no target
    number = row.get("id", row.get("sent_id", line))
    return Truth(
        id=number if isinstance(number, (int, str)) else line,
        image=picture.name or f"line-{line}",
        size=width_height,
        rle=rle,
        bbox=box,
        expression=_expression(row, reader),
    )


def _picture_of(row: AnyRow, reader: RowReader) -> Picture:
    try:
        return reader.picture(row)
    except InputError:  # its name is only shown
        return Picture(None)


def _given_rle(given: Any, size: tuple[int, int]) -> tuple[Rle | None, int]:
    """Read the true mask and count skipped rings; compressed counts are checked later, together."""
    counts = given.get("counts") if isinstance(given, Mapping) else None
    if isinstance(counts, str) and given.get("size") == [size[1], size[0]]:
        return Rle(size=[size[1], size[0]], counts=counts), 0
    return read_mask(read_outline(given), size)


def answers_by_id(
    rows: Iterator[tuple[int, AnyRow]],
    reader: RowReader,
    refcoco: RefCoco,
    problems: list[Problem],
) -> dict[int, ReferringAnswer]:
    """Return the answer to every expression; others, and second ones, become problems."""
    answers: dict[int, ReferringAnswer] = {}
    for line, row in rows:
        try:
            number = _sentence_of(row, reader, refcoco)
            if number in answers:
                raise InputError(f"a second prediction for sent_id {number}; the first counts")
            answers[number] = _answer_of(line, row, reader)
        except (TypeError, ValueError, RecursionError) as error:
            problems.append(Problem(line, str(error)))
    return answers


def _sentence_of(row: AnyRow, reader: RowReader, refcoco: RefCoco) -> int:
    ids = (row.get(key) for key in ("sent_id", "custom_id", "ref_id"))
    sent, custom, ref = map(_whole, ids)
    number = custom if row.get("sent_id") is None else sent
    if number is not None:
        if number in refcoco.truths:
            return number
        if number in refcoco.unusable:
            raise InputError(f"sent_id {number} was skipped: {refcoco.unusable[number]}")
        other = refcoco.other_splits.get(number)
        raise InputError(
            f"sent_id {number} is of split {other}" if other else f"no sent_id {number} in the refs"
        )
    if ref is None:
        raise InputError("needs 'sent_id', or 'ref_id' and the expression as 'prompt'")
    wanted = plain_expression(_expression(row, reader))
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


def _whole(value: object) -> int | None:
    """Return an id as a whole number: 7, 7.0 and ``"7"``; None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def _expression(row: AnyRow, reader: RowReader) -> str:
    keys = [key for key in ("expression", "prompt", "prefix", "text") if key not in reader.outputs]
    given = next((row[key] for key in keys if row.get(key)), "")
    return given if isinstance(given, str) else ""


def _answer_of(line: int, row: AnyRow, reader: RowReader) -> ReferringAnswer:
    """Return the first four loc and sixteen seg tokens, or four loc, or why there are none."""
    codec = row.get("codec")
    named = codec if isinstance(codec, str) else ""
    answer, _ = reader.answer(row)
    if isinstance(answer, str):
        match = _ANSWER.match(answer) or _BOX_ALONE.match(answer)
        if match is not None:
            return ReferringAnswer(tuple(map(int, match.groups())), "", named, line)
    elif len(answer) >= LOC_PER_BOX:
        return ReferringAnswer(list(answer[:_TOKENS]), "", named, line, text=False)
    return ReferringAnswer(None, NOT_BOX_AND_MASK, named, line)
