"""CVAT for images 1.1: one XML file of boxes and polygons."""

from __future__ import annotations

import os
from xml.etree import ElementTree as ET

import numpy as np

from palidecode.errors import InputError
from palidecode.files import replacing
from palidecode.formats.objects import (
    BAD_ROWS,
    INVERTED,
    SHAPES,
    ConvertReport,
    Dataset,
    Labelled,
    LabelledPicture,
    Points,
    visible,
)
from palidecode.formats.xml import add, number, read_xml, sides, text_in, xml_text


def write_cvat(dataset: Dataset, path: str | os.PathLike[str], report: ConvertReport) -> None:
    """Write one polygon for an object with a mask, and a box for the others."""
    root = ET.Element("annotations")
    add(root, "version", "1.1")
    labels = add(add(add(root, "meta"), "task"), "labels")
    for name in dataset.classes:
        label = add(labels, "label")
        add(label, "name", name)
        add(label, "attributes")
    for index, picture in enumerate(dataset.pictures):
        sides = {"width": picture.width, "height": picture.height}
        image = add(root, "image", id=index, name=picture.name, **sides)
        for item, box in visible(picture, report):
            shown = {"label": item.label, "source": "manual", "occluded": 0}
            if item.outline is None:
                corners = zip(("xtl", "ytl", "xbr", "ybr"), map(_decimals, box), strict=True)
                add(image, "box", **shown, **dict(corners), z_order=0)
            else:
                points = np.clip(item.outline, 0, [picture.width, picture.height])
                add(image, "polygon", **shown, points=_joined(points), z_order=0)
    with replacing(path) as file:
        file.write(xml_text(root))


def _decimals(value: float) -> str:
    return f"{value:.2f}"


def _joined(points: Points) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in points.tolist())


def read_cvat(path: str | os.PathLike[str], report: ConvertReport) -> Dataset:
    """Read the boxes and polygons of a file; other shapes are counted.

    Raises
    ------
    InputError
        If the file is no CVAT XML, or an image of it has no size.
    """
    root = read_xml(path)
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise InputError(f"{path}: no <image> in <annotations>: not CVAT for images 1.1")
    classes = [text_in(node, "name") or "" for node in root.iterfind(".//labels/label")]
    pictures = [_picture(node, path, report) for node in images]
    used = [item.label for picture in pictures for item in picture.objects]
    return Dataset(pictures, list(dict.fromkeys([*filter(None, classes), *used])))


def _picture(
    node: ET.Element, path: str | os.PathLike[str], report: ConvertReport
) -> LabelledPicture:
    width, height = number(node.get("width")), number(node.get("height"))
    name = node.get("name")
    if not name or width is None or height is None:
        raise InputError(f"{path}: image {node.get('id')} has no name or no size")
    picture = LabelledPicture(name, *sides(width, height, f"{path}: image {node.get('id')}"))
    for shape in node:
        label = shape.get("label")
        if shape.tag not in ("box", "polygon") or number(shape.get("rotation")):
            report.skipped[SHAPES] += shape.tag != "tag"
            continue
        points = _points(shape)
        if label is None or points is None:
            report.skipped[BAD_ROWS] += 1
            continue
        if shape.tag == "box" and (points[0] > points[1]).any():
            report.skipped[INVERTED] += 1
            continue
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        mask = [points.ravel().tolist()] if shape.tag == "polygon" else None
        picture.objects.append(Labelled(label, (x1, y1, x2, y2), mask=mask))
    return picture


def _points(shape: ET.Element) -> Points | None:
    """Return the corners of a box or the points of a polygon; None if they can't be read."""
    if shape.tag == "box":
        texts = [shape.get(name, "") for name in ("xtl", "ytl", "xbr", "ybr")]
    else:
        texts = shape.get("points", "").replace(";", ",").split(",")
    values = [number(text) for text in texts]
    if None in values or len(values) % 2 or (shape.tag == "polygon" and len(values) < 6):
        return None
    return np.array(values, np.float64).reshape(-1, 2)
