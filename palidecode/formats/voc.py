"""Pascal VOC: one XML file per picture, boxes in whole pixels counted from 1."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from palidecode.errors import InputError, warn
from palidecode.formats.folder import write_folder
from palidecode.formats.objects import (
    BAD_ROWS,
    INVERTED,
    Box,
    ConvertReport,
    Dataset,
    Labelled,
    LabelledPicture,
    stems,
    visible,
)
from palidecode.formats.xml import add, number_in, read_xml, sides, text_in, xml_text

_LABELS = "labels.txt"
_LABELMAP = "# label:color_rgb:parts:actions\n"


def write_voc(dataset: Dataset, folder: str | os.PathLike[str], report: ConvertReport) -> None:
    """Write ``Annotations/``, the list of pictures and the classes; crowds are ``difficult``.

    The first pixel has the number 1, as in the devkit: a box from 0 to 10 is written as 1 … 10.
    hotcoco reads the classes from ``labels.txt``, CVAT and datumaro from ``labelmap.txt``, which
    has no class with a colon: they would split it there, and a warning names it.

    Raises
    ------
    InputError
        For a class with a line break: both are lists of lines.
    """
    names, mapped = stems(dataset), _without_colons(dataset.classes)
    files = {
        _LABELS: "".join(f"{name}\n" for name in dataset.classes),
        "labelmap.txt": _LABELMAP + "".join(f"{name}:::\n" for name in mapped),
        "ImageSets/Main/default.txt": "".join(f"{name}\n" for name in names),
    }
    for stem, picture in zip(names, dataset.pictures, strict=True):
        root = ET.Element("annotation")
        add(root, "filename", picture.name)
        size = add(root, "size")
        for name, value in zip(
            ("width", "height", "depth"), (picture.width, picture.height, 3), strict=True
        ):
            add(size, name, value)
        add(root, "segmented", 0)
        for item, box in visible(picture, report, crowds=True):
            node = add(root, "object")
            add(node, "name", item.label)
            add(node, "pose", "Unspecified")
            add(node, "truncated", 0)
            add(node, "difficult", int(item.crowd))
            corners = add(node, "bndbox")
            for name, value in zip(("xmin", "ymin", "xmax", "ymax"), _whole(box), strict=True):
                add(corners, name, value)
        files[f"Annotations/{stem}.xml"] = xml_text(root)
    report.stale += write_folder(folder, "voc", files, "Annotations")


def _without_colons(classes: Sequence[str]) -> list[str]:
    for name in classes:
        if name.splitlines() not in ([], [name]):
            raise InputError(
                f"the class {name!r} has a line break, and VOC lists classes in lines; rename it"
            )
    split = [name for name in classes if ":" in name]
    if split:
        warn(
            f"not in labelmap.txt, whose fields colons separate: {', '.join(map(repr, split))}; "
            "rename them for CVAT and datumaro"
        )
    return [name for name in classes if name not in split]


def _whole(box: Box) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = map(round, box)
    return x1 + 1, y1 + 1, max(x2, x1 + 1), max(y2, y1 + 1)


def read_voc(folder: str | os.PathLike[str], report: ConvertReport) -> Dataset:
    """Read the XML files in ``Annotations/``, or in the folder itself.

    Classes are in the order of ``labels.txt`` where there is one, else in that of the alphabet.

    Raises
    ------
    InputError
        If a file can't be read or has no size that a picture may have.
    """
    base = Path(folder)
    home = base / "Annotations" if (base / "Annotations").is_dir() else base
    pictures = [_picture(path, home, report) for path in sorted(home.rglob("*.xml"))]
    if not pictures:
        raise InputError(f"{home}: no XML files")
    listed = base / _LABELS
    classes = []
    if listed.is_file():
        classes = listed.read_text(encoding="utf-8", errors="replace").splitlines()
    used = sorted({item.label for picture in pictures for item in picture.objects})
    return Dataset(pictures, list(dict.fromkeys([*filter(None, classes), *used])))


def _picture(path: Path, home: Path, report: ConvertReport) -> LabelledPicture:
    root = read_xml(path)
    width, height = (number_in(root, f"size/{side}") for side in ("width", "height"))
    if width is None or height is None:
        raise InputError(f"{path}: has no size of its picture (size/width, size/height)")
    size = sides(width, height, path)
    name = text_in(root, "filename") or path.stem
    within = path.relative_to(home).parent
    if "/" not in name and str(within) != ".":
        name = (within / name).as_posix()
    picture = LabelledPicture(name, *size)
    for node in root.iterfind("object"):
        corners = [number_in(node, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        label = text_in(node, "name")
        if label is None or None in corners:
            report.skipped[BAD_ROWS] += 1
            continue
        x1, y1, x2, y2 = (value or 0.0 for value in corners)
        if x2 < x1 or y2 < y1:
            report.skipped[INVERTED] += 1
            continue
        crowd = number_in(node, "difficult") == 1
        picture.objects.append(Labelled(label, (x1 - 1, y1 - 1, x2, y2), crowd=crowd))
    return picture
