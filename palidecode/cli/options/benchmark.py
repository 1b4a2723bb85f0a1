"""The options of ``palidecode benchmark``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_messages
from palidecode.cli.options.predict import (
    add_answers,
    add_classes_per_prompt,
    add_looks,
    add_min_score,
    add_model,
    add_server,
)

EXAMPLES = """\
palidecode benchmark rf100vl rf100-vl/ --model demo -o results/
palidecode benchmark rf100vl rf100-vl/ --model DIR -o results/ \\
    --classes-per-prompt 1 --groups dataset_name_to_category.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode benchmark``."""
    parser.add_argument("suite", choices=("rf100vl",), help="the benchmark: RF100-VL")
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="its datasets: DATASET/test/_annotations.coco.json and pictures, as Roboflow exports "
        "them, also in folders of groups",
    )
    parser.add_argument(
        "--model", required=True, help="as for predict; with --endpoint the server's name of it"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="directory for the predictions of each dataset, results.json and results.csv",
    )
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help="run only these (default: all)"
    )
    parser.add_argument(
        "--groups",
        type=Path,
        metavar="FILE",
        help="JSON object of the datasets' groups, for means by group, as rf100-vl's "
        "dataset_name_to_category.json (default: the folders that datasets are in)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard saved progress and start over"
    )
    group = parser.add_argument_group("what to look for")
    add_classes_per_prompt(group)
    add_min_score(group)
    add_looks(parser)
    add_model(parser)
    add_server(parser)
    add_answers(parser)
    add_messages(parser)
