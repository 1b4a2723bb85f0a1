"""The options of ``palidecode encode``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_codec, add_messages

EXAMPLES = """\
palidecode encode instances.json -o train.jsonl
palidecode encode instances.json --task segment --images pictures/ \\
    -o train.jsonl --val val.jsonl --val-share 0.2
palidecode encode instances.json --classes present+absent --absent 3 \\
    --categories cat dog -o train.jsonl
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode encode``."""
    parser.add_argument("coco", type=Path, metavar="COCO.json", help="a COCO dataset")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the JSONL file to write"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="directory of the pictures; skip images whose picture is missing or has another size; "
        "gives the size where the dataset has none",
    )
    parser.add_argument(
        "--invalid",
        choices=("skip", "error"),
        default="skip",
        help="skip entries that can't be encoded, or stop at the first (default: skip)",
    )
    _add_rows(parser)
    _add_objects(parser)
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.json that counts the tokens of prefixes; more than 512 are worth a warning "
        "(default: estimate them)",
    )
    add_codec(parser)
    group = parser.add_argument_group("validation")
    group.add_argument(
        "--val", type=Path, metavar="FILE", help="second JSONL file, for images held back"
    )
    group.add_argument(
        "--val-share",
        type=float,
        metavar="SHARE",
        help="share of the images held back, between 0 and 1 (default: 0.1)",
    )
    add_messages(parser)


def _add_rows(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("rows")
    group.add_argument(
        "--task",
        choices=("detect", "segment"),
        default="detect",
        help="boxes, or boxes and masks (default: detect)",
    )
    group.add_argument(
        "--classes",
        choices=("all", "present", "present+absent"),
        default="all",
        help="classes that a prompt asks for: all of the dataset, those present in the picture, "
        "or some absent ones too (default: all)",
    )
    group.add_argument(
        "--categories",
        nargs="+",
        metavar="NAME",
        help="ask only for these categories, and skip objects of others (default: all)",
    )
    group.add_argument(
        "--absent",
        type=int,
        default=5,
        metavar="N",
        help="number of absent classes with --classes present+absent (default: %(default)s)",
    )
    group.add_argument(
        "--empty-images",
        choices=("keep", "skip"),
        default="keep",
        help="write a row for images without objects, or none (default: keep)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")


def _add_objects(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("objects")
    group.add_argument("--crowds", action="store_true", help="use crowds (iscrowd) as objects")
    group.add_argument(
        "--order",
        choices=("given", "left-to-right", "area", "shuffled"),
        default="given",
        help="order of the objects; area puts the largest first (default: given)",
    )
    group.add_argument(
        "--max-objects",
        type=int,
        metavar="N",
        help="keep the first N objects of a picture (default: all)",
    )
    group.add_argument(
        "--boxes",
        choices=("annotations", "masks"),
        default="annotations",
        help="boxes as annotated, or the tight boxes of the masks (default: annotations)",
    )
