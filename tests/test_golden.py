"""Whole commands on bundled inputs against the files in ``tests/golden``.

The golden files are what commit 963a147 wrote. ``python -m tests.test_golden`` writes them anew;
their diff then shows what a change does to users' files. JSON is compared value by value: text,
keys and their order exactly, numbers as another CPU may round them, masks by IoU.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import palidecode
from palidecode.cli import main
from tests.runtime.tiny_models import one_thread

GOLDEN = Path(__file__).parent / "golden"
DEMO = Path(palidecode.__file__).parent / "demo"

ROUNDING = {"bbox": 0.01, "segmentation": 0.01, "score": 1e-3, "iou": 1e-3}
"""Tolerance of numbers by key; 1e-6 under every other key."""
COUNTED = ("area", "intersection", "union")
"""Keys of numbers of pixels, of which a thousandth, and at least two, may differ."""
MASK_IOU = 0.999
DECODE = "decode DEMO/answers.jsonl --images DEMO --weights palidecode-demo"
ENCODE = "encode DEMO/scenes/instances.json --weights palidecode-demo"
PREDICT = "predict DEMO/scenes --model demo --dtype float32"
EVALUATE = "evaluate DEMO/scenes/instances.json GOLDEN/predicted.json --bootstrap 50 -o @page"
COMMANDS = {
    "polygons.json": (0, f"{DECODE} -o @polygons.json"),
    "exact.json": (
        0,
        f"{DECODE} --segmentation exact --simplify 1 --min-area 20 -o @exact.json",
    ),
    "rle.json": (0, f"{DECODE} --segmentation rle --clip -o @rle.json"),
    "categories.json": (
        0,
        f"{DECODE} --segmentation none --divisor 1023 --categories @names.txt --match loose "
        "--unmapped drop -o @categories.json",
    ),
    "drawn.png": (0, "demo --answers -o @demo"),
    "segment.jsonl": (0, f"{ENCODE} --task segment -o @segment.jsonl"),
    "detect.jsonl": (
        0,
        f"{ENCODE} --classes present+absent --absent 2 --order area --seed 3 --max-objects 3 "
        "-o @detect.jsonl --val @val.jsonl",
    ),
    "predicted.json": (0, f"{PREDICT} --task segment --segmentation rle -o @predicted.json"),
    "sub_bin.json": (
        0,
        f"{PREDICT} --task detect --classes @shapes.txt --per-class --sub-bin --min-score 0.2 "
        "--batch-size 5 -o @sub_bin.json",
    ),
    "metrics.json": (0, f"{EVALUATE} --iou-type both"),
    "ignored_scores.json": (
        0,
        f"{EVALUATE} --scores ignore --merge-duplicates 0.5 --orders 3 "
        "--categories star circle dog",
    ),
    "samples.jsonl": (
        0,
        "evaluate-referring @referring.jsonl --weights palidecode-demo --samples @samples.jsonl",
    ),
}
"""Per golden file, in the order of making them, the exit code and the command that writes it.

``@`` begins a file in a folder of the command's own.
"""
WRITTEN = {
    "drawn.png": "demo/overlay.png",
    "metrics.json": "page/metrics.json",
    "ignored_scores.json": "page/metrics.json",
}
"""Names that the commands give to files of another name in ``tests/golden``."""


def referring_rows() -> str:
    """Turn every object of the golden fine-tuning rows into an answer beside its annotation."""
    truth = json.loads((DEMO / "scenes/instances.json").read_text())
    lines = []
    for line in (GOLDEN / "segment.jsonl").read_text().splitlines():
        row = json.loads(line)
        image = next(i for i in truth["images"] if i["file_name"] == row["image"])
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for annotation, output in zip(own, row["suffix"].split(" ; "), strict=True):
            said = {"id": annotation["id"], "image": row["image"], "output": output}
            said |= {key: row[key] for key in ("width", "height")}
            lines.append(json.dumps(said | {"segmentation": annotation["segmentation"]}))
    return "\n".join([*lines, json.dumps(said | {"id": 0, "segmentation": None, "output": "none"})])


def write_inputs(folder: Path) -> None:
    """Write the files that the commands read beside the bundled ones."""
    (folder / "names.txt").write_text("Sailboats\nlighthouse\nhot air balloon\n")
    (folder / "shapes.txt").write_text("star\ncircle\nheart\n")
    if (GOLDEN / "segment.jsonl").exists():
        (folder / "referring.jsonl").write_text(referring_rows())


def run(name: str, folder: Path) -> Path:
    """Run the command of a golden file; returns the file that it wrote."""
    write_inputs(folder)
    code, command = COMMANDS[name]
    places = (("@", f"{folder}/"), ("DEMO", str(DEMO)), ("GOLDEN", str(GOLDEN)))
    words = command.split()
    for short, path in places:
        words = [path + w.removeprefix(short) if w.startswith(short) else w for w in words]
    with one_thread():  # tests may run side by side
        assert main(words) == code
    return folder / WRITTEN.get(name, name)


def read(path: Path) -> object:
    """Read JSON, the rows of JSON Lines, or a picture as a small array."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((96, 60), Image.Resampling.BOX)
        return np.asarray(small, np.int64)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


def masks_agree(found: dict[str, object], wanted: dict[str, object]) -> bool:
    """Tell whether compressed RLE has the same size and nearly the same pixels."""
    if found == wanted:  # also where both are empty
        return True
    iou = coco_mask.iou([found], [wanted], [0])[0, 0]
    return found["size"] == wanted["size"] and bool(iou >= MASK_IOU)


def differences(found: object, wanted: object, where: str = "", key: str = "") -> list[str]:
    """List the values that differ by more than rounding, each with the path to it."""
    if type(found) is not type(wanted):
        return [f"{where}: {found!r} is not {wanted!r}"]
    if isinstance(wanted, dict):
        if list(found) != list(wanted):
            return [f"{where}: the keys {list(found)} are not {list(wanted)}"]
        if list(wanted) == ["size", "counts"]:
            return [] if masks_agree(found, wanted) else [f"{where}: another mask"]
        return [d for k in wanted for d in differences(found[k], wanted[k], f"{where}.{k}", k)]
    if isinstance(wanted, list):
        if len(found) != len(wanted):
            return [f"{where}: {len(found)} values, not {len(wanted)}"]
        pairs = enumerate(zip(found, wanted, strict=True))
        return [d for n, pair in pairs for d in differences(*pair, f"{where}[{n}]", key)]
    if key in COUNTED:
        fine = abs(found - wanted) <= max(2, abs(wanted) / 1000)
    elif isinstance(wanted, float):
        fine = abs(found - wanted) <= ROUNDING.get(key, 1e-6)
    else:
        fine = found == wanted
    return [] if fine else [f"{where}: {found!r} is not {wanted!r}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_its_golden_file(name: str, tmp_path: Path) -> None:
    found, wanted = read(run(name, tmp_path)), read(GOLDEN / name)
    if name.endswith(".png"):
        # Versions of Pillow and OpenCV draw letters and slanted lines a little differently.
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 8
        return
    assert differences(found, wanted) == []


ROW = {"label": "cat", "n": 3, "bbox": [1.0, 250.0], "area": 5000, "AP": 0.5}
MASK = {"size": [10, 10], "counts": [20, 60, 20]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row | {"label": "dog"}, ".label"),
        (lambda row: row | {"n": 4}, ".n"),
        (lambda row: row | {"bbox": [1.02, 250.0]}, ".bbox[0]"),
        (lambda row: row | {"bbox": [1.0, 250.0, 3.0]}, ".bbox"),
        (lambda row: row | {"bbox": [1, 250.0]}, ".bbox[0]"),
        (lambda row: row | {"area": 5006}, ".area"),
        (lambda row: row | {"AP": 0.50001}, ".AP"),
        (lambda row: {**row, "more": 1}, "keys"),
        (lambda row: dict(reversed(row.items())), "keys"),
        (lambda row: row | {"n": None}, ".n"),
    ],
)
def test_what_is_more_than_rounding_is_seen(
    change: Callable[[dict[str, object]], dict[str, object]], said: str
) -> None:
    assert differences({**ROW, "bbox": [1.005, 249.993], "area": 5004}, ROW) == []
    (difference,) = differences(change(ROW), ROW)
    assert said in difference


def test_other_masks_are_seen() -> None:
    one, other = (
        coco_mask.frPyObjects({**MASK, "counts": counts}, 10, 10)
        for counts in (MASK["counts"], [20, 61, 19])
    )
    assert differences({"m": one}, {"m": one}) == []
    assert differences({"m": other}, {"m": one}) == [".m: another mask"]


def renew() -> None:
    """Write all golden files anew."""
    GOLDEN.mkdir(exist_ok=True)
    for name in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            written = run(name, Path(folder))
            if name.endswith(".png"):
                Image.fromarray(read(written).astype(np.uint8)).save(GOLDEN / name)
            else:
                (GOLDEN / name).write_bytes(written.read_bytes())


if __name__ == "__main__":
    renew()
