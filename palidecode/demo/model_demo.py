"""``palidecode demo --model DIR``: a model of the scenes on scenes it has never seen.

The pictures and their truth are held-out scenes, made by ``training/demo_scenes.py``; such a
model is made by ``training/model.py``. It knows sixteen kinds of drawn objects in nine colours.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from palidecode.coco import to_coco
from palidecode.drawing import draw
from palidecode.evaluation.coco import evaluate_coco
from palidecode.files import open_picture, read_json, replacing
from palidecode.pipeline import PaliDecoder

SCENES, TRUTH = "scenes", "instances.json"
_COLUMNS, _TILE, _GAP = 4, 448, 12  # of the sheet, in pixels
_ASKED_BY_COLOR = 3  # prompts with a colour that are shown


@dataclass(frozen=True)
class Example:
    """A prompt with a colour, and the model's answer."""

    picture: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class ModelReport:
    """What the model found on the bundled pictures.

    Attributes
    ----------
    pictures, objects, found : int
        Pictures, objects in their truth, objects found.
    boxes, masks : dict
        AP, AP50, AP75 in [0, 1].
    mask_iou : float
        Mean mask IoU of the objects that were found.
    examples : list of Example
    seconds : float
        Loading, answering and decoding.
    files : list of str
    """

    pictures: int
    objects: int
    found: int
    boxes: dict[str, float]
    masks: dict[str, float]
    mask_iou: float
    examples: list[Example]
    seconds: float
    files: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def table(self) -> str:
        """The printed report."""
        lines = [
            f"{self.pictures} pictures it has never seen, {self.objects} objects, "
            f"{self.found} answers, {self.seconds:.1f} s",
            "",
            "        " + "".join(f"{name:>7}" for name in self.boxes),
        ]
        for name, values in (("boxes", self.boxes), ("masks", self.masks)):
            lines.append(f"{name:<8}" + "".join(f"{value:7.3f}" for value in values.values()))
        lines += [f"mean mask IoU of what it found: {self.mask_iou:.3f}", ""]
        for example in self.examples:
            lines.append(f"{example.picture}: {example.prompt}")
            lines.append(f"  → {example.answer or '(nothing)'}")
        lines.append("")
        lines.extend(f"written: {name}" for name in self.files)
        return "\n".join(lines)


def run(model: Path, output: Path) -> ModelReport:
    """Segment the bundled pictures and write overlays, ``coco.json`` and ``metrics.json``.

    Parameters
    ----------
    model : Path
        A folder of ``training/model_report.py``.
    output : Path
        The folder to write to.

    Raises
    ------
    InputError
        If torch isn't installed, or the folder can't be written.
    """
    began = time.perf_counter()
    decoder = PaliDecoder.from_pretrained(model, "float32", "cpu")
    with resources.as_file(resources.files("palidecode.demo") / SCENES) as folder:
        truth = read_json(folder / TRUTH)
        names = [str(image["file_name"]) for image in truth["images"]]
        pictures = [open_picture(folder / name) for name in names]
    found = decoder.segment(pictures, " ; ".join(decoder.classes), batch_size=len(pictures))
    dataset = to_coco(found, categories=list(decoder.classes), segmentation="rle", file_names=names)
    boxes = evaluate_coco(truth, dataset, "bbox")
    masks = evaluate_coco(truth, dataset, "segm")
    ious = [row["iou"] for row in masks.match_rows if row["kind"] == "ok"]
    examples = _ask_by_color(decoder, pictures, truth)
    seconds = time.perf_counter() - began
    files = [output / "sheet.png", output / "overlays", output / "coco.json"]
    files.append(output / "metrics.json")
    overlays = [draw(_large(image), found, index=n) for n, image in enumerate(pictures)]
    for name, overlay in zip(names, overlays, strict=True):
        _save(overlay, files[1] / Path(name).with_suffix(".png"))
    _save(_sheet(overlays), files[0])
    report = ModelReport(
        pictures=len(pictures),
        objects=len(truth["annotations"]),
        found=len(found),
        boxes=_three(boxes.stats),
        masks=_three(masks.stats),
        mask_iou=round(float(np.mean(ious)), 4) if ious else 0.0,
        examples=examples,
        seconds=round(seconds, 2),
        files=[str(path) for path in files],
    )
    with replacing(files[2]) as file:
        json.dump(dataset, file, ensure_ascii=False)
    with replacing(files[3]) as file:
        json.dump(report.as_dict(), file, indent=1)
    return report


def _three(stats: Any) -> dict[str, float]:
    return {name: round(float(stats[n]), 4) for n, name in enumerate(("AP", "AP50", "AP75"))}


def _ask_by_color(
    decoder: PaliDecoder, pictures: list[Image.Image], truth: dict[str, Any]
) -> list[Example]:
    """Some pictures with several objects, asked for the first of them by its colour."""
    names = {item["id"]: item["name"] for item in truth["categories"]}
    examples: list[Example] = []
    for image, picture in zip(truth["images"], pictures, strict=True):
        inside = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        if len(inside) < 2 or len(examples) == _ASKED_BY_COLOR:
            continue
        first, other = inside[0], inside[1]
        prompt = f"detect {first['color']} {names[first['category_id']]}"
        if other["category_id"] != first["category_id"]:
            prompt += f" ; {names[other['category_id']]}"
        answer = decoder.generate(picture, prompt, grammar=True, over="allowed")[0]
        examples.append(Example(str(image["file_name"]), prompt, answer.text))
    return examples


def _large(image: Image.Image) -> Image.Image:
    """Small pictures are enlarged, so that lines and labels are fine."""
    scale = max(1, round(2 * _TILE / max(image.size)))
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.BICUBIC) if scale > 1 else image


def _sheet(overlays: list[Image.Image]) -> Image.Image:
    rows = -(-len(overlays) // _COLUMNS)
    step = _TILE + _GAP
    sheet = Image.new("RGB", (_COLUMNS * step + _GAP, rows * step + _GAP), "white")
    for place, overlay in enumerate(overlays):
        tile = overlay.resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        row, column = divmod(place, _COLUMNS)
        sheet.paste(tile, (_GAP + column * step, _GAP + row * step))
    return sheet


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path, "wb") as file:
        image.save(file, "PNG")
