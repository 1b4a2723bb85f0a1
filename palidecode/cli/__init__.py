"""The command line: arguments in, library calls, progress, exit codes.

0: everything done. 1: done, but something was left out, and what is said. 2: nothing done,
and why in one line. 130, 143: stopped by SIGINT or SIGTERM; the same command goes on.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from palidecode.errors import PalidecodeError
from palidecode.version import __version__

COMMANDS = {
    "predict": "Run a PaliGemma on pictures: COCO JSON.",
    "decode": "Answers to a COCO file.",
    "draw": "Boxes, masks and labels on pictures.",
    "encode": "A COCO file to fine-tuning rows.",
    "evaluate": "Predictions against COCO ground truth.",
    "compare": "Two prediction files, image by image.",
    "evaluate-referring": "Answers to referring expressions against masks: mIoU, cIoU, gIoU, "
    "box accuracy.",
    "weights": "The mask codec's weights: list, fetch, verify, convert.",
    "demo": "Run the bundled tiny model on pictures it has never seen, and measure it.",
}
"""Each is a module of this folder, imported when it is that command; - is _ there."""
_FAILED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = next((text for text in arguments if not text.startswith("-")), None)
    args = build_parser(command).parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name or a label may hold what the terminal's encoding can't say; JSON stays JSON.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            code: int = args.run(args)
        sys.stdout.flush()
    except PalidecodeError as error:
        print(f"palidecode: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("palidecode: stopped; no unfinished file was left", file=sys.stderr)
        return _FAILED
    except BrokenPipeError:
        # The reader went away (`| head`): nothing more to say, and no traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"palidecode: warning: {message}", file=sys.stderr)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser: all commands by name, and the options of `command`."""
    parser = argparse.ArgumentParser(
        prog="palidecode",
        description="PaliGemma's answers to boxes, masks and COCO JSON.",
        epilog="Exit codes: 0 done, 1 done but something was left out, 2 failed; 130 and 143: "
        "stopped by SIGINT or SIGTERM, and the same command goes on.",
    )
    parser.add_argument("--version", action="version", version=f"palidecode {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        added = commands.add_parser(name, help=text, description=text)
        if name == command:
            module = importlib.import_module(f"palidecode.cli.{name.replace('-', '_')}")
            module.add_options(added)
            added.set_defaults(run=module.run)
    return parser
