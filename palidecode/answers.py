"""JSON Lines of answers in, detections out, chunk by chunk.

A row is ``{"image": "cat.jpg", "output": "<loc…> cat"}``; see `AnswerRow` for the keys. A row
that can't be used is a `Problem` with its line number; the others go on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from palidecode.codec import MaskCodec, load_codec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.decoding.boxes import DEFAULT_DIVISOR
from palidecode.decoding.masks import MAX_PIXELS
from palidecode.decoding.parsing import Answer, Detokenize
from palidecode.detections import Detections, decode
from palidecode.errors import InputError, WeightsError
from palidecode.files import inside, picture_size

CHUNK = 256
MAX_SIDE = 1_000_000  # of a picture; a larger side is a typing error, not a picture
_MAX_SCORE = float(np.finfo(np.float32).max)
_LONGEST_LINE = 1 << 24
_VERBS = ("detect ", "segment ")


@dataclass(frozen=True)
class AnswerRow:
    """One answer and its picture.

    Attributes
    ----------
    line : int
        Number of the line, from 1.
    name : str
        ``image``, or ``line-<number>`` where the row has none.
    size : tuple of 2 int
        Width and height: ``width`` and ``height``, ``size`` or ``image_size_wh``, the
        picture's own, or the default.
    answer : str or list of int
        ``output``, ``token_ids``, or a fine-tuning row's ``suffix``.
    prompt : str
        ``prompt`` or ``prefix``, or ``""``.
    scores : list of float or None
        ``scores``: one per box.
    codec : str
        ``codec``: the id of the weights that the seg codes belong to, ``""`` if not said.
    """

    line: int
    name: str
    size: tuple[int, int]
    answer: Answer
    prompt: str = ""
    scores: list[float] | None = None
    codec: str = ""


class Problem(NamedTuple):
    """A row, or a part of one, that was left out."""

    line: int
    reason: str


@dataclass(frozen=True)
class DecodeOptions:
    """What `decode_rows` needs beside the rows; see `palidecode.decode`."""

    codec: MaskCodec | None = None
    divisor: int = DEFAULT_DIVISOR
    clip: bool = False
    codes_id: str | None = None
    detokenize: Detokenize | None = None
    label_from_prompt: bool = False


def load_options(
    weights: str | os.PathLike[str] | None = None,
    backend: Literal["auto", "onnx", "torch"] = "auto",
    *,
    divisor: int = DEFAULT_DIVISOR,
    clip: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
    label_from_prompt: bool = False,
    threads: int | None = None,
) -> DecodeOptions:
    """What `decode_rows` needs, loaded from files.

    Parameters
    ----------
    weights : str or path, optional
        The mask codec that the codes belong to. Without it the default one is loaded when a
        mask is asked for, and codes count as Google's.
    backend : {"auto", "onnx", "torch"}
        Of the codec.
    tokenizer : str or path, optional
        A ``tokenizer.json``, for labels of token ids.
    threads : int, optional
        Of the codec; by default as many as there are cores.

    Raises
    ------
    InputError, WeightsError
        For files that can't be used.
    """
    codec = None
    if weights or backend != "auto":
        codec = load_codec(weights, backend, threads=threads)
    elif threads is not None:
        with suppress(WeightsError):  # which is only an error when there is a mask
            codec = load_codec(threads=threads)
    return DecodeOptions(
        codec=codec,
        divisor=divisor,
        clip=clip,
        # Weights that were named are what the codes belong to; the default ones may not be.
        codes_id=None if weights else GOOGLE_ID,
        detokenize=_detokenizer(tokenizer),
        label_from_prompt=label_from_prompt,
    )


def _detokenizer(path: str | os.PathLike[str] | None) -> Callable[[list[int]], str] | None:
    if path is None:
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError("a tokenizer needs: pip install 'palidecode[runtime]'") from error
    try:
        tokenizer = Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{path}: can't be read as a tokenizer.json: {error}") from error
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))


def read_rows(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[AnswerRow | Problem]:
    """Rows of a JSONL file in order.

    Parameters
    ----------
    path : str or path
    images : str or path, optional
        The folder of the pictures. Names that lead out of it are problems.
    size : tuple of 2 int, optional
        Width and height for rows that name neither a size nor a picture.

    Raises
    ------
    InputError
        If the file can't be read.
    """
    seen: dict[str, tuple[int, int]] = {}
    for line, text in read_lines(path):
        try:
            row = read_row(line, read_object(text), images, size)
            check_sizes_agree(row, seen)
        except InputError as error:
            yield Problem(line, str(error))
        else:
            yield row


def check_sizes_agree(row: AnswerRow, seen: dict[str, tuple[int, int]]) -> None:
    """One picture has one size: an `InputError` where `seen` says otherwise of an earlier row."""
    if seen.setdefault(row.name, row.size) != row.size:
        raise InputError(
            f"{row.name!r} is {row.size[0]}×{row.size[1]} here but "
            f"{seen[row.name][0]}×{seen[row.name][1]} in an earlier row"
        )


def read_lines(
    path: str | os.PathLike[str], start: int = 0, stop: int | None = None, number: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Lines of a file that aren't empty, with their numbers from ``number + 1``.

    `start` and `stop` are bytes; `start` is where a line begins, and no line begins at `stop`.

    Raises
    ------
    InputError
        If it can't be read.
    """
    try:
        with Path(path).open("rb") as file:
            if start:  # a pipe can't
                file.seek(start)
            while (stop is None or file.tell() < stop) and (text := file.readline(_LONGEST_LINE)):
                number += 1
                piece = text
                while len(piece) == _LONGEST_LINE and not piece.endswith(b"\n"):
                    piece = file.readline(_LONGEST_LINE)  # the rest of a line too long to be one
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def read_object(text: bytes) -> dict[str, Any]:
    """The JSON object of a line, or an `InputError`."""
    try:
        row = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError("not a JSON object with 'output' or 'token_ids'")
    return row


def read_row(
    line: int,
    row: Mapping[str, Any],
    images: str | os.PathLike[str] | None = None,
    default: tuple[int, int] | None = None,
) -> AnswerRow:
    """A row of these keys, see `AnswerRow`; an `InputError` where it can't be used."""
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


def _answer_of(row: Mapping[str, Any]) -> Answer:
    output, ids = row.get("output"), row.get("token_ids")
    if output is None and ids is None:
        output = row.get("suffix")  # a fine-tuning row
    if isinstance(output, str):
        return output
    if isinstance(ids, list) and all(type(token) is int and abs(token) < 1 << 62 for token in ids):
        return ids
    raise InputError("needs 'output' (text) or 'token_ids' (a list of integers)")


def _scores_of(scores: Any) -> list[float] | None:
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
    row: Mapping[str, Any],
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


def check_size(size: Any) -> tuple[int, int]:
    """A positive width and height, or an `InputError`."""
    whole = isinstance(size, (list, tuple)) and all(type(side) is int for side in size)
    if not whole or len(size) != 2 or not all(0 < side <= MAX_SIDE for side in size):
        raise InputError(f"a size must be a width and a height in pixels, both ≥ 1, got {size!r}")
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{size[0]}×{size[1]} is more than a mask's {MAX_PIXELS} pixels")
    return size[0], size[1]


def decode_rows(
    rows: Iterable[AnswerRow | Problem], options: DecodeOptions, chunk: int = CHUNK
) -> Iterator[tuple[list[AnswerRow], Detections, list[Problem]]]:
    """Rows to detections, `chunk` rows at a time: rows, their objects, what was left out.

    Rows that can't be used count, too: so it is their place in the input alone that decides
    which answers are decoded together.
    """
    held: list[AnswerRow] = []
    problems: list[Problem] = []
    for row in rows:
        if isinstance(row, Problem):
            problems.append(row)
        else:
            held.append(row)
        if len(held) + len(problems) == chunk:
            yield _decode_chunk(held, options, problems)
            held, problems = [], []
    if held or problems:
        yield _decode_chunk(held, options, problems)


def _decode_chunk(
    rows: list[AnswerRow], options: DecodeOptions, problems: list[Problem]
) -> tuple[list[AnswerRow], Detections, list[Problem]]:
    said = {row.codec for row in rows} - {""}
    found = decode(
        [row.answer for row in rows],
        [row.size for row in rows],
        options.codec,
        options.divisor,
        clip=options.clip,
        # What the rows say goes first, where they agree.
        codes_id=said.pop() if len(said) == 1 else options.codes_id,
        detokenize=options.detokenize,
    )
    if options.label_from_prompt:
        _label_from_prompts(found, rows)
    counts = np.bincount(found.image_index, minlength=len(rows)).tolist()
    for place, row in enumerate(rows):
        if row.scores is None:
            continue
        if len(row.scores) != counts[place]:
            reason = f"{len(row.scores)} scores for {counts[place]} boxes; written without scores"
            problems.append(Problem(row.line, reason))
            continue
        if not all(map(math.isfinite, row.scores)):
            reason = "a score is NaN or no number; that object is written without a score"
            problems.append(Problem(row.line, reason))
        scores = np.asarray(row.scores, np.float32)
        found.scores[found.image_index == place] = np.where(np.isfinite(scores), scores, np.nan)
    return rows, found, problems


def _label_from_prompts(found: Detections, rows: list[AnswerRow]) -> None:
    """Give unlabelled objects the one thing that was asked for, where it was one."""
    for place, label in enumerate(found.labels):
        if not label:
            found.labels[place] = asked_for(rows[int(found.image_index[place])].prompt)


def asked_for(prompt: str) -> str:
    """What a prompt asks for, if it is one thing: ``segment cat`` gives ``cat``."""
    text = prompt.strip()
    for verb in _VERBS:
        text = text.removeprefix(verb)
    return "" if ";" in text else text.strip()


def by_picture(rows: list[AnswerRow], found: Detections) -> tuple[Detections, list[str]]:
    """Put several answers about one picture together: detections per picture, and the names."""
    place: dict[str, int] = {}
    image_of = np.array([place.setdefault(row.name, len(place)) for row in rows], np.int64)
    first = [int(np.flatnonzero(image_of == number)[0]) for number in range(len(place))]
    index = image_of[found.image_index] if len(found) else found.image_index
    order = np.argsort(index, kind="stable")
    issues = [(int(image_of[answer]), issue) for answer, issue in found.issues]
    merged = replace(found, image_index=index, sizes=found.sizes[first], issues=issues)
    return merged.select(order), list(place)
