"""Read with datumaro and label-studio-sdk what `palidecode convert` writes.

They need another OpenCV than palidecode is tested with, so this file imports nothing of it and runs
in an environment of its own: see ``.ci/run``, which makes the files from ``samples.py``.

    python tests/formats/foreign_readers.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datumaro import AnnotationType, Dataset
from label_studio_sdk.converter import brush
from label_studio_sdk.label_interface import LabelInterface

BOXES = {
    "a": [("cat", [23, 12, 35, 26]), ("its", [10, 5, 30, 25])],
    "b": [("salt & <pepper>", [4, 6, 10, 20])],
    "c": [],
}
"""The objects of the sample: x, y, width and height by picture."""
HOLED = 18 * 22 - 4 * 6 + 4 * 8
"""Pixels of the mask with a hole and a second part."""


def read(path: Path, kind: str) -> dict[str, list[tuple[str, list[int]]]]:
    """Read a dataset with datumaro; the label and box of every object, once each."""
    dataset = Dataset.import_from(str(path), kind)
    labels = dataset.categories()[AnnotationType.label]
    found = {}
    for item in dataset:
        boxes = [
            (labels[one.label].name, [round(float(side)) for side in one.get_bbox()])
            for one in item.annotations
            if hasattr(one, "get_bbox")
        ]
        found[item.id] = sorted({str(box): box for box in boxes}.values())
    return found


def main(folder: Path) -> None:
    """Check every format in a folder."""
    for name, kind in (("yolo", "yolo"), ("voc", "voc"), ("cvat", "cvat"), ("coco", "coco")):
        found = read(folder / name, kind)
        wanted = BOXES
        if name == "voc":  # its last pixels, counted from 1, are taken for edges counted from 0
            wanted = {
                picture: [(label, [x + 1, y + 1, w - 1, h - 1]) for label, (x, y, w, h) in boxes]
                for picture, boxes in BOXES.items()
            }
        assert found == wanted, f"{name}: {found}"
    interface = LabelInterface((folder / "tasks.json.config.xml").read_text())
    strokes = []
    for task in json.loads((folder / "tasks.json").read_text()):
        assert interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction, return_errors=True) == []
            strokes += [one for one in prediction["result"] if one["type"] == "brushlabels"]
    (stroke,) = strokes
    sides = stroke["original_height"], stroke["original_width"], 4
    pixels = brush.decode_rle(stroke["value"]["rle"]).reshape(sides)[..., 3]
    assert (pixels > 0).sum() == HOLED
    print("datumaro reads YOLO, VOC, CVAT and COCO; label-studio-sdk its predictions")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
