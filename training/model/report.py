"""Measure the tiny model: ``python -m training.model.report --model DIR``.

``--export RUN`` first writes the averaged weights of a training run to ``--model`` as a Hugging
Face folder (half precision) with a manifest. Figures are those of the whole chain: pictures on
disk, `PaliDecoder`, `evaluate_coco`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from palidecode.answers.scoring import DEFAULT_SCORE, RECIPES
from palidecode.coco.writing import to_coco
from palidecode.codec.weights import DEMO_ID
from palidecode.detections import Detections
from palidecode.evaluation.coco.engine import IouType
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.evaluation.coco.result import CocoEvaluation
from palidecode.pipeline.decoder import DEFAULT_TOKENS, Generated, PaliDecoder
from palidecode.runs.sources import find_pictures
from palidecode.runtime.config import config_to_hf
from palidecode.runtime.exported import FOLDER, GRAPHS_VERSION, MANIFEST
from palidecode.runtime.onnx_graphs import build_graphs
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.torch_weights import state_to_hf
from training.model.batches import CONFIG
from training.model.tokenizer import build
from training.scenes.draw import COLOR_NAMES, HELD_OUT_SEED, write_scenes
from training.scenes.shapes import CLASSES

PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": None,
    "size": {"height": CONFIG.vision.image_size, "width": CONFIG.vision.image_size},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def export(run: Path, folder: Path) -> None:
    """Write the averaged weights of a run as a folder that `from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with safe_open(run / "average.safetensors", "pt") as file:
        average = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    model = PaliGemma(CONFIG)
    model.load_state_dict(average)
    halves = {k: v.half() for k, v in state_to_hf(model).items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # save_file's is 600
    build().save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "config.json", config_to_hf(CONFIG) | {"torch_dtype": "float16"})
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    write_json(folder / "palidecode.json", {"codes": DEMO_ID, "classes": list(CLASSES)})
    graphs = folder / FOLDER
    graphs.mkdir(exist_ok=True)
    for name, graph in build_graphs(CONFIG, "float32").items():
        (graphs / f"{name}.onnx").write_bytes(graph)
    write_json(graphs / MANIFEST, {"precision": "float32", "graphs": GRAPHS_VERSION})
    # A resumed run logs some steps twice: the later lines count.
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    log = {line["step"]: line for line in lines if "unseen" in line}
    steps = sorted(log)
    write_json(folder / "curve.json", [log[n] for n in steps[:: max(1, len(steps) // 20)]])
    weights = (folder / "model.safetensors").read_bytes()
    write_json(
        folder / "manifest.json",
        {
            "what": "a tiny PaliGemma, trained from scratch on drawn scenes; it knows nothing else",
            "license": "Apache-2.0",
            "made_by": "python -m training.model.train, python -m training.model.report --export",
            "silhouettes": "12 glyphs of Font Awesome Free 6.4.0 (SIL OFL 1.1, "
            "training/scenes/OFL.txt); circle, square, triangle and cross are our own",
            "parameters": CONFIG.parameters(),
            "steps": int(about["steps"]),
            "seconds": int(about["seconds"]),
            "sha256": hashlib.sha256(weights).hexdigest(),
        },
    )


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, one value a line."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def answers_of(
    decoder: PaliDecoder, folder: Path, task: str, grammar: bool = True
) -> tuple[list[Generated], list[str]]:
    """Ask for all classes in every picture of a folder; return answers and file names."""
    pictures = find_pictures([folder])
    prompt = f"{task} {' ; '.join(CLASSES)}"
    answers = decoder.generate(
        [item.path for item in pictures],
        prompt,
        DEFAULT_TOKENS,
        grammar,
        batch_size=32,
        over="allowed" if grammar else "vocabulary",
        loc_probabilities=True,
    )
    return answers, [item.name for item in pictures]


def evaluated(
    detections: Detections, names: list[str], truth: Path, iou_type: IouType = "bbox"
) -> CocoEvaluation:
    """Evaluate detections with `evaluate_coco`."""
    dataset = to_coco(detections, categories=list(CLASSES), segmentation="rle", file_names=names)
    return evaluate_coco(truth, dataset, iou_type)


def figures(decoder: PaliDecoder, folder: Path) -> dict[str, Any]:
    """Compute all numbers in the README, the manifest and the docs."""
    truth = folder / "instances.json"
    began = time.perf_counter()
    segmented, names = answers_of(decoder, folder, "segment")
    detected, _ = answers_of(decoder, folder, "detect")
    seconds = time.perf_counter() - began
    boxes = evaluated(decoder.read(detected), names, truth)
    masks = evaluated(decoder.read(segmented), names, truth, "segm")
    ious = [row["iou"] for row in masks.match_rows if row["kind"] == "ok"]
    recipes = {
        name: evaluated(decoder.read(detected, score=name), names, truth) for name in RECIPES
    }
    by_mask = {row["category"]: row["AP"] for row in masks.rows()}
    return {
        "pictures": len(names),
        "seconds": round(seconds, 1),
        "boxes": summary(boxes),
        "masks": summary(masks) | {"mean_iou_of_matched": round(float(np.mean(ious)), 4)},
        "sub_bin": summary(evaluated(decoder.read(detected, sub_bin=True), names, truth)),
        "divisor_1023": summary(evaluated(decoder.read(detected, divisor=1023), names, truth)),
        "recipes": {name: round(float(result.stats[0]), 4) for name, result in recipes.items()},
        "default_recipe": DEFAULT_SCORE,
        "colors": colors_heeded(decoder, folder),
        "per_class": {
            row["category"]: {
                "boxes": round(row["AP"], 4),
                "masks": round(by_mask[row["category"]], 4),
            }
            for row in boxes.rows()
        },
    }


def colors_heeded(decoder: PaliDecoder, folder: Path) -> dict[str, float]:
    """Check that `detect red star` detects red stars, and `detect blue star` then nothing.

    Asks twice about the class of each picture's first object: in that object's colour, and in a
    colour that no object of the class has there. A model that ignores colours detects something
    both times.
    """
    dataset = json.loads((folder / "instances.json").read_text())
    names = {item["id"]: item["name"] for item in dataset["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for item in dataset["annotations"]:
        by_image.setdefault(item["image_id"], []).append(item)
    pictures, prompts = [], []
    for image in dataset["images"]:
        objects = by_image.get(image["id"], [])
        if not objects:
            continue
        first = objects[0]
        label = names[first["category_id"]]
        seen = {o["color"] for o in objects if o["category_id"] == first["category_id"]}
        others = [color for color in COLOR_NAMES if color not in seen]
        for color in (first["color"], others[image["id"] % len(others)]):
            pictures.append(folder / image["file_name"])
            prompts.append(f"detect {color} {label}")
    answers = decoder.generate(pictures, prompts, DEFAULT_TOKENS, grammar=True, batch_size=32)
    detected = [len(decoder.read([answer])) > 0 for answer in answers]
    return {
        "asked": len(detected) // 2,
        "found_in_its_color": round(float(np.mean(detected[::2])), 4),
        "silent_in_another": round(1 - float(np.mean(detected[1::2])), 4),
    }


def summary(result: CocoEvaluation) -> dict[str, float]:
    """AP, AP50 and AP75, rounded."""
    return {name: round(float(result.stats[n]), 4) for n, name in enumerate(("AP", "AP50", "AP75"))}


def main() -> None:
    """Export, measure, print."""
    parser = argparse.ArgumentParser(description="Measure the tiny model.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--export", type=Path, metavar="RUN")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--manifest", action="store_true", help="add the figures to the manifest")
    args = parser.parse_args()
    if args.export is not None:
        export(args.export, args.model)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), args.seed, args.count, 224)
        decoder = PaliDecoder.from_pretrained(args.model, args.dtype, "cpu", args.quantize)
        held_out = figures(decoder, Path(folder))
    print(json.dumps(held_out, indent=1))
    if args.manifest:
        path = args.model / "manifest.json"
        write_json(path, json.loads(path.read_text()) | {"held_out": held_out})


if __name__ == "__main__":
    main()
