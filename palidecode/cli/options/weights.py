"""The options of ``palidecode weights``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from palidecode.cli.options import add_messages

if TYPE_CHECKING:
    Actions = argparse._SubParsersAction[argparse.ArgumentParser]

EXAMPLES = """\
palidecode weights list
palidecode weights fetch
palidecode weights verify
palidecode weights convert google-oid codec.npz
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the actions of ``palidecode weights`` and their options."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add_action(actions, "list", "List the available weights and mark the default.")
    added = add_action(actions, "fetch", "Download Google's weights (8.5 MB).")
    added.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="file to write (default: in the cache)"
    )
    added = add_action(actions, "verify", "Check that these weights decode like Google's.")
    added.add_argument(
        "weights",
        nargs="?",
        metavar="WEIGHTS",
        help="a weights file, google-oid or palidecode-demo (default: those that decode would use)",
    )
    added = add_action(actions, "convert", "Convert weights between .npz and .safetensors.")
    added.add_argument(
        "source", metavar="SOURCE", help="a weights file, google-oid or palidecode-demo"
    )
    added.add_argument(
        "target", type=Path, metavar="TARGET", help="file to write, .npz or .safetensors"
    )


def add_action(actions: Actions, name: str, text: str) -> argparse.ArgumentParser:
    """Add an action of a command, with the examples about it."""
    parser = actions.add_parser(name, help=text, description=text)
    examples = [line for line in EXAMPLES.splitlines() if f" {name}" in line]
    parser.epilog = "\n".join(["Examples:", *(f"  {line}" for line in examples)])
    add_messages(parser)
    parser.set_defaults(action=name)
    return parser
