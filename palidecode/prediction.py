"""Folders of pictures to detections, batch by batch: what `palidecode predict` runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import PICTURES, open_picture
from palidecode.pipeline import PaliDecoder

Task = Literal["detect", "segment"]


class PictureFile(NamedTuple):
    """A picture and the name it has in the output: its path within the folder given."""

    path: Path
    name: str


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
    ask : dict
        Further options of `PaliDecoder.objects`.
    """

    task: Task
    prompts: tuple[str, ...]
    min_score: float = 0.0
    ask: dict[str, Any] = field(default_factory=dict)


def find_pictures(inputs: Sequence[str | os.PathLike[str]]) -> list[PictureFile]:
    """Pictures of files and folders (and the folders in them), in order of their names.

    Raises
    ------
    InputError
        If one isn't there, holds no picture, or two would have the same name.
    """
    found: list[PictureFile] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            inside = [
                PictureFile(file, file.relative_to(path).as_posix())
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in PICTURES and file.is_file()
            ]
            if not inside:
                raise InputError(f"{path}: no picture in it ({', '.join(PICTURES)})")
            found += inside
        elif path.is_file():
            found.append(PictureFile(path, path.name))
        else:
            raise InputError(f"{path}: no such picture or folder")
    names = [item.name for item in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two pictures would be named {twice!r}: predict their folders apart")
    return found


def prompts_for(
    task: Task, names: Sequence[str], prompt: str | None, per_class: bool
) -> tuple[str, ...]:
    """What to ask: the prompt as given, or the names in one prompt, or in one each.

    Raises
    ------
    InputError
        If there is nothing to ask for, or a prompt of the other task.
    """
    if prompt is not None:
        verb = prompt.strip().partition(" ")[0]
        if verb in ("detect", "segment") and verb != task:
            raise InputError(f"--task {task} and the prompt {prompt!r} contradict each other")
        return (prompt,)
    if not names:
        raise InputError(
            "what should be looked for? --prompt 'detect cat ; dog', or --classes FILE"
        )
    return tuple(names) if per_class else (" ; ".join(names),)


def predict_pictures(
    decoder: PaliDecoder,
    pictures: Sequence[PictureFile],
    options: PredictOptions,
    batch_size: int = 8,
) -> Iterator[tuple[list[PictureFile], Detections, list[Unread]]]:
    """Detections of `batch_size` pictures at a time: pictures, their objects, what failed."""
    for start in range(0, len(pictures), batch_size):
        fine: list[PictureFile] = []
        opened: list[Image.Image] = []
        unread: list[Unread] = []
        for item in pictures[start : start + batch_size]:
            try:
                opened.append(open_picture(item.path))
                fine.append(item)
            except InputError as error:
                unread.append(Unread(item.name, str(error)))
        yield fine, _ask(decoder, opened, options, batch_size), unread


def _ask(
    decoder: PaliDecoder, opened: list[Image.Image], options: PredictOptions, batch_size: int
) -> Detections:
    if not opened:
        return _nothing()
    found = decoder.objects(
        options.task, opened, options.prompts, batch_size=batch_size, **options.ask
    )
    return found.select(~(found.scores < options.min_score))  # an unknown score stays


def _nothing() -> Detections:
    return Detections(
        xyxy=np.zeros((0, 4), np.float32),
        labels=[],
        scores=np.zeros(0, np.float32),
        image_index=np.zeros(0, np.int64),
        sizes=np.zeros((0, 2), np.int64),
        codes=np.zeros((0, 16), np.uint8),
        has_mask=np.zeros(0, np.bool_),
    )
