"""Teach the tiny model a class it has never seen: ``python -m training.new_class -o DIR``.

300 scenes with arrows are drawn and encoded; the prompt of every row asks for all 17 classes. Each
recipe of `RECIPES` is a run of `palidecode finetune` with the options that it prints; a stopped
run resumes. Numbers are those of 300 other pictures, and of 200 of the tiny model's own scenes
with its own prompt of 16 classes, before and after.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from palidecode.coco.writing import to_coco
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.files import replacing
from palidecode.finetune.rows import to_finetuning_rows
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.prompts import write_prompt
from palidecode.runs.sources import find_pictures
from palidecode.trainer.record import CARD
from palidecode.trainer.settings import Settings
from palidecode.trainer.training import Training
from training.scenes import draw, pasted
from training.scenes.shapes import CLASSES

LORA = Settings(
    steps=400,
    batch_size=16,
    rate=2e-3,
    targets=("attention", "mlp", "projector", "vision"),
    soft_loc=3.0,
    flip=True,
    crop=0.6,
    order="left-to-right",
    evaluate_every=200,
    save_every=50,
)
RECIPES = {
    "lora": LORA,
    "hard": replace(LORA, soft_loc=0.0),
    "plain": replace(LORA, flip=False, crop=None),
    "full": replace(LORA, full=True, rate=5e-4),
    "long": replace(LORA, steps=2400),
}
"""Names of recipes and their settings; 400 steps take about 260 seconds of one core."""
_TRAIN, _VAL, _TEST = 300, 60, 300  # pictures
_TOKENS = 128  # of an answer
_SIDE = 224  # of a picture, in pixels


def draw_data(folder: Path) -> None:
    """Draw and encode what is missing: rows to train on, to choose by, and pictures to test on."""
    if not (folder / "test" / "instances.json").exists():
        draw.write_scenes(folder / "old", draw.HELD_OUT_SEED, 200, _SIDE)
        dataset = pasted.write_pasted(folder / "pictures", pasted.TRAIN_SEED, _TRAIN + _VAL, _SIDE)
        rows = list(to_finetuning_rows(dataset, order="left-to-right"))
        for name, part in (("train", rows[:_TRAIN]), ("val", rows[_TRAIN:])):
            with replacing(folder / f"{name}.jsonl") as file:
                file.write("".join(json.dumps(row) + "\n" for row in part))
        pasted.write_pasted(folder / "test", pasted.HELD_OUT_SEED, _TEST, _SIDE)


def measure(model: str | Path, folder: Path) -> dict[str, float]:
    """Compute the numbers of a model on the test pictures."""
    decoder = PaliDecoder.from_pretrained(str(model), "float32", "cpu")
    test = _per_class(decoder, folder / "test", pasted.ALL)
    old = _per_class(decoder, folder / "old", CLASSES)
    names = [name for name in test if name != pasted.NEW]
    return {
        "new AP50": test[pasted.NEW]["AP50"],
        "new AP": test[pasted.NEW]["AP"],
        "old AP": sum(test[name]["AP"] for name in names) / len(names),
        "old AP, 16 classes": sum(row["AP"] for row in old.values()) / len(old),
    }


def _per_class(
    decoder: PaliDecoder, folder: Path, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    pictures = find_pictures([folder])
    found = decoder.generate(
        [item.path for item in pictures],
        write_prompt("detect", classes),
        _TOKENS,
        True,
        batch_size=32,
        over="allowed",
    )
    names = [item.name for item in pictures]
    dataset = to_coco(decoder.read(found), categories=list(classes), file_names=names)
    result = evaluate_coco(folder / "instances.json", dataset)
    return {row["category"]: {"AP": row["AP"], "AP50": row["AP50"]} for row in result.rows()}


def train(name: str, folder: Path) -> dict[str, float]:
    """Train one recipe, or resume it; return its numbers, steps and CPU seconds."""
    out, result = folder / name, folder / f"{name}.json"
    if result.exists():
        numbers: dict[str, float] = json.loads(result.read_text())
        return numbers
    if (out / CARD).exists() and not (out / "checkpoint.safetensors").exists():
        shutil.rmtree(out)
    training = Training(
        "demo",
        folder / "train.jsonl",
        out,
        folder / "pictures",
        folder / "val.jsonl",
        RECIPES[name],
        device="cpu",
    )

    def report(line: Mapping[str, float]) -> None:
        if "bbox AP" in line or line["step"] % 50 == 0:
            print(json.dumps(line), flush=True)

    before = _cpu()
    training.run(report)
    seconds = _cpu() - before
    numbers = {**measure(out, folder), "steps": training.total, "CPU seconds": round(seconds)}
    numbers["weights"] = training.weights.count()
    result.write_text(json.dumps(numbers))
    return numbers


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Draw, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["lora"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    draw_data(args.output)
    known = args.output / "before.json"
    if not known.exists():
        known.write_text(json.dumps(measure("demo", args.output)))
    rows = {"before": json.loads(known.read_text())}
    print(json.dumps(rows["before"]), flush=True)
    for name in args.recipes:
        rows[name] = train(name, args.output)
        print(name, json.dumps(rows[name]), flush=True)
    columns = list(rows[args.recipes[-1]])
    print("| |", " | ".join(columns), "|")
    print("|---|" + "---|" * len(columns))
    for name, numbers in rows.items():
        cells = [
            f"{numbers[key]:.3f}" if "AP" in key else f"{numbers.get(key, 0):,.0f}"
            for key in columns
        ]
        print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
