"""The options of ``palidecode draw``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_answers, add_messages, add_paste

EXAMPLES = """\
palidecode draw coco.json --images pictures/ -o drawn/
palidecode draw answers.jsonl --images pictures/ -o drawn/ \\
    --color-by instance --no-labels --crops crops/
palidecode draw cat.jpg --text "<loc0046><loc0538><loc0795><loc1022> cat" \\
    -o drawn.png
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode draw``."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="rows of answers, a COCO dataset (.json), or one picture with --text",
    )
    parser.add_argument("--text", help="one answer about the picture SOURCE")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory to write to; with --text, a picture file or a directory",
    )
    group = parser.add_argument_group("drawing")
    group.add_argument(
        "--alpha",
        type=float,
        default=0.45,
        help="opacity of masks, from 0 to 1 (default: %(default)s)",
    )
    group.add_argument(
        "--font",
        type=Path,
        metavar="FILE",
        help="TrueType font of the labels (default: Pillow's own)",
    )
    group.add_argument(
        "--line-width",
        type=int,
        metavar="PIXELS",
        help="width of boxes and outlines (default: 1/320 of the picture's shorter side)",
    )
    group.add_argument(
        "--color-by",
        choices=("class", "instance"),
        default="class",
        help="one colour per class, or one per object (default: class)",
    )
    group.add_argument("--no-labels", action="store_true", help="write no labels and scores")
    group.add_argument(
        "--crops",
        type=Path,
        metavar="DIR",
        help="also cut every object's box out of the picture, into PNG files in this directory",
    )
    add_paste(group)
    add_answers(parser)
    add_messages(parser)
