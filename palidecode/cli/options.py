"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.detections import Detections
    from palidecode.runs.answers import DecodeOptions


def add_json(parser: Any) -> None:
    """Of every command."""
    parser.add_argument("--json", action="store_true", help="print one JSON object for machines")


def add_answer_options(parser: Any) -> None:
    """Of commands that read answers."""
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--size", type=_size, metavar="WxH", help="of pictures not named otherwise")
    parser.add_argument("--divisor", type=int, choices=(1024, 1023), default=1024)
    parser.add_argument("--clip", action="store_true", help="keep boxes inside the picture")
    parser.add_argument("--weights", metavar="FILE", help="mask codec: a file, or google-oid")
    parser.add_argument("--backend", choices=("auto", "onnx", "torch"), default="auto")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json, for labels of token_ids"
    )
    parser.add_argument(
        "--label-from-prompt",
        action="store_true",
        help="label what has no label with what its prompt asked for",
    )


def add_journal_options(parser: Any) -> None:
    """Of commands that may run for days."""
    group = parser.add_argument_group(
        "long runs",
        "A run that was killed, or stopped by SIGINT or SIGTERM (exit codes 130 and 143), goes on "
        "when started again with the same command. What is finished stands in a journal beside "
        "the output until that is written; what failed is listed in failures.jsonl.",
    )
    group.add_argument("--restart", action="store_true", help="forget what is finished")
    group.add_argument("--keep-journal", action="store_true", help="leave it when all is done")
    group.add_argument("--no-journal", action="store_true", help="lose all when stopped")


def _size(text: str) -> tuple[int, int]:
    from palidecode.files import check_size

    try:
        width, _, height = text.lower().replace("×", "x").partition("x")
        return check_size((int(width), int(height)))
    except (ValueError, InputError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, for instance 640x480"
        ) from None


def answer_options(args: argparse.Namespace) -> DecodeOptions:
    """How answers are decoded; loads the mask codec and the tokenizer."""
    from palidecode.runs.answers import load_options

    names = ("weights", "backend", "divisor", "clip", "tokenizer", "label_from_prompt")
    return load_options(**{name: getattr(args, name) for name in names})


def answer_rows(args: argparse.Namespace, name: str = "answers") -> Any:
    """The rows of a file of answers, with the sizes of their pictures."""
    from palidecode.answers.jsonl import read_rows

    if args.images is not None and not args.images.is_dir():
        raise InputError(f"{args.images}: no such folder of pictures")
    return read_rows(getattr(args, name), args.images, args.size)


def decode_one(text: str, size: tuple[int, int], options: DecodeOptions) -> Detections:
    """One answer about one picture."""
    from palidecode.detections import decode

    return decode(
        text,
        size,
        options.codec,
        options.divisor,
        clip=options.clip,
        codes_id=options.codes_id,
    )


def read_categories(path: Path | None) -> Any:
    """A COCO file, or a text file with a name per line."""
    from palidecode.files import read_json

    if path is None:
        return None
    if path.suffix == ".json":
        return read_json(path)
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {error}") from error
    return [name.strip() for name in names if name.strip()]


def add_evaluation_options(parser: Any, said: str, bootstrap: int | None) -> None:
    """Of ``evaluate`` and ``compare``."""
    parser.add_argument("--iou-type", choices=("bbox", "segm", "both"), default="bbox")
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="evaluate only these (names or ids)"
    )
    parser.add_argument(
        "--match", choices=("exact", "loose"), default="exact", help="loose: case, plurals, aliases"
    )
    parser.add_argument(
        "--merge-duplicates",
        type=float,
        metavar="IOU",
        help="leave out repeats of the same class that overlap by at least this",
    )
    parser.add_argument(
        "--scores", choices=("file", "ignore"), default="file", help="ignore: as if there were none"
    )
    parser.add_argument(
        "--orders", type=int, default=10, metavar="K", help="random orders of unscored predictions"
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=bootstrap,
        metavar="N",
        help=f"resamples for 95%% intervals (default: {said})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")


def iou_types(args: argparse.Namespace) -> Sequence[Any]:
    """The kinds of IoU asked for."""
    return ("bbox", "segm") if args.iou_type == "both" else (args.iou_type,)


def evaluation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `evaluate_coco` and `compare_coco`."""
    categories = args.categories
    if categories is not None:
        categories = [int(name) if name.isdecimal() else name for name in categories]
    return {
        "categories": categories,
        "match": args.match,
        "merge_duplicates": args.merge_duplicates,
        "scores": args.scores,
        "orders": args.orders,
        "bootstrap": args.bootstrap,
        "seed": args.seed,
    }
