"""Duration of COCO evaluation: ``python benchmarks/evaluation.py``

Measures from two files to the numbers, JSON parsing included. Every contender runs in its own
process; imports aren't timed. ``--python PATH`` (or ``PALIDECODE_PEERS``) runs the peers in
another interpreter: faster-coco-eval, and torchmetrics, which needs torch and torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import Cell, Table, Target, at_least, at_most, report
from pycocotools import mask as coco_mask

SEED = 3
WIDTH, HEIGHT = 640, 480
CLASSES = 80
SCENES = {"bbox": (5_000, 36_000, 180_000), "segm": (1_000, 7_200, 20_000)}
"""Images, objects and predictions."""

ROUNDS = {"hotcoco": 5, "ours": 5, "faster_coco_eval": 3, "pycocotools": 1, "torchmetrics": 1}
NAMES = {
    "pycocotools": "pycocotools",
    "faster_coco_eval": "faster-coco-eval",
    "torchmetrics": "torchmetrics",
    "hotcoco": "hotcoco",
    "ours": "**ours**: `evaluate_coco`",
}

PRELUDE = """
import contextlib, io, json, pathlib, resource, sys, time
truth, results, kind = sys.argv[1:]
"""
FINISH = """
seconds = time.perf_counter() - start
status = pathlib.Path("/proc/self/status")
if status.exists():  # ru_maxrss of a child starts at its parent's
    peak = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps([seconds, peak, float(ap)]))
"""
PYCOCOTOOLS = """
with contextlib.redirect_stdout(io.StringIO()):
    start = time.perf_counter()
    gt = COCO(truth)
    evaluation = Eval(gt, gt.loadRes(results), kind)
    evaluation.evaluate(); evaluation.accumulate(); evaluation.summarize()
ap = evaluation.stats[0]
"""
CODE = {
    "pycocotools": "from pycocotools.coco import COCO\n"
    "from pycocotools.cocoeval import COCOeval as Eval" + PYCOCOTOOLS,
    "faster_coco_eval": "from faster_coco_eval import COCO, COCOeval_faster as Eval" + PYCOCOTOOLS,
    "hotcoco": "from hotcoco import COCO, COCOeval as Eval" + PYCOCOTOOLS,
    "torchmetrics": """
import torch
try:
    import torchvision
except RuntimeError:  # built for another torch; of it only box_convert is needed, which is Python
    for name in ("nms", "qnms"):
        torch.library.define("torchvision::" + name, "(Tensor a, Tensor b, float c) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
import numpy as np
from pycocotools.coco import COCO
from torchmetrics.detection import MeanAveragePrecision

def rows(coco, image, names):
    annotations = coco.imgToAnns[image["id"]]
    row = {"labels": torch.tensor([each["category_id"] for each in annotations], dtype=torch.int64)}
    for name, key, dtype in names:
        row[name] = torch.tensor([each[key] for each in annotations], dtype=dtype)
    if kind == "bbox":
        row["boxes"] = torch.tensor([each["bbox"] for each in annotations]).reshape(-1, 4)
    else:
        size = image["height"], image["width"]
        masks = [coco.annToMask(each) for each in annotations]
        row["masks"] = torch.from_numpy(np.array(masks, bool).reshape(-1, *size))
    return row

start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    gt = COCO(truth)
    dt = gt.loadRes(results)
    metric = MeanAveragePrecision(box_format="xywh", iou_type=kind, backend="pycocotools")
    for image in gt.dataset["images"]:  # one by one: all masks at once would be gigabytes
        predicted = rows(dt, image, [("scores", "score", torch.float64)])
        true = [("iscrowd", "iscrowd", torch.int64), ("area", "area", torch.float64)]
        metric.update([predicted], [rows(gt, image, true)])
    ap = metric.compute()["map"]
""",
    "ours": """
import palidecode, hotcoco, msgspec, palidecode.evaluation.coco
start = time.perf_counter()
ap = palidecode.evaluate_coco(truth, results, kind).stats[0]
""",
}


def scene(folder: Path, kind: str) -> tuple[Path, Path]:
    """Write a ground truth, and predictions that are moved copies of its objects."""
    images, objects, predictions = SCENES[kind]
    rng = np.random.default_rng(SEED)
    sides = np.exp(rng.uniform(np.log(10), np.log(240), (objects, 2)))
    corners = rng.uniform(0, 1, (objects, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    boxes = np.concatenate([corners, sides], axis=1).round(2)
    image, category = rng.integers(1, images + 1, objects), rng.integers(1, CLASSES + 1, objects)
    source = rng.integers(0, objects, predictions)
    moved = boxes[source] + rng.normal(0, 0.1, (predictions, 4)) * np.tile(sides[source], 2)
    moved[:, 2:] = np.maximum(moved[:, 2:], 2)
    other = rng.random(predictions) < 0.2
    predicted = np.where(other, rng.integers(1, CLASSES + 1, predictions), category[source])
    truth = {
        "info": {},
        "images": [
            {"id": n, "file_name": f"{n:06}.jpg", "width": WIDTH, "height": HEIGHT}
            for n in range(1, images + 1)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(image[row]),
                "category_id": int(category[row]),
                "bbox": boxes[row].tolist(),
                "area": float((sides[row, 0] * sides[row, 1]).round(2)),
                "iscrowd": 0,
                "segmentation": [octagon(boxes[row])] if kind == "segm" else [],
            }
            for row in range(objects)
        ],
    }
    results = []
    for row, score in enumerate(rng.random(predictions).round(5).tolist()):
        result = {"image_id": int(image[source[row]]), "category_id": int(predicted[row])}
        if kind == "segm":
            rle = coco_mask.frPyObjects([octagon(moved[row])], HEIGHT, WIDTH)[0]
            result["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        else:
            result["bbox"] = moved[row].round(2).tolist()
        results.append({**result, "score": score})
    paths = folder / f"{kind}_truth.json", folder / f"{kind}_results.json"
    for path, data in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(data))
    return paths


def octagon(box: np.ndarray) -> list[float]:
    """Make a ring in a box, inside the picture."""
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ring = box[:2] + box[2:] / 2 * (1 + circle)
    return [float(v) for v in np.clip(ring, 0, [WIDTH, HEIGHT]).round(2).ravel()]


def measured(name: str, files: tuple[Path, Path], kind: str, python: str) -> list[float] | None:
    """Measure seconds, peak MB and AP of one process; None if the peer isn't installed."""
    command = [sys.executable if name in ("ours", "hotcoco") else python, "-c"]
    command += [PRELUDE + CODE[name] + FINISH, *map(str, files), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    numbers: list[float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def versions(python: str) -> str:
    """List the installed peers with their versions."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    installed = []
    for package in (NAMES[name] for name in CODE if name not in ("ours", "hotcoco")):
        command = [python, "-c", code, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        installed += [] if done.returncode else [f"{package} {done.stdout.strip()}"]
    return ", ".join(installed) + "."


def contest(kind: str, names: list[str], python: str) -> tuple[Table, list[Target]]:
    """Measure all contenders on one scene, in turns."""
    runs: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        files = scene(Path(folder), kind)
        for turn in range(max(ROUNDS.values())):
            for name in names:
                if turn < ROUNDS[name] and (numbers := measured(name, files, kind, python)):
                    runs[name].append(numbers)
    medians = {
        name: [statistics.median(column) for column in zip(*turns, strict=True)]
        for name, turns in runs.items()
        if turns
    }
    ours, engine = medians["ours"], medians["hotcoco"]
    rows: list[list[Cell]] = []
    for name in names:
        if name in medians:
            seconds, peak, ap = medians[name]
            rows.append([NAMES[name], seconds, peak, seconds / ours[0], f"{ap:.6f}"])
        else:
            rows.append([NAMES[name], "not installed", None, None, None])
    images, objects, predictions = SCENES[kind]
    what = "boxes" if kind == "bbox" else "masks"
    title = f"{what}: {images:,} images, {objects:,} objects, {predictions:,} predictions"
    targets = [
        at_most(f"{what}: seconds ÷ hotcoco's own", ours[0] / engine[0], 2, "×"),
        at_most(f"{what}: peak memory ÷ hotcoco's own", ours[1] / engine[1], 2, "×"),
    ]
    if "pycocotools" in medians:
        slow, _, ap = medians["pycocotools"]
        if kind == "bbox":
            ratio = at_least("boxes: pycocotools' seconds ÷ ours", slow / ours[0], 40, "×")
            targets.append(ratio)
        same = abs(ap - ours[2]) < 1e-6
        targets.append(Target(f"{what}: AP is pycocotools'", "within 1e-6", f"{ours[2]:.6f}", same))
    columns = ("contender", "seconds", "peak MB", "÷ ours", "AP")
    note = f"Ours checks every row of both files; the others trust them. {versions(python)}"
    if "torchmetrics" in medians:
        note += " torchmetrics gets one picture at a time; its reader holds all masks at once."
    return Table(title, columns, rows, note), targets


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help=", ".join(CODE))
    parser.add_argument(
        "--python", default=os.environ.get("PALIDECODE_PEERS", sys.executable), metavar="PATH"
    )
    options = parser.parse_args()
    names = [name for name in NAMES if name in {*(options.names or CODE), "hotcoco", "ours"}]
    parts = [contest(kind, names, options.python) for kind in SCENES]
    report(
        "evaluation", [table for table, _ in parts], [t for _, targets in parts for t in targets]
    )


if __name__ == "__main__":
    main()
