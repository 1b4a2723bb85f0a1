"""The options of ``palidecode view``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_answers, add_messages

EXAMPLES = """\
palidecode view coco.json --images pictures/ -o page/
palidecode view answers.jsonl --images pictures/ -o page/
palidecode view results.json --dataset instances.json --images pictures/ \\
    -o page/
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode view``."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a COCO dataset, a COCO results list with --dataset, or answers (.jsonl)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory for index.html, and for index_files/ above 600 pictures",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="FILE",
        help="COCO dataset with the images and categories of a results list",
    )
    add_answers(parser, "directory of the pictures (default: that of SOURCE)")
    add_messages(parser)
