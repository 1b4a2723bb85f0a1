"""The options of ``palidecode grammar``."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
palidecode grammar "detect cat ; dog" -o cats.lark
palidecode grammar "segment cat" --model DIR --max-objects 20
palidecode grammar "detect cat" --any-corners
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode grammar``."""
    parser.add_argument("prompt", metavar="PROMPT", help="for instance 'segment cat ; dog'")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("-"),
        metavar="FILE",
        help="file to write (default: -, the standard output)",
    )
    group = parser.add_argument_group("tokens")
    group.add_argument(
        "--model",
        help="name labels by the token ids of this model's tokenizer, too (default: labels are "
        "text; loc and seg tokens have PaliGemma's ids)",
    )
    group.add_argument("--tokenizer", metavar="FILE", help="the same with a tokenizer.json")
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--labels",
        choices=("prompt", "free", "none"),
        default="prompt",
        help="the prompt's names, any text (needs a tokenizer), or no label (default: %(default)s)",
    )
    group.add_argument(
        "--max-objects", type=int, metavar="N", help="objects per answer (default: any number)"
    )
    group.add_argument(
        "--any-corners",
        action="store_true",
        help="take any four loc tokens as a box: a grammar of a few lines, instead of 150 KB that "
        "keep corners in order",
    )
    parser.set_defaults(quiet=False, verbose=False)
