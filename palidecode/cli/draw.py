"""``palidecode draw``: draw boxes, masks and labels on pictures."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from palidecode.answers.rows import AnswerRow, holds_rows, one_size
from palidecode.cli.options import fill
from palidecode.cli.output import DONE, SKIPPED, Output
from palidecode.coco.detections import from_coco
from palidecode.coco.skips import needs_a_look
from palidecode.coco.writing import CocoReport
from palidecode.detections import ColorBy, Detections, draw
from palidecode.errors import InputError
from palidecode.files import disk_is_full, inside, open_picture, png_names, replacing
from palidecode.geometry.masks import Paste
from palidecode.runs.answers import AnswerDecoder, DecodeJob, DecodeOptions, by_picture, decode_rows
from palidecode.wording import many

_PICTURES = (".png", ".jpg", ".jpeg")
_Problem: TypeAlias = tuple[int, str]


@dataclass(frozen=True)
class _Style:
    """Options of the drawing."""

    alpha: float
    font: Path | None
    paste: Paste
    line_width: int | None
    color_by: ColorBy
    labels: bool

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"--alpha must be between 0 and 1, got {self.alpha}")
        if self.line_width is not None and self.line_width < 1:
            raise InputError(f"--line-width must be at least 1, got {self.line_width}")


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode draw``."""
    output, style = fill(Output, args), fill(_Style, args, labels=not args.no_labels)
    if args.text is not None:
        options = fill(DecodeOptions, args)
        return _draw_text(args.text, args.source, args.output, args.crops, options, style, output)
    if args.images is None:
        raise InputError("name the directory of the pictures: --images DIR")
    _check_crops(args.crops, args.output, Path(args.images))
    problems: list[_Problem] = []
    lines: list[int] = []
    report = CocoReport()
    if args.source.suffix == ".json" and not holds_rows(args.source):
        detections = from_coco(args.source, report=report)
        names = detections.names
    else:
        detections, names, lines, problems = _from_answers(args.source, fill(DecodeOptions, args))
    pictures = Path(args.images)
    failed = _draw_all(detections, names, pictures, args.output, args.crops, style, output)
    written = len(names) - len(failed)
    if lines:  # of the first answer about each picture
        problems = sorted([*problems, *((lines[number - 1], reason) for number, reason in failed)])
        failed = []
    data = {
        "output": str(args.output),
        "written": written,
        "problems": [
            *({"line": number, "reason": reason} for number, reason in problems),
            *({"picture": number, "reason": reason} for number, reason in failed),
        ],
        **({"skipped": [s.as_dict() for s in report.skipped]} if report.skipped else {}),
    }
    output.result(data, [f"{many(written, 'picture')} in {args.output}"])
    output.problems(problems)
    output.problems(failed, "picture")
    if report.crowds:
        output.note(f"not drawn: {many(report.crowds, 'crowd')} (iscrowd)")
    look = problems or failed or needs_a_look(report.skipped, report.noted)
    return SKIPPED if look else DONE


def _from_answers(
    path: Path, options: DecodeOptions
) -> tuple[Detections, list[str], list[int], list[_Problem]]:
    """Decode answers; return their objects, the pictures' names and lines, and what was skipped."""
    rows = list(one_size(DecodeJob(options).items(path)))
    if not rows:
        raise InputError(f"{path}: no answers in this file")
    ((answers, decoded, skipped),) = decode_rows(rows, AnswerDecoder.load(options), len(rows))
    detections, names = by_picture(answers, decoded)
    lines = {row.name: row.line for row in reversed(answers)}
    problems = [(problem.line, problem.reason) for problem in skipped]
    return detections, names, [lines[name] for name in names], problems


def _draw_all(
    detections: Detections,
    names: list[str],
    pictures: Path,
    target: Path,
    crops: Path | None,
    style: _Style,
    output: Output,
) -> list[_Problem]:
    """Draw on a copy of each picture; return the pictures that failed."""
    failed = []
    drawn = png_names(names)
    with output.progress("drawing", len(names), "pictures") as bar:
        for index, name in enumerate(names):
            bar.update(1)
            try:
                picture, copy = inside(pictures, name), inside(target, drawn[name])
                opened = open_picture(picture)
                image = draw(opened, detections, index=index, **asdict(style))
                if copy == picture:
                    raise InputError(f"{picture} would be drawn over; choose another -o DIR")
                with replacing(copy, "wb") as file:
                    image.save(file, "PNG")
                if crops is not None:
                    _write_crops(opened, detections.image(index), crops, drawn[name])
            except InputError as error:
                if disk_is_full(error):
                    raise
                failed.append((index + 1, str(error)))
    return failed


def _check_crops(crops: Path | None, target: Path, pictures: Path) -> None:
    """Refuse a directory of crops where they could replace a picture, drawn or not."""
    if crops is None:
        return
    if crops.resolve() == target.resolve() or crops.resolve().is_relative_to(pictures.resolve()):
        raise InputError(f"{crops}: --crops needs a directory of its own")


def _write_crops(picture: Image.Image, part: Detections, folder: Path, name: str) -> None:
    """Write what is inside each box into a file: ``a-1.png``, ``a-2.png`` … of ``a.png``."""
    size = np.array(picture.size)
    corners = (part.xyxy * np.tile(size / part.sizes[0], 2)).clip(0, np.tile(size, 2))
    corners[:, :2], corners[:, 2:] = np.floor(corners[:, :2]), np.ceil(corners[:, 2:])
    for number, (x1, y1, x2, y2) in enumerate(corners.astype(np.int64).tolist(), 1):
        if x2 > x1 and y2 > y1:
            path = inside(folder, f"{name.removesuffix('.png')}-{number}.png")
            with replacing(path, "wb") as file:
                picture.crop((x1, y1, x2, y2)).save(file, "PNG")


def _draw_text(
    text: str,
    source: Path,
    target: Path,
    crops: Path | None,
    options: DecodeOptions,
    style: _Style,
    output: Output,
) -> int:
    """Draw one answer on its picture."""
    _check_crops(crops, target, source)
    image = open_picture(source)
    row = AnswerRow(1, source.name, image.size, text)
    detections, _ = AnswerDecoder.load(options).decode([row])
    drawn = draw(image, detections, **asdict(style))
    if target.suffix.lower() not in _PICTURES:
        target /= f"{source.stem}.png"
    with replacing(target, "wb") as file:
        drawn.save(file, "PNG" if target.suffix.lower() == ".png" else "JPEG", quality=92)
    if crops is not None:
        _write_crops(image, detections, crops, f"{source.stem}.png")
    output.result({"output": str(target), "objects": len(detections)}, [str(target)])
    return DONE
