"""``palidecode draw``: boxes, masks and labels on pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from palidecode.cli.options import (
    add_answer_options,
    add_json,
    answer_options,
    answer_rows,
    decode_one,
)
from palidecode.cli.output import DONE, LEFT_OUT, progress_bar, say_problems
from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.detections import Detections


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``palidecode draw``."""
    add_json(parser)
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="answers (.jsonl), a COCO file (.json), or a picture with --text",
    )
    parser.add_argument("--text", help="one answer about the picture SOURCE")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder (or file) to write"
    )
    add_answer_options(parser)
    parser.add_argument("--alpha", type=float, default=0.45, help="opacity of masks, 0 to 1")
    parser.add_argument("--font", type=Path, metavar="FILE", help="a TrueType font for labels")


def run(args: argparse.Namespace) -> int:
    """``palidecode draw``."""
    from palidecode.detections import draw
    from palidecode.files import inside, png_names, replacing

    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha must lie in 0 … 1, got {args.alpha}")
    if args.text is not None:
        return _draw_text(args)
    if args.images is None:
        raise InputError("where are the pictures? --images DIR")
    found, names, problems = _found_in(args)
    drawn = png_names(names)
    written = 0
    with progress_bar(args, "drawing", len(names)) as bar:
        for index, name in enumerate(names):
            bar.update(1)
            try:
                picture = inside(args.images, name)
                image = draw(picture, found, index=index, alpha=args.alpha, font=args.font)
                target = inside(args.output, drawn[name])
                if target == picture:
                    raise InputError(f"{picture} would be drawn over; give another folder: -o DIR")
                with replacing(target, "wb") as file:
                    image.save(file, "PNG")
                written += 1
            except InputError as error:
                problems.append((index + 1, str(error)))
    if args.json:
        listed = [{"picture": number, "reason": reason} for number, reason in problems]
        print(json.dumps({"output": str(args.output), "written": written, "problems": listed}))
    else:
        print(f"{written} pictures in {args.output}")
    say_problems(args, problems, "picture")
    return LEFT_OUT if problems else DONE


def _draw_text(args: argparse.Namespace) -> int:
    from palidecode.detections import draw
    from palidecode.files import open_picture, replacing

    options, image = answer_options(args), open_picture(args.source)
    found = decode_one(args.text, image.size, options)
    drawn = draw(image, found, alpha=args.alpha, font=args.font)
    is_file = args.output.suffix.lower() in (".png", ".jpg", ".jpeg")
    target = args.output if is_file else args.output / (args.source.stem + ".png")
    with replacing(target, "wb") as file:
        drawn.save(file, "PNG" if target.suffix.lower() == ".png" else "JPEG", quality=92)
    print(json.dumps({"output": str(target), "objects": len(found)}) if args.json else target)
    return DONE


def _found_in(args: argparse.Namespace) -> tuple[Detections, list[str], list[tuple[int, str]]]:
    """Detections, the pictures' names, and problems, of a COCO file or of answers."""
    from palidecode.coco.loading import from_coco
    from palidecode.files import read_json
    from palidecode.runs.answers import by_picture, decode_rows

    if args.source.suffix == ".json":
        dataset = read_json(args.source)
        found = from_coco(dataset)
        return found, [str(image.get("file_name")) for image in dataset["images"]], []
    rows = list(answer_rows(args, "source"))
    if not rows:
        raise InputError(f"{args.source}: there are no answers in it")
    ((answers, found, problems),) = decode_rows(rows, answer_options(args), len(rows) + 1)
    found, names = by_picture(answers, found)
    return found, names, [(problem.line, problem.reason) for problem in problems]
