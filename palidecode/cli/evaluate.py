"""``palidecode evaluate`` and ``palidecode compare``: COCO's numbers on the command line."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.cli.commands import DONE, LEFT_OUT
from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.coco.skips import Skip
    from palidecode.evaluation.coco.bootstrap import Interval
    from palidecode.evaluation.coco.comparison import CocoComparison
    from palidecode.evaluation.coco.result import CocoEvaluation

RATES = ("precision", "recall", "F1")
_SHOWN_CLASSES = 20
_FOR_A_PAGE = 300  # resamples; half a minute of them would be too long to wait for unasked
_AS_ASKED = ("merged", "not_asked")  # left out because somebody wanted it so


def add_evaluation(commands: Any, command: Callable[..., Any]) -> None:
    """The parsers; `command` makes one with what all commands share."""
    parser = command(commands, "evaluate", run_evaluate, "Predictions against COCO ground truth.")
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
    _add_shared(parser, f"{_FOR_A_PAGE} with -o, else 0", None)
    parser = command(commands, "compare", run_compare, "Two prediction files, image by image.")
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json", help="differences are B minus A")
    parser.add_argument("--gt", type=Path, required=True, metavar="GT.json", help="a COCO dataset")
    _add_shared(parser, "1000", 1000)


def _add_shared(parser: Any, said: str, bootstrap: int | None) -> None:
    parser.add_argument("--iou-type", choices=("bbox", "segm", "both"), default="bbox")
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="evaluate only these (names or ids)"
    )
    parser.add_argument(
        "--match", choices=("exact", "loose"), default="exact", help="loose: case, plurals, aliases"
    )
    parser.add_argument(
        "--merge-duplicates",
        type=float,
        metavar="IOU",
        help="leave out repeats of the same class that overlap by at least this",
    )
    parser.add_argument(
        "--scores", choices=("file", "ignore"), default="file", help="ignore: as if there were none"
    )
    parser.add_argument(
        "--orders", type=int, default=10, metavar="K", help="random orders of unscored predictions"
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=bootstrap,
        metavar="N",
        help=f"resamples for 95%% intervals (default: {said})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")


def run_evaluate(args: argparse.Namespace) -> int:
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
        kind: evaluate_coco(args.gt, args.predictions, kind, **_options(args))
        for kind in _kinds(args)
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
        print("\n\n".join(evaluation_text(result) for result in results.values()))
        if written:
            print("\nwritten: " + ", ".join(str(args.output / name) for name in written))
    for text in below:
        print(f"palidecode: {text}", file=sys.stderr)
    left_out = any(_left_out(result.skipped) for result in results.values())
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


def run_compare(args: argparse.Namespace) -> int:
    """``palidecode compare``."""
    from palidecode.evaluation.coco.comparison import compare_coco

    results: dict[str, CocoComparison] = {
        kind: compare_coco(args.gt, args.first, args.second, kind, **_options(args))
        for kind in _kinds(args)
    }
    if args.json:
        told = {kind: result.as_dict() for kind, result in results.items()}
        print(json.dumps(told, ensure_ascii=False, allow_nan=False))
    else:
        texts = (comparison_text(r, args.first, args.second) for r in results.values())
        print("\n\n".join(texts))
    skipped = [s for r in results.values() for s in (*r.first.skipped, *r.second.skipped)]
    return LEFT_OUT if _left_out(skipped) else DONE


def _kinds(args: argparse.Namespace) -> Sequence[Any]:
    return ("bbox", "segm") if args.iou_type == "both" else (args.iou_type,)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    categories = args.categories
    if categories is not None:
        categories = [int(name) if name.isdecimal() else name for name in categories]
    return {
        "categories": categories,
        "match": args.match,
        "merge_duplicates": args.merge_duplicates,
        "scores": args.scores,
        "orders": args.orders,
        "bootstrap": args.bootstrap,
        "seed": args.seed,
    }


def _left_out(skipped: Sequence[Skip]) -> bool:
    return any(skip.reason not in _AS_ASKED for skip in skipped)


# -- the gate ---------------------------------------------------------------------------


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
        f"{kind} {name} is {_number(numbers[name])}, below {limit:g}"
        for name, limit in limits.items()
        if numbers[name] is None or numbers[name] < limit
    ]


# -- what is printed --------------------------------------------------------------------


def evaluation_text(result: CocoEvaluation) -> str:
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
            f"  {name:<9} {_number(value)}{_interval(result.intervals.get(name))}"
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
            lines += ["", f"{title}:", *map(_skip, found)]
    return "\n".join(lines)


def _class_lines(rows: list[dict[str, Any]]) -> list[str]:
    names = ("AP", "AP50", "precision", "recall", "F1")
    shown = sorted(rows, key=lambda row: (-row["objects"], row["category"]))[:_SHOWN_CLASSES]
    cells = [["class", "objects", "predictions", *names]]
    for row in shown:
        counts = [f"{row['objects']:,}", f"{row['predictions']:,}"]
        cells.append([row["category"], *counts, *(_number(row[name]) for name in names)])
    lines = _aligned(cells)
    if len(rows) > len(shown):
        lines.append(f"  … and {len(rows) - len(shown)} more classes (all of them with --json)")
    return lines


def comparison_text(result: CocoComparison, first: Path, second: Path) -> str:
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
    lines += ["", *_aligned(cells), ""]
    changed = [row for row in result.rows() if row["AP_difference"]][:_SHOWN_CLASSES]
    table = [["class", "objects", "AP of A", "AP of B", "B - A"]]
    for row in changed:
        aps = [_number(row["AP_first"]), _number(row["AP_second"])]
        table.append([row["category"], str(row["objects"]), *aps, f"{row['AP_difference']:+.3f}"])
    lines += _aligned(table) if changed else ["  no class has another AP"]
    for name, side in (("A", a), ("B", b)):
        if side.skipped:
            lines += ["", f"LEFT OUT of {name}:", *map(_skip, side.skipped)]
    return "\n".join(lines)


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]


def _skip(skip: Skip) -> str:
    return f"  {skip}" + (f" ({skip.such_as})" if skip.such_as else "")


def _interval(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"   {found.low:.3f} … {found.high:.3f} ({found.confidence:.0%})"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
