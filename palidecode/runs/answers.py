"""Rows of answers to detections, and the job that decodes them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from palidecode.answers.parsing import Detokenize
from palidecode.answers.row_files import Problem
from palidecode.answers.rows import (
    OUTPUT_KEYS,
    SIZE_KEYS,
    TRUTH_KEYS,
    AnswerRow,
    RowReader,
    each_row,
)
from palidecode.coco.shards import Result, key_of
from palidecode.codec import MaskCodec, Precision, load_codec
from palidecode.codec.weights import GOOGLE_ID, find_weights
from palidecode.detections import CodecMismatchWarning, Detections, decode
from palidecode.errors import InputError, WeightsError, warn
from palidecode.files import regular
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.prompts import asked_for
from palidecode.runs.jobs import FailedBy, Job, Record, Worker
from palidecode.wording import many

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 256

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class DecodeOptions:
    """Options of decoding answers; plain values only.

    Attributes
    ----------
    weights : str, optional
        Mask codec that the codes belong to, a file or an id. By default it is loaded when a mask
        is asked for, and codes count as Google's.
    backend : {"auto", "onnx", "torch"}
        Of the mask codec.
    divisor, clip
        See `palidecode.decode`.
    tokenizer : str, optional
        A ``tokenizer.json``, for labels of token ids.
    label_from_prompt : bool
        Label unlabelled objects with the one thing that their prompt asked for.
    images : str, optional
        Folder of the pictures; their sizes are read where the rows don't have them.
    size : tuple of 2 int, optional
        Width and height for rows that have neither a size nor a picture.
    output_key, image_key : str, optional
        Keys of the answers and the pictures in the rows; see `RowReader`.
    batch_size : int
        Answers that are decoded together, which decides the last bits of float32 masks.
    precision : {"auto", "float32", "int8", "bfloat16"}
        Of the mask codec; see `palidecode.load_codec`.
    box_image : int, optional
        Index of the picture that boxes are measured in, where a row names several.
    """

    weights: str | None = None
    backend: Literal["auto", "onnx", "torch"] = "auto"
    divisor: int = DEFAULT_DIVISOR
    clip: bool = False
    tokenizer: str | None = None
    label_from_prompt: bool = False
    images: str | None = None
    size: tuple[int, int] | None = None
    output_key: str | None = None
    image_key: str | None = None
    batch_size: int = CHUNK
    precision: Precision = "auto"
    box_image: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")

    def check_images(self) -> None:
        """Raise an `InputError` if the folder of the pictures doesn't exist."""
        if self.images is not None and not os.path.isdir(self.images):
            raise InputError(f"{self.images}: no such directory of pictures")

    def reader(self) -> RowReader:
        """Return the reader of the rows."""
        keys = (self.output_key, self.image_key)
        return RowReader.of(self.images, self.size, *keys, self.box_image)


@dataclass(frozen=True)
class AnswerDecoder:
    """Decodes rows of answers with what was loaded; see `palidecode.decode`."""

    codec: MaskCodec | None = None
    divisor: int = DEFAULT_DIVISOR
    clip: bool = False
    codes_id: str | None = None
    detokenize: Detokenize | None = None
    label_from_prompt: bool = False

    @classmethod
    def load(cls, options: DecodeOptions, threads: int | None = None) -> AnswerDecoder:
        """Load the mask codec and the tokenizer.

        `threads` are those of the codec; by default as many as there are cores.

        Raises
        ------
        InputError, WeightsError
            For files that can't be used.
        """
        codec = None
        chosen = (options.backend, options.precision) != ("auto", "auto")
        if options.weights or chosen:
            codec = load_codec(
                options.weights, options.backend, precision=options.precision, threads=threads
            )
        elif threads is not None:
            with suppress(WeightsError):  # which is only an error when there is a mask
                codec = load_codec(threads=threads)
        return cls(
            codec,
            options.divisor,
            options.clip,
            # Weights that were named are what the codes belong to; the default ones may not be.
            None if options.weights else GOOGLE_ID,
            _detokenizer(options.tokenizer),
            options.label_from_prompt,
        )

    def decode(self, rows: Sequence[AnswerRow]) -> tuple[Detections, dict[int, str]]:
        """Decode answers together.

        Returns
        -------
        tuple of (Detections, dict of int to str)
            An image for each row; and the rows of which a part was skipped, and why.
        """
        codecs = {row.codec for row in rows} - {""}
        found = decode(
            [row.answer for row in rows],
            [row.size for row in rows],
            self.codec,
            self.divisor,
            names=[row.name for row in rows],
            clip=self.clip,
            # What the rows say goes first, where they agree.
            codes_id=codecs.pop() if len(codecs) == 1 else self.codes_id,
            detokenize=self.detokenize,
        )
        if len(codecs) > 1 and found.has_mask.any():
            warn(
                f"rows name different mask codecs ({', '.join(sorted(codecs))}) and one decodes "
                "them all: the mask shapes of the other rows are NOT right; decode the rows of "
                "each codec apart, with its --weights",
                CodecMismatchWarning,
            )
        if self.label_from_prompt:
            for index, label in enumerate(found.labels):
                if not label:
                    found.labels[index] = asked_for(rows[int(found.image_index[index])].prompt)
        return found, _add_scores(found, rows)


def _add_scores(found: Detections, rows: Sequence[AnswerRow]) -> dict[int, str]:
    """Give objects the scores of their rows; rows whose scores don't fit, and why."""
    reasons: dict[int, str] = {}
    counts = np.bincount(found.image_index, minlength=len(rows)).tolist()
    for index, row in enumerate(rows):
        if row.scores is None:
            continue
        if len(row.scores) != counts[index]:
            reasons[index] = (
                f"{many(len(row.scores), 'score')} for {many(counts[index], 'box', 'boxes')}; "
                "written without scores"
            )
            continue
        if not all(map(math.isfinite, row.scores)):
            reasons[index] = "a score is NaN or no number; that object is written without a score"
        scores = np.asarray(row.scores, np.float32)
        found.scores[found.image_index == index] = np.where(np.isfinite(scores), scores, np.nan)
    return reasons


def _detokenizer(path: str | None) -> Callable[[list[int]], str] | None:
    if path is None:
        return None
    tokenizer = read_tokenizer(path)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))


def read_tokenizer(path: str) -> Tokenizer:
    """Read a ``tokenizer.json``."""
    from tokenizers import Tokenizer  # slow to import

    try:
        return Tokenizer.from_file(str(regular(path)))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(f"{path}: can't be read as a tokenizer.json: {error}") from error


def decode_rows(
    rows: Iterable[AnswerRow | Problem], decoder: AnswerDecoder, chunk: int = CHUNK
) -> Iterator[tuple[list[AnswerRow], Detections, list[Problem]]]:
    """Decode `chunk` rows at a time: the rows that could be used, their objects, and problems.

    Rows that can't be used count, too: their position alone decides what is decoded together.
    """
    for part in batches(rows, chunk):
        answers = [row for row in part if isinstance(row, AnswerRow)]
        problems = [row for row in part if isinstance(row, Problem)]
        found, reasons = decoder.decode(answers)
        problems += [Problem(answers[index].line, reason) for index, reason in reasons.items()]
        yield answers, found, problems


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield `size` items at a time, fewer at the end."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def by_picture(rows: list[AnswerRow], found: Detections) -> tuple[Detections, list[str]]:
    """Put answers about the same picture together: detections per picture, and the names."""
    numbers: dict[str, int] = {}
    image_of = np.array([numbers.setdefault(row.name, len(numbers)) for row in rows], np.int64)
    first = np.unique(image_of, return_index=True)[1].tolist()
    index = image_of[found.image_index] if len(found) else found.image_index
    order = np.argsort(index, kind="stable")
    issues = [(int(image_of[answer]), issue) for answer, issue in found.issues]
    merged = replace(
        found,
        image_index=index,
        sizes=found.sizes[first],
        issues=issues,
        names=list(numbers),
        image_ids=[found.image_ids[answer] for answer in first],
    )
    return merged.select(order), merged.names


@dataclass(frozen=True)
class DecodeJob(Job[AnswerRow | Problem]):
    """Decodes answers.

    Attributes
    ----------
    options : DecodeOptions
    reader : RowReader, optional
        Of rows whose keys were chosen; by default each row is judged alone.
    """

    options: DecodeOptions
    reader: RowReader | None = None

    command: ClassVar[str] = "decode"
    once: ClassVar[bool] = False
    failed_by: ClassVar[FailedBy] = "line"

    @property
    def columns(self) -> tuple[str, ...]:
        reader = self.reader or self.options.reader()
        keys = (*reader.outputs, *reader.pictures, *OUTPUT_KEYS, *TRUTH_KEYS, *SIZE_KEYS)
        others = ("bytes", "prompt", "prefix", "scores", "codec", "error", "line", "problem")
        return tuple(dict.fromkeys((*keys, *others, "box_image")))

    @property
    def batch_size(self) -> int:
        return self.options.batch_size

    def settings(self) -> dict[str, Any]:
        settings = asdict(self.options)
        # Rows are known by what was read; files by their hashes.
        read = ("images", "size", "output_key", "image_key", "box_image")
        for name in (*read, "weights", "tokenizer", "batch_size"):
            del settings[name]
        return settings

    def files(self) -> dict[str, Path]:
        files = {}
        if self.options.tokenizer is not None:
            files["tokenizer"] = Path(self.options.tokenizer)
        with suppress(WeightsError):  # which is only an error when there is a mask
            files["mask codec"] = find_weights(self.options.weights)
        return files

    def items(
        self,
        path: str | os.PathLike[str],
        sizes: Callable[[str], tuple[int, int] | None] | None = None,
    ) -> Iterator[AnswerRow | Problem]:
        """Read a file of answers; `sizes` returns the size of the picture of a name.

        Raises
        ------
        InputError
            If it can't be read, the folder of pictures doesn't exist, or which key has the
            answers isn't clear.
        """
        self.options.check_images()
        rows = each_row(path, replace(self.options.reader(), sizes=sizes))
        first = list(islice(rows, 1))  # raises before the run has begun
        return chain(first, rows)

    def item(self, record: Record) -> AnswerRow | Problem:
        line, reader = record.get("line", 0), self.reader or self.options.reader()
        try:
            if "problem" in record:
                raise InputError(str(record["problem"]))
            if not line and reader.picture(record).name is None:
                raise InputError("needs 'image', a name")
            return reader.item(line, record)
        except InputError as error:
            return Problem(line, str(error))

    def key(self, item: AnswerRow | Problem) -> bytes:
        return key_of(*(item if isinstance(item, Problem) else vars(item).values()))

    def load(self, threads: int | None = None) -> Worker[AnswerRow | Problem]:
        return _Decoder(AnswerDecoder.load(self.options, threads))


@dataclass(frozen=True)
class _Decoder:
    decoder: AnswerDecoder

    def __call__(self, items: Sequence[AnswerRow | Problem]) -> Result:
        reasons = {row: item.reason for row, item in enumerate(items) if isinstance(item, Problem)}
        rows = [row for row in range(len(items)) if row not in reasons]
        answers = [item for item in items if isinstance(item, AnswerRow)]
        found, partly = self.decoder.decode(answers)
        reasons |= {rows[index]: reason for index, reason in partly.items()}
        names = ["" if isinstance(item, Problem) else item.name for item in items]
        return Result(found, rows, names, reasons, [item.line for item in items])
