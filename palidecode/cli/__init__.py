"""The command line: parse the arguments, run one command, return its exit code.

0: finished. 1: finished, but look: input was skipped, the sides don't fit, a picture wasn't
found, or a limit was missed. 2: failed, with a one-line reason. 130, 143: interrupted by SIGINT
or SIGTERM; the same command resumes.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from palidecode.cli.ending import debugging, ended, show_traceback
from palidecode.cli.parser import Parser, suggestion
from palidecode.cli.terminal import flush_stdout, message, open_streams
from palidecode.errors import InputError
from palidecode.runs.stopping import Stopping
from palidecode.version import __version__

COMMANDS = {
    "predict": "Run PaliGemma on pictures and write COCO JSON.",
    "decode": "Convert model answers to a COCO file.",
    "convert": "Convert between COCO and the files of other tools: YOLO, Pascal VOC, CVAT, "
    "Label Studio, CreateML, CSV, Parquet.",
    "draw": "Draw boxes, masks and labels on pictures.",
    "view": "Write a page of pictures with their boxes, masks, scores and raw answers.",
    "encode": "Convert a COCO dataset to fine-tuning examples (JSONL).",
    "finetune": "Train a model on rows of prompts and answers: a LoRA adapter, or whole weights.",
    "evaluate": "Evaluate predictions against COCO ground truth.",
    "compare": "Compare two prediction files, image by image.",
    "evaluate-referring": "Evaluate referring-expression answers against ground-truth masks or "
    "boxes: mIoU, cIoU, gIoU, box accuracy, N-acc, T-acc.",
    "benchmark": "Run a model on many datasets and print a table: RF100-VL.",
    "serve": "Serve a model over HTTP: a page to try it, and an API that returns boxes and masks.",
    "export": "Write a model as ONNX graphs, in 8 or 4 bits, to run without torch.",
    "merge": "Merge a LoRA adapter into its base model.",
    "grammar": "Write the grammar of a prompt's answers for servers that constrain them: Lark, for "
    "llguidance.",
    "weights": "List, fetch, verify or convert the mask codec's weights.",
    "demo": "Run the bundled tiny model on pictures it has never seen, and evaluate it.",
    "completion": "Print the completion script of a shell.",
}
"""The commands. Each is a module of this package and one of `options` (with _ for -)."""
_MEANT = {
    **dict.fromkeys(("detect", "segment", "infer", "inference", "run", "generate"), "predict"),
    **dict.fromkeys(("parse", "coco"), "decode"),
    **dict.fromkeys(("plot", "visualize"), "draw"),
    **dict.fromkeys(("show", "gallery", "browse", "page"), "view"),
    "rows": "encode",
    **dict.fromkeys(("train", "tune", "fit"), "finetune"),
    **dict.fromkeys(("eval", "test", "val", "score"), "evaluate"),
    **dict.fromkeys(("fetch", "download", "verify"), "weights"),
    "diff": "compare",
    **dict.fromkeys(("bench", "rf100vl"), "benchmark"),
    **dict.fromkeys(("server", "api", "web", "ui"), "serve"),
    **dict.fromkeys(("lark", "schema", "guidance"), "grammar"),
    "help": "--help",
}
"""Words of other tools, and the commands that do it here."""
_GUIDE = """\
palidecode turns PaliGemma's answers into boxes, masks and COCO JSON.

  palidecode demo                                  try it; nothing to download
  palidecode predict pictures/ --model DIR --prompt "detect cat" -o coco.json
  palidecode decode answers.jsonl --images pictures/ -o coco.json
  palidecode view coco.json --images pictures/ -o page/
  palidecode evaluate instances.json coco.json -o report/

All commands: palidecode --help. One command: palidecode predict --help.
"""
_EXIT_CODES = """\
exit codes:
  0        finished
  1        finished, but look: input was skipped, the sides don't fit, a picture
           was not found, or a --min was missed
  2        failed; the reason is on stderr
  130 143  interrupted by SIGINT or SIGTERM; run the same command again to resume

Examples:
  palidecode demo
  palidecode predict --help
"""
_OUTPUTS = ("output", "val", "samples", "target", "issues")
_CHOICES = ("to", "origin", "format", "suite")
"""Arguments that may be the name of a file and don't mean it."""
_FILE, _FOLDER = (".json", ".jsonl"), ()
_ENDINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("predict", "decode", "encode", "evaluate-referring"), _FILE),
    **dict.fromkeys(("evaluate", "compare", "demo", "view", "finetune", "benchmark"), _FOLDER),
    "draw": (".png", ".jpg", ".jpeg"),  # of one picture, with --text
}
"""Endings of the formats that a command writes; one that isn't named here takes any."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    open_streams()
    with Stopping(immediate=True) as stopping:
        try:
            given = sys.argv[1:] if arguments is None else arguments
            return _run(given, watched=arguments is None and hasattr(os, "fork"))
        except SystemExit:  # argparse's
            with suppress(InputError):
                flush_stdout()
            raise
        except BaseException as error:
            return ended(error, stopping.signal)


def _run(arguments: Sequence[str], *, watched: bool) -> int:
    if not arguments:
        print(_GUIDE, end="")
        flush_stdout()
        return 0
    command = next((text for text in arguments if not text.startswith("-")), "")
    parser = build_parser(command)
    if command and command not in COMMANDS:
        parser.error(f"no command {command!r}{suggestion(command, COMMANDS, _MEANT.get(command))}")
    args = parser.parse_args(arguments)
    if watched and getattr(args, "ray", None) is not None:
        from palidecode.cli.driver import run_apart

        child = run_apart()
        if child is not None:
            return child
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name or a label may have characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _Warnings(args.quiet).show  # type: ignore[assignment]
            _check_outputs(command, args)
            code: int = importlib.import_module(f"palidecode.cli.{_module(command)}").run(args)
        flush_stdout()
    except Exception as error:
        if args.verbose and not debugging():
            show_traceback(error)
        raise
    return code


def _check_outputs(command: str, args: argparse.Namespace) -> None:
    """Refuse outputs that are among the inputs, and endings of formats that aren't written.

    Sets ``args.data_on_stdout`` if an output is the standard output.
    """
    from palidecode.files import STDOUT, check_ending, refuse_overwriting  # loads numpy

    paths: dict[str, list[Path]] = {}
    for name, value in vars(args).items():
        values = value if isinstance(value, list) else [value]
        paths[name] = [Path(item) for item in values if isinstance(item, str | Path)]
    for name in _CHOICES:
        paths.pop(name, None)
    outputs = [path for name in _OUTPUTS for path in paths.pop(name, [])]
    args.data_on_stdout = Path(STDOUT) in outputs
    refuse_overwriting(outputs, [path for listed in paths.values() for path in listed])
    other = getattr(args, "format", "coco") != "coco"  # with any ending
    endings = None if other else _ENDINGS.get(command)
    if endings is not None:
        for path in outputs:
            check_ending(path, endings)
    if args.data_on_stdout and endings == _FOLDER:
        raise InputError("-o - is the standard output, but this command writes a folder")


class _Warnings:
    """Prints each warning once in a run, or none of them."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._shown: set[str] = set()

    def show(self, warning: Warning | str, category: type[Warning], *_: object) -> None:
        text = str(warning)
        if not self._quiet and text not in self._shown:
            self._shown.add(text)
            message(f"warning: {text}")


def _module(command: str) -> str:
    return command.replace("-", "_")


def build_parser(*commands: str) -> Parser:
    """Build the parser of all commands, with the options of some."""
    parser = Parser(
        prog="palidecode",
        description="Turn PaliGemma's answers into boxes, masks and COCO JSON.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"palidecode {__version__}")
    every = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        added = every.add_parser(name, help=text, description=text)
        if name in commands:
            options = importlib.import_module(f"palidecode.cli.options.{_module(name)}")
            options.add_options(added)
            added.epilog = "\n".join(["Examples:", textwrap.indent(options.EXAMPLES, "  ")])
    return parser
