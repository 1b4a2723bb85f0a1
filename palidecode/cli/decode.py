"""``palidecode decode``: answers to a COCO file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.cli.options import (
    add_answers,
    add_journal,
    add_output,
    answers_in,
    decode_one,
    decoding,
)
from palidecode.cli.output import DONE, RESUMABLE, SKIPPED, Output
from palidecode.cli.ray import add_ray_options, check
from palidecode.cli.ray import run as run_on_ray
from palidecode.coco.categories import read_categories
from palidecode.errors import InputError, WeightsError

if TYPE_CHECKING:
    from palidecode.answers.jsonl import Problem
    from palidecode.coco.writing import CocoReport, CocoWriter
    from palidecode.ray_data import Found, WrittenCoco
    from palidecode.ray_data.running import CocoOptions
    from palidecode.runs.answers import DecodeOptions
    from palidecode.runs.journal import Header
    from palidecode.runs.resuming import Progress
    from palidecode.runs.stopping import Stopping


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``palidecode decode``."""
    add_output(parser)
    parser.add_argument(
        "answers",
        nargs="?",
        type=Path,
        metavar="ANSWERS.jsonl",
        help="rows with 'output' or 'token_ids', and 'image' or 'width' and 'height'",
    )
    parser.add_argument("--text", help="one answer instead of a file; needs --size")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the COCO file to write")
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="answers at once (default: 256)"
    )
    add_answers(parser)
    group = parser.add_argument_group("COCO")
    group.add_argument("--categories", type=Path, metavar="FILE", help="COCO file or list of names")
    group.add_argument(
        "--match", choices=("exact", "loose"), default="exact", help="loose: case, plurals, aliases"
    )
    group.add_argument(
        "--unmapped",
        choices=("keep", "drop", "error"),
        default="keep",
        help="labels that are none of --categories (default: keep, as new categories)",
    )
    group.add_argument(
        "--segmentation",
        choices=("polygons", "exact", "rle", "none"),
        default="polygons",
        help="smooth polygons (default), polygons along pixel edges, RLE, or boxes only",
    )
    group.add_argument("--simplify", type=float, default=0.0, metavar="PIXELS")
    group.add_argument("--min-area", type=float, default=0.0, metavar="PIXELS", help="of a part")
    add_journal(parser)
    add_ray_options(parser)


def run(args: argparse.Namespace) -> int:
    """``palidecode decode``, here or on a cluster."""
    if args.ray is not None:
        return _run_on_ray(args)
    if (args.text is None) == (args.answers is None):
        raise InputError("give either a file of answers or --text")
    options = decoding(args)
    if args.text is not None:
        return _decode_text(args, options)
    if args.output is None:
        raise InputError("name the file to write: -o coco.json")
    if args.output.is_dir():
        raise InputError(f"{args.output}: is a folder; name a file to write")
    if args.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {args.batch_size}")
    from palidecode.coco.writing import CocoWriter, MaskFormat

    writing: dict[str, Any] = {
        "categories": read_categories(args.categories),
        "match": args.match,
        "unmapped": args.unmapped,
        "form": MaskFormat(args.segmentation, args.simplify, args.min_area),
    }
    # What comes through a pipe can't be read again, so there is nothing to go on with.
    if args.no_journal or not args.answers.is_file():
        return _decode_file(args, options, CocoWriter(args.output, **writing))
    from palidecode.runs.journal import Journal, journal_path
    from palidecode.runs.resuming import ResumableCocoWriter
    from palidecode.runs.stopping import run_stoppable

    with Journal(journal_path(args.output)) as journal:
        journal.begin(_decode_header(args), restart=args.restart)
        writer = ResumableCocoWriter(args.output, journal, **writing)
        return run_stoppable(lambda stop: _decode_file(args, options, writer, stop), RESUMABLE)


def _decode_file(
    args: argparse.Namespace,
    options: DecodeOptions,
    writer: CocoWriter,
    stopping: Stopping | None = None,
) -> int:
    """A file of answers to a COCO file, from the last checkpoint on where the writer has one."""
    from palidecode.runs.answers import decode_rows
    from palidecode.runs.journal import write_failures
    from palidecode.runs.resuming import Progress, ResumableCocoWriter

    kept = writer if isinstance(writer, ResumableCocoWriter) else None
    with writer, Output(args.json).progress("decoding") as bar:
        done = Progress() if kept is None else kept.progress
        resumed = done.rows
        if resumed and kept is not None:
            Output(args.json).resumed(f"{resumed} rows", kept.journal.path)
        counted = _counted(answers_in(args.answers, args.images, args.size), done)
        for rows, found, skipped in decode_rows(counted, options, args.batch_size):
            writer.add(found, [row.name for row in rows])
            done.issues.update(issue.kind.value for _, issue in found.issues)
            done.problems.extend(skipped)
            bar.update(done.rows - bar.n)
            if kept is not None and stopping is not None:
                kept.checkpoint(now=bool(stopping.signal))
                stopping.check()
        if not writer.report.images:
            write_failures(args.output, [problem._asdict() for problem in done.problems])
            Output(args.json).problems(done.problems)
            if kept is not None:
                kept.forget()
            raise InputError(f"{args.answers}: no usable row; {args.output} was not written")
    write_failures(args.output, [problem._asdict() for problem in done.problems])
    code = _say_decoded(args, writer.report, done.issues, done.problems, resumed)
    if kept is not None and not args.keep_journal:
        kept.journal.remove()
    return code


def _counted(rows: Iterator[Any], done: Progress) -> Iterator[Any]:
    """The rows after those that are done; each is counted as it is taken."""
    for row in islice(rows, done.rows, None):
        done.rows += 1
        yield row


def _decode_header(args: argparse.Namespace) -> Header:
    from palidecode.codec.weights import find_weights
    from palidecode.runs.journal import Header, hash_files

    names = ("divisor", "clip", "size", "backend", "label_from_prompt", "match", "unmapped")
    settings = {name: getattr(args, name) for name in (*names, "simplify", "min_area")}
    settings |= {"segmentation": args.segmentation}
    settings |= {"images": None if args.images is None else str(args.images.resolve())}
    files: dict[str, Path | None] = {"answers": args.answers}
    files |= {"categories": args.categories, "tokenizer": args.tokenizer}
    with suppress(WeightsError):  # which is only an error when there is a mask
        files["mask codec"] = find_weights(args.weights)
    found = {name: path for name, path in files.items() if path is not None}
    return Header("decode", settings, hash_files(found))


def _decode_text(args: argparse.Namespace, options: DecodeOptions) -> int:
    """One answer: a table, and a COCO file where one is asked for."""
    from palidecode.coco.writing import CocoReport, to_coco
    from palidecode.files import replacing

    if args.size is None:
        raise InputError("--text needs the picture's size: --size 640x480")
    found = decode_one(args.text, args.size, options)
    report = CocoReport()
    dataset = to_coco(
        found,
        categories=read_categories(args.categories),
        segmentation=args.segmentation,
        match=args.match,
        unmapped=args.unmapped,
        simplify=args.simplify,
        min_area=args.min_area,
        report=report,
    )
    if args.output is not None:
        with replacing(args.output) as file:
            json.dump(dataset, file, ensure_ascii=False)
    issues = [{"kind": i.kind.value, "span": i.span, "text": i.text} for _, i in found.issues]
    if args.json:
        print(json.dumps({"coco": dataset, "issues": issues}, ensure_ascii=False))
    else:
        for label, box, mask in zip(found.labels, found.xyxy.tolist(), found.has_mask, strict=True):
            corners = "  ".join(f"{value:8.1f}" for value in box)
            print(f"{corners}  {'mask' if mask else '    '}  {label}")
        for issue in issues:
            print(f"  {issue['kind']} at {issue['span']}: {issue['text']!r}", file=sys.stderr)
    return SKIPPED if report.left_out() else DONE


def _run_on_ray(args: argparse.Namespace) -> int:
    if args.text is not None or args.answers is None:
        raise InputError("--ray decodes files of answers")
    if args.output is None:
        raise InputError("name the file to write: -o coco.json")
    check(args)

    def find() -> Found:
        from palidecode.ray_data import DECODED, decode

        return decode(
            args.answers,
            images=args.images,
            size=args.size,
            batch_size=args.batch_size,
            shard_size=args.shard_size or DECODED,
            weights=args.weights,
            backend=args.backend,
            divisor=args.divisor,
            clip=args.clip,
            tokenizer=args.tokenizer,
            label_from_prompt=args.label_from_prompt,
            concurrency=args.workers,
            num_cpus=args.worker_cpus,
        )

    def writing(found: Found) -> CocoOptions:
        from palidecode.coco.writing import MaskFormat
        from palidecode.ray_data.running import CocoOptions

        form = MaskFormat(args.segmentation, args.simplify, args.min_area)
        categories = read_categories(args.categories)
        return CocoOptions(categories, args.match, args.unmapped, form=form)

    def say(found: Found, written: WrittenCoco, seconds: float) -> int:
        from palidecode.answers.jsonl import Problem

        problems = [Problem(**row) for row in written.failed]
        return _say_decoded(args, written.report, written.issues, problems, written.kept)

    return run_on_ray(args, "decoding", find, writing, say)


def _say_decoded(
    args: argparse.Namespace,
    report: CocoReport,
    issues: Mapping[str, int],
    problems: Sequence[Problem],
    resumed: int,
) -> int:
    """What came out, for people or as JSON; returns the exit code."""
    if args.json:
        summary = {
            "output": str(args.output),
            "images": report.images,
            "resumed": resumed,
            "annotations": report.annotations,
            "issues": dict(issues),
            "left_out": report.left_out(),
            "problems": [problem._asdict() for problem in problems],
        }
        print(json.dumps(summary, ensure_ascii=False))
    else:
        print(f"{report.annotations} objects of {report.images} pictures in {args.output}")
        for title, counts in (("odd in the answers", issues), ("left out", report.left_out())):
            if counts:
                shown = ", ".join(f"{name} {count}" for name, count in counts.items())
                print(f"{title}: {shown}")
    Output(args.json).problems(problems)
    return SKIPPED if problems or report.left_out() else DONE
