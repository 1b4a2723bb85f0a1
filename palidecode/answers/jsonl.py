"""Read JSON Lines of answers.

A row is ``{"image": "cat.jpg", "output": "<loc…> cat"}``; see `AnswerRow` for the keys. A row
that can't be used becomes a `Problem` with its line number.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from palidecode.answers.parsing import Answer
from palidecode.errors import InputError
from palidecode.files import check_size, inside, picture_size

CHUNK = 256
_MAX_SCORE = float(np.finfo(np.float32).max)
_LONGEST_LINE = 1 << 24
_PERHAPS_TRUTH = ("response", "answer", "text")  # the truth in some data sets
_OTHER_KEYS = ("prediction", "generated_text", *_PERHAPS_TRUTH)
ANSWER_KEYS = ("output", "token_ids", *_OTHER_KEYS, "suffix")


@dataclass(frozen=True)
class AnswerRow:
    """One answer and its picture.

    Attributes
    ----------
    line : int
        Number of the line, from 1.
    name : str
        ``image``, or ``line-<number>`` if the row has none.
    size : tuple of 2 int
        Width and height: ``width`` and ``height``, ``size`` or ``image_size_wh``, the
        picture's own, or the default.
    answer : str or list of int
        ``output``, ``token_ids``, or the first of ``prediction``, ``generated_text``,
        ``response``, ``answer`` and ``text``. Without any, a fine-tuning row's ``suffix``.
    prompt : str
        ``prompt`` or ``prefix``, or ``""``.
    scores : list of float or None
        ``scores``: one per box.
    codec : str
        ``codec``: the id of the weights that the seg codes belong to, ``""`` if the row has none.
    """

    line: int
    name: str
    size: tuple[int, int]
    answer: Answer
    prompt: str = ""
    scores: list[float] | None = None
    codec: str = ""


class Problem(NamedTuple):
    """A row, or a part of one, that was skipped."""

    line: int
    reason: str


def read_rows(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[AnswerRow | Problem]:
    """Read the rows of a JSONL file, in order.

    Parameters
    ----------
    path : str or path
    images : str or path, optional
        The folder of the pictures. Names that lead out of it are problems.
    size : tuple of 2 int, optional
        Width and height for rows that have neither a size nor a picture.

    Raises
    ------
    InputError
        If the file can't be read.
    """
    seen: dict[str, tuple[int, int]] = {}
    for row in each_row(path, images, size):
        if isinstance(row, AnswerRow):
            first = seen.setdefault(row.name, row.size)
            if first != row.size:
                yield Problem(row.line, other_size(row.name, row.size, first))
                continue
        yield row


def each_row(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[AnswerRow | Problem]:
    """Yield what `read_rows` does, but don't check that one picture has one size."""
    for line, text in read_lines(path):
        try:
            yield read_row(line, read_object(text), images, size)
        except InputError as error:
            yield Problem(line, str(error))


def other_size(name: str, size: tuple[int, int], first: tuple[int, int]) -> str:
    """Return why a row is skipped whose picture had another size in an earlier row."""
    return f"{name!r} is {size[0]}×{size[1]} here but {first[0]}×{first[1]} in an earlier row"


def read_lines(
    path: str | os.PathLike[str], start: int = 0, stop: int | None = None, number: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Read the non-empty lines of a file, with their numbers from ``number + 1``.

    Lines that begin at byte offsets from `start` up to, but not including, `stop`.

    Raises
    ------
    InputError
        If the file can't be read.
    """
    try:
        with Path(path).open("rb") as file:
            if start:  # a pipe can't seek
                file.seek(start)
            while (stop is None or file.tell() < stop) and (text := file.readline(_LONGEST_LINE)):
                number += 1
                piece = text
                while len(piece) == _LONGEST_LINE and not piece.endswith(b"\n"):
                    piece = file.readline(_LONGEST_LINE)  # the rest of a line that is too long
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def read_object(text: bytes) -> dict[str, object]:
    """Parse the JSON object of a line."""
    try:
        row = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError("not a JSON object with 'output' or 'token_ids'")
    return row


def read_row(
    line: int,
    row: Mapping[str, object],
    images: str | os.PathLike[str] | None = None,
    default: tuple[int, int] | None = None,
) -> AnswerRow:
    """Make an `AnswerRow` of a JSON object; an `InputError` says why it can't be used."""
    image = row.get("image")
    if image is not None and (not isinstance(image, str) or not image):
        raise InputError(f"'image' must be a file name, got {image!r}")
    prompt, codec = row.get("prompt", row.get("prefix")), row.get("codec")
    return AnswerRow(
        line=line,
        name=image or f"line-{line}",
        size=_size_of(row, image, images, default),
        answer=_answer_of(row),
        prompt=prompt if isinstance(prompt, str) else "",
        scores=_scores_of(row.get("scores")),
        codec=codec if isinstance(codec, str) else "",
    )


def _answer_of(row: Mapping[str, object]) -> Answer:
    output, ids = row.get("output"), row.get("token_ids")
    if output is None and ids is None:
        output = _other_answer(row)
    if isinstance(output, str):
        return output
    if isinstance(ids, list) and all(type(token) is int and abs(token) < 1 << 62 for token in ids):
        return ids
    raise InputError("needs 'output' (text) or 'token_ids' (a list of integers)")


def _other_answer(row: Mapping[str, object]) -> object:
    """The answer under another key than ours; never the truth beside an answer."""
    given = {key: row[key] for key in _OTHER_KEYS if isinstance(row.get(key), str)}
    truth = row.get("suffix")  # of a fine-tuning row
    if not given:
        return truth
    (key, value), *others = given.items()
    if key in _PERHAPS_TRUTH and value in (truth, row.get("labels")):
        raise InputError(f"{key!r} is the ground truth beside it, not an answer")
    for other, content in others:
        if content != value:
            raise InputError(f"{key!r} and {other!r} differ: rename the answer to 'output'")
    return value


def _scores_of(scores: object) -> list[float] | None:
    if scores is None:
        return None
    if not isinstance(scores, list):
        raise InputError("'scores' must be a list with one number per box")
    return [
        float(score)
        if isinstance(score, (int, float))
        and not isinstance(score, bool)
        and abs(score) <= _MAX_SCORE
        else math.nan
        for score in scores
    ]


def _size_of(
    row: Mapping[str, object],
    image: str | None,
    images: str | os.PathLike[str] | None,
    default: tuple[int, int] | None,
) -> tuple[int, int]:
    given = row.get("size") or row.get("image_size_wh")
    if row.get("width") is not None or row.get("height") is not None:
        given = [row.get("width"), row.get("height")]
    if image is not None and images is not None:
        path = inside(images, image)
        if given is None:
            return picture_size(path)
    if given is None and default is None:
        raise InputError(
            "the size of the picture is not known: give 'width' and 'height', or 'image' and "
            "the folder (--images), or one size for all (--size)"
        )
    return check_size(given if given is not None else default)
