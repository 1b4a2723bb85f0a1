"""Options that several commands share, and their way into frozen dataclasses.

The options of each command are a module of its name here. Nothing heavy is imported, numpy
neither, so that ``--help`` is quick: choices are written out, and a test holds them against
their types.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from palidecode.errors import InputError

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
FORMATS = ("yolo", "yolo-seg", "voc", "cvat", "labelstudio", "createml", "csv", "parquet")
"""Formats other than COCO."""


def fill(cls: type[Options], args: argparse.Namespace, **others: object) -> Options:
    """Build a dataclass of options from the parsed arguments of the same names, and `others`.

    An error about one of them names it as the user typed it: ``--batch-size``, not batch_size.
    """
    given = vars(args)
    named = {field.name: given[field.name] for field in fields(cls) if field.name in given}
    try:
        return cls(**named | others)
    except InputError as error:
        name, space, rest = str(error).partition(" ")
        if name not in named:
            raise
        raise InputError(f"--{name.replace('_', '-')}{space}{rest}") from error


def add_messages(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that choose its `Output`."""
    group = parser.add_argument_group("messages")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="print no progress, notes and warnings"
    )
    group.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="list every problem, not the first ten, and the traceback of an error",
    )


def add_codec(parser: argparse.ArgumentParser, divisor: int = 1024) -> None:
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
    add_divisor(group, divisor)


def add_divisor(group: argparse._ArgumentGroup, divisor: int = 1024) -> None:
    """Add the option of the bins; `divisor` is its default."""
    group.add_argument(
        "--divisor",
        type=int,
        choices=(1024, 1023),
        default=divisor,
        help="number of loc bins per side of a picture (default: %(default)s)",
    )


def add_answers(parser: argparse.ArgumentParser, images: str = "directory of the pictures") -> None:
    """Add the options of `DecodeOptions`, of commands that read answers."""
    group = parser.add_argument_group("pictures and labels")
    group.add_argument("--images", metavar="DIR", help=images)
    group.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="size of the pictures whose row has neither an image nor a size",
    )
    add_keys(group)
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


def add_keys(group: argparse._ArgumentGroup) -> None:
    """Add the options of the keys in rows of answers."""
    group.add_argument(
        "--output-key",
        metavar="KEY",
        help="key of the answers, where 'output', 'text', 'response' … aren't or differ",
    )
    group.add_argument(
        "--image-key",
        metavar="KEY",
        help="key of the pictures' names (default: 'image', 'file_name', 'image_path' …)",
    )
    add_box_image(group)


def add_box_image(group: argparse._ArgumentGroup) -> None:
    """Add the option of rows that name several pictures."""
    group.add_argument(
        "--box-image",
        type=int,
        metavar="N",
        help="of rows that name several pictures: the one that boxes are measured in, from 0",
    )


def add_match(group: argparse._ArgumentGroup) -> None:
    """Add the option of how names of categories are matched."""
    group.add_argument(
        "--match",
        choices=("exact", "loose"),
        default="exact",
        help="matching of category names; loose ignores case and knows plurals and aliases "
        "(default: exact)",
    )


def add_paste(group: argparse._ArgumentGroup) -> None:
    """Add the option of how masks are pasted into their boxes."""
    group.add_argument(
        "--paste",
        choices=("subpixel", "big_vision"),
        default="subpixel",
        help="how masks become pixels: read at the pixels' centres, or as big_vision's RefCOCO "
        "evaluator does, half a pixel up and left (default: subpixel)",
    )


def add_drop_empty(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option of what becomes of boxes without an area."""
    parser.add_argument(
        "--drop-empty",
        action="store_true",
        help="skip inverted and empty boxes; by default they are written without width or height, "
        "so that evaluators count them as wrong",
    )


def add_format(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option of the format that a run writes."""
    parser.add_argument(
        "--format",
        choices=("coco", *FORMATS),
        default="coco",
        help="write another format instead of COCO, as palidecode convert does (default: "
        "%(default)s)",
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


def add_issues(parser: argparse.ArgumentParser) -> None:
    """Add the option of the file that lists parse issues."""
    parser.add_argument(
        "--issues",
        type=Path,
        metavar="FILE",
        help="JSON Lines file to write: every parse issue with its line or picture, kind, span "
        "and text",
    )


def add_ray(parser: argparse.ArgumentParser, *, pictures: bool = False) -> None:
    """Add the options of commands that can run on a cluster."""
    group = parser.add_argument_group(
        "cluster",
        "With --ray, workers on a Ray cluster share the run. Every machine must see the input, "
        "the model and the output's directory.",
    )
    group.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on the cluster of this machine (auto), on HOST:PORT, or without ADDRESS on all "
        "cores of this machine",
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="number of workers (default: as many as fit)"
    )
    group.add_argument(
        "--worker-cpus", type=float, default=1.0, metavar="N", help="CPUs of each (default: 1)"
    )
    if pictures:
        group.add_argument(
            "--worker-gpus",
            type=float,
            metavar="N",
            help="GPUs of each (default: 1 if the cluster has any)",
        )
        group.add_argument(
            "--pictures",
            metavar="DIR",
            help="directory of the pictures, when a COCO .json or a .jsonl names them",
        )
    default = "64 pictures" if pictures else "1024 answers"
    group.add_argument(
        "--shard-size",
        type=int,
        metavar="N",
        help=f"rows that are finished together (default: {default})",
    )


def add_min(parser: argparse.ArgumentParser, names: str) -> None:
    """Add the option of limits; `names` are the numbers that it knows."""
    parser.add_argument(
        "--min",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"exit with 1 if a number is below VALUE; may be repeated. Numbers: {names}",
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
    add_match(group)
    group.add_argument(
        "--merge-duplicates",
        type=float,
        metavar="IOU",
        help="skip predictions that overlap a better one of their class by at least this "
        "(default: keep all)",
    )
    group.add_argument(
        "--nms",
        type=float,
        metavar="IOU",
        help="also compute AP after NMS at this IoU, also for --min: AP@nms0.5 of each class, "
        "NMS-AP@0.5 as OVDEval does, of all classes on an object",
    )
    group.add_argument(
        "--score-thresholds",
        nargs="+",
        type=float,
        default=[],
        metavar="SCORE",
        help="also compute AP without predictions below each of these scores, also for --min: "
        "AP@score0.3",
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
    from palidecode.files import check_size  # loads numpy, which --help needn't

    try:
        width, _, height = text.lower().replace("×", "x").partition("x")
        return check_size((int(width), int(height)))
    except (ValueError, InputError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, for instance 640x480"
        ) from None


def _category(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def add_base(group: argparse._ActionsContainer) -> None:
    """Add ``--base``: the base model of an adapter."""
    group.add_argument(
        "--base",
        metavar="MODEL",
        help="base model, if MODEL is an adapter (default: the one that its config names)",
    )


def add_page(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that write a page of numbers and pictures."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="directory for metrics.json and the page index.html (default: print only)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="directory of the pictures, for the page of -o"
    )
