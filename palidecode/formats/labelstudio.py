"""Label Studio: tasks with predictions, and the labelling config that fits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
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
_TOOLS = {"box": "RectangleLabels", "polygon": "PolygonLabels", "brush": "BrushLabels"}
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
    shapes = [
        _shape(item, box, picture, f"{index}-{number}")
        for number, (item, box) in enumerate(visible(picture, report))
    ]
    scores = [shape["score"] for shape in shapes if "score" in shape]
    prediction: dict[str, Any] = {"model_version": f"palidecode {__version__}", "result": shapes}
    if scores:
        prediction["score"] = round(sum(scores) / len(scores), 6)
    return {
        "data": {"image": url + quote(picture.name, errors="surrogatepass")},
        "predictions": [prediction],
    }


def _shape(item: Labelled, box: Box, picture: LabelledPicture, name: str) -> dict[str, Any]:
    mask = item.mask
    value: dict[str, Any]
    percent = 100 / np.array([picture.width, picture.height], np.float64)
    if isinstance(mask, list) and len(mask) == 1:
        tool = "polygon"
        points = np.clip(np.reshape(mask[0], (-1, 2)) * percent, 0, 100)
        value = {"points": points.round(4).tolist(), "closed": True}
    elif mask and item.outline is not None:
        tool = "brush"
        rle = (
            mask if isinstance(mask, dict) else rings_to_rle(mask, (picture.width, picture.height))
        )
        value = {"format": "rle", "rle": brush_rle(rle)}
    else:
        tool = "box"
        x1, y1, x2, y2 = (np.array(box) * np.tile(percent, 2)).tolist()
        sides = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        value = {key: round(side, 4) for key, side in sides.items()} | {"rotation": 0}
    kind = _TOOLS[tool].lower()
    return {
        "id": name,
        "type": kind,
        "from_name": tool,
        "to_name": "image",
        "original_width": picture.width,
        "original_height": picture.height,
        "image_rotation": 0,
        "value": value | {kind: [item.label]},
        **({} if item.score is None else {"score": round(item.score, 6)}),
    }


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
