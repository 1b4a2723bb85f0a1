"""Options that several commands share, and their way into frozen dataclasses."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar, get_args

from palidecode.coco.categories import Match
from palidecode.errors import InputError
from palidecode.files import check_size
from palidecode.geometry.boxes import DEFAULT_DIVISOR
from palidecode.geometry.masks import DEFAULT_PASTE, Paste

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from palidecode.evaluation.coco.engine import IouType

    Options = TypeVar("Options", bound=DataclassInstance)

IOU_TYPES: dict[str, tuple[IouType, ...]] = {
    "bbox": ("bbox",),
    "segm": ("segm",),
    "both": ("bbox", "segm"),
}
"""The evaluations of each choice of --iou-type."""


def fill(cls: type[Options], args: argparse.Namespace, **others: object) -> Options:
    """Build a dataclass of options from the parsed arguments of the same names.

    Parameters
    ----------
    cls : dataclass type
    args : Namespace
    **others
        Fields that have no argument of their own, or another value.
    """
    named = {field.name for field in fields(cls)}
    return cls(**{name: value for name, value in vars(args).items() if name in named} | others)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option of every command that chooses its `Output`."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_codec(parser: argparse.ArgumentParser, divisor: int = DEFAULT_DIVISOR) -> None:
    """Add the options of the mask codec and the bins."""
    group = parser.add_argument_group("tokens")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="mask codec: a weights file, google-oid or palidecode-demo (default: google-oid if "
        "it was fetched, else palidecode-demo)",
    )
    group.add_argument(
        "--backend",
        choices=("auto", "onnx", "torch"),
        default="auto",
        help="library that runs the mask codec (default: auto, which is onnx)",
    )
    group.add_argument(
        "--divisor",
        type=int,
        choices=(1024, 1023),
        default=divisor,
        help="number of loc bins per side of a picture (default: %(default)s)",
    )


def add_answers(parser: argparse.ArgumentParser) -> None:
    """Add the options of `DecodeOptions`, of commands that read answers."""
    group = parser.add_argument_group("pictures and labels")
    group.add_argument("--images", metavar="DIR", help="directory of the pictures")
    group.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="size of the pictures whose row has neither an image nor a size",
    )
    group.add_argument("--clip", action="store_true", help="clip boxes to their picture")
    group.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.json that turns token_ids into labels",
    )
    group.add_argument(
        "--label-from-prompt",
        action="store_true",
        help="give objects without a label the name that their prompt asked for",
    )
    add_codec(parser)


def add_paste(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option of how masks are pasted into their boxes."""
    parser.add_argument(
        "--paste",
        choices=get_args(Paste),
        default=DEFAULT_PASTE,
        help="how masks become pixels: read at the pixels' centres, or as big_vision's RefCOCO "
        "evaluator does, half a pixel up and left (default: %(default)s)",
    )


def add_journal(parser: argparse.ArgumentParser) -> None:
    """Add the options of resumable commands."""
    group = parser.add_argument_group(
        "interrupted runs",
        "An interrupted run (killed, SIGINT or SIGTERM) resumes when the same command is run "
        "again, here or with --ray. Progress is saved beside the output, in FILE.shards; failed "
        "inputs are listed in failures.jsonl.",
    )
    group.add_argument(
        "--restart", action="store_true", help="discard saved progress and start over"
    )
    group.add_argument(
        "--keep-journal", action="store_true", help="keep FILE.shards when the run is finished"
    )
    group.add_argument(
        "--no-journal",
        action="store_true",
        help="don't save progress; an interrupted run starts over",
    )


def add_evaluation(
    parser: argparse.ArgumentParser, bootstrap: int | None, described: str = "%(default)s"
) -> None:
    """Add the options of `EvaluateOptions`; `bootstrap` is the default of --bootstrap."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--iou-type",
        choices=tuple(IOU_TYPES),
        default="bbox",
        help="IoU of boxes, of masks, or both evaluations (default: bbox)",
    )
    group.add_argument(
        "--categories",
        nargs="+",
        type=_category,
        metavar="NAME",
        help="evaluate only these categories, by name or id (default: all)",
    )
    group.add_argument(
        "--match",
        choices=get_args(Match),
        default="exact",
        help="matching of category names; loose ignores case and knows plurals and aliases "
        "(default: exact)",
    )
    group.add_argument(
        "--merge-duplicates",
        type=float,
        metavar="IOU",
        help="skip predictions that overlap a better one of their class by at least this "
        "(default: keep all)",
    )
    group.add_argument(
        "--scores",
        choices=("file", "ignore"),
        default="file",
        help="ignore evaluates as if the predictions had no scores (default: file)",
    )
    group.add_argument(
        "--orders",
        type=int,
        default=10,
        metavar="K",
        help="number of random orders of predictions without scores (default: 10)",
    )
    group.add_argument(
        "--bootstrap",
        type=int,
        default=bootstrap,
        metavar="N",
        help=f"number of resamples for 95%% intervals (default: {described})",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    group.add_argument(
        "--scale-to-truth",
        action="store_true",
        help="scale the predictions of pictures that have another size in the ground truth",
    )
    group.add_argument("--crowds", action="store_true", help="count crowds (iscrowd) as objects")


def _size(text: str) -> tuple[int, int]:
    try:
        width, _, height = text.lower().replace("×", "x").partition("x")
        return check_size((int(width), int(height)))
    except (ValueError, InputError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, for instance 640x480"
        ) from None


def _category(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
