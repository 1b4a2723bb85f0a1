"""``palidecode evaluate-referring``: evaluate answers to referring expressions."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from palidecode.cli.options import fill
from palidecode.cli.output import DONE, SKIPPED, Output, skip_lines
from palidecode.codec import load_codec
from palidecode.evaluation.gates import below, read_limits
from palidecode.evaluation.referring.evaluate import SCORES, evaluate_referring
from palidecode.evaluation.referring.rows import MISSING, NOT_BOX_AND_MASK
from palidecode.files import replacing

if TYPE_CHECKING:
    from palidecode.evaluation.referring.evaluate import ReferringResult

_NO_LOC = (
    "not one answer begins with four <loc…> tokens: keep special tokens when you detokenize "
    "(skip_special_tokens=False)"
)


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode evaluate-referring``."""
    output = fill(Output, args)
    limits = read_limits(args.min, SCORES)
    named = args.weights or args.backend != "auto"
    result = evaluate_referring(
        args.predictions,
        args.refs,
        args.instances,
        args.split,
        codec=load_codec(args.weights, args.backend, precision="float32") if named else None,
        divisor=args.divisor,
        missing=args.missing,
        output_key=args.output_key,
        image_key=args.image_key,
        box_image=args.box_image,
    )
    if args.samples is not None:
        with replacing(args.samples) as file:
            for row in result.rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    missed = below(result.scores(), limits)
    output.result({**result.as_dict(), "below": missed}, _table(result, missed))
    output.problems(result.problems)
    if silent := _none_begins_with_loc(result):
        output.note(_NO_LOC)
    lacking = result.missing if args.missing == "zero" else 0
    look = missed or result.problems or result.skipped or lacking or silent
    return SKIPPED if look else DONE


def _none_begins_with_loc(result: ReferringResult) -> bool:
    """Return True if not one answer about an object begins with four loc tokens."""
    answers = [s.invalid for s in result.samples if s.target and s.invalid != MISSING.invalid]
    return bool(answers) and set(answers) == {NOT_BOX_AND_MASK}


def _table(result: ReferringResult, missed: Mapping[str, float]) -> list[str]:
    """Return the result as lines of text."""
    lines = []
    for name, value in result.scores().items():
        limit = f"   below {missed[name]:g}" if name in missed else ""
        lines.append(f"{name:<14} {'—' if math.isnan(value) else f'{value:.4f}'}{limit}")
    lines += [f"{'invalid':<14} {result.invalid}", f"{'total':<14} {result.total}"]
    lines += [f"  {count} × {reason}" for reason, count in result.as_dict()["unusable"].items()]
    if result.masks < result.total:
        lines.append(f"{'masks':<14} {_masks(result)}")
    for name, count in (("missing", result.missing), ("no_target", result.no_target)):
        if count:
            lines.append(f"{name:<14} {count}")
    lines += skip_lines("SKIPPED", result.skipped)
    return lines


def _masks(result: ReferringResult) -> str:
    """Return how many masks are evaluated, and why the others aren't."""
    if result.masks:
        return f"{result.masks}; the truth of {result.total - result.masks} is only a box"
    return "not evaluated: the answers, or the truths, are boxes without masks"
