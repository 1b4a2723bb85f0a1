"""``palidecode compare``: two prediction files, image by image."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from palidecode.cli.evaluate import RATES
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

if TYPE_CHECKING:
    from palidecode.evaluation.coco.comparison import CocoComparison


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``palidecode compare``."""
    add_json(parser)
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json", help="differences are B minus A")
    parser.add_argument("--gt", type=Path, required=True, metavar="GT.json", help="a COCO dataset")
    add_evaluation_options(parser, "1000", 1000)


def run(args: argparse.Namespace) -> int:
    """``palidecode compare``."""
    from palidecode.evaluation.coco.comparison import compare_coco

    results: dict[str, CocoComparison] = {
        kind: compare_coco(args.gt, args.first, args.second, kind, **evaluation_options(args))
        for kind in iou_types(args)
    }
    if args.json:
        told = {kind: result.as_dict() for kind, result in results.items()}
        print(json.dumps(told, ensure_ascii=False, allow_nan=False))
    else:
        texts = (_table(r, args.first, args.second) for r in results.values())
        print("\n\n".join(texts))
    skipped = [s for r in results.values() for s in (*r.first.skipped, *r.second.skipped)]
    return LEFT_OUT if skipped_unasked(skipped) else DONE


def _table(result: CocoComparison, first: Path, second: Path) -> str:
    """A comparison as a table for a terminal."""
    from palidecode.evaluation.coco.engine import METRICS

    a, b = result.first, result.second
    lines = [f"{a.iou_type}: A is {first}, B is {second}"]
    if a.unscored:
        lines.append("NO SCORES in at least one: both are means over random orders")
    cells = [["", "A", "B", "B - A", "95% interval", "B better in"]]
    rows = zip(
        (*METRICS, *RATES),
        (*a.stats, *a.rates.values),
        (*b.stats, *b.rates.values),
        (*result.differences, *(b.rates.values - a.rates.values)),
        strict=True,
    )
    for name, one, two, change in rows:
        found = result.intervals.get(name)
        between = "" if found is None else f"{found.low:+.3f} … {found.high:+.3f}"
        share = "" if found is None else f"{result.better[name]:.0%} of resamples"
        if not math.isnan(change):
            cells.append([name, f"{one:.3f}", f"{two:.3f}", f"{change:+.3f}", between, share])
    lines += ["", *aligned(cells), ""]
    changed = [row for row in result.rows() if row["AP_difference"]][:SHOWN_CLASSES]
    table = [["class", "objects", "AP of A", "AP of B", "B - A"]]
    for row in changed:
        aps = [decimals(row["AP_first"]), decimals(row["AP_second"])]
        table.append([row["category"], str(row["objects"]), *aps, f"{row['AP_difference']:+.3f}"])
    lines += aligned(table) if changed else ["  no class has another AP"]
    for name, side in (("A", a), ("B", b)):
        if side.skipped:
            lines += ["", f"LEFT OUT of {name}:", *map(skip_line, side.skipped)]
    return "\n".join(lines)
