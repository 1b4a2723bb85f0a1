"""What closer looks find: ``python benchmarks/finding.py``

Scenes of `training.scenes`, one in a picture, and 2 × 2 and 4 × 4 of them, are asked for all
classes with options of `PaliDecoder.detect` and `segment`. Everything is seeded, so that the
numbers don't depend on the machine's speed.

python benchmarks/finding.py --pictures 10                  # in small
python benchmarks/finding.py --model DIR --try tiles=3x3 --try tiles=auto,zoom=true --sets "2 × 2"
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import Cell, Table, Target, at_least, report
from PIL import Image

from palidecode import evaluate_coco, to_coco
from palidecode.pipeline import PaliDecoder

if TYPE_CHECKING:
    from training.scenes.draw import Scene

SETS = {"1 × 1": (1, 224, 80), "2 × 2": (2, 224, 40), "4 × 4": (4, 112, 20)}
"""Scenes a side, pixels of each, and number of pictures."""
TRIED = (
    *("", "zoom=true", "tiles=2x2", "tiles=2x2,zoom=true"),
    *("tiles=auto", "tiles=auto,zoom=true", "classes_per_prompt=1", "past_end=0.2"),
    "samples=5,temperature=0.3",
)
BATCH = 32
COLUMNS = (
    *("scenes", "options", "AP", "AP50", "AP_small", "AR@100"),
    *("masks AP", "masks AP50", "looks", "tokens"),
)
AP, AP50, AP_SMALL, AR100 = 0, 1, 3, 8
"""Indices of COCO's numbers."""


def composite(seed: int, index: int, side: int, pixels: int) -> Scene:
    """Draw a picture of `side` × `side` scenes."""
    from training.scenes.draw import Scene, scene

    whole = side * pixels
    image = np.zeros((whole, whole, 3), np.uint8)
    boxes, masks, labels, colors = [], [], [], []
    for number in range(side * side):
        drawn = scene(seed, index * side * side + number, pixels)
        y, x = (place * pixels for place in divmod(number, side))
        image[y : y + pixels, x : x + pixels] = drawn.image
        boxes.append(drawn.boxes + np.array([x, y, x, y], np.float32))
        for part in drawn.masks:
            mask = np.zeros((whole, whole), np.bool_)
            mask[y : y + pixels, x : x + pixels] = part
            masks.append(mask)
        labels += drawn.labels
        colors += drawn.colors
    return Scene(image, np.concatenate(boxes), masks, labels, colors)


def dataset(drawn: Sequence[Scene]) -> dict[str, Any]:
    """Return the objects of pictures as a COCO dataset."""
    from training.scenes.draw import CLASSES, annotations_of

    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(drawn, 1):
        for row in annotations_of(picture):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
    return {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": len(p.image), "height": len(p.image)}
            for n, p in enumerate(drawn, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
    }


def options_of(text: str) -> dict[str, Any]:
    """Read ``tiles=2x2,zoom=true``: values are JSON, or else text."""
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def measure(
    decoder: PaliDecoder, drawn: Sequence[Scene], truth: Path, options: dict[str, Any]
) -> dict[str, float]:
    """Ask about pictures, and evaluate the boxes of `detect` and the masks of `segment`."""
    from training.scenes.draw import CLASSES

    pictures = [Image.fromarray(picture.image) for picture in drawn]
    names = [f"{number}.png" for number in range(1, len(drawn) + 1)]
    prompt = " ; ".join(CLASSES)
    answered: list[int] = []

    def count(answer: int, token: int, logprob: float) -> None:
        answered.append(answer)

    numbers = {}
    for task, iou_type in ((decoder.segment, "segm"), (decoder.detect, "bbox")):
        answered.clear()
        found = task(pictures, prompt, batch_size=BATCH, on_token=count, **options)
        written = to_coco(found, categories=list(CLASSES), segmentation="rle", file_names=names)
        numbers[iou_type] = evaluate_coco(truth, written, iou_type).stats.tolist()
    boxes, masks = numbers["bbox"], numbers["segm"]
    return {
        "AP": boxes[AP],
        "AP50": boxes[AP50],
        "AP_small": boxes[AP_SMALL],
        "AR@100": boxes[AR100],
        "masks AP": masks[AP],
        "masks AP50": masks[AP50],
        "looks": len(set(answered)) / len(drawn),
        "tokens": len(answered) / len(drawn),
    }


def targets_of(results: dict[tuple[str, str], dict[str, float]]) -> list[Target]:
    """Compare with trials on other scenes before the options were built."""
    wanted = {
        ("1 × 1", "zoom=true"): {"AP": 0.717, "AP_small": 0.658, "masks AP": 0.457},
        ("2 × 2", "tiles=2x2"): {"AP": 0.652, "AP50": 0.840, "AR@100": 0.691, "AP_small": 0.415},
    }
    made = [
        at_least(f"{scenes} scenes, {options}", results[scenes, options][name], least, name)
        for (scenes, options), numbers in wanted.items()
        if (scenes, options) in results
        for name, least in numbers.items()
    ]
    for options in ("tiles=2x2", "tiles=auto"):
        if {("1 × 1", ""), ("1 × 1", options)} <= results.keys():
            least = round(results["1 × 1", ""]["AP"] - 0.01, 3)
            measured = results["1 × 1", options]["AP"]
            made.append(at_least(f"1 × 1 scenes, {options}", measured, least, "AP"))
    return made


def main() -> None:
    """Draw, ask, evaluate, print."""
    from training.scenes.draw import HELD_OUT_SEED

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--pictures", type=int, metavar="N", help="of each set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--try", action="append", dest="tried", metavar="NAME=VALUE,…")
    args = parser.parse_args()
    decoder = PaliDecoder.from_pretrained(args.model, "float32")
    results: dict[tuple[str, str], dict[str, float]] = {}
    counts = []
    with tempfile.TemporaryDirectory() as folder:
        for scenes in args.sets:
            side, pixels, pictures = SETS[scenes]
            numbers = range(pictures if args.pictures is None else args.pictures)
            drawn = [composite(args.seed, index, side, pixels) for index in numbers]
            objects = sum(len(picture.labels) for picture in drawn)
            counts.append(f"{scenes}: {len(drawn)} pictures with {objects} objects")
            truth = Path(folder) / "truth.json"
            truth.write_text(json.dumps(dataset(drawn)))
            for options in ("", *args.tried) if args.tried else TRIED:
                results[scenes, options] = measure(decoder, drawn, truth, options_of(options))
                print(scenes, options or "once", results[scenes, options], file=sys.stderr)
    rows: list[list[Cell]] = [
        [scenes, options or "once", *(f"{result[name]:.3f}" for name in COLUMNS[2:8])]
        + [f"{result[name]:.1f}" for name in COLUMNS[8:]]
        for (scenes, options), result in results.items()
    ]
    note = (
        f"Seed {args.seed}; {'; '.join(counts)}. `looks` are prompts about a picture, a "
        "tile or a crop, `tokens` those of the answers, both for each picture and of `detect`."
    )
    table = Table("Boxes and masks found, by options", COLUMNS, rows, note)
    report("finding", [table], [] if args.pictures else targets_of(results))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
