"""``palidecode evaluate-referring``: answers to referring expressions against masks."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from palidecode.cli.options import add_json
from palidecode.cli.output import DONE, LEFT_OUT, say_problems
from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.evaluation.referring.evaluate import ReferringResult


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``palidecode evaluate-referring``."""
    add_json(parser)
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="PRED.jsonl",
        help="rows with 'output' or 'token_ids', and 'sent_id' or their own 'segmentation'",
    )
    group = parser.add_argument_group("RefCOCO's files")
    group.add_argument("--refs", type=Path, metavar="FILE", help="refs(unc).p and its like")
    group.add_argument("--instances", type=Path, metavar="FILE", help="instances.json")
    group.add_argument("--split", default="val", help="val (default), testA, testB, test, train")
    group.add_argument(
        "--missing",
        choices=("zero", "skip"),
        default="zero",
        help="expressions without a prediction: invalid (default), or not counted",
    )
    parser.add_argument("--weights", metavar="FILE", help="mask codec: a file, or google-oid")
    parser.add_argument("--backend", choices=("auto", "onnx", "torch"), default="auto")
    parser.add_argument("--divisor", type=int, choices=(1024, 1023), default=1023)
    parser.add_argument(
        "--min",
        type=_minimum,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="exit code 1 where a number is below: miou=0.7, boxacc@0.5=0.8; may be repeated",
    )
    parser.add_argument("--samples", type=Path, metavar="FILE", help="write each sample's numbers")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print, and compare with what was wanted."""
    from palidecode.codec import load_codec
    from palidecode.evaluation.referring.evaluate import SCORES, evaluate_referring
    from palidecode.files import replacing

    unknown = [name for name, _ in args.min if name not in SCORES]
    if unknown:
        raise InputError(f"--min: no number is called {unknown[0]!r}; {', '.join(SCORES)}")
    named = args.weights or args.backend != "auto"
    result = evaluate_referring(
        args.predictions,
        args.refs,
        args.instances,
        args.split,
        codec=load_codec(args.weights, args.backend) if named else None,
        divisor=args.divisor,
        missing=args.missing,
    )
    if args.samples is not None:
        with replacing(args.samples) as file:
            for row in result.rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    scores = result.scores()
    # A number that isn't there (NaN) reaches nothing.
    below = {name: least for name, least in args.min if not scores[name] >= least}
    if args.json:
        print(json.dumps({**result.as_dict(), "below": below}, ensure_ascii=False))
    else:
        _say(result, below)
        say_problems(args, result.problems)
    return LEFT_OUT if below or result.problems or result.missing else DONE


def _say(result: ReferringResult, below: dict[str, float]) -> None:
    for name, value in result.scores().items():
        short = f"   below {below[name]:g}" if name in below else ""
        print(f"{name:<14} {'—' if math.isnan(value) else f'{value:.4f}'}{short}")
    print(f"{'invalid':<14} {result.invalid}\n{'total':<14} {result.total}")
    for reason, count in result.as_dict()["unusable"].items():
        print(f"  {count} × {reason}")
    for name in ("missing", "no_target"):
        if count := getattr(result, name):
            print(f"{name:<14} {count}")


def _minimum(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        least = float(value)
        if not name or math.isnan(least):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=VALUE, for instance miou=0.7"
        ) from None
    return name, least
