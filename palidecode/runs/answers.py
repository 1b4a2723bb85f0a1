"""Answers to detections, chunk by chunk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from palidecode.answers.jsonl import AnswerRow, Problem
from palidecode.answers.parsing import Detokenize
from palidecode.codec import MaskCodec, load_codec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.detections import Detections, decode
from palidecode.errors import InputError, WeightsError
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.prompts import asked_for

CHUNK = 256


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
