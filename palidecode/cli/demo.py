"""``palidecode demo``: the bundled model, or bundled answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from palidecode.cli.options import add_json
from palidecode.cli.output import DONE
from palidecode.errors import InputError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``palidecode demo``."""
    add_json(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("palidecode-demo"),
        metavar="DIR",
        help="where to write (default: palidecode-demo)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--image", type=Path, metavar="FILE", help="a picture of your own instead")
    which.add_argument(
        "--answers",
        action="store_true",
        help="decode bundled answers about a bundled picture instead: needs no torch",
    )
    parser.add_argument("--prompt", help="with --image, for instance 'detect star ; circle'")
    parser.add_argument(
        "--model", default="demo", metavar="DIR", help="another model of such scenes"
    )


def run(args: argparse.Namespace) -> int:
    """``palidecode demo``."""
    said: Any
    if args.answers:
        from palidecode.demo.answers_demo import run as run_answers

        said = run_answers(args.output)
    else:
        from palidecode.demo.model_demo import run, run_on

        if args.prompt is not None and args.image is None:
            raise InputError("--prompt asks about a picture: give --image, too")
        if args.image is not None:
            said = run_on(args.image, args.prompt, args.output, args.model)
        else:
            said = run(args.output, args.model)
    print(json.dumps(said.as_dict()) if args.json else said.table())
    return DONE
