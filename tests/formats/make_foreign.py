"""Write the sample in each format that ``foreign_readers.py`` reads, with the pictures in place.

python -m tests.formats.make_foreign FOLDER
"""

import json
import shutil
import sys
from pathlib import Path

from palidecode.cli import main
from tests.formats.samples import write_samples

PICTURES = {
    "yolo": "images",
    "voc": "JPEGImages",
    "cvat": "images",
    "coco": "images/default",
}
"""Where each format has its pictures."""


def make(folder: Path) -> None:
    """Write YOLO, VOC, CVAT, COCO and Label Studio's tasks."""
    folder.mkdir()
    write_samples(folder)
    dataset = json.loads((folder / "coco.json").read_text())
    for category in dataset["categories"]:
        # labelmap.txt, which datumaro reads of VOC, separates by colons.
        category["name"] = category["name"].replace("it's: #1", "its")
    source = folder / "coco" / "annotations" / "instances_default.json"
    source.parent.mkdir(parents=True)
    source.write_text(json.dumps(dataset))
    outputs = {"yolo": "yolo", "voc": "voc", "cvat": "cvat/annotations.xml"}
    for kind, name in (outputs | {"labelstudio": "tasks.json"}).items():
        words = ["convert", str(source), "--to", kind, "-o", str(folder / name), "--quiet"]
        assert main(words) == 0
    for name, pictures in PICTURES.items():
        shutil.copytree(folder / "images", folder / name / pictures)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
