"""What the commands do: library calls, what is printed, and the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.errors import InputError, WeightsError

if TYPE_CHECKING:
    from palidecode.answers.jsonl import Problem
    from palidecode.coco.writing import CocoReport, CocoWriter
    from palidecode.detections import Detections
    from palidecode.runs.answers import DecodeOptions
    from palidecode.runs.journal import Header
    from palidecode.runs.resuming import Progress
    from palidecode.runs.stopping import Stopping

DONE, LEFT_OUT, FAILED = 0, 1, 2
GO_ON = "the same command goes on from here"
_SHOWN_PROBLEMS = 10


def run_decode(args: argparse.Namespace) -> int:
    """``palidecode decode``."""
    if (args.text is None) == (args.answers is None):
        raise InputError("give either a file of answers or --text")
    options = _options(args)
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
        return run_stoppable(lambda stop: _decode_file(args, options, writer, stop), GO_ON)


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
    with writer, progress_bar(args, "decoding") as bar:
        done = Progress() if kept is None else kept.progress
        resumed = done.rows
        if resumed and kept is not None:
            say_resumed(args, f"{resumed} rows", kept.journal.path)
        counted = _counted(_rows(args), done)
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
            say_problems(args, done.problems)
            if kept is not None:
                kept.forget()
            raise InputError(f"{args.answers}: no usable row; {args.output} was not written")
    write_failures(args.output, [problem._asdict() for problem in done.problems])
    code = say_decoded(args, writer.report, done.issues, done.problems, resumed)
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
    found = _decode_one(args.text, args.size, options)
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
    return LEFT_OUT if report.left_out() else DONE


def run_draw(args: argparse.Namespace) -> int:
    """``palidecode draw``."""
    from palidecode.drawing import draw
    from palidecode.files import inside, png_names, replacing

    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha must lie in 0 … 1, got {args.alpha}")
    if args.text is not None:
        return _draw_text(args)
    if args.images is None:
        raise InputError("where are the pictures? --images DIR")
    found, names, problems = _found_in(args)
    drawn = png_names(names)
    written = 0
    with progress_bar(args, "drawing", len(names)) as bar:
        for index, name in enumerate(names):
            bar.update(1)
            try:
                picture = inside(args.images, name)
                image = draw(picture, found, index=index, alpha=args.alpha, font=args.font)
                target = inside(args.output, drawn[name])
                if target == picture:
                    raise InputError(f"{picture} would be drawn over; give another folder: -o DIR")
                with replacing(target, "wb") as file:
                    image.save(file, "PNG")
                written += 1
            except InputError as error:
                problems.append((index + 1, str(error)))
    if args.json:
        listed = [{"picture": number, "reason": reason} for number, reason in problems]
        print(json.dumps({"output": str(args.output), "written": written, "problems": listed}))
    else:
        print(f"{written} pictures in {args.output}")
    say_problems(args, problems, "picture")
    return LEFT_OUT if problems else DONE


def _draw_text(args: argparse.Namespace) -> int:
    from palidecode.drawing import draw
    from palidecode.files import open_picture, replacing

    options, image = _options(args), open_picture(args.source)
    found = _decode_one(args.text, image.size, options)
    drawn = draw(image, found, alpha=args.alpha, font=args.font)
    is_file = args.output.suffix.lower() in (".png", ".jpg", ".jpeg")
    target = args.output if is_file else args.output / (args.source.stem + ".png")
    with replacing(target, "wb") as file:
        drawn.save(file, "PNG" if target.suffix.lower() == ".png" else "JPEG", quality=92)
    print(json.dumps({"output": str(target), "objects": len(found)}) if args.json else target)
    return DONE


def _found_in(args: argparse.Namespace) -> tuple[Detections, list[str], list[tuple[int, str]]]:
    """Detections, the pictures' names, and problems, of a COCO file or of answers."""
    from palidecode.coco.loading import from_coco
    from palidecode.files import read_json
    from palidecode.runs.answers import by_picture, decode_rows

    if args.source.suffix == ".json":
        dataset = read_json(args.source)
        found = from_coco(dataset)
        return found, [str(image.get("file_name")) for image in dataset["images"]], []
    rows = list(_rows(args, "source"))
    if not rows:
        raise InputError(f"{args.source}: there are no answers in it")
    ((answers, found, problems),) = decode_rows(rows, _options(args), len(rows) + 1)
    found, names = by_picture(answers, found)
    return found, names, [(problem.line, problem.reason) for problem in problems]


def run_weights_list(args: argparse.Namespace) -> int:
    """``palidecode weights list``."""
    from palidecode.codec.weights import (
        DEMO_ID,
        GOOGLE_FILE,
        GOOGLE_ID,
        cache_dir,
        find_weights,
        shipped_path,
    )

    used = find_weights()
    rows = [(GOOGLE_ID, cache_dir() / GOOGLE_FILE), (DEMO_ID, shipped_path())]
    if used not in [path for _, path in rows]:
        rows.append(("PALIDECODE_WEIGHTS", used))
    listed = [
        {"id": name, "path": str(path), "here": path.is_file(), "default": path == used}
        for name, path in rows
    ]
    if args.json:
        print(json.dumps(listed))
        return DONE
    for item in listed:
        state = "default" if item["default"] else "here" if item["here"] else "not fetched"
        print(f"{item['id']:<16} {state:<12} {item['path']}")
    return DONE


def run_weights_fetch(args: argparse.Namespace) -> int:
    """``palidecode weights fetch``."""
    from palidecode.codec.fetch import fetch
    from palidecode.codec.weights import GOOGLE_BYTES

    with progress_bar(args, "fetching", GOOGLE_BYTES, unit="B", unit_scale=True) as bar:
        path = fetch(args.output, progress=lambda done, _: bar.update(done - bar.n))
    print(json.dumps({"path": str(path)}) if args.json else path)
    return DONE


def run_weights_verify(args: argparse.Namespace) -> int:
    """``palidecode weights verify``: exit code 1 where the weights aren't Google's codec."""
    from palidecode.codec import load_codec
    from palidecode.codec.fetch import verify

    codec = load_codec(args.weights)
    result = verify(codec)
    if args.json:
        print(json.dumps({"id": codec.id, **result._asdict()}))
    else:
        shown = ", ".join(f"{value:.3f}" for value in result.correlations)
        verdict = (
            "pass: these weights decode the codes of Google's checkpoints"
            if result.passed
            else "fail: NOT the codec of Google's checkpoints; run: palidecode weights fetch"
        )
        print(f"{codec.id}\ncorrelation with five published fields: {shown}\n{verdict}")
    return DONE if result.passed else LEFT_OUT


def run_weights_convert(args: argparse.Namespace) -> int:
    """``palidecode weights convert``."""
    from palidecode.codec.weights import convert

    weights = convert(args.source, args.target)
    said = {"id": weights.id, "output": str(args.target)}
    print(json.dumps(said) if args.json else f"{weights.id} written to {args.target}")
    return DONE


def run_demo(args: argparse.Namespace) -> int:
    """``palidecode demo``."""
    said: Any
    if args.answers:
        from palidecode.demo.answers_demo import run as run_answers

        said = run_answers(args.output)
    else:
        from palidecode.demo.model_demo import run, run_on

        if args.prompt is not None and args.image is None:
            raise InputError("--prompt asks about a picture: give --image, too")
        if args.image is not None:
            said = run_on(args.image, args.prompt, args.output, args.model)
        else:
            said = run(args.output, args.model)
    print(json.dumps(said.as_dict()) if args.json else said.table())
    return DONE


# -- what commands share ----------------------------------------------------------------


def _options(args: argparse.Namespace) -> DecodeOptions:
    from palidecode.runs.answers import load_options

    names = ("weights", "backend", "divisor", "clip", "tokenizer", "label_from_prompt")
    return load_options(**{name: getattr(args, name) for name in names})


def _decode_one(text: str, size: tuple[int, int], options: DecodeOptions) -> Detections:
    from palidecode.detections import decode

    return decode(
        text,
        size,
        options.codec,
        options.divisor,
        clip=options.clip,
        codes_id=options.codes_id,
    )


def _rows(args: argparse.Namespace, name: str = "answers") -> Any:
    from palidecode.answers.jsonl import read_rows

    if args.images is not None and not args.images.is_dir():
        raise InputError(f"{args.images}: no such folder of pictures")
    return read_rows(getattr(args, name), args.images, args.size)


def read_categories(path: Path | None) -> Any:
    """A COCO file, or a text file with a name per line."""
    from palidecode.files import read_json

    if path is None:
        return None
    if path.suffix == ".json":
        return read_json(path)
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {error}") from error
    return [name.strip() for name in names if name.strip()]


def progress_bar(
    args: argparse.Namespace, text: str, total: int | None = None, **options: Any
) -> Any:
    """A bar on stderr where somebody looks at it, and work is long."""
    from tqdm import tqdm

    # disable=None: no bar where stderr is no terminal.
    quiet = True if args.json else None
    return tqdm(desc=text, total=total, disable=quiet, leave=False, delay=0.5, **options)


def add_journal_options(parser: Any) -> None:
    """Of commands that may run for days."""
    group = parser.add_argument_group(
        "long runs",
        "A run that was killed, or stopped by SIGINT or SIGTERM (exit codes 130 and 143), goes on "
        "when started again with the same command. What is finished stands in a journal beside "
        "the output until that is written; what failed is listed in failures.jsonl.",
    )
    group.add_argument("--restart", action="store_true", help="forget what is finished")
    group.add_argument("--keep-journal", action="store_true", help="leave it when all is done")
    group.add_argument("--no-journal", action="store_true", help="lose all when stopped")


def say_resumed(args: argparse.Namespace, what: str, journal: Path) -> None:
    """That a run goes on, and where that is known from."""
    if not args.json:
        print(f"palidecode: going on: {what} are finished ({journal})", file=sys.stderr)


def say_decoded(
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
    say_problems(args, problems)
    return LEFT_OUT if problems or report.left_out() else DONE


def say_problems(args: argparse.Namespace, problems: Sequence[Any], what: str = "line") -> None:
    """The first problems one by one, the rest as a number."""
    if args.json:
        return
    for number, reason in problems[:_SHOWN_PROBLEMS]:
        print(f"palidecode: {what} {number}: {reason}", file=sys.stderr)
    if len(problems) > _SHOWN_PROBLEMS:
        rest = len(problems) - _SHOWN_PROBLEMS
        print(f"palidecode: and {rest} more (all of them with --json)", file=sys.stderr)
