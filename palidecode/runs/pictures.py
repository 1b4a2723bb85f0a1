"""The job that asks a model about pictures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from palidecode.coco.shards import Result, key_of
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import Picture, PictureBytes, open_picture
from palidecode.pipeline import (
    AskOptions,
    EndpointOptions,
    Found,
    GrammarOptions,
    ModelOptions,
    PaliDecoder,
)
from palidecode.pipeline.protocol import Seen
from palidecode.prompts import Task, what_to_ask
from palidecode.runs.jobs import FailedBy, Job, Record, Worker
from palidecode.runs.sources import PictureFile, Unread

Model: TypeAlias = ModelOptions | EndpointOptions
"""What answers: a model to load, or a server."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction; plain values only.

    Attributes
    ----------
    model : ModelOptions or EndpointOptions
    task : {"detect", "segment"}
    prompts : tuple of str
        All are asked of every picture, and their objects put together.
    names : tuple of str
        The names that they ask for, where these are known.
    min_score : float
        Objects below it are skipped.
    ask : AskOptions
    batch_size : int
        Pictures that are predicted together, which decides the last bits.
    box_image : int, optional
        Index of the picture that boxes are measured in, of rows that name several.
    """

    model: Model
    task: Task
    prompts: tuple[str, ...]
    names: tuple[str, ...] = ()
    min_score: float = 0.0
    ask: AskOptions = field(default_factory=AskOptions)
    batch_size: int = 8
    box_image: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.box_image is not None and self.box_image < 0:
            raise InputError(f"box_image must be 0 or above, got {self.box_image}")
        if not 0 <= self.min_score <= 1:
            raise InputError(f"min_score must be between 0 and 1, got {self.min_score}")
        if isinstance(self.model, EndpointOptions) and self.ask.past_end is not None:
            raise InputError("past_end: a server ends its answers itself")
        if self.ask.grammar is True:  # the same in a header, however it was asked for
            object.__setattr__(self, "ask", replace(self.ask, grammar=GrammarOptions()))
        if self.ask.tiles == "auto" and isinstance(self.model, EndpointOptions):
            raise InputError("tiles can't be auto with an endpoint, whose picture size isn't known")


def predict_options(
    model: Model,
    *,
    prompt: str | Sequence[str] | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    min_score: float = 0.0,
    ask: AskOptions | None = None,
    batch_size: int | None = None,
    box_image: int | None = None,
) -> PredictOptions:
    """Look at a checkpoint or a server, and work out what to ask of it.

    Parameters
    ----------
    model : ModelOptions or EndpointOptions
        A hub model's revision is looked up and kept.
    prompt, task, classes
        See `what_to_ask`; by default all classes that the model's folder lists.
    min_score, ask, batch_size, box_image
        See `PredictOptions`; by default so many pictures together as suit the model.

    Raises
    ------
    InputError
        For a model or prompt that can't be used.
    ServerError
        For a server that doesn't answer.
    """
    ask = ask or AskOptions()
    known = model.describe().classes
    asked = what_to_ask(task, prompt, classes, known, ask.classes_per_prompt)
    return PredictOptions(
        model.pinned(),
        asked.task,
        asked.prompts,
        tuple(asked.names),
        min_score,
        ask,
        model.batch_size if batch_size is None else batch_size,
        box_image,
    )


@dataclass(frozen=True)
class PredictJob(Job[PictureFile | Unread]):
    """Asks a model about pictures."""

    options: PredictOptions

    command: ClassVar[str] = "predict"
    columns: ClassVar[tuple[str, ...]] = ("image", "path", "group", "bytes", "line", "problem")
    once: ClassVar[bool] = True
    failed_by: ClassVar[FailedBy] = "image"

    @property
    def batch_size(self) -> int:
        return self.options.batch_size

    @property
    def names(self) -> tuple[str, ...]:
        return self.options.names

    def with_engine(self, *, accelerator: bool | None = None) -> PredictJob:
        """Return the job with the engine that ``"auto"`` stands for, so that all machines use it.

        `accelerator` says if workers have one; by default this machine is asked.
        """
        model = self.options.model.with_engine(accelerator=accelerator)
        return replace(self, options=replace(self.options, model=model))

    def settings(self) -> dict[str, Any]:
        settings = asdict(self.options)
        # Rows are known by the pictures that were read.
        del settings["batch_size"], settings["box_image"]
        return settings | {"model": self.options.model.settings()}

    def files(self) -> dict[str, Path]:
        return self.options.model.files(masks=self.options.task == "segment")

    def info(self) -> dict[str, Any]:
        options = self.options
        source = options.model.describe().source
        info = {"model": source, "task": options.task, "prompts": list(options.prompts)}
        info |= {"score": options.ask.score}
        return info | ({"asked": list(options.names)} if options.names else {})

    def item(self, record: Record) -> PictureFile | Unread:
        path, data, group = record.get("path"), record.get("bytes"), record.get("group")
        for key, value, kind in (
            ("image", record.get("image"), str),
            ("path", path, str),
            ("bytes", data, bytes),
            ("group", group, list),
        ):
            if value is not None and not isinstance(value, kind):
                reason = f"'{key}' must be {kind.__name__}, not {type(value).__name__}"
                return Unread(f"row {record.get('line', '?')}", reason)
        name = record.get("image") or (path and Path(path).name) or f"row {record.get('line', '?')}"
        if "problem" in record:
            return Unread(name, str(record["problem"]))
        if path is None and data is None:
            return Unread(name, f"{name}: has neither 'path' nor 'bytes'")
        return PictureFile(path or name, name, data, tuple(map(str, group or ())))

    def key(self, item: PictureFile | Unread) -> bytes:
        if isinstance(item, Unread):
            return key_of("unread", *item)
        if item.data is not None:
            return key_of("bytes", item.name, hashlib.blake2b(item.data).hexdigest())
        facts: list[Any] = []
        try:
            for path in item.group or (item.path,):
                found = os.stat(path)
                facts += [found.st_size, found.st_mtime_ns]
        except OSError:
            return key_of("missing", item.name, *item.group)
        if item.group:
            return key_of("group", item.name, item.path, *item.group, *facts)
        return key_of("file", item.name, *facts)

    def mended(self, item: PictureFile | Unread) -> bool:
        if isinstance(item, Unread):
            return False
        try:
            item.open()
            for path in item.group:
                open_picture(path)
        except InputError:
            return False
        return True

    def loading(self) -> str:
        return f"loading {self.info()['model']} …"

    def load(self, threads: int | None = None) -> Worker[PictureFile | Unread]:
        decoder = PaliDecoder.from_options(self.options.model, threads=threads)
        return Predictor(decoder, self.options)


@dataclass(frozen=True)
class Predictor:
    """Answers about batches of pictures with a model that is loaded."""

    decoder: PaliDecoder
    options: PredictOptions

    def __call__(self, items: Sequence[PictureFile | Unread]) -> Result:
        seen: list[Sequence[Seen]] = []
        whole: list[Picture | PictureBytes] = []
        rows, reasons = [], {}
        closer = self.options.ask.looks.closer
        for row, item in enumerate(items):
            try:
                if isinstance(item, Unread):
                    raise InputError(item.reason)
                if closer:
                    whole.append(_one_picture(item))
                else:
                    seen.append(self._see(item))
                rows.append(row)
            except InputError as error:
                reasons[row] = str(error)
        # Features kept from another batch differ from this one's in their last bits.
        self.decoder.forget_pictures()
        found = self._find(seen, whole) if rows else Found(Detections.empty(), [])
        answered = [image for image, error in enumerate(found.errors) if not error]
        reasons |= {row: error for row, error in zip(rows, found.errors, strict=True) if error}
        detections = found.detections
        if len(answered) < len(rows):
            detections = Detections.concat(map(detections.image, answered))
        names = [item.name for item in items]
        return Result(detections, [rows[image] for image in answered], names, reasons)

    def _see(self, item: PictureFile) -> list[Seen]:
        """Open the pictures of an item, one at a time: a batch in full size is large.

        The first one has the size that boxes are measured in.
        """
        if not item.group:
            return [self.decoder.see(item.picture)]
        self.decoder.check_length(len(item.group), self.options.prompts, self.options.ask)
        seen = [self.decoder.see(path) for path in item.group]
        boxed = seen[item.group.index(item.path)]
        return [replace(seen[0], size=boxed.size), *seen[1:]]

    def _find(
        self, seen: Sequence[Sequence[Seen]], whole: Sequence[Picture | PictureBytes]
    ) -> Found:
        o = self.options
        if whole:
            found = self.decoder.find_closely(o.task, whole, o.prompts, o.ask, o.batch_size)
        else:
            found = self.decoder.find(o.task, seen, o.prompts, o.ask, o.batch_size, box_image=0)
        scores = found.detections.scores
        keep = ~(scores < o.min_score)  # an unknown score stays
        return found._replace(detections=found.detections.select(keep))


def _one_picture(item: PictureFile) -> str | PictureBytes:
    if item.group:
        raise InputError(f"{item.name}: tiles and zoom are for prompts about one picture")
    return item.picture
