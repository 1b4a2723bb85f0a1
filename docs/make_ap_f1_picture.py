"""Make docs/pictures/ap_and_f1.png: ``python -m docs.make_ap_f1_picture``.

The picture shows three sets of boxes as AP sees them and as F1 does: what the bundled model answers
on held-out scenes, the same with guesses behind it, and the same with its scores shuffled. It must
write at least four objects for each scene, as it errs too seldom otherwise. Needs
``pip install -e '.[test]'``.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from palidecode import CocoEvaluation, evaluate_coco
from palidecode.cli import main as palidecode
from palidecode.files import replacing
from training.scenes.draw import HELD_OUT_SEED, write_scenes

HERE = Path(__file__).parent
SCENES, GUESSES = 300, 20
LINE = "#d5d9de"
LOOKS = {"as answered": ("#0b62b0", "-", "o"), "with guesses": ("#d1640a", "--", "s")}
LOOKS["scores shuffled"] = ("#12a37a", ":", "D")


def answers(folder: Path) -> tuple[dict[str, list], list[dict[str, object]]]:
    """Return the scenes' ground truth and the bundled model's boxes on them."""
    write_scenes(folder / "scenes", HELD_OUT_SEED, SCENES, 224)
    found = folder / "found.json"
    model = ["--model", "demo", "--task", "detect", "--dtype", "float32", "--batch-size", "32"]
    model += ["--min-objects", "4"]
    palidecode(["predict", str(folder / "scenes"), *model, "-o", str(found), "--json"])
    truth = json.loads((folder / "scenes" / "instances.json").read_text())
    return truth, json.loads(found.read_text())


def with_guesses(found: dict[str, list], seed: int = 0) -> dict[str, list]:
    """Add guesses to every picture, with scores below those of all answers."""
    rng = np.random.default_rng(seed)
    ids = [item["id"] for item in found["categories"]]
    least = min(row["score"] for row in found["annotations"])
    guesses = [
        {
            "image_id": image["id"],
            "category_id": int(rng.choice(ids)),
            "bbox": [*rng.uniform(0, 150, 2).tolist(), *rng.uniform(20, 74, 2).tolist()],
            "score": least * float(rng.uniform(0.1, 0.9)),
        }
        for image in found["images"]
        for _ in range(GUESSES)
    ]
    return {**found, "annotations": found["annotations"] + guesses}


def shuffled(found: dict[str, list], seed: int = 0) -> dict[str, list]:
    """Give every answer another answer's score."""
    scores = [row["score"] for row in found["annotations"]]
    mixed = np.random.default_rng(seed).permutation(scores).tolist()
    rows = [row | {"score": score} for row, score in zip(found["annotations"], mixed, strict=True)]
    return {**found, "annotations": rows}


def draw_curves(axes: Axes, results: Mapping[str, CocoEvaluation]) -> None:
    """Draw precision over recall; AP50 is the area below."""
    for name, result in results.items():
        color, line, _ = LOOKS[name]
        curve = result.curves[0]
        label = f"{name}: AP50 {result.metrics['AP50']:.2f}"
        axes.plot(curve.recall, curve.precision, line, color=color, linewidth=2, label=label)
    axes.set_title("AP50: the area below the curve", loc="left")
    axes.legend(loc="lower left", frameon=False)


def draw_points(axes: Axes, results: Mapping[str, CocoEvaluation]) -> None:
    """Draw precision and recall of all predictions, and lines of equal F1."""
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(f1 / (2 - f1), 1, 200)  # from precision 1
        precision = f1 * recall / (2 * recall - f1)
        axes.plot(recall, precision, color=LINE, linewidth=1)
        axes.annotate(f"F1 {f1}", (1, precision[-1]), (12, 0), textcoords="offset points")
    labels: dict[tuple[float, float], list[str]] = {}
    for name, result in results.items():
        color, _, mark = LOOKS[name]
        rates = result.rates
        size, edge = (17, "white") if mark == "o" else (7, color)
        axes.plot(
            rates.recall, rates.precision, mark, color=color, mec=edge, ms=size, clip_on=False
        )
        at = labels.setdefault((rates.recall, rates.precision), [])
        at.append(f"{name}: F1 {rates.f1:.2f}")
    for at, lines in labels.items():
        far = {"textcoords": "offset points", "ha": "right", "va": "center"}
        axes.annotate("\n".join(lines), at, (-14, 0 if at[1] > 0.3 else 10), **far)
    axes.set_title("F1: one point, with every prediction", loc="left")


def main() -> None:
    """Write the picture, and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "pictures" / "ap_and_f1.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        truth, found = answers(Path(name))
    sets = {"as answered": found, "with guesses": with_guesses(found)}
    sets["scores shuffled"] = shuffled(found)
    results = {name: evaluate_coco(truth, some) for name, some in sets.items()}
    figure = Figure(figsize=(10, 4.2), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    draw_curves(left, results)
    draw_points(right, results)
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
        axes.spines[["top", "right"]].set_visible(False)
    taken = io.BytesIO()
    figure.savefig(taken, dpi=110)
    with replacing(args.output, "wb") as file:
        Image.open(taken).convert("RGB").quantize(64).save(file, "PNG", optimize=True)
    for name, result in results.items():
        numbers = {key: round(value, 3) for key, value in result.numbers.items()}
        print(name, {key: numbers[key] for key in ("AP", "AP50", "F1", "F1@mean")})
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
