"""The options of ``palidecode evaluate-referring``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_codec, add_keys, add_messages, add_min

EXAMPLES = """\
palidecode evaluate-referring answers.jsonl --refs "refs(unc).p" \\
    --instances instances.json --split testA
palidecode evaluate-referring answers.jsonl --samples samples.jsonl \\
    --min miou=0.6
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode evaluate-referring``."""
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="ANSWERS",
        help="rows of answers, each with 'sent_id' or its own 'segmentation' or 'bbox': .jsonl, "
        ".json, .csv, .parquet, also .gz",
    )
    parser.add_argument(
        "--samples", type=Path, metavar="FILE", help="JSONL file to write, one row per sample"
    )
    add_min(
        parser,
        "miou, ciou, giou, n_acc, t_acc, boxacc@0.5, boxacc@0.75, precision@0.5, precision@0.6, "
        "precision@0.7, precision@0.8, precision@0.9",
    )
    group = parser.add_argument_group("RefCOCO's files")
    group.add_argument("--refs", type=Path, metavar="FILE", help="refs(unc).p or refs(google).p")
    group.add_argument("--instances", type=Path, metavar="FILE", help="instances.json")
    group.add_argument(
        "--split", default="val", help="val, testA, testB, test or train (default: val)"
    )
    group.add_argument(
        "--missing",
        choices=("zero", "skip"),
        default="zero",
        help="expressions without a prediction count as IoU 0, or are skipped (default: zero)",
    )
    add_keys(parser.add_argument_group("rows of answers"))
    add_codec(parser, 1023)
    add_messages(parser)
