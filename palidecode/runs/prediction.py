"""Folders of pictures to detections, batch by batch: what `palidecode predict` runs.

Every picture becomes one row, a JSON object that says all of it (`picture_rows`,
`detections_of`): rows are what a journal keeps and what the output is written from.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from palidecode.answers.assembler import IssueKind, ParseIssue
from palidecode.coco.writing import CocoWriter
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID, find_weights
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import PICTURES, open_encoded, open_picture
from palidecode.pipeline.checkpoint import ModelNotes, locate
from palidecode.pipeline.decoder import AskOptions, PaliDecoder
from palidecode.prompts import Task
from palidecode.runs.journal import Header, Journal, Row, hash_files
from palidecode.vocab import SEG_PER_MASK

_ANEW = "begin anew with --restart"


class PictureFile(NamedTuple):
    """A picture and the name it has in the output: its path within the folder given.

    `data`, its file's content, goes before `path`.
    """

    path: str
    name: str
    data: bytes | None = None


class Unread(NamedTuple):
    """A picture that was left out."""

    name: str
    reason: str


@dataclass(frozen=True)
class PredictOptions:
    """What is asked of every picture.

    Attributes
    ----------
    task : {"detect", "segment"}
    prompts : tuple of str
        All are asked of every picture, and their objects put together.
    min_score : float
        Objects below it are left out.
    ask : AskOptions
    """

    task: Task
    prompts: tuple[str, ...]
    min_score: float = 0.0
    ask: AskOptions = field(default_factory=AskOptions)


def find_pictures(inputs: Sequence[str | os.PathLike[str]]) -> list[PictureFile]:
    """Pictures of files and folders (and the folders in them), in order of their names.

    Raises
    ------
    InputError
        If one isn't there, holds no picture, or two would have the same name.
    """
    return list(each_picture(inputs))


def each_picture(inputs: Sequence[str | os.PathLike[str]]) -> Iterator[PictureFile]:
    """`find_pictures` one by one: of a folder of millions only the names are held."""
    names: set[str] = set()
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = _inside(os.fspath(path), "")
        elif path.is_file():
            found = iter([PictureFile(os.fspath(path), path.name)])
        else:
            raise InputError(f"{path}: no such picture or folder")
        none = True
        for item in found:
            none = False
            if len(inputs) > 1:  # within one folder names differ
                if item.name in names:
                    text = f"two pictures would be named {item.name!r}: predict their folders apart"
                    raise InputError(text)
                names.add(item.name)
            yield item
        if none:
            raise InputError(f"{path}: no picture in it ({', '.join(PICTURES)})")


def _inside(folder: str, prefix: str) -> Iterator[PictureFile]:
    """Pictures of a folder and the folders in it, by name; links to folders aren't followed."""
    folders: set[str] = set()
    names: list[str] = []
    with suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.add(entry.name)
            elif os.path.splitext(entry.name)[1].lower() not in PICTURES:
                continue
            elif not (entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path)):
                continue  # a pipe, a link to nothing or to itself
            names.append(entry.name)
    for name in sorted(names):
        path = os.path.join(folder, name)
        if name in folders:
            yield from _inside(path, f"{prefix}{name}/")
        else:
            yield PictureFile(path, prefix + name)


def coco_info(source: str, options: PredictOptions, names: Sequence[str]) -> dict[str, Any]:
    """For a COCO file's ``info``: which model was asked for what."""
    said = {"model": source, "task": options.task, "prompts": list(options.prompts)}
    return said | ({"asked": list(names)} if names else {})


def predict_pictures(
    decoder: PaliDecoder,
    pictures: Sequence[PictureFile],
    options: PredictOptions,
    batch_size: int = 8,
) -> Iterator[tuple[list[PictureFile], Detections, list[Unread]]]:
    """Detections of `batch_size` pictures at a time: pictures, their objects, what failed."""
    for batch in batches_of(pictures, batch_size):
        yield predict_batch(decoder, batch, options, batch_size)


def predict_batch(
    decoder: PaliDecoder,
    batch: Sequence[PictureFile],
    options: PredictOptions,
    batch_size: int = 8,
) -> tuple[list[PictureFile], Detections, list[Unread]]:
    """Detections of some pictures: those that could be read, their objects, what failed.

    `batch_size` answers are made at once. What comes out depends on the batch alone, not on
    what was predicted before it.
    """
    fine: list[PictureFile] = []
    opened: list[Image.Image] = []
    unread: list[Unread] = []
    for item in batch:
        try:
            opened.append(_open(item))
            fine.append(item)
        except InputError as error:
            unread.append(Unread(item.name, str(error)))
    # Features kept from another batch differ from this one's in their last bits.
    decoder.forget_pictures()
    return fine, _ask(decoder, opened, options, batch_size), unread


def batches_of(pictures: Sequence[PictureFile], size: int) -> Iterator[Sequence[PictureFile]]:
    """Pictures in groups of `size`, the last one smaller.

    Groups are predicted, and their masks decoded, together: that decides the last bits.
    """
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]


def _ask(
    decoder: PaliDecoder, opened: list[Image.Image], options: PredictOptions, batch_size: int
) -> Detections:
    if not opened:
        return detections_of([])
    found = decoder.ask(options.task, opened, options.prompts, options.ask, batch_size)
    return found.select(~(found.scores < options.min_score))  # an unknown score stays


# -- rows --------------------------------------------------------------------------------


def picture_rows(pictures: Sequence[PictureFile], found: Detections) -> list[Row]:
    """One row per picture, in order.

    Keys: ``image``, ``width``, ``height``, and per object ``boxes`` (x1, y1, x2, y2 in pixels),
    ``labels``, ``scores`` (null where unknown), ``masks`` (the sixteen codes in hexadecimal, a
    COCO RLE, or null); ``issues`` are kind, span and text.
    """
    rows: list[Row] = [
        {"image": item.name, "width": width, "height": height}
        | {"boxes": [], "labels": [], "scores": [], "masks": [], "issues": []}
        for item, (width, height) in zip(pictures, found.sizes.tolist(), strict=True)
    ]
    rles = found.rles or [None] * len(found)
    boxes, scores = found.xyxy.tolist(), found.scores.tolist()
    for place, image in enumerate(found.image_index.tolist()):
        row, mask = rows[image], rles[place]
        if found.has_mask[place] and mask is None:
            mask = found.codes[place].tobytes().hex()
        row["boxes"].append(boxes[place])
        row["labels"].append(found.labels[place])
        row["scores"].append(None if math.isnan(scores[place]) else scores[place])
        row["masks"].append(mask)
    for image, issue in found.issues:
        rows[image]["issues"].append([issue.kind.value, issue.span, issue.text])
    return rows


def failure_row(failed: Unread) -> Row:
    """The row of a picture that could not be read: ``image`` and ``reason``."""
    return {"image": failed.name, "reason": failed.reason}


def detections_of(
    rows: Sequence[Row], codec: MaskCodec | None = None, codes_id: str = GOOGLE_ID
) -> Detections:
    """Rows of pictures back to detections, exactly as they were; see `picture_rows`.

    Raises
    ------
    InputError
        For rows that `picture_rows` didn't make.
    """
    try:
        return _detections_of(rows, codec, codes_id)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"a row of the journal is no picture's ({error}); {_ANEW}") from error


def _detections_of(rows: Sequence[Row], codec: MaskCodec | None, codes_id: str) -> Detections:
    objects = [
        (image, *one)
        for image, row in enumerate(rows)
        for one in zip(row["boxes"], row["labels"], row["scores"], row["masks"], strict=True)
    ]
    codes = np.zeros((len(objects), SEG_PER_MASK), np.uint8)
    for place, (*_, mask) in enumerate(objects):
        if isinstance(mask, str):
            codes[place] = list(bytes.fromhex(mask))
    rles: list[Any] = [mask if isinstance(mask, dict) else None for *_, mask in objects]
    scores = [math.nan if score is None else score for _, _, _, score, _ in objects]
    return Detections(
        xyxy=np.array([box for _, box, *_ in objects], np.float32).reshape(-1, 4),
        labels=[label for _, _, label, *_ in objects],
        scores=np.array(scores, np.float32),
        image_index=np.array([image for image, *_ in objects], np.int64),
        sizes=np.array([(r["width"], r["height"]) for r in rows], np.int64).reshape(-1, 2),
        codes=codes,
        has_mask=np.array([mask is not None for *_, mask in objects], np.bool_),
        rles=rles if any(rles) else None,
        codec=codec,
        codes_id=codes_id,
        issues=[
            (image, ParseIssue(IssueKind(kind), (start, end), text))
            for image, row in enumerate(rows)
            for kind, (start, end), text in row["issues"]
        ],
    )


# -- long runs ---------------------------------------------------------------------------


class FinishedPictures:
    """What a journal says is done, and where; the latest row about a picture counts.

    Parameters
    ----------
    journal : Journal
        That has begun.

    Attributes
    ----------
    places : dict of str to int
        Name of every predicted picture, and the place of its row.
    failed : dict of str to str
        Name of every picture that could not be read, and why.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.places: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        for place, row in journal.rows():
            self._note(row, place)

    def add(self, rows: Sequence[Row]) -> None:
        """Write a batch's rows to the journal."""
        for row, place in zip(rows, self.journal.append(rows), strict=True):
            self._note(row, place)

    def left(self, batch: Sequence[PictureFile]) -> bool:
        """Whether a batch must be predicted (again).

        That is so when a picture of it has no row, or could not be read then but can be now.
        Batches are done as wholes, because what is predicted together decides the last bits.
        """
        for item in batch:
            if item.name in self.places:
                continue
            if item.name not in self.failed or readable(item):
                return True
        return False

    def _note(self, row: Row, place: int) -> None:
        name = row.get("image")
        if not isinstance(name, str) or not isinstance(row.get("reason", ""), str):
            raise InputError(f"{self.journal.path}: a row of it is no picture's; {_ANEW}")
        self.places.pop(name, None)
        self.failed.pop(name, None)
        if "reason" in row:
            self.failed[name] = row["reason"]
        else:
            self.places[name] = place


def readable(item: PictureFile) -> bool:
    """Whether a picture can be read now."""
    try:
        _open(item)
    except InputError:
        return False
    return True


def _open(item: PictureFile) -> Image.Image:
    return open_picture(item.path) if item.data is None else open_encoded(item.data, item.name)


def write_pictures(
    writer: CocoWriter,
    batches: Iterable[Sequence[Row]],
    codec: MaskCodec | None,
    codes_id: str,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Batches of pictures' rows to COCO, in order; returns the number of their issues.

    The masks of a batch are decoded together, which decides their last bits. `check` is called
    after each, and may raise to stop.
    """
    issues = 0
    for rows in batches:
        issues += sum(len(row["issues"]) for row in rows)
        writer.add(detections_of(rows, codec, codes_id), [row["image"] for row in rows])
        check()
    return issues


def header_of(
    decoder: PaliDecoder | ModelNotes,
    options: PredictOptions,
    model: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Header:
    """Which run this is, for its journal: what decides its numbers, and the files' hashes.

    Parameters
    ----------
    decoder : PaliDecoder or ModelNotes
        Of `model`, with that `tokenizer` and the mask codec's `weights`.
    options : PredictOptions
    **settings
        More that decides numbers: dtype, quantize.
    """
    asked = asdict(options.ask)
    files = _model_files(decoder, model)
    if tokenizer is not None:
        files["tokenizer.json"] = Path(tokenizer)
    if options.task == "segment":
        named = None if decoder.codes_id == GOOGLE_ID else decoder.codes_id
        files["mask codec"] = find_weights(weights or named)
    said = {"task": options.task, "prompts": options.prompts, "min_score": options.min_score}
    return Header("predict", {**said, **asked, **settings}, hash_files(files))


def _model_files(
    decoder: PaliDecoder | ModelNotes, model: str | os.PathLike[str]
) -> dict[str, Path]:
    name, _, commit = decoder.source.rpartition("@")
    path, _ = locate(model, commit if name == os.fspath(model) else None)
    if path.is_dir():
        found = [*path.glob("*.json"), *path.glob("*.safetensors")]
    else:
        found = [path, *path.parent.glob("tokenizer.json"), *path.parent.glob("palidecode.json")]
    return {file.name: file for file in sorted(found)}
