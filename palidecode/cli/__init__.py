"""The command line: parse the arguments, run one command, return its exit code.

0: finished. 1: finished, but some input was skipped (listed on stderr) or a limit was missed.
2: failed, with a one-line reason. 130, 143: interrupted by SIGINT or SIGTERM; the same command
resumes.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from palidecode.cli.terminal import escaped, message
from palidecode.errors import PalidecodeError
from palidecode.version import __version__

COMMANDS = {
    "predict": "Run PaliGemma on pictures and write COCO JSON.",
    "decode": "Convert model answers to a COCO file.",
    "draw": "Draw boxes, masks and labels on pictures.",
    "encode": "Convert a COCO dataset to fine-tuning examples (JSONL).",
    "evaluate": "Evaluate predictions against COCO ground truth.",
    "compare": "Compare two prediction files, image by image.",
    "evaluate-referring": "Evaluate referring-expression answers against ground-truth masks or "
    "boxes: mIoU, cIoU, gIoU, box accuracy, N-acc, T-acc.",
    "weights": "List, fetch, verify or convert the mask codec's weights.",
    "demo": "Run the bundled tiny model on pictures it has never seen, and evaluate it.",
}
"""The commands. Each is a module of this package (with _ for -), imported when it is run."""
_EXIT_CODES = """\
exit codes:
  0        finished
  1        finished, but some input was skipped or a --min was missed
  2        failed; the reason is on stderr
  130 143  interrupted by SIGINT or SIGTERM; run the same command again to resume
"""
_FAILED = 2
_OUTPUTS = ("output", "val", "samples", "target")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = next((text for text in arguments if not text.startswith("-")), None)
    args = build_parser(command).parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name or a label may have characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            _check_outputs(args)
            code: int = args.run(args)
        sys.stdout.flush()
    except PalidecodeError as error:
        message(str(error))
        return _FAILED
    except KeyboardInterrupt:
        message("interrupted; no unfinished file was left")
        return _FAILED
    except BrokenPipeError:
        # The reader of the pipe is gone (`| head`); avoid a traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs that are among the inputs, whatever the command."""
    from palidecode.files import refuse_overwriting  # loads numpy, which --help needn't

    paths: dict[str, list[Path]] = {}
    for name, value in vars(args).items():
        values = value if isinstance(value, list) else [value]
        paths[name] = [Path(item) for item in values if isinstance(item, str | Path)]
    outputs = [path for name in _OUTPUTS for path in paths.pop(name, [])]
    refuse_overwriting(outputs, [path for listed in paths.values() for path in listed])


def _show_warning(warning: Warning | str, category: type[Warning], *_: object) -> None:
    message(f"warning: {warning}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(escaped(message))


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of all commands, with the options of `command`."""
    parser = _Parser(
        prog="palidecode",
        description="Turn PaliGemma's answers into boxes, masks and COCO JSON.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
