"""The options of ``palidecode demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_messages

EXAMPLES = """\
palidecode demo
palidecode demo --answers
palidecode demo --image mine.png --prompt "detect red star"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode demo``."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("palidecode-demo"),
        metavar="DIR",
        help="directory to write to (default: %(default)s)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--image", type=Path, metavar="FILE", help="your picture instead of the bundled ones"
    )
    which.add_argument(
        "--answers",
        action="store_true",
        help="decode bundled answers about a bundled picture",
    )
    parser.add_argument(
        "--prompt",
        help="prompt for --image, for instance 'detect star ; circle' (default: segment all "
        "classes of the model)",
    )
    parser.add_argument(
        "--model",
        default="demo",
        metavar="DIR",
        help="another model of such scenes (default: the bundled one)",
    )
    add_messages(parser)
