"""The options of ``palidecode export``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_base, add_messages

EXAMPLES = """\
palidecode export paligemma2-3b-mix-448 -o pg2-int4 --quantize int4
palidecode export checkpoint.npz --tokenizer tokenizer.json -o exported/
palidecode export demo -o demo-int8 --quantize int8
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode export``."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder as transformers saves it, adapter as PEFT saves it, big_vision .npz, hub "
        "name, or demo",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="new folder to write"
    )
    parser.add_argument(
        "--quantize",
        choices=("none", "int8", "int4"),
        default="none",
        help="size of the weights: 8 or 4 bits, or none for float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json (default: the model's own)"
    )
    add_base(parser)
    add_messages(parser)
