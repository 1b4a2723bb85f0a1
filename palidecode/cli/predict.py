"""``palidecode predict``: its options, and what it does."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.cli.options import add_journal, add_output
from palidecode.cli.output import DONE, RESUMABLE, SKIPPED, Output
from palidecode.cli.ray import add_ray_options, check
from palidecode.cli.ray import run as run_on_ray
from palidecode.coco.categories import category_names, read_categories
from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.coco.writing import CocoReport, CocoWriter
    from palidecode.detections import Detections
    from palidecode.pipeline.decoder import PaliDecoder
    from palidecode.ray_data import Found, WrittenCoco
    from palidecode.ray_data.running import CocoOptions
    from palidecode.runs.journal import Journal
    from palidecode.runs.prediction import FinishedPictures, PictureFile, PredictOptions
    from palidecode.runs.stopping import Stopping

SCORES = ("product", "label", "box", "objectness", "mean")
_SHOWN = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``palidecode predict``."""
    add_output(parser)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="pictures or folders")
    parser.add_argument(
        "--model",
        required=True,
        help="a folder as transformers saves it, a big_vision .npz, a hub name, or demo, the "
        "tiny model in this package",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="COCO JSON"
    )
    group = parser.add_argument_group("what to look for")
    group.add_argument("--prompt", help="for instance 'segment cat ; dog'")
    group.add_argument(
        "--task",
        choices=("detect", "segment"),
        help="with --classes, or with a model that knows its classes: ask for all of them",
    )
    group.add_argument("--classes", type=Path, metavar="FILE", help="COCO file or list of names")
    group.add_argument(
        "--per-class", action="store_true", help="one prompt per class (default: one for all)"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--overlay", type=Path, metavar="DIR", help="draw the pictures, too")
    group.add_argument(
        "--segmentation",
        choices=("polygons", "exact", "rle", "none"),
        default="rle",
        help="how masks are written (default: rle)",
    )
    group.add_argument("--min-score", type=float, default=0.0, metavar="S", help="leave out below")
    group.add_argument("--clip", action="store_true", help="keep boxes inside the picture")
    group = parser.add_argument_group("the model")
    group.add_argument("--device", help="cpu, cuda, mps … (default: the best there is)")
    group.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    group.add_argument("--quantize", choices=("int8", "int4"), help="on a CPU: faster, less exact")
    group.add_argument("--batch-size", type=int, default=8, metavar="N", help="(default: 8)")
    group.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="per answer")
    group.add_argument("--score", choices=SCORES, default=SCORES[0], help="recipe of the scores")
    group.add_argument("--sub-bin", action="store_true", help="boxes finer than a bin")
    group.add_argument("--divisor", type=int, choices=(1024, 1023), default=1024)
    group.add_argument("--no-grammar", action="store_true", help="let the model write anything")
    group.add_argument("--max-objects", type=int, metavar="N", help="per answer")
    group.add_argument("--weights", metavar="FILE", help="mask codec: a file, or google-oid")
    group.add_argument("--tokenizer", type=Path, metavar="FILE", help="instead of the model's own")
    add_journal(parser)
    add_ray_options(parser, gpus=True)


@dataclass
class _Run:
    """What one run of the command is about, and what came out."""

    args: argparse.Namespace
    pictures: list[PictureFile]
    decoder: PaliDecoder
    options: PredictOptions
    names: list[str]
    load_seconds: float
    began: float = field(default_factory=time.perf_counter)
    issues: int = 0
    resumed: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @cached_property
    def drawn(self) -> dict[str, str]:
        """What the drawn copy of each picture is called."""
        from palidecode.files import png_names

        return png_names(item.name for item in self.pictures)


def run(args: argparse.Namespace) -> int:
    """``palidecode predict``, here or on a cluster."""
    if args.ray is not None:
        return _run_on_ray(args)
    if args.pictures is not None:
        raise InputError("--pictures needs --ray; without it name the pictures' folder")
    from palidecode.runs.journal import Journal, journal_path
    from palidecode.runs.prediction import find_pictures

    if args.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.output.is_dir():
        raise InputError(f"{args.output}: is a folder; name a file to write")
    pictures = find_pictures(args.images)
    if args.no_journal:
        return _predict_at_once(_start(args, pictures))
    # Locked before a model of gigabytes is loaded for nothing.
    with Journal(journal_path(args.output)) as journal:
        return _predict_with(journal, _start(args, pictures))


def _start(args: argparse.Namespace, pictures: list[PictureFile]) -> _Run:
    began = time.perf_counter()
    decoder = _load(args)
    options, names = _asked_of(args, decoder.classes)
    return _Run(args, pictures, decoder, options, names, time.perf_counter() - began)


def _predict_at_once(run: _Run) -> int:
    """Straight into the output; a run that is stopped leaves nothing."""
    from palidecode.runs.prediction import predict_pictures

    args, writer = run.args, _writer(run)
    with writer, _bar(run) as bar:
        batches = predict_pictures(run.decoder, run.pictures, run.options, args.batch_size)
        for fine, found, unread in batches:
            writer.add(found, [item.name for item in fine])
            if args.overlay is not None:
                _overlay(run, fine, found)
            run.issues += len(found.issues)
            run.failed |= dict(unread)
            bar.update(len(fine) + len(unread))
        _check_any(run, writer.report.images)
    return _finish(run, writer)


def _predict_with(journal: Journal, run: _Run) -> int:
    """Into the journal, and from there into the output."""
    from palidecode.runs.journal import remove_leftovers
    from palidecode.runs.prediction import FinishedPictures, header_of
    from palidecode.runs.stopping import run_stoppable

    args = run.args
    header = header_of(
        run.decoder,
        run.options,
        args.model,
        tokenizer=args.tokenizer,
        weights=args.weights,
        dtype=args.dtype,
        quantize=args.quantize,
    )
    went_on = journal.begin(header, restart=args.restart)
    remove_leftovers(args.output)
    done = FinishedPictures(journal)
    if went_on:
        run.resumed = sum(item.name in done.places for item in run.pictures)
        Output(args.json).resumed(f"{run.resumed} of {len(run.pictures)} pictures", journal.path)

    def work(stopping: Stopping) -> int:
        _predict_left(run, done, stopping)
        return _write(run, done, stopping)

    return run_stoppable(work, RESUMABLE)


def _predict_left(run: _Run, done: FinishedPictures, stopping: Stopping) -> None:
    from palidecode.runs.prediction import batches_of, failure_row, picture_rows, predict_batch

    args = run.args
    with _bar(run) as bar:
        for batch in batches_of(run.pictures, args.batch_size):
            if done.left(batch):
                fine, found, unread = predict_batch(
                    run.decoder, batch, run.options, args.batch_size
                )
                if args.overlay is not None:
                    _overlay(run, fine, found)
                done.add([*picture_rows(fine, found), *map(failure_row, unread)])
            elif args.overlay is not None:
                _overlay_finished(run, done, batch)
            stopping.check()
            bar.update(len(batch))


def _write(run: _Run, done: FinishedPictures, stopping: Stopping) -> int:
    """The output from the journal's rows, in the order of the pictures; then it may go."""
    from palidecode.files import KEPT
    from palidecode.runs.prediction import batches_of, write_pictures

    wanted = [item.name for item in run.pictures]
    run.failed = {name: done.failed[name] for name in wanted if name in done.failed}
    written = sum(name in done.places for name in wanted)
    keep = run.args.keep_journal
    if not written and not keep:
        done.journal.remove()
    _check_any(run, written)
    writer, decoder = _writer(run), run.decoder
    batches = (
        [done.journal.read(done.places[item.name]) for item in batch if item.name in done.places]
        for batch in batches_of(run.pictures, run.args.batch_size)
    )
    try:
        with writer:
            run.issues = write_pictures(
                writer, batches, decoder.codec, decoder.codes_id, stopping.check
            )
    except InputError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise InputError(f"{error}; {KEPT}") from error
    gone = len(done.places) + len(done.failed) - written - len(run.failed)
    if gone:
        text = f"palidecode: {gone} pictures of the journal are not among those given: left out"
        print(text, file=sys.stderr)
    code = _finish(run, writer)
    if not keep:
        done.journal.remove(run.args.output)
    return code


def _check_any(run: _Run, images: int) -> None:
    from palidecode.runs.journal import write_failures

    if not images:
        write_failures(run.args.output, _failures(run))
        _say_unread(run.args, run.failed)
        raise InputError(f"no picture could be read; {run.args.output} was not written")


def _finish(run: _Run, writer: CocoWriter) -> int:
    from palidecode.runs.journal import write_failures

    write_failures(run.args.output, _failures(run))
    return _say_predicted(
        run.args,
        writer.report,
        run.decoder.source,
        issues=run.issues,
        resumed=run.resumed,
        failed=run.failed,
        seconds={"load": run.load_seconds, "predict": time.perf_counter() - run.began},
    )


def _failures(run: _Run) -> list[dict[str, Any]]:
    return [{"image": name, "reason": reason} for name, reason in run.failed.items()]


def _writer(run: _Run) -> CocoWriter:
    from palidecode.coco.writing import CocoWriter, MaskFormat
    from palidecode.runs.prediction import coco_info

    return CocoWriter(
        run.args.output,
        categories=run.names or None,
        form=MaskFormat(run.args.segmentation),
        info=coco_info(run.decoder.source, run.options, run.names),
    )


def _bar(run: _Run) -> Any:
    return Output(run.args.json).progress(run.options.task + "ing", len(run.pictures))


def _load(args: argparse.Namespace) -> PaliDecoder:
    from palidecode.codec import load_codec
    from palidecode.pipeline.decoder import PaliDecoder

    return PaliDecoder.from_pretrained(
        args.model,
        args.dtype,
        args.device,
        args.quantize,
        codec=load_codec(args.weights) if args.weights else None,
        tokenizer=args.tokenizer,
    )


def _asked_of(args: argparse.Namespace, known: tuple[str, ...]) -> tuple[PredictOptions, list[str]]:
    """Return what to ask, and the names that are asked for, where they are known."""
    from palidecode.pipeline import AskOptions, GrammarOptions
    from palidecode.prompts import what_to_ask
    from palidecode.runs.prediction import PredictOptions

    classes = category_names(read_categories(args.classes))
    task, prompts, names = what_to_ask(args.task, args.prompt, classes, known, args.per_class)
    ask = AskOptions(
        grammar=False if args.no_grammar else GrammarOptions(max_objects=args.max_objects),
        over="vocabulary" if args.no_grammar else "allowed",
        score=args.score,
        sub_bin=args.sub_bin,
        divisor=args.divisor,
        clip=args.clip,
        max_new_tokens=args.max_new_tokens,
    )
    return PredictOptions(task, prompts, args.min_score, ask), names


def _overlay(run: _Run, pictures: Sequence[PictureFile], found: Detections) -> None:
    from palidecode.detections import draw
    from palidecode.files import replacing

    for index, item in enumerate(pictures):
        with replacing(_drawn(run, item), "wb") as file:
            draw(item.path, found, index=index).save(file, "PNG")


def _overlay_finished(run: _Run, done: FinishedPictures, batch: Sequence[PictureFile]) -> None:
    """Draw what was predicted before, by a run without --overlay or into another folder."""
    from palidecode.runs.prediction import detections_of

    for item in batch:
        if item.name in done.places and not _drawn(run, item).exists():
            row = done.journal.read(done.places[item.name])
            found = detections_of([row], run.decoder.codec, run.decoder.codes_id)
            _overlay(run, [item], found)


def _drawn(run: _Run, item: PictureFile) -> Path:
    from palidecode.files import inside

    target = inside(run.args.overlay, run.drawn[item.name])
    if target == Path(item.path).resolve():
        raise InputError(f"{item.path} would be drawn over; give another folder: --overlay DIR")
    return target


def _run_on_ray(args: argparse.Namespace) -> int:
    if args.overlay is not None:
        raise InputError("--overlay draws on one machine; afterwards: palidecode draw coco.json")
    check(args)

    def find() -> Found:
        from palidecode.pipeline.checkpoint import describe
        from palidecode.ray_data import PREDICTED, predict

        options, _ = _asked_of(args, describe(args.model).classes)
        return predict(
            args.images if len(args.images) > 1 else args.images[0],
            images=args.pictures,
            model=args.model,
            prompt=args.prompt,
            task=args.task,
            classes=read_categories(args.classes),
            per_class=args.per_class,
            min_score=args.min_score,
            batch_size=args.batch_size,
            shard_size=args.shard_size or PREDICTED,
            dtype=args.dtype,
            device=args.device,
            quantize=args.quantize,
            weights=args.weights,
            tokenizer=args.tokenizer,
            concurrency=args.workers,
            num_cpus=args.worker_cpus,
            num_gpus=args.worker_gpus,
            **vars(options.ask),
        )

    def writing(found: Found) -> CocoOptions:
        from palidecode.coco.writing import MaskFormat
        from palidecode.ray_data.running import CocoOptions

        return CocoOptions(found.categories, form=MaskFormat(args.segmentation))

    def say(found: Found, written: WrittenCoco, seconds: float) -> int:
        return _say_predicted(
            args,
            written.report,
            found.info["model"],
            issues=sum(written.issues.values()),
            resumed=written.kept,
            failed={row["image"]: row["reason"] for row in written.failed},
            seconds={"predict": seconds},
        )

    return run_on_ray(args, "predicting", find, writing, say)


def _say_predicted(
    args: argparse.Namespace,
    report: CocoReport,
    source: str,
    *,
    issues: int,
    resumed: int,
    failed: dict[str, str],
    seconds: dict[str, float],
) -> int:
    """What came out, for people or as JSON; returns the exit code."""
    if args.json:
        summary = {
            "output": str(args.output),
            "model": source,
            "images": report.images,
            "resumed": resumed,
            "annotations": report.annotations,
            "issues": issues,
            "left_out": report.left_out(),
            "unread": [{"name": n, "reason": r} for n, r in failed.items()],
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
        }
        print(json.dumps(summary))
        return SKIPPED if failed or report.left_out() else DONE
    each = (report.images - resumed) / seconds["predict"] if seconds["predict"] else 0.0
    loaded = f", loaded in {seconds['load']:.1f} s" if "load" in seconds else ""
    print(f"{report.annotations} objects of {report.images} pictures in {args.output}")
    print(f"model {source}{loaded}, {each:.2f} pictures/s")
    if issues:
        print(f"odd in the answers: {issues}")
    if report.left_out():
        print("left out: " + ", ".join(f"{k} {v}" for k, v in report.left_out().items()))
    _say_unread(args, failed)
    return SKIPPED if failed or report.left_out() else DONE


def _say_unread(args: argparse.Namespace, failed: dict[str, str]) -> None:
    if args.json:
        return
    for reason in list(failed.values())[:_SHOWN]:
        print(f"palidecode: left out: {reason}", file=sys.stderr)
    if len(failed) > _SHOWN:
        rest = len(failed) - _SHOWN
        print(f"palidecode: and {rest} more (all in failures.jsonl)", file=sys.stderr)
