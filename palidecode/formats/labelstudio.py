"""Label Studio: tasks with predictions, and the labelling config that fits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote
from xml.etree import ElementTree as ET

import numpy as np

from palidecode.files import replacing, writes_through
from palidecode.formats.objects import (
    Box,
    ConvertReport,
    Dataset,
    Labelled,
    LabelledPicture,
    visible,
)
from palidecode.formats.xml import add, xml_text
from palidecode.geometry.rle import Rle, rings_to_rle, rle_to_crop
from palidecode.version import __version__

DEFAULT_URL = "/data/local-files/?d="
"""Address of files that Label Studio serves from its own disk."""
Tool: TypeAlias = Literal["box", "polygon", "brush"]
_TOOLS: dict[Tool, str] = {
    "box": "RectangleLabels",
    "polygon": "PolygonLabels",
    "brush": "BrushLabels",
}
NAMES: Mapping[Tool, str] = {tool: tool for tool in _TOOLS}
"""Names of the tools in the config that `write_labelstudio` writes."""
_WORDS = (3, 4, 8, 16)  # bits of a run's length, whichever is enough
_LONGEST = 1 << _WORDS[-1]
_HEADER = "{:032b}" + f"{8 - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in _WORDS)


def write_labelstudio(
    dataset: Dataset,
    path: str | os.PathLike[str],
    report: ConvertReport,
    *,
    url: str = DEFAULT_URL,
) -> Path | None:
    """Write one task per picture, with its objects as a prediction.

    A box becomes a rectangle, a mask of one ring a polygon, any other mask a brush stroke.

    Parameters
    ----------
    dataset : Dataset
    path : path
    report : ConvertReport
    url : str
        Address of the pictures, in front of their names.

    Returns
    -------
    Path or None
        The labelling config, beside the file: its name and ``.config.xml``. None if the file is a
        pipe, a device or the standard output.
    """
    tasks = [_task(picture, index, url, report) for index, picture in enumerate(dataset.pictures)]
    with replacing(path) as file:
        json.dump(tasks, file, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        file.write("\n")
    if writes_through(path):
        return None
    config = config_of(path)
    with replacing(config) as file:
        file.write(_config(dataset.classes))
    return config


def config_of(path: str | os.PathLike[str]) -> Path:
    """Return the name of the labelling config of a file of tasks."""
    return Path(f"{os.fspath(path)}.config.xml")


def _config(classes: list[str]) -> str:
    view = ET.Element("View")
    add(view, "Image", name="image", value="$image", zoom="true")
    for name, tag in _TOOLS.items():
        tool = add(view, tag, name=name, toName="image")
        for label in classes:
            add(tool, "Label", value=label)
    return xml_text(view)


def _task(
    picture: LabelledPicture, index: int, url: str, report: ConvertReport
) -> Mapping[str, Any]:
    made = [
        shape_of(item, box, picture, f"{index}-{number}")
        for number, (item, box) in enumerate(visible(picture, report))
    ]
    shapes = [shape for shape in made if shape is not None]
    scores = [shape["score"] for shape in shapes if "score" in shape]
    prediction: dict[str, Any] = {"model_version": f"palidecode {__version__}", "result": shapes}
    if scores:
        prediction["score"] = round(sum(scores) / len(scores), 6)
    return {
        "data": {"image": url + quote(picture.name, errors="surrogatepass")},
        "predictions": [prediction],
    }


def shape_of(
    item: Labelled,
    box: Box,
    picture: LabelledPicture,
    name: str,
    tools: Mapping[Tool, str] = NAMES,
    image: str = "image",
) -> dict[str, Any] | None:
    """Return an object as a region of a task; None if no tool can hold it.

    Parameters
    ----------
    item : Labelled
    box : tuple of 4 float
        Clipped to the picture.
    picture : LabelledPicture
    name : str
        Id of the region.
    tools : mapping of str to str
        Names of the config's tools.
    image : str
        Name of the config's image.
    """
    tool = next((tool for tool in _fitting(item) if tool in tools), None)
    if tool is None:
        return None
    kind = _TOOLS[tool].lower()
    return {
        "id": name,
        "type": kind,
        "from_name": tools[tool],
        "to_name": image,
        "original_width": picture.width,
        "original_height": picture.height,
        "image_rotation": 0,
        "value": _value(tool, item, box, picture) | {kind: [item.label]},
        **({} if item.score is None else {"score": round(item.score, 6)}),
    }


def _fitting(item: Labelled) -> tuple[Tool, ...]:
    """Return the tools that can hold an object, the best first."""
    if isinstance(item.mask, list) and len(item.mask) == 1:
        return "polygon", "brush", "box"
    return ("brush", "polygon", "box") if item.mask and item.outline is not None else ("box",)


def _value(tool: Tool, item: Labelled, box: Box, picture: LabelledPicture) -> dict[str, Any]:
    """Return the geometry of a region, in percent of the picture; a brush's in bytes."""
    percent = 100 / np.array([picture.width, picture.height], np.float64)
    if tool == "polygon":
        ring = item.outline  # of one ring, or of several joined by cuts
        if isinstance(item.mask, list) and len(item.mask) == 1:
            ring = np.reshape(item.mask[0], (-1, 2))
        points = np.clip(np.asarray(ring) * percent, 0, 100)
        return {"points": points.round(4).tolist(), "closed": True}
    if tool == "brush":
        rle = item.mask
        if isinstance(rle, list):
            rle = rings_to_rle(rle, (picture.width, picture.height))
        assert rle is not None
        return {"format": "rle", "rle": brush_rle(rle)}
    x1, y1, x2, y2 = (np.array(box) * np.tile(percent, 2)).tolist()
    sides = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
    return {key: round(side, 4) for key, side in sides.items()} | {"rotation": 0}


def brush_rle(rle: Rle) -> list[int]:
    """Convert COCO's RLE to Label Studio's: bytes of the RGBA picture's runs, row by row.

    A head of 32 bits counts the values, 5 bits give a value's bits less one, four times 4 bits
    the sizes of lengths less one. Each run is a 1, two bits of the size, its length less one, and
    its value.
    """
    height, width = rle["size"]
    total = height * width
    crop = rle_to_crop(rle)
    edges = np.diff(np.pad(crop.mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    offset = (crop.y0 + rows) * width + crop.x0
    bounds = np.concatenate([[0], np.stack([offset + starts, offset + ends], 1).ravel(), [total]])
    lengths = np.diff(bounds) * 4
    bits = [_HEADER.format(total * 4)]
    for index, length in enumerate(lengths.tolist()):
        bits += _run(length, 255 * (index % 2))
    text = "".join(bits)
    packed = np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0"))
    values: list[int] = packed.tolist()
    return values


def _run(length: int, value: int) -> list[str]:
    runs = []
    while length:
        part = min(length, _LONGEST)
        size = next(i for i, bits in enumerate(_WORDS) if part <= 1 << bits)
        runs.append(f"1{size:02b}{part - 1:0{_WORDS[size]}b}{value:08b}")
        length -= part
    return runs
