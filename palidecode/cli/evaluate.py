"""``palidecode evaluate``: predictions against COCO ground truth."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.cli.options import add_evaluation_options, add_json, evaluation_options, iou_types
from palidecode.cli.output import (
    DONE,
    LEFT_OUT,
    SHOWN_CLASSES,
    aligned,
    decimals,
    skip_line,
    skipped_unasked,
)
from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.evaluation.coco.bootstrap import Interval
    from palidecode.evaluation.coco.result import CocoEvaluation

RATES = ("precision", "recall", "F1")
_FOR_A_PAGE = 300  # resamples; half a minute of them would be too long to wait for unasked


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``palidecode evaluate``."""
    add_json(parser)
    parser.add_argument("gt", type=Path, metavar="GT.json", help="a COCO dataset")
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="PRED.json",
        help="a COCO results list, or what `palidecode decode` wrote",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for metrics.json and index.html"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the pictures, for the page in -o"
    )
    parser.add_argument(
        "--min",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="exit with 1 below it: AP, AP50, … ARl, precision, recall, F1; may be repeated",
    )
    add_evaluation_options(parser, f"{_FOR_A_PAGE} with -o, else 0", None)


def run(args: argparse.Namespace) -> int:
    """``palidecode evaluate``: exit code 1 where rows were skipped or a number is too low."""
    from palidecode.evaluation.coco.evaluate import evaluate_coco
    from palidecode.files import replacing

    limits = _limits(args.min)
    if args.images is not None and args.output is None:
        raise InputError("--images is for the page that -o DIR writes")
    if args.images is not None and not args.images.is_dir():
        raise InputError(f"{args.images}: no such folder of pictures")
    if args.bootstrap is None:
        args.bootstrap = 0 if args.output is None else _FOR_A_PAGE
    results: dict[str, CocoEvaluation] = {
        kind: evaluate_coco(args.gt, args.predictions, kind, **evaluation_options(args))
        for kind in iou_types(args)
    }
    below = [text for kind, result in results.items() for text in _below(result, limits, kind)]
    told = {kind: result.as_dict() for kind, result in results.items()}
    written: list[str] = []
    if args.output is not None:
        with replacing(args.output / "metrics.json") as file:
            json.dump({"below": below, **told}, file, ensure_ascii=False, indent=1, allow_nan=False)
        written = ["metrics.json", *(["index.html"] if _write_page(args, results, below) else [])]
    if args.json:
        print(json.dumps({"below": below, **told}, ensure_ascii=False, allow_nan=False))
    else:
        print("\n\n".join(_table(result) for result in results.values()))
        if written:
            print("\nwritten: " + ", ".join(str(args.output / name) for name in written))
    for text in below:
        print(f"palidecode: {text}", file=sys.stderr)
    left_out = any(skipped_unasked(result.skipped) for result in results.values())
    no_page = bool(written) and "index.html" not in written
    return LEFT_OUT if below or left_out or no_page else DONE


def _write_page(
    args: argparse.Namespace, results: dict[str, CocoEvaluation], below: Sequence[str]
) -> bool:
    """The page for people, if what draws it is installed; metrics.json is written already."""
    try:
        from palidecode.report import write_report
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "jinja2", "markupsafe"):
            raise
        print(
            f"palidecode: no index.html: it needs {error.name}: pip install 'palidecode[report]'",
            file=sys.stderr,
        )
        return False
    write_report(
        args.output / "index.html",
        results,
        images=args.images,
        truth_name=args.gt.name,
        predictions_name=args.predictions.name,
        below=below,
    )
    return True


def _limits(texts: Sequence[str]) -> dict[str, float]:
    from palidecode.evaluation.coco.engine import METRICS

    limits = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in (*METRICS, *RATES):
            known = ", ".join((*METRICS, *RATES))
            raise InputError(f"--min {text}: no number is called {name!r}; there are {known}")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if math.isnan(limits[name]):
            raise InputError(f"--min {text}: write it as {name}=0.5")
    return limits


def _below(result: CocoEvaluation, limits: dict[str, float], kind: str) -> list[str]:
    """What is below its limit, in words; a number that can't be computed is below any."""
    found = result.as_dict()
    numbers = {**found["metrics"], **{name: found["at_iou_50"][name] for name in RATES}}
    return [
        f"{kind} {name} is {decimals(numbers[name])}, below {limit:g}"
        for name, limit in limits.items()
        if numbers[name] is None or numbers[name] < limit
    ]


def _table(result: CocoEvaluation) -> str:
    """An evaluation as a table for a terminal."""
    from palidecode.evaluation.coco.engine import METRICS

    lines = [
        f"{result.iou_type}: {result.predictions:,} predictions, {result.objects:,} objects, "
        f"{result.images:,} images"
    ]
    if result.unscored:
        lines.append(
            f"NO SCORES: AP is the mean of {result.orders} random orders, ± its standard deviation"
        )
    lines.append("")
    for name, value, spread in zip(METRICS, result.stats, result.spread, strict=True):
        shown = "-" if value == -1 else f"{value:.3f}"
        if result.unscored and value != -1:
            shown += f" ± {spread:.3f}"
        lines.append(f"  {name:<9} {shown}{_interval(result.intervals.get(name))}")
    rates, best = result.rates, result.best_threshold
    lines += [
        "",
        f"  at IoU 0.5: {rates.right:,} right, {rates.wrong:,} wrong, {rates.missed:,} missed",
        *(
            f"  {name:<9} {decimals(value)}{_interval(result.intervals.get(name))}"
            for name, value in zip(RATES, rates.values.tolist(), strict=True)
        ),
    ]
    if best is not None:
        lines.append(f"  best F1 {best['f1']:.3f} when scores below {best['score']:.3g} are cut")
    wrong = {k: n for k, n in result.kinds.items() if k not in ("ok", "missed") and n}
    if wrong:
        lines.append("  wrong: " + ", ".join(f"{kind} {n:,}" for kind, n in wrong.items()))
    lines += ["", *_class_lines(result.rows())]
    for title, found in (("LEFT OUT", result.skipped), ("counted, but odd", result.noted)):
        if found:
            lines += ["", f"{title}:", *map(skip_line, found)]
    return "\n".join(lines)


def _class_lines(rows: list[dict[str, Any]]) -> list[str]:
    names = ("AP", "AP50", "precision", "recall", "F1")
    shown = sorted(rows, key=lambda row: (-row["objects"], row["category"]))[:SHOWN_CLASSES]
    cells = [["class", "objects", "predictions", *names]]
    for row in shown:
        counts = [f"{row['objects']:,}", f"{row['predictions']:,}"]
        cells.append([row["category"], *counts, *(decimals(row[name]) for name in names)])
    lines = aligned(cells)
    if len(rows) > len(shown):
        lines.append(f"  … and {len(rows) - len(shown)} more classes (all of them with --json)")
    return lines


def _interval(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"   {found.low:.3f} … {found.high:.3f} ({found.confidence:.0%})"
