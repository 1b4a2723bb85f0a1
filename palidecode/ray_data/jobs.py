"""What the actors do with the rows of a shard: predict, decode, or write what is there.

A job is a few options that go to every actor; `load` makes what does the work there, once.
Everything that decides a number is a function of the single-machine path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from palidecode.answers.jsonl import AnswerRow, Problem, check_sizes_agree, read_row
from palidecode.coco.shards import CocoShard
from palidecode.codec import load_codec
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import picture_size
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.ray_data.rows import failed_row, found_rows, journal_row, row_schema
from palidecode.runs.answers import CHUNK, DecodeOptions, decode_rows, load_options
from palidecode.runs.journal import Row
from palidecode.runs.prediction import (
    PictureFile,
    PredictOptions,
    Unread,
    failure_row,
    picture_rows,
    predict_batch,
    readable,
    write_pictures,
)

Record = Mapping[str, Any]
_SIZES = ("width", "height", "size", "image_size_wh")


class Loaded(Protocol):
    """What an actor works with."""

    def write(self, records: Sequence[Record], shard: CocoShard) -> dict[str, Any]:
        """Fill a shard. What it shall say of itself: ``issues``, a count of each kind; ``failed``,
        rows of failures.jsonl; ``lines``, the rows of each image, where several may be."""

    def rows(self, records: Sequence[Record]) -> Iterator[Row]:
        """A row for each record, in order; see `palidecode.ray_data.rows`."""

    def mended(self, records: Sequence[Record], failed: Sequence[Row]) -> bool:
        """Whether something that failed when the shard was written would work now."""


class Job(Protocol):
    """What to do; small enough to be sent to every actor."""

    @property
    def one_row_each(self) -> bool:
        """Whether no picture may come twice."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that decide what comes out."""

    def load(self, threads: int) -> Loaded:
        """In the actor: whatever it takes."""


# -- predict -----------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictJob:
    """Ask a model about pictures; see `PaliDecoder.from_pretrained` and `predict_batch`."""

    model: str
    options: PredictOptions
    batch_size: int = 8
    dtype: str = "bfloat16"
    device: str | None = None
    quantize: Literal["int8", "int4"] | None = None
    weights: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    one_row_each: bool = field(default=True, init=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return "image", "path", "bytes", "problem"

    def load(self, threads: int) -> Loaded:
        import torch

        torch.set_num_threads(threads)
        decoder = PaliDecoder.from_pretrained(
            self.model,
            self.dtype,
            self.device,
            self.quantize,
            codec=load_codec(self.weights, threads=threads) if self.weights else None,
            tokenizer=self.tokenizer,
            revision=self.revision,
        )
        return _Predictor(decoder, self.options, self.batch_size)


@dataclass(frozen=True)
class _Predictor:
    decoder: PaliDecoder
    options: PredictOptions
    batch_size: int

    def write(self, records: Sequence[Record], shard: CocoShard) -> dict[str, Any]:
        failed: list[Row] = []
        issues: Counter[str] = Counter()

        def batches() -> Iterator[list[Row]]:
            for _, fine, found, unread in self._predicted(records):
                failed.extend(map(failure_row, unread))
                issues.update(issue.kind.value for _, issue in found.issues)
                yield picture_rows(fine, found)

        write_pictures(shard, batches(), self.decoder.codec, self.decoder.codes_id)
        return {"issues": issues, "failed": failed}

    def rows(self, records: Sequence[Record]) -> Iterator[Row]:
        for order, fine, found, unread in self._predicted(records):
            made = dict(zip(map(id, fine), found_rows(fine, found), strict=True))
            failed = iter([failed_row(*bad) for bad in unread])
            yield from (made[id(item)] if id(item) in made else next(failed) for item in order)

    def mended(self, records: Sequence[Record], failed: Sequence[Row]) -> bool:
        names = {row["image"] for row in failed}
        items = _pictures_of(records)
        return any(isinstance(i, PictureFile) and i.name in names and readable(i) for i in items)

    def _predicted(
        self, records: Sequence[Record]
    ) -> Iterator[tuple[list[PictureFile | Unread], list[PictureFile], Detections, list[Unread]]]:
        """What is predicted together: all in order, and what `predict_batch` gives."""
        items = _pictures_of(records)
        for start in range(0, len(items), self.batch_size):
            batch = items[start : start + self.batch_size]
            pictures = [item for item in batch if isinstance(item, PictureFile)]
            fine, found, bad = predict_batch(self.decoder, pictures, self.options, self.batch_size)
            unread = {id(item): item for item in batch if isinstance(item, Unread)}
            read, later = set(map(id, fine)), iter(bad)
            failed = [unread.get(id(item)) or next(later) for item in batch if id(item) not in read]
            yield batch, fine, found, failed


def _pictures_of(records: Sequence[Record]) -> list[PictureFile | Unread]:
    """The picture of each row, or why it has none."""
    found: list[PictureFile | Unread] = []
    names: set[str] = set()
    for record in records:
        path, data = record.get("path"), record.get("bytes")
        name = record.get("image") or (path and Path(path).name) or f"row {record.get('line', '?')}"
        if "problem" in record:
            found.append(Unread(name, record["problem"]))
        elif path is None and data is None:
            found.append(Unread(name, f"{name}: has neither 'path' nor 'bytes'"))
        elif name in names:
            found.append(Unread(name, f"a picture named {name!r} came before"))
        else:
            names.add(name)
            found.append(PictureFile(path or name, name, data))
    return found


# -- decode ------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecodeJob:
    """Decode answers; see `palidecode.runs.answers.load_options`."""

    images: str | None = None
    size: tuple[int, int] | None = None
    batch_size: int = CHUNK
    weights: str | None = None
    backend: Literal["auto", "onnx", "torch"] = "auto"
    divisor: int = DEFAULT_DIVISOR
    clip: bool = False
    tokenizer: str | None = None
    label_from_prompt: bool = False
    one_row_each: bool = field(default=False, init=False)

    @property
    def columns(self) -> tuple[str, ...]:
        said = ("image", "path", "bytes", *_SIZES, "output", "token_ids", "suffix", "prompt")
        return (*said, "prefix", "scores", "codec", "line", "problem")

    def load(self, threads: int) -> Loaded:
        if self.backend == "torch":
            import torch

            torch.set_num_threads(threads)
        options = load_options(
            self.weights,
            self.backend,
            divisor=self.divisor,
            clip=self.clip,
            tokenizer=self.tokenizer,
            label_from_prompt=self.label_from_prompt,
            threads=threads,
        )
        return _Decoder(self, options)


@dataclass(frozen=True)
class _Decoder:
    job: DecodeJob
    options: DecodeOptions

    def write(self, records: Sequence[Record], shard: CocoShard) -> dict[str, Any]:
        problems: list[Problem] = []
        issues: Counter[str] = Counter()
        lines: dict[str, list[int]] = {}
        for rows, found, skipped in self._decoded(records):
            shard.add(found, [row.name for row in rows])
            issues.update(issue.kind.value for _, issue in found.issues)
            problems += skipped
            for row in rows:
                lines.setdefault(row.name, []).append(row.line)
        failed = [problem._asdict() for problem in problems]
        return {"issues": issues, "failed": failed, "lines": list(lines.values())}

    def rows(self, records: Sequence[Record]) -> Iterator[Row]:
        made: dict[int, Row] = {}
        reasons: dict[int, str] = {}
        for rows, found, skipped in self._decoded(records):
            pictures = [PictureFile(row.name, row.name) for row in rows]
            lines = (row.line for row in rows)
            made |= zip(lines, found_rows(pictures, found), strict=True)
            reasons |= dict(skipped)
        for line, record in _numbered(records):
            row = made.get(line) or failed_row(record.get("image"), reasons[line])
            yield row | {"reason": reasons.get(line)}

    def mended(self, records: Sequence[Record], failed: Sequence[Row]) -> bool:
        return False  # the same rows would fail again

    def _decoded(
        self, records: Sequence[Record]
    ) -> Iterator[tuple[list[AnswerRow], Detections, list[Problem]]]:
        return decode_rows(self._answers(records), self.options, self.job.batch_size)

    def _answers(self, records: Sequence[Record]) -> Iterator[AnswerRow | Problem]:
        seen: dict[str, tuple[int, int]] = {}
        for line, record in _numbered(records):
            try:
                row = self._answer(line, record)
                check_sizes_agree(row, seen)
            except InputError as error:
                yield Problem(line, str(error))
            else:
                yield row

    def _answer(self, line: int, record: Record) -> AnswerRow:
        if "problem" in record:
            raise InputError(record["problem"])
        if "image" not in record and "line" not in record:
            raise InputError("needs 'image', a name")
        size = self.job.size
        if "bytes" in record and record.keys().isdisjoint(_SIZES):
            size = picture_size(record["image"], record["bytes"])
        return read_row(line, record, self.job.images, size)


def _numbered(records: Sequence[Record]) -> Iterator[tuple[int, Record]]:
    """With the number of the line, or the place in the shard where no line is known."""
    for place, record in enumerate(records, 1):
        yield record.get("line", place), record


# -- rows as they are --------------------------------------------------------------------


@dataclass(frozen=True)
class RowsJob:
    """Write rows of found objects that a Dataset has; see `palidecode.ray_data.rows`."""

    one_row_each: bool = field(default=False, init=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(row_schema().names)

    def load(self, threads: int) -> Loaded:
        return _Rows()


class _Rows:
    def write(self, records: Sequence[Record], shard: CocoShard) -> dict[str, Any]:
        rows = [journal_row(record) for record in records if "width" in record]
        write_pictures(shard, [rows], None, "")
        issues = Counter(kind for row in rows for kind, *_ in row["issues"])
        failed = [
            {"image": record.get("image"), "reason": record["reason"]}
            for record in records
            if "reason" in record
        ]
        return {"issues": issues, "failed": failed}

    def rows(self, records: Sequence[Record]) -> Iterator[Row]:
        return map(dict, records)

    def mended(self, records: Sequence[Record], failed: Sequence[Row]) -> bool:
        return False
