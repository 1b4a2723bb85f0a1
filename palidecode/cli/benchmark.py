"""``palidecode benchmark``: run a model on many datasets, and print a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from palidecode.benchmark.rf100vl import (
    SHOWN,
    Dataset,
    Score,
    SharedJob,
    find_datasets,
    means,
    read_questions,
    score,
    write_results,
)
from palidecode.cli.jobs import RayOptions, run_job
from palidecode.cli.options import fill
from palidecode.cli.output import DONE, SKIPPED, Output, decimals
from palidecode.cli.predict import ask_options, model_options
from palidecode.coco.writing import CocoOptions
from palidecode.errors import InputError
from palidecode.pipeline import PaliDecoder
from palidecode.runs.local import RunOptions, Watch
from palidecode.runs.pictures import Model, predict_options
from palidecode.wording import aligned, many


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode benchmark``."""
    output = fill(Output, args)
    datasets = find_datasets(args.folder, args.groups, args.datasets)
    model = model_options(args).pinned().with_engine()
    source = model.describe().source
    scores: list[Score] = []
    broken: dict[str, str] = {}
    loader = cache(lambda: PaliDecoder.from_options(model))
    for number, dataset in enumerate(datasets, 1):
        output.note(f"{dataset.name}: {number} of {len(datasets)}")
        try:
            done = _run_one(dataset, model, loader, args, output)
        except InputError as error:
            broken[dataset.name] = str(error)
            output.note(f"{dataset.name} is left out: {error}")
            continue
        if isinstance(done, int):
            return done
        scores.append(done)
    if not scores:
        name, reason = next(iter(broken.items()))
        raise InputError(f"no dataset could be evaluated; {name}: {reason}")
    info = {"benchmark": args.suite, "model": source}
    data = write_results(args.output, scores, broken, info)
    written = f"written: {args.output / 'results.json'}, {args.output / 'results.csv'}"
    output.result(data, [*_table(scores, broken), "", written])
    return SKIPPED if broken or any(one.notes for one in scores) else DONE


def _run_one(
    dataset: Dataset,
    model: Model,
    loader: Callable[[], PaliDecoder],
    args: argparse.Namespace,
    output: Output,
) -> Score | int:
    """Predict and evaluate a dataset; return the exit code where that was interrupted."""
    questions = read_questions(dataset)
    options = predict_options(
        model,
        task="detect",
        classes=questions.names,
        min_score=args.min_score,
        ask=ask_options(args),
        batch_size=args.batch_size,
    )
    job = SharedJob(options, loader)
    path = args.output / "predictions" / f"{dataset.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    finish = run_job(
        job,
        questions.pictures,
        [],
        path,
        CocoOptions(categories=questions.names),
        RunOptions(restart=args.restart, keep_journal=True),
        RayOptions(),
        output,
        dataset.name,
        Watch(),
    )
    if isinstance(finish, int):
        return finish
    failed = [row["reason"] for row in finish.written.failed]
    if not finish.written.report.images:
        raise InputError(f"no picture could be read; the first: {failed[0]}")
    return score(dataset, questions, path, failed)


def _table(scores: Sequence[Score], broken: Mapping[str, str]) -> list[str]:
    """Return the lines of the results: datasets, means, and what needs a look."""
    grouped = any(one.group for one in scores)
    cells = [["dataset", *(["group"] * grouped), "pictures", "classes", "objects", *SHOWN]]
    for one in scores:
        counts = [f"{count:,}" for count in (one.pictures, one.classes, one.objects)]
        shown = [decimals(one.numbers[name]) for name in SHOWN]
        cells.append([one.dataset, *([one.group or "-"] * grouped), *counts, *shown])
    total = [["mean of", "datasets", *SHOWN]]
    for group, row in means(scores).items():
        total.append([group, f"{row['datasets']:,}", *(decimals(row[name]) for name in SHOWN)])
    lines = [*aligned(cells), "", *aligned(total)]
    noted = [f"  {one.dataset}: {note}" for one in scores for note in one.notes]
    if noted:
        lines += ["", "LOOK:", *noted]
    if broken:
        what = many(len(broken), "dataset")
        lines += ["", f"LEFT OUT of the means, {what}:"]
        lines += [f"  {name}: {reason}" for name, reason in broken.items()]
    return lines
