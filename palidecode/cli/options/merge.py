"""The options of ``palidecode merge``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_base, add_messages

EXAMPLES = """\
palidecode merge my-lora/ -o merged/
palidecode merge my-lora/ --base paligemma2-3b-pt-224/ -o merged/
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode merge``."""
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="folder of a LoRA adapter as PEFT saves it, or hub name"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="new folder to write"
    )
    add_base(parser)
    add_messages(parser)
