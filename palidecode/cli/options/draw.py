"""The options of ``palidecode draw``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_answers, add_messages, add_paste

EXAMPLES = """\
palidecode draw coco.json --images pictures/ -o drawn/
palidecode draw answers.jsonl --images pictures/ -o drawn/ --alpha 0.2
palidecode draw cat.jpg --text "<loc0046><loc0538><loc0795><loc1022> cat" \\
    -o drawn.png
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode draw``."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="answers (.jsonl), a COCO dataset (.json), or one picture with --text",
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
    add_paste(group)
    add_answers(parser)
    add_messages(parser)
