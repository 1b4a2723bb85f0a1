"""``palidecode decode``: convert model answers to a COCO file."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from palidecode.answers.assembler import IssueKind
from palidecode.answers.rows import AnswerRow
from palidecode.cli.convert import Conversion
from palidecode.cli.issues import Issues, collected
from palidecode.cli.jobs import Finish, RayOptions, run_job
from palidecode.cli.options import fill
from palidecode.cli.output import (
    DONE,
    NO_LOC,
    SKIPPED,
    Output,
    counted,
    objects_of,
    report_lines,
    skipped_unasked,
)
from palidecode.cli.target import Target, target
from palidecode.coco.categories import read_categories
from palidecode.coco.writing import CocoOptions, CocoReport, MaskFormat, dataset_of, images_of
from palidecode.errors import InputError
from palidecode.files import replacing
from palidecode.runs.answers import AnswerDecoder, DecodeJob, DecodeOptions
from palidecode.runs.local import RunOptions, Watch, WrittenCoco

_OF_BOXES = {
    *(IssueKind.MISSING_LOC, IssueKind.EXTRA_LOC, IssueKind.OUT_OF_RANGE, IssueKind.TRUNCATED),
    *(IssueKind.INVERTED_BOX, IssueKind.EMPTY_BOX),
}
"""Issues of answers that have a loc token, though perhaps no object."""


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode decode``."""
    output, ray, options = fill(Output, args), fill(RayOptions, args), fill(DecodeOptions, args)
    form = fill(MaskFormat, args)
    coco = fill(CocoOptions, args, categories=read_categories(args.categories), form=form)
    if (args.text is None) == (args.answers is None):
        raise InputError("give either a file of answers or --text")
    if args.text is not None:
        if args.issues is not None:
            raise InputError("--issues is for files of answers; --text prints its issues")
        if ray.ray is not None:
            raise InputError("--ray can't be combined with --text: it decodes files of answers")
        if args.format != "coco":
            raise InputError("--format is for files of answers: --text has no picture's name")
        return _decode_text(args.text, options, coco, args.output, output)
    if args.output is None:
        raise InputError("name the file to write: -o coco.json")
    run = fill(RunOptions, args)
    with target(args.output, args.format, [args.answers]) as goal:
        with collected(args.issues) as issues:
            finish = _decode_file(args.answers, options, coco, goal.coco, run, ray, output, issues)
            issues.discarded = isinstance(finish, int)
        if isinstance(finish, int):
            return finish
        return _finish(args.answers, finish.written, goal, issues, output)


def _decode_file(
    answers: Path,
    options: DecodeOptions,
    coco: CocoOptions,
    path: Path,
    run: RunOptions,
    ray: RayOptions,
    output: Output,
    issues: Issues,
) -> Finish | int:
    job = DecodeJob(options)
    if ray.ray is None and not answers.is_file():
        # A pipe can't be read again, so there is nothing to resume.
        run = replace(run, no_journal=True)
    watch = Watch(issue=issues.add)
    items = job.items(answers) if ray.ray is None else ()
    return run_job(job, items, [answers], path, coco, run, ray, output, "decoding", watch)


def _finish(
    answers: Path, written: WrittenCoco, goal: Target, issues: Issues, output: Output
) -> int:
    """Convert and report what was written, and return the exit code."""
    problems = [(row["line"], row["reason"]) for row in written.failed]
    if not written.report.images:
        output.problems(problems)
        raise InputError(f"{answers}: no usable row; {goal.path} was not written")
    silent = has_no_loc(written)
    converted = goal.convert()
    _report(written, converted, issues, output, [NO_LOC] if silent else [])
    output.problems(problems, "row" if answers.suffix in (".json", ".parquet") else "line")
    output.listed(issues.lines(), issues.count, "--issues FILE writes")
    looked = problems or silent or skipped_unasked(written.report) or (converted and converted.code)
    return SKIPPED if looked else DONE


def has_no_loc(written: WrittenCoco) -> bool:
    """Return True if not one answer has a loc token."""
    report = written.report
    return not (report.annotations or report.left_out() or _OF_BOXES & written.issues.keys())


def _report(
    written: WrittenCoco,
    converted: Conversion | None,
    issues: Issues,
    output: Output,
    notes: list[str],
) -> None:
    report = written.report
    data = {
        "output": str(written.path),
        "images": report.images,
        "resumed": written.kept,
        "annotations": report.annotations,
        "issues": dict(written.issues),
        "empty_boxes": report.empty_boxes,
        "issue_rows": issues.first,
        "left_out": report.left_out(),
        "problems": written.failed,
        **({"notes": notes} if notes else {}),
        **(converted.data() if converted else {}),
    }
    lines = converted.lines() if converted else [objects_of(report, written.path)]
    if written.issues:
        lines.append(f"parse issues: {counted(written.issues)}")
    lines += report_lines(report)
    output.result(data, lines)
    for note in notes:
        output.note(note)
    if converted:
        converted.notes(output)


def _decode_text(
    text: str, options: DecodeOptions, coco: CocoOptions, path: Path | None, output: Output
) -> int:
    """Decode one answer to a table, and to a COCO file where one is asked for."""
    if options.size is None:
        raise InputError("--text needs the picture's size: --size 640x480")
    row = AnswerRow(1, "", options.size, text)
    detections, _ = AnswerDecoder.load(options).decode([row])
    report = CocoReport()
    dataset = dataset_of(detections, coco, images_of(detections), report)
    if path is not None:
        with replacing(path) as file:
            json.dump(dataset, file, ensure_ascii=False)
    issues = [{"kind": i.kind.value, "span": i.span, "text": i.text} for _, i in detections.issues]
    lines = []
    for label, box, mask in zip(
        detections.labels, detections.xyxy.tolist(), detections.has_mask, strict=True
    ):
        corners = "  ".join(f"{value:8.1f}" for value in box)
        lines.append(f"{corners}  {'mask' if mask else '    '}  {label}")
    if lines or output.json:
        output.result({"coco": dataset, "issues": issues}, lines)
    for issue in issues:
        output.note(f"{issue['kind']} at {issue['span']}: {issue['text']!r}")
    return SKIPPED if skipped_unasked(report) else DONE
