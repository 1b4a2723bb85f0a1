"""The options of ``palidecode evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_evaluation, add_keys, add_messages, add_min, add_page

EXAMPLES = """\
palidecode evaluate instances.json coco.json
palidecode evaluate instances.json answers.jsonl
palidecode evaluate instances.json coco.json --iou-type both \\
    --images pictures/ -o report/
palidecode evaluate instances.json coco.json --min AP50=0.5 --min F1=0.6
palidecode evaluate instances.json coco.json --nms 0.5 --min NMS-AP@0.5=0.4
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode evaluate``."""
    parser.add_argument("gt", type=Path, metavar="GT.json", help="a COCO dataset")
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="PRED.json",
        help="a COCO results list, a file that `palidecode decode` or `predict` wrote, or rows of "
        "answers, which are decoded with decode's defaults",
    )
    add_page(parser)
    add_min(
        parser,
        "AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, precision, recall, F1, "
        "F1@0.5, F1@0.95, F1@mean, APr, APc, APf, AR300",
    )
    add_evaluation(parser, None, "300 with -o, else 0")
    add_keys(parser.add_argument_group("rows of answers"))
    add_messages(parser)
