"""The options of ``palidecode decode``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import (
    add_answers,
    add_drop_empty,
    add_format,
    add_issues,
    add_journal,
    add_match,
    add_messages,
    add_paste,
    add_ray,
)

EXAMPLES = """\
palidecode decode answers.jsonl --images pictures/ -o coco.json
palidecode decode answers.jsonl --size 640x480 --segmentation rle \\
    --categories names.txt --unmapped drop -o coco.json
palidecode decode answers.jsonl --images pictures/ --format yolo -o dataset/
palidecode decode --text "<loc0046><loc0538><loc0795><loc1022> cat" \\
    --size 640x480
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode decode``."""
    parser.add_argument(
        "answers",
        nargs="?",
        type=Path,
        metavar="ANSWERS",
        help="rows of answers: .jsonl, .json, .csv, .parquet, also .gz",
    )
    parser.add_argument("--text", help="one answer instead of a file; needs --size")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="COCO file to write, or see --format"
    )
    add_format(parser)
    add_issues(parser)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=256,
        metavar="N",
        help="answers that are decoded together (default: %(default)s)",
    )
    add_answers(parser)
    _add_coco(parser)
    add_messages(parser)
    add_journal(parser)
    add_ray(parser)


def _add_coco(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("COCO")
    group.add_argument(
        "--categories", type=Path, metavar="FILE", help="COCO file or list of names (default: all)"
    )
    add_match(group)
    group.add_argument(
        "--unmapped",
        choices=("keep", "drop", "error"),
        default="keep",
        help="labels that are none of --categories: add as new ones (default), skip, or fail",
    )
    group.add_argument(
        "--segmentation",
        choices=("polygons", "exact", "rle", "none"),
        default="polygons",
        help="smooth polygons (default), polygons along pixel edges, RLE, or boxes only",
    )
    group.add_argument(
        "--simplify",
        type=float,
        default=0.0,
        metavar="PIXELS",
        help="tolerance of polygons (default: 0)",
    )
    group.add_argument(
        "--min-area",
        type=float,
        default=0.0,
        metavar="PIXELS",
        help="skip smaller parts of polygons (default: 0)",
    )
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "int8", "bfloat16"),
        default="auto",
        help="numbers in which the mask codec decodes (default: auto, int8 in onnxruntime)",
    )
    add_paste(group)
    add_drop_empty(group)
