"""The options of ``palidecode compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_evaluation, add_messages, add_page

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
    add_page(parser)
    add_evaluation(parser, 1000)
    add_messages(parser)
