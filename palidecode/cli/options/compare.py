"""The options of ``palidecode compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_evaluation, add_messages

EXAMPLES = """\
palidecode compare before.json after.json --gt instances.json
palidecode compare before.json after.json --gt instances.json --iou-type segm
palidecode compare before.json after.json --gt instances.json \\
    --images pictures/ -o comparison/
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode compare``."""
    parser.add_argument("first", type=Path, metavar="A.json", help="predictions, as for evaluate")
    parser.add_argument(
        "second", type=Path, metavar="B.json", help="other predictions; differences are B minus A"
    )
    parser.add_argument("--gt", type=Path, required=True, metavar="GT.json", help="a COCO dataset")
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
    add_evaluation(parser, 1000)
    add_messages(parser)
