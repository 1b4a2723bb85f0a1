"""``palidecode demo``: run the bundled model, or decode bundled answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_output, fill
from palidecode.cli.output import DONE, Output
from palidecode.demo import answers_demo, model_demo
from palidecode.errors import InputError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode demo``."""
    add_output(parser)
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
        help="decode bundled answers about a bundled picture; needs no torch",
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


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode demo``."""
    if args.prompt is not None and args.image is None and not args.answers:
        raise InputError("--prompt is for your own picture: add --image FILE")
    report: answers_demo.DemoReport | model_demo.ModelReport | model_demo.PictureReport
    if args.answers:
        report = answers_demo.run(args.output)
    elif args.image is not None:
        report = model_demo.run_on(args.image, args.prompt, args.output, args.model)
    else:
        report = model_demo.run(args.output, args.model)
    fill(Output, args).result(report.as_dict(), report.lines())
    return DONE
