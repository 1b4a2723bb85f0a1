"""``palidecode demo --answers``: decode, draw and check bundled answers about a bundled picture.

``training/scenes/harbour.py`` makes the picture, its ground truth and the answers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from palidecode.answers.rows import AnswerRow, read_rows
from palidecode.coco.detections import from_coco
from palidecode.coco.writing import to_coco
from palidecode.codec import load_codec
from palidecode.codec.weights import DEMO_ID
from palidecode.detections import Detections, draw
from palidecode.files import data_folder, replacing
from palidecode.geometry.boxes import box_iou
from palidecode.runs.answers import AnswerDecoder, by_picture, decode_rows

PICTURE, TRUTH, ANSWERS = "harbour.png", "truth.json", "answers.jsonl"


@dataclass(frozen=True)
class DemoRow:
    """One object of the demo.

    Attributes
    ----------
    label : str
    box : list of float
        x1, y1, x2, y2 in pixels.
    mask_pixels : int or None
        None if the answer has no mask.
    box_iou, mask_iou : float
        With the ground truth, in [0, 1]; `mask_iou` is NaN without a mask.
    """

    label: str
    box: list[float]
    mask_pixels: int | None
    box_iou: float
    mask_iou: float


@dataclass(frozen=True)
class DemoReport:
    """Objects and parse issues of the demo, and the files written."""

    rows: list[DemoRow]
    issues: list[str]
    files: list[str]

    def as_dict(self) -> dict[str, object]:
        """Convert to JSON values; NaN becomes None."""
        data = asdict(self)
        for row in data["rows"]:
            if np.isnan(row["mask_iou"]):
                row["mask_iou"] = None
        return data

    def lines(self) -> list[str]:
        """The report as lines of text."""
        wide = max(len(row.label) for row in self.rows)
        lines = [f"{'object':<{wide}}  {'x1, y1, x2, y2':<23} {'mask px':>8}  box IoU  mask IoU"]
        for row in self.rows:
            box = ", ".join(f"{value:.0f}" for value in row.box)
            pixels = "–" if row.mask_pixels is None else f"{row.mask_pixels:,}"
            iou = "–" if np.isnan(row.mask_iou) else f"{row.mask_iou:.3f}"
            lines.append(
                f"{row.label:<{wide}}  {box:<23} {pixels:>8}  {row.box_iou:7.3f}  {iou:>8}"
            )
        lines.append("")
        lines.extend(f"parse issue: {issue}" for issue in self.issues)
        lines.extend(f"written: {name}" for name in self.files)
        return lines


def run(output: Path) -> DemoReport:
    """Decode the bundled answers; write ``coco.json`` and ``overlay.png`` to a folder."""
    folder = data_folder("palidecode.demo")
    codec = load_codec(DEMO_ID)
    rows = read_rows(folder / ANSWERS, folder)
    ((answers, decoded, _),) = decode_rows(rows, AnswerDecoder(codec))
    detections, names = by_picture(answers, decoded)
    truth = from_coco(folder / TRUTH)
    picture = draw(folder / PICTURE, detections)
    dataset = to_coco(detections, file_names=names)
    files = [output / "coco.json", output / "overlay.png"]
    with replacing(files[0]) as file:
        json.dump(dataset, file, ensure_ascii=False)
    with replacing(files[1], "wb") as file:
        picture.save(file, "PNG")
    issues = [
        f"{issue.kind.value} {issue.text!r}" + _prompt_of(answers, answer)
        for answer, issue in decoded.issues
    ]
    return DemoReport(_compare(detections, truth), issues, [str(path) for path in files])


def _prompt_of(rows: list[AnswerRow], answer: int) -> str:
    return f" in the answer to {rows[answer].prompt!r}"


def _compare(detections: Detections, truth: Detections) -> list[DemoRow]:
    """Match each object to the ground truth of its label with the best box IoU."""
    rles, true_rles = detections.to_rle(), truth.to_rle()
    same = np.array([[a == b for b in truth.labels] for a in detections.labels])
    fit = np.where(same, box_iou(detections.xyxy, truth.xyxy), -1.0)
    rows = []
    for row, match in enumerate(fit.argmax(axis=1).tolist()):
        rle = rles[row]
        pixels = None if rle is None else int(coco_mask.area(rle))
        mask_iou = float("nan")
        if rle is not None:
            mask_iou = float(coco_mask.iou([rle], [true_rles[match]], [0])[0, 0])
        box = [float(value) for value in detections.xyxy[row]]
        rows.append(DemoRow(detections.labels[row], box, pixels, float(fit[row, match]), mask_iou))
    return rows
