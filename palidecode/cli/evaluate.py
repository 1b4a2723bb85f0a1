"""``palidecode evaluate``: evaluate predictions against COCO ground truth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from palidecode.answers.rows import holds_rows
from palidecode.cli.options import IOU_TYPES, fill
from palidecode.cli.output import (
    DONE,
    SHOWN_CLASSES,
    SKIPPED,
    Output,
    blocks,
    decimals,
    skip_lines,
)
from palidecode.cli.terminal import message
from palidecode.coco.skips import needs_a_look
from palidecode.errors import InputError
from palidecode.evaluation.coco.bootstrap import Interval
from palidecode.evaluation.coco.engine import METRICS, NOT_LVIS, NOTHING
from palidecode.evaluation.coco.evaluate import EvaluateOptions, evaluate
from palidecode.evaluation.coco.measures import RATES
from palidecode.evaluation.coco.result import NUMBERS
from palidecode.evaluation.gates import below, read_limits
from palidecode.files import replacing
from palidecode.wording import aligned, many

if TYPE_CHECKING:
    from palidecode.evaluation.coco.result import CocoEvaluation

_FOR_A_PAGE = 300  # resamples; more take over half a minute, which -o alone doesn't ask for


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode evaluate``."""
    output = fill(Output, args)
    if args.images is not None and args.output is None:
        raise InputError("--images is for the page that -o DIR writes; add -o DIR")
    if args.images is not None and not args.images.is_dir():
        raise InputError(f"{args.images}: no such directory of pictures")
    resamples = args.bootstrap
    if resamples is None:
        resamples = 0 if args.output is None else _FOR_A_PAGE
    options = fill(EvaluateOptions, args, bootstrap=resamples)
    limits = read_limits(args.min, (*NUMBERS, *options.subsets.meanings))
    predictions: Path | dict[str, object] = args.predictions
    odd: dict[str, Sequence[object]] = {}
    if holds_rows(args.predictions):
        from palidecode.cli.answer_rows import decode_rows  # loads what decodes answers

        predictions, odd = decode_rows(args, output)
    results: dict[str, CocoEvaluation] = {
        kind: evaluate(args.gt, predictions, kind, options) for kind in IOU_TYPES[args.iou_type]
    }
    missed = [text for result in results.values() for text in _missed(result, limits)]
    data = {"below": missed, **odd, **{kind: result.as_dict() for kind, result in results.items()}}
    lines = blocks(map(_table, results.values()))
    complete = True
    if args.output is not None:
        page = args.output / "index.html"
        written = [str(args.output / "metrics.json")]
        with replacing(written[0]) as file:
            json.dump(data, file, ensure_ascii=False, indent=1, allow_nan=False)
        if complete := _write_page(page, results, args.gt, args.predictions, args.images, missed):
            written.append(str(page))
        lines += ["", f"written: {', '.join(written)}"]
    output.result(data, lines)
    for line in missed:
        message(line)
    skipped = any(needs_a_look(result.skipped, result.noted) for result in results.values())
    odd_rows = any(odd.values())
    return SKIPPED if missed or skipped or odd_rows or not complete else DONE


def _missed(result: CocoEvaluation, limits: Mapping[str, float]) -> list[str]:
    """Return a line about each number that is below its limit."""
    numbers = result.numbers
    return [
        f"{result.iou_type} {name} is {decimals(numbers.get(name))}, below {limit:g}"
        for name, limit in below(numbers, limits).items()
    ]


def _write_page(
    page: Path,
    results: Mapping[str, CocoEvaluation],
    gt: Path,
    predictions: Path,
    images: Path | None,
    missed: Sequence[str],
) -> bool:
    """Write the page; return False if a package that it needs is not installed."""
    from palidecode.report import made_with, write_report  # loads jinja2

    try:
        write_report(
            page,
            results,
            images=images,
            truth_name=gt.name,
            predictions_name=predictions.name,
            below=missed,
            facts=made_with(predictions),
        )
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        message(f"no index.html: it needs {error.name}: pip install 'palidecode[report]'")
        return False
    return True


def _table(result: CocoEvaluation) -> list[str]:
    """Return the lines of an evaluation."""
    lines = [
        f"{result.iou_type}: {many(result.predictions, 'prediction')}, "
        f"{many(result.objects, 'object')}, {many(result.images, 'image')}"
    ]
    if result.unscored:
        lines.append(
            f"NO SCORES: AP is the mean of {result.orders} random orders, ± its standard deviation"
        )
    lines.append("")
    for name, value, spread in zip(METRICS, result.stats, result.spread, strict=True):
        if result.lvis and name in NOT_LVIS:
            continue
        shown = "-" if value == NOTHING else f"{value:.3f}"
        if result.unscored and value != NOTHING:
            shown += f" ± {spread:.3f}"
        lines.append(f"  {name:<9} {shown}{_interval(result.intervals.get(name))}")
    lines += [
        f"  {name:<9} {decimals(result.numbers[name])}{_interval(result.intervals.get(name))}"
        for name in result.lvis
    ]
    width = max((len(some.name) for some in result.subsets), default=0)
    for some in result.subsets:
        shown = f"{some.name:<{width}} {decimals(some.ap)}"
        lines.append(f"  {shown}{_interval(result.intervals.get(some.name))}")
    rates, best = result.rates, result.best_threshold
    lines += [
        "",
        f"  at IoU 0.5: {rates.right:,} right, {rates.wrong:,} wrong, {rates.missed:,} missed",
        *(
            f"  {name:<9} {decimals(value)}{_interval(result.intervals.get(name))}"
            for name, value in zip(RATES, rates.values.tolist(), strict=True)
        ),
    ]
    free = [f"{name} {decimals(value)}" for name, value in result.score_free.numbers.items()]
    lines.append(f"  classes averaged: {', '.join(free)}")
    if best is not None:
        lines.append(f"  best F1 {best['f1']:.3f} at the score threshold {best['score']:.3g}")
    ignored = result.kinds.get("ignored", 0)
    if ignored:
        lines.append(f"  neither right nor wrong: {ignored:,}")
    other = ("ok", "missed", "ignored")
    wrong = {k: n for k, n in result.kinds.items() if k not in other and n}
    if wrong:
        lines.append("  wrong: " + ", ".join(f"{kind} {n:,}" for kind, n in wrong.items()))
    lines += ["", *_class_lines(result)]
    return [
        *lines,
        *skip_lines("SKIPPED", result.skipped),
        *skip_lines("counted, but odd", result.noted),
    ]


def _class_lines(result: CocoEvaluation) -> list[str]:
    names = ("AP", "AP50", "precision", "recall", "F1")
    rows = result.rows()
    shown = sorted(rows, key=lambda row: (-row["objects"], row["category"]))[:SHOWN_CLASSES]
    cells = [["class", "objects", "predictions", *names]]
    for row in shown:
        counts = [f"{row['objects']:,}", f"{row['predictions']:,}"]
        cells.append([row["category"], *counts, *(decimals(row[name]) for name in names)])
    lines = aligned(cells)
    if len(rows) > len(shown):
        more = many(len(rows) - len(shown), "more class", "more classes")
        lines.append(f"  … and {more} (--json lists all of them)")
    return lines


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"   {interval.low:.3f} … {interval.high:.3f} ({interval.confidence:.0%})"
