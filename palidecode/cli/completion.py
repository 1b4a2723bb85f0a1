"""``palidecode completion``: print the completion script of a shell."""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

from palidecode.cli import COMMANDS, build_parser
from palidecode.cli.output import DONE


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode completion``."""
    parser = build_parser(*COMMANDS)
    _complete_files(parser)
    print(shtab.complete(parser, shell=args.shell))
    return DONE


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Complete arguments that are paths with files or directories."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command)
        elif action.type is Path or action.metavar in ("FILE", "DIR"):
            kind = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
            action.complete = kind  # type: ignore[attr-defined]
