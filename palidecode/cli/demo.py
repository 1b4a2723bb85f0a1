"""``palidecode demo``: run the bundled model, or decode bundled answers."""

from __future__ import annotations

import argparse

from palidecode.cli.options import fill
from palidecode.cli.output import DONE, Output
from palidecode.demo import answers_demo, model_demo
from palidecode.errors import InputError


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
