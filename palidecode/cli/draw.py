"""``palidecode draw``: draw boxes, masks and labels on pictures."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from palidecode.answers.jsonl import AnswerRow
from palidecode.cli.options import fill
from palidecode.cli.output import DONE, SKIPPED, Output, many
from palidecode.coco.detections import from_coco
from palidecode.coco.skips import Skip
from palidecode.coco.writing import CocoReport
from palidecode.detections import Detections, draw
from palidecode.errors import InputError
from palidecode.files import inside, open_picture, png_names, replacing
from palidecode.geometry.masks import Paste
from palidecode.runs.answers import AnswerDecoder, DecodeJob, DecodeOptions, by_picture, decode_rows

_PICTURES = (".png", ".jpg", ".jpeg")
_Problem: TypeAlias = tuple[int, str]


@dataclass(frozen=True)
class _Style:
    """Options of the drawing."""

    alpha: float
    font: Path | None
    paste: Paste

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"--alpha must be between 0 and 1, got {self.alpha}")


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode draw``."""
    output, style = fill(Output, args), fill(_Style, args)
    if args.text is not None:
        options = fill(DecodeOptions, args)
        return _draw_text(args.text, args.source, args.output, options, style, output)
    if args.images is None:
        raise InputError("name the directory of the pictures: --images DIR")
    problems: list[_Problem] = []
    skipped: list[Skip] = []
    if args.source.suffix == ".json":
        detections, names, skipped = _from_coco(args.source)
    else:
        detections, names, problems = _from_answers(args.source, fill(DecodeOptions, args))
    failed = _draw_all(detections, names, Path(args.images), args.output, style, output)
    problems += failed
    written = len(names) - len(failed)
    data = {
        "output": str(args.output),
        "written": written,
        "problems": [{"picture": number, "reason": reason} for number, reason in problems],
        **({"skipped": [skip.as_dict() for skip in skipped]} if skipped else {}),
    }
    output.result(data, [f"{many(written, 'picture')} in {args.output}"])
    output.problems(problems, "picture")
    return SKIPPED if problems or skipped else DONE


def _from_coco(path: Path) -> tuple[Detections, list[str], list[Skip]]:
    """Read a COCO dataset; return its objects, the names of its pictures, and what was skipped."""
    report = CocoReport()
    detections = from_coco(path, report=report)
    return detections, detections.names, report.skipped


def _from_answers(
    path: Path, options: DecodeOptions
) -> tuple[Detections, list[str], list[_Problem]]:
    """Decode answers; return their objects, the names of the pictures, and what was skipped."""
    rows = list(DecodeJob(options).items(path))
    if not rows:
        raise InputError(f"{path}: no answers in this file")
    ((answers, decoded, skipped),) = decode_rows(rows, AnswerDecoder.load(options), len(rows))
    detections, names = by_picture(answers, decoded)
    return detections, names, [(problem.line, problem.reason) for problem in skipped]


def _draw_all(
    detections: Detections,
    names: list[str],
    pictures: Path,
    target: Path,
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
                image = draw(picture, detections, index=index, **asdict(style))
                if copy == picture:
                    raise InputError(f"{picture} would be drawn over; choose another -o DIR")
                with replacing(copy, "wb") as file:
                    image.save(file, "PNG")
            except InputError as error:
                failed.append((index + 1, str(error)))
    return failed


def _draw_text(
    text: str, source: Path, target: Path, options: DecodeOptions, style: _Style, output: Output
) -> int:
    """Draw one answer on its picture."""
    image = open_picture(source)
    row = AnswerRow(1, source.name, image.size, text)
    detections, _ = AnswerDecoder.load(options).decode([row])
    drawn = draw(image, detections, **asdict(style))
    if target.suffix.lower() not in _PICTURES:
        target /= f"{source.stem}.png"
    with replacing(target, "wb") as file:
        drawn.save(file, "PNG" if target.suffix.lower() == ".png" else "JPEG", quality=92)
    output.result({"output": str(target), "objects": len(detections)}, [str(target)])
    return DONE
