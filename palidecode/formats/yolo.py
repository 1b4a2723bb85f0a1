"""YOLO's label files: ``data.yaml``, and one text file of boxes or outlines per picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from palidecode.errors import InputError
from palidecode.files import PICTURES, picture_size, regular
from palidecode.formats.folder import write_folder
from palidecode.formats.objects import (
    BAD_ROWS,
    FRACTIONS,
    NO_PICTURE,
    Box,
    ConvertReport,
    Dataset,
    Labelled,
    LabelledPicture,
    Points,
    fractions,
    stems,
    visible,
)

_CONFIG = "data.yaml"
_MOST = 1.001  # of a fraction that was rounded


def write_yolo(
    dataset: Dataset, folder: str | os.PathLike[str], report: ConvertReport, *, outlines: bool
) -> None:
    """Write ``data.yaml`` and ``labels/``: centre and size of boxes, or `outlines` of objects.

    An object without a mask has the outline of its box. Pictures belong into ``images/``.
    """
    number = {label: index for index, label in enumerate(dataset.classes)}
    config = {"train": "images", "val": "images", "names": dict(enumerate(dataset.classes))}
    files = {_CONFIG: yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}
    for stem, picture in zip(stems(dataset), dataset.pictures, strict=True):
        lines = [
            f"{number[item.label]} {_numbers(item, box, picture, outlines)}\n"
            for item, box in visible(picture, report)
        ]
        files[f"labels/{stem}.txt"] = "".join(lines)
    name = "yolo-seg" if outlines else "yolo"
    report.stale += write_folder(folder, name, files, "labels")


def _numbers(item: Labelled, box: Box, picture: LabelledPicture, outlines: bool) -> str:
    x1, y1, x2, y2 = box
    if not outlines:
        middle = np.array([[(x1 + x2) / 2, (y1 + y2) / 2], [x2 - x1, y2 - y1]])
        points = fractions(middle, picture)
    else:
        corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        points = fractions(corners if item.outline is None else item.outline, picture)
    return " ".join(f"{value:.6f}" for value in points.ravel().tolist())


def read_yolo(
    dataset: str | os.PathLike[str], images: str | os.PathLike[str] | None, report: ConvertReport
) -> Dataset:
    """Read ``data.yaml`` and the label files in ``labels/``, or beside it.

    Pictures without a label file have no objects.

    Parameters
    ----------
    dataset : path
        The folder of ``data.yaml``.
    images : path, optional
        Folder of the pictures, which give the sizes; by default ``images`` in `dataset`.
    report : ConvertReport
        Counts rows that can't be read and label files without a picture.

    Raises
    ------
    InputError
        If there are no classes or no pictures.
    """
    base = Path(dataset)
    classes = _classes(base / _CONFIG)
    labels = base / "labels" if (base / "labels").is_dir() else base
    folder = Path(images) if images is not None else base / "images"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; YOLO's sizes are those of the pictures")
    files = {path.relative_to(labels).with_suffix(""): path for path in labels.rglob("*.txt")}
    pictures = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURES:
            name = path.relative_to(folder)
            picture = LabelledPicture(name.as_posix(), *picture_size(path))
            listed = files.pop(name.with_suffix(""), None)
            if listed is not None:
                picture.objects += _objects(listed, picture, classes, report)
            pictures.append(picture)
    if not pictures:
        raise InputError(f"{folder}: no pictures; YOLO's sizes are those of the pictures")
    if files:
        report.skipped[NO_PICTURE] += len(files)
    return Dataset(pictures, classes)


def _classes(path: Path) -> list[str]:
    try:
        # All is text: to YAML a class "no" is False.
        content = yaml.load(regular(path).read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: can't be read: {error}".replace("\n", " ")) from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and names.keys() == set(map(str, range(len(names)))):
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: 'names' must list the classes, or number them from 0")
    return names


def _objects(
    path: Path, picture: LabelledPicture, classes: list[str], report: ConvertReport
) -> Iterator[Labelled]:
    """Read the rows of a file: a box or an outline, each with or without a score at its end."""
    sides = np.array([picture.width, picture.height], np.float64)
    try:
        lines = regular(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {error}") from error
    for line in lines:
        if not line.strip():
            continue
        try:
            number, *values = line.split()
            label, numbers = classes[int(number)], np.array(values, np.float64)
            sound = int(number) >= 0 and bool(np.isfinite(numbers).all())
        except (ValueError, IndexError):
            sound = False
        if not sound or len(numbers) < 4:
            report.skipped[BAD_ROWS] += 1
            continue
        score = float(numbers[-1]) if len(numbers) % 2 else None
        if numbers.min() < 0 or numbers.max() > _MOST:  # pixels, for example
            report.skipped[FRACTIONS] += 1
        elif len(numbers) < 6:
            middle, size = numbers[:2] * sides, numbers[2:4] * sides
            yield Labelled(label, _box(np.array([middle - size / 2, middle + size / 2])), score)
        else:
            points = numbers[: len(numbers) // 2 * 2].reshape(-1, 2) * sides
            yield Labelled(label, _box(points), score, [points.round(2).ravel().tolist()])


def _box(points: Points) -> Box:
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return x1, y1, x2, y2
