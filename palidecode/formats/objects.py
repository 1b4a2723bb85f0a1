"""Labelled pictures: what every format can be written from and read to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.geometry.polygons import exact_polygons, join_rings
from palidecode.geometry.rle import Rle, rle_to_crop

Box: TypeAlias = tuple[float, float, float, float]
Points: TypeAlias = npt.NDArray[np.float64]

CROWDS = "crowds"
OUTSIDE = "boxes without an area in the picture"
SHAPES = "shapes other than upright boxes and polygons"
BAD_ROWS = "rows that can't be read"
INVERTED = "boxes that end before they begin"
FRACTIONS = "rows with numbers that aren't between 0 and 1"
NO_PICTURE = "label files without a picture"


@dataclass(frozen=True)
class Labelled:
    """An object of a picture.

    Attributes
    ----------
    label : str
    box : tuple of 4 float
        x1, y1, x2, y2 in pixels.
    score : float, optional
    mask : Rle or list of list of float, optional
        COCO's RLE, or rings ``[x1, y1, x2, y2, …]`` in pixels.
    crowd : bool
    """

    label: str
    box: Box
    score: float | None = None
    mask: Rle | list[list[float]] | None = None
    crowd: bool = False

    @cached_property
    def outline(self) -> Points | None:
        """One closed ring around the mask, shape (M, 2), in pixels; None without a mask.

        Holes and further parts are joined to it by cuts without width.
        """
        if self.mask is None:
            return None
        rings = self.mask
        if isinstance(rings, dict):
            rings = exact_polygons([rle_to_crop(rings)], holes="keyhole")[0].to_coco()
        return join_rings([np.reshape(ring, (-1, 2)) for ring in rings]) if rings else None


@dataclass
class LabelledPicture:
    """A picture: its name, size in pixels, and objects. ``id`` is that of a COCO file."""

    name: str
    width: int
    height: int
    objects: list[Labelled] = field(default_factory=list)
    id: int | str | None = None


@dataclass
class Dataset:
    """Pictures, and all class names in the order of their numbers."""

    pictures: list[LabelledPicture]
    classes: list[str]


@dataclass
class ConvertReport:
    """Counts of one conversion.

    Attributes
    ----------
    objects : int
        Objects that were written.
    skipped : Counter of str
        Objects and files that were not used, by reason.
    stale : list of str
        Files of an earlier conversion that belong to no picture of this one.
    """

    objects: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    stale: list[str] = field(default_factory=list)


def visible(
    picture: LabelledPicture, report: ConvertReport, *, crowds: bool = False
) -> Iterator[tuple[Labelled, Box]]:
    """Yield the objects with their boxes clipped to the picture, and count the others."""
    width, height = picture.width, picture.height
    for item in picture.objects:
        x1, y1, x2, y2 = item.box
        box = (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
        if item.crowd and not crowds:
            report.skipped[CROWDS] += 1
        elif box[2] <= box[0] or box[3] <= box[1]:
            report.skipped[OUTSIDE] += 1
        else:
            report.objects += 1
            yield item, box


def fractions(points: Points, picture: LabelledPicture) -> Points:
    """Return points in pixels as fractions of the picture's sides, clipped to it."""
    return np.clip(points / (picture.width, picture.height), 0.0, 1.0)


def stems(dataset: Dataset) -> list[str]:
    """Return each picture's name without its ending; refuse two that are equal."""
    first: dict[str, str] = {}
    for picture in dataset.pictures:
        try:
            stem = str(PurePosixPath(picture.name).with_suffix(""))
        except ValueError as error:
            raise InputError(f"{picture.name!r}: not a usable file name") from error
        if stem in first:
            raise InputError(
                f"{first[stem]!r} and {picture.name!r} would share one label file; rename one"
            )
        first[stem] = picture.name
    return list(first)
