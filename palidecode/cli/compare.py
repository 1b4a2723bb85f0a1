"""``palidecode compare``: compare two prediction files, image by image."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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
from palidecode.coco.skips import DIFFER, needs_a_look
from palidecode.errors import InputError
from palidecode.evaluation.coco.comparison import compare
from palidecode.evaluation.coco.evaluate import EvaluateOptions
from palidecode.files import replacing
from palidecode.wording import aligned

if TYPE_CHECKING:
    from palidecode.evaluation.coco.comparison import CocoComparison


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode compare``."""
    if args.images is not None and args.output is None:
        raise InputError("--images is for the page that -o DIR writes; add -o DIR")
    if args.images is not None and not args.images.is_dir():
        raise InputError(f"{args.images}: no such directory of pictures")
    options = fill(EvaluateOptions, args)
    results: dict[str, CocoComparison] = {
        kind: compare(args.gt, args.first, args.second, kind, options)
        for kind in IOU_TYPES[args.iou_type]
    }
    lines = blocks(_table(result, args.first, args.second) for result in results.values())
    data = {kind: result.as_dict() for kind, result in results.items()}
    if args.output is not None:
        written = _write(args, results, data)
        lines += ["", f"written: {', '.join(map(str, written))}"]
    fill(Output, args).result(data, lines)
    sides = [side for result in results.values() for side in (result.first, result.second)]
    return SKIPPED if any(needs_a_look(s.skipped, s.noted) for s in sides) else DONE


def _write(
    args: argparse.Namespace, results: Mapping[str, CocoComparison], data: object
) -> list[Path]:
    from palidecode.report import made_with, write_comparison  # loads jinja2

    numbers, page = args.output / "metrics.json", args.output / "index.html"
    with replacing(numbers) as file:
        json.dump(data, file, ensure_ascii=False, indent=1, allow_nan=False)
    write_comparison(
        page,
        results,
        images=args.images,
        truth_name=args.gt.name,
        names=(str(args.first), str(args.second)),
        facts=[made_with(args.first), made_with(args.second)],
    )
    return [numbers, page]


def _table(result: CocoComparison, first: Path, second: Path) -> list[str]:
    """Return the lines of a comparison."""
    a, b = result.first, result.second
    lines = [f"{a.iou_type}: A is {first}, B is {second}"]
    if a.unscored:
        lines.append("NO SCORES in at least one: both are means over random orders")
    cells = [["", "A", "B", "B - A", "95% interval", "B better in"]]
    for name, of_a, of_b, change in result.changes():
        interval = result.intervals.get(name)
        between = "" if interval is None else f"{interval.low:+.3f} … {interval.high:+.3f}"
        share = "" if interval is None else f"{result.better[name]:.0%} of resamples"
        if not math.isnan(change):
            cells.append([name, f"{of_a:.3f}", f"{of_b:.3f}", f"{change:+.3f}", between, share])
    lines += ["", *aligned(cells), ""]
    changed = [row for row in result.rows() if row["AP_difference"]][:SHOWN_CLASSES]
    table = [["class", "objects", "AP of A", "AP of B", "B - A"]]
    for row in changed:
        aps = [decimals(row["AP_first"]), decimals(row["AP_second"])]
        table.append([row["category"], str(row["objects"]), *aps, f"{row['AP_difference']:+.3f}"])
    lines += aligned(table) if changed else ["  the AP of every class is the same"]
    for name, side in (("A", a), ("B", b)):
        lines += skip_lines(f"SKIPPED in {name}", side.skipped)
        differing = [skip for skip in side.noted if skip.reason in DIFFER]
        lines += skip_lines(f"DOESN'T FIT the ground truth in {name}", differing)
    return lines
