"""What closer looks find: ``python benchmarks/finding.py``

Scenes of `training.scenes`, one in a picture, and 2 × 2 and 4 × 4 of them, are asked for all
classes with options of `PaliDecoder.detect` and `segment`. Everything is seeded, so that the
numbers don't depend on the machine's speed.

python benchmarks/finding.py --pictures 10                  # in small
python benchmarks/finding.py --plot docs/pictures/finding.png
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
from palidecode.runtime.engine import Batch, Engine, Features, Ids, Logits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from palidecode.evaluation.coco.result import Curve
    from training.scenes.draw import Scene

SETS = {"1 × 1": (1, 224, 80), "2 × 2": (2, 224, 40), "4 × 4": (4, 112, 20)}
"""Scenes a side, pixels of each, and number of pictures."""
TRIED = (
    *("", "zoom=true", "tiles=2x2", "tiles=2x2,zoom=true"),
    *("tiles=auto", "tiles=auto,zoom=true", "classes_per_prompt=1", "past_end=0.2"),
    "past_end=0.05",
    "samples=5,temperature=0.3",
)
BATCH = 32
COLUMNS = (
    *("scenes", "options", "AP", "AP50", "AP_small", "AR@100"),
    *("masks AP", "masks AP50", "looks", "forwards"),
)
RATES = ("scenes", "options", "forwards", "AP50", "recall at 0.9", "recall at 0.7", "recall at 0.5")
PLOTTED = {
    "": "once",
    "past_end=0.05": "--past-end 0.05",
    "classes_per_prompt=1": "--classes-per-prompt 1",
    "samples=5,temperature=0.3": "--samples 5 --temperature 0.3",
    "tiles=2x2": "--tiles 2x2",
    "tiles=2x2,zoom=true": "--tiles 2x2 --zoom",
    "tiles=auto,zoom=true": "--tiles auto --zoom",
}
"""Options whose curves are plotted, and their legend."""
AP, AP50, AP_SMALL, AR100 = 0, 1, 3, 8
"""Indices of COCO's numbers."""


class Counting:
    """An engine that counts the forwards of its language model, of each row of a batch."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.forwards = engine, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def start(
        self,
        features: Sequence[Features],
        prompts: Sequence[Sequence[int]],
        length: int,
        head: Ids | None,
    ) -> Batch:
        """Begin a batch that counts."""
        batch = self.engine.start(features, prompts, length, head)
        prefill, step = batch.prefill, batch.step

        def counted(logits: Logits) -> Logits:
            self.forwards += len(logits)
            return logits

        batch.prefill = lambda: counted(prefill())  # type: ignore[method-assign]
        batch.step = lambda tokens: counted(step(tokens))  # type: ignore[method-assign]
        return batch


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
    decoder: PaliDecoder,
    engine: Counting,
    drawn: Sequence[Scene],
    truth: Path,
    options: dict[str, Any],
) -> tuple[dict[str, float], Curve]:
    """Ask about pictures, and evaluate the boxes of `detect` and the masks of `segment`."""
    from training.scenes.draw import CLASSES

    pictures = [Image.fromarray(picture.image) for picture in drawn]
    names = [f"{number}.png" for number in range(1, len(drawn) + 1)]
    prompt = " ; ".join(CLASSES)
    answered: set[int] = set()

    def count(answer: int, token: int, logprob: float) -> None:
        answered.add(answer)

    results = {}
    for task, iou_type in ((decoder.segment, "segm"), (decoder.detect, "bbox")):
        answered.clear()
        engine.forwards = 0
        found = task(pictures, prompt, batch_size=BATCH, on_token=count, **options)
        written = to_coco(found, categories=list(CLASSES), segmentation="rle", file_names=names)
        results[iou_type] = evaluate_coco(truth, written, iou_type)
    boxes, masks = results["bbox"].stats.tolist(), results["segm"].stats.tolist()
    curve = results["bbox"].curves[0]
    recalls = {
        f"recall at {least}": float(max(curve.recall[curve.precision >= least], default=0.0))
        for least in (0.9, 0.7, 0.5)
    }
    numbers = {
        "AP": boxes[AP],
        "AP50": boxes[AP50],
        "AP_small": boxes[AP_SMALL],
        "AR@100": boxes[AR100],
        "masks AP": masks[AP],
        "masks AP50": masks[AP50],
        "looks": len(answered) / len(drawn),
        "forwards": engine.forwards / len(drawn),
        **recalls,
    }
    return numbers, curve


def plot(curves: dict[tuple[str, str], Curve], forwards: dict[tuple[str, str], float]) -> Figure:
    """Plot precision over recall, with the forwards of each option, for the sets of pictures."""
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(scenes for scenes, _ in curves))
    figure = Figure(figsize=(4.2 * len(sets), 4.4), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    colors = ("#444444", "#d1640a", "#8a55c7", "#b01050", "#0b62b0", "#12a37a", "#c9a400")
    for panel, scenes in zip(axes, sets, strict=True):
        for (options, name), color in zip(PLOTTED.items(), colors, strict=True):
            curve = curves.get((scenes, options))
            if curve is not None:
                label = f"{name}: {forwards[scenes, options]:.0f}"
                panel.plot(curve.recall, curve.precision, color=color, linewidth=1.8, label=label)
        panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall (IoU 0.5)")
        panel.set_title(f"{scenes} scenes in a picture", loc="left", fontsize=10)
        panel.grid(color="#d5d9de", linewidth=0.6)
        panel.legend(title="forwards per picture", fontsize=7, title_fontsize=7, loc="lower left")
    axes[0].set_ylabel("precision")
    return figure


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
    parser.add_argument("--plot", type=Path, metavar="FILE", help="picture of the curves")
    args = parser.parse_args()
    loaded = PaliDecoder.from_pretrained(args.model, "float32")
    engine = Counting(loaded.engine)
    decoder = PaliDecoder(
        engine,
        loaded.tokenizer,
        loaded.image_config,
        codec=loaded.codec,
        codes_id=loaded.codes_id,
        classes=loaded.classes,
    )
    curves: dict[tuple[str, str], Curve] = {}
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
                key, chosen = (scenes, options), options_of(options)
                results[key], curves[key] = measure(decoder, engine, drawn, truth, chosen)
                print(scenes, options or "once", results[scenes, options], file=sys.stderr)
    rows: list[list[Cell]] = [
        [scenes, options or "once", *(f"{result[name]:.3f}" for name in COLUMNS[2:8])]
        + [f"{result[name]:.1f}" for name in COLUMNS[8:]]
        for (scenes, options), result in results.items()
    ]
    note = (
        f"Seed {args.seed}; {'; '.join(counts)}. `looks` are prompts about a picture, a "
        "tile or a crop, `forwards` those of the language model, a prompt or the next tokens of an "
        "answer; both for each picture and of `detect`."
    )
    table = Table("Boxes and masks found, by options", COLUMNS, rows, note)
    rates: list[list[Cell]] = [
        [scenes, options or "once", f"{result['forwards']:.1f}"]
        + [f"{result[name]:.3f}" for name in RATES[3:]]
        for (scenes, options), result in sorted(
            results.items(), key=lambda item: (item[0][0], item[1]["forwards"])
        )
    ]
    note = "Recall where the precision of the boxes is at least that, at IoU 0.5; classes averaged."
    bought = Table("What forwards buy", RATES, rates, note)
    if args.plot is not None:
        forwards = {key: result["forwards"] for key, result in results.items()}
        plot(curves, forwards).savefig(args.plot, dpi=110)
    report("finding", [table, bought], [] if args.pictures else targets_of(results))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
