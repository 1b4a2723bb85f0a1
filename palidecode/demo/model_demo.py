"""``palidecode demo``: run the bundled model on held-out scenes or on one's own picture.

``training/model/train.py`` makes the model, ``demo/model``; it knows sixteen kinds of drawn objects
in nine colours, and nothing else. ``training/scenes/demo.py`` makes the held-out scenes and their
ground truth.
"""

from __future__ import annotations

import json
import os
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.coco.writing import to_coco
from palidecode.detections import draw
from palidecode.drawing import sheet_of
from palidecode.evaluation.coco.evaluate import evaluate_coco
from palidecode.files import data_folder, open_picture, read_json, replacing
from palidecode.pipeline.checkpoint import DEMO_MODEL, locate
from palidecode.pipeline.decoder import PaliDecoder
from palidecode.prompts import write_prompt
from palidecode.wording import many

SCENES, TRUTH = "scenes", "instances.json"
_TILE = 448  # side of a picture of the sheet, in pixels
_EXAMPLES = 3  # prompts for some classes that are shown
_KNOWS_LITTLE = (
    "This model is tiny and was trained only on drawn scenes of {classes}. On photographs it "
    "guesses; for those, run: palidecode predict PICTURE --model google/paligemma2-3b-mix-448 "
    "--prompt 'detect cat'"
)


@dataclass(frozen=True)
class Example:
    """A prompt for some of the classes, and the model's answer."""

    picture: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class ModelReport:
    """Results of the model on the bundled pictures.

    Attributes
    ----------
    pictures, objects, found : int
        Numbers of pictures, of objects in the ground truth, and of predictions.
    boxes, masks : dict
        AP, AP50, AP75 in [0, 1].
    mask_iou : float
        Mean mask IoU of correct predictions.
    more : str
        Its results on many such pictures, if its folder states them.
    examples : list of Example
    seconds : float
        Time for loading, generating and decoding.
    files : list of str
    """

    pictures: int
    objects: int
    found: int
    boxes: dict[str, float]
    masks: dict[str, float]
    mask_iou: float
    more: str
    examples: list[Example]
    seconds: float
    files: list[str]

    def as_dict(self) -> dict[str, object]:
        """Convert to JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        lines = [
            f"{many(self.pictures, 'unseen picture')} with {many(self.objects, 'object')}: "
            f"{many(self.found, 'prediction')}, right and wrong, in {self.seconds:.1f} s",
            "",
            "        " + "".join(f"{name:>7}" for name in self.boxes),
        ]
        for name, values in (("boxes", self.boxes), ("masks", self.masks)):
            lines.append(f"{name:<8}" + "".join(f"{value:7.3f}" for value in values.values()))
        lines += [f"mean mask IoU of correct predictions: {self.mask_iou:.3f}"]
        lines += [self.more, ""] if self.more else [""]
        for example in self.examples:
            lines.append(f"{example.picture}: {example.prompt}")
            lines.append(f"  → {example.answer or '(nothing)'}")
        lines.append("")
        lines.extend(f"written: {name}" for name in self.files)
        return lines


@dataclass(frozen=True)
class PictureReport:
    """The model's answer about one's own picture.

    Attributes
    ----------
    prompt, answer : str
    objects : list of dict
        ``label``, ``box`` (x1, y1, x2, y2 in pixels), ``score``.
    knows : str
        Advice on the objects that the model knows.
    files : list of str
    """

    prompt: str
    answer: str
    objects: list[dict[str, Any]]
    knows: str
    files: list[str]

    def as_dict(self) -> dict[str, object]:
        """Convert to JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as lines of text."""
        lines = [self.prompt, f"  → {self.answer or '(nothing)'}", ""]
        for item in self.objects:
            box = ", ".join(f"{value:.0f}" for value in item["box"])
            lines.append(f"{item['label']:<14} {item['score']:.2f}  {box}")
        lines += [""] if self.objects else []
        lines += [f"written: {name}" for name in self.files]
        return [*lines, "", *textwrap.wrap(self.knows, 96, break_on_hyphens=False)]


def run(output: Path, model: str | os.PathLike[str] = DEMO_MODEL) -> ModelReport:
    """Segment the bundled pictures; write overlays, ``coco.json`` and ``metrics.json`` to `output`.

    The model is the bundled one, or a folder of ``training/model/report.py``.
    """
    began = time.perf_counter()
    decoder = _load(model)
    folder = data_folder("palidecode.demo") / SCENES
    truth = read_json(folder / TRUTH)
    names = [str(image["file_name"]) for image in truth["images"]]
    pictures = [open_picture(folder / name) for name in names]
    classes = list(decoder.classes)
    prompt = write_prompt("segment", classes)
    detections = decoder.segment(pictures, prompt, batch_size=len(pictures))
    dataset = to_coco(detections, categories=classes, segmentation="rle", file_names=names)
    boxes = evaluate_coco(truth, dataset, "bbox")
    masks = evaluate_coco(truth, dataset, "segm")
    ious = [row["iou"] for row in masks.match_rows if row["kind"] == "ok"]
    examples = _ask_for_some(decoder, pictures, truth)
    seconds = time.perf_counter() - began
    files = [output / "sheet.png", output / "overlays", output / "coco.json"]
    files.append(output / "metrics.json")
    overlays = [draw(_large(image), detections, index=n) for n, image in enumerate(pictures)]
    for name, overlay in zip(names, overlays, strict=True):
        _save(overlay, files[1] / Path(name).with_suffix(".png"))
    _save(sheet_of(overlays, _TILE), files[0])
    report = ModelReport(
        pictures=len(pictures),
        objects=len(truth["annotations"]),
        found=len(detections),
        boxes=_three(boxes.stats),
        masks=_three(masks.stats),
        mask_iou=round(float(np.mean(ious)), 4) if ious else 0.0,
        more=_held_out(model),
        examples=examples,
        seconds=round(seconds, 2),
        files=[str(path) for path in files],
    )
    with replacing(files[2]) as file:
        json.dump(dataset, file, ensure_ascii=False)
    with replacing(files[3]) as file:
        json.dump(report.as_dict(), file, indent=1)
    return report


def run_on(
    picture: Path, prompt: str | None, output: Path, model: str | os.PathLike[str] = DEMO_MODEL
) -> PictureReport:
    """Ask the model about one's own picture and write an overlay to the folder `output`.

    Without a prompt, it asks for all classes that the model knows, with masks.
    """
    image = open_picture(picture)
    decoder = _load(model)
    asked = prompt or write_prompt("segment", decoder.classes)
    answer = decoder.generate(image, asked, grammar=True, over="allowed")[0]
    detections = decoder.read([answer])
    target = output / f"{picture.stem}.png"
    _save(draw(_large(image), detections), target)
    objects = [
        {"label": label, "box": [round(v, 1) for v in box], "score": round(score, 4)}
        for label, box, score in zip(
            detections.labels,
            detections.xyxy.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]
    knows = _KNOWS_LITTLE.format(classes=", ".join(decoder.classes))
    return PictureReport(answer.prompt, answer.text, objects, knows, [str(target)])


def _load(model: str | os.PathLike[str]) -> PaliDecoder:
    return PaliDecoder.from_pretrained(model, "float32", "cpu")


def _held_out(model: str | os.PathLike[str]) -> str:
    manifest = locate(model)[0] / "manifest.json"
    figures = read_json(manifest).get("held_out") if manifest.exists() else None
    if not figures:
        return ""
    boxes, masks = (
        ", ".join(f"{name} {figures[kind][name]:.3f}" for name in ("AP", "AP50"))
        for kind in ("boxes", "masks")
    )
    return f"on {figures['pictures']} others: boxes {boxes}; masks {masks}"


def _three(stats: npt.NDArray[np.float64]) -> dict[str, float]:
    return {name: round(float(stats[n]), 4) for n, name in enumerate(("AP", "AP50", "AP75"))}


def _ask_for_some(
    decoder: PaliDecoder, pictures: list[Image.Image], truth: dict[str, Any]
) -> list[Example]:
    """Ask about a class that is in the picture and one that isn't, for some pictures."""
    names = {item["id"]: item["name"] for item in truth["categories"]}
    examples: list[Example] = []
    for image, picture in zip(truth["images"], pictures, strict=True):
        inside = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        here = {names[a["category_id"]] for a in inside}
        if len(here) > 1 and len(examples) < _EXAMPLES:
            first = names[inside[0]["category_id"]]
            absent = next(name for name in names.values() if name not in here)
            prompt = write_prompt("detect", [absent, first])
            answer = decoder.generate(picture, prompt, grammar=True, over="allowed")[0]
            examples.append(Example(str(image["file_name"]), prompt, answer.text))
    return examples


def _large(image: Image.Image) -> Image.Image:
    """Enlarge small pictures, so that lines and labels are thin on them."""
    scale = max(1, round(2 * _TILE / max(image.size)))
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.BICUBIC) if scale > 1 else image


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path, "wb") as file:
        image.save(file, "PNG", compress_level=1)  # the usual 6 takes a third of the demo
