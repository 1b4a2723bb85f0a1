"""Look more closely: at the tiles of pictures, and a second time at what was found in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

from palidecode.detections import Detections
from palidecode.detections.merging import Looks
from palidecode.errors import InputError
from palidecode.files import Picture, PictureBytes, open_encoded, open_picture, picture_name
from palidecode.geometry.windows import (
    AUTO,
    check_overlap,
    check_tiles,
    surroundings,
    tile_windows,
)
from palidecode.pipeline.protocol import Answerer, Seen
from palidecode.pipeline.reading import Found
from palidecode.prompts import Task, check_name, with_verb

DEFAULT_OVERLAP = 0.2
MARGIN = 0.5
"""Share of an object's sides that a second look adds on each side."""

Openable: TypeAlias = Picture | PictureBytes
Ask: TypeAlias = Callable[[Sequence[Seen], Sequence[str]], Found]
"""Asks about each look its share of the prompts, in order; an image of the result for each."""


@dataclass(frozen=True)
class LookOptions:
    """Options of looking more closely; see `PaliDecoder.detect`."""

    tiles: str | None = None
    overlap: float = DEFAULT_OVERLAP
    zoom: bool = False

    def __post_init__(self) -> None:
        check_overlap(self.overlap)
        if self.tiles is not None:
            check_tiles(self.tiles)

    @property
    def closer(self) -> bool:
        """True if pictures are looked at more than once."""
        return self.tiles is not None or self.zoom


def look_closely(
    asker: Answerer,
    ask: Ask,
    pictures: Sequence[Openable],
    task: Task,
    prompts: Sequence[str],
    options: LookOptions,
) -> Found:
    """Ask about pictures and their tiles, and again about what was found.

    Parameters
    ----------
    asker : Answerer
        Opens pictures for what answers.
    ask : callable
    pictures : sequence of picture
    task : {"detect", "segment"}
    prompts : sequence of str
        All are asked of every picture and tile.
    options : LookOptions

    Returns
    -------
    Found
        An image for each picture.
    """
    if options.tiles == AUTO and asker.side is None:
        raise InputError("tiles='auto' needs the model's picture size, which a server doesn't tell")
    errors = [""] * len(pictures)
    sizes = np.zeros((len(pictures), 2), np.int64)
    seen: list[Seen] = []
    windows: list[list[int]] = []
    numbers: list[int] = []
    for number, picture in enumerate(pictures):
        try:
            looks, cut = _look(asker, picture, options)
        except InputError as error:
            errors[number] = str(error)
            continue
        sizes[number] = looks[0].size
        seen += looks
        windows += cut
        numbers += [number] * len(looks)
    names = [_name(picture) for picture in pictures]
    where = Looks(np.array(windows, np.int64).reshape(-1, 4), np.array(numbers), sizes, names)
    first = ask(seen, list(prompts) * len(seen))
    _keep_errors(errors, first, numbers)
    found = where.merge(first.detections) if options.tiles else where.place(first.detections)
    if options.zoom:
        found = _look_again(asker, ask, pictures, task, found, errors)
    return Found(found, errors)


def _look(
    asker: Answerer, picture: Openable, options: LookOptions
) -> tuple[list[Seen], list[list[int]]]:
    """Return the whole picture and its tiles, and their windows."""
    whole = asker.see(picture)
    windows = [[0, 0, *whole.size]]
    if options.tiles is not None:
        cut = tile_windows(whole.size, options.tiles, options.overlap, asker.side or 1)
        windows += cut.tolist()
    if len(windows) == 1:
        return [whole], windows
    return [whole, *_crops(asker, _open(picture), windows[1:])], windows


def _look_again(
    asker: Answerer,
    ask: Ask,
    pictures: Sequence[Openable],
    task: Task,
    found: Detections,
    errors: list[str],
) -> Detections:
    """Ask about the surroundings of each object, and refine it."""
    seen: list[Seen] = []
    windows: list[list[int]] = []
    looked: list[int] = []
    for number, picture in enumerate(pictures):
        every = np.flatnonzero(found.image_index == number).tolist()
        rows = [row for row in every if _can_be_asked(found, row)]
        if errors[number] or not rows:
            continue
        width, height = found.sizes[number].tolist()
        cut = surroundings(found.xyxy[rows], MARGIN, (width, height)).tolist()
        try:
            seen += _crops(asker, _open(picture), cut)
        except InputError as error:  # it was deleted or damaged since the first look
            errors[number] = str(error)
            continue
        windows += cut
        looked += rows
    rows_looked = np.array(looked, np.int64)
    numbers = found.image_index[rows_looked]
    where = Looks(np.array(windows, np.int64).reshape(-1, 4), numbers, found.sizes, found.names)
    second = ask(seen, [with_verb(task, found.labels[row]) for row in looked])
    _keep_errors(errors, second, numbers.tolist())
    return where.refine(found, second.detections, rows_looked)


def _can_be_asked(found: Detections, row: int) -> bool:
    """Return True for an object with a box that is not empty, and a label to ask for."""
    try:
        check_name(found.labels[row])
    except InputError:  # of an answer that no grammar constrained
        return False
    return bool((found.xyxy[row, 2:] > found.xyxy[row, :2]).all())


def _crops(asker: Answerer, picture: Image.Image, windows: Sequence[Sequence[int]]) -> list[Seen]:
    return [asker.see(picture.crop((x1, y1, x2, y2))) for x1, y1, x2, y2 in windows]


def _open(picture: Openable) -> Image.Image:
    if isinstance(picture, PictureBytes):
        return open_encoded(picture.data, picture.name)
    return open_picture(picture)


def _name(picture: Openable) -> str:
    return picture.name if isinstance(picture, PictureBytes) else picture_name(picture)


def _keep_errors(errors: list[str], found: Found, numbers: Sequence[int]) -> None:
    """Keep the first error of each picture's looks."""
    for number, error in zip(numbers, found.errors, strict=True):
        errors[number] = errors[number] or error
