"""``palidecode predict``: run PaliGemma on pictures and write COCO JSON."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path

from palidecode.cli.convert import Conversion
from palidecode.cli.issues import Issues, collected
from palidecode.cli.jobs import Finish, RayOptions, run_job
from palidecode.cli.options import fill
from palidecode.cli.output import (
    DONE,
    SKIPPED,
    Output,
    counted,
    objects_of,
    report_lines,
    skipped_unasked,
)
from palidecode.cli.target import target
from palidecode.coco.categories import category_names, read_categories
from palidecode.coco.detections import from_coco
from palidecode.coco.shards import Failure, Result
from palidecode.coco.writing import CocoOptions, MaskFormat
from palidecode.detections import Detections, draw
from palidecode.errors import InputError
from palidecode.files import inside, png_names, replacing, whole_png
from palidecode.geometry.masks import Paste
from palidecode.pipeline import AskOptions, EndpointOptions, GrammarOptions, ModelOptions
from palidecode.runs.journal import sync_folder
from palidecode.runs.local import RunOptions, Watch
from palidecode.runs.pictures import PredictJob, predict_options
from palidecode.runs.sources import PictureFile, Unread, find_pictures, kinds_of


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode predict``."""
    output, ray, options = fill(Output, args), fill(RayOptions, args), fill(RunOptions, args)
    if ray.ray is None and ray.pictures is not None:
        raise InputError("--pictures needs --ray; without it name the directory of the pictures")
    if ray.ray is not None and args.overlay is not None:
        raise InputError("--overlay can't be combined with --ray; use palidecode draw afterwards")
    skipped: Counter[str] = Counter()
    pictures = find_pictures(args.images, skipped, args.box_image) if ray.ray is None else []
    job = _job(args)
    if ray.ray is None:
        job = job.with_engine()
    coco = fill(CocoOptions, args, categories=list(job.names) or None, form=fill(MaskFormat, args))
    overlay = None if args.overlay is None else _Overlay(args.overlay, pictures, args.paste)
    with target(args.output, args.format, list(map(Path, args.images))) as goal:
        with collected(args.issues) as issues:
            watch = Watch(issue=issues.add)
            if overlay is not None:
                watch = replace(watch, result=overlay.draw)
            finish = run_job(
                job,
                pictures,
                args.images,
                goal.coco,
                coco,
                options,
                ray,
                output,
                f"{job.options.task}ing",
                watch,
            )
            issues.discarded = isinstance(finish, int)
        if isinstance(finish, int):
            return finish
        written = finish.written
        if not written.report.images:
            _list_failed(written.failed, output)
            raise InputError(f"no picture could be read; {goal.path} was not written")
        if overlay is not None:
            overlay.draw_rest(written.path)
        converted = goal.convert()
    undrawn = overlay.failed if overlay is not None else []
    _report(job, finish, converted, issues, skipped, undrawn, output)
    looked = undrawn or written.failed or skipped or skipped_unasked(written.report)
    return SKIPPED if looked or (converted and converted.code) else DONE


def ask_options(args: argparse.Namespace) -> AskOptions:
    """Return the options of how to ask."""
    if args.no_grammar and (args.past_end is not None or args.min_objects):
        raise InputError(
            "--past-end and --min-objects are rules of the grammar; leave --no-grammar out"
        )
    rules = fill(GrammarOptions, args)
    grammar = False if args.no_grammar else rules
    # What the model would rather write than an object counts against its label.
    forces = args.past_end is not None or args.min_objects
    over = "vocabulary" if args.no_grammar or forces else "allowed"
    return fill(AskOptions, args, grammar=grammar, over=over)


def _job(args: argparse.Namespace) -> PredictJob:
    """Return the job that the options ask for."""
    options = predict_options(
        model_options(args),
        prompt=args.prompt,
        task=args.task,
        classes=category_names(read_categories(args.classes)),
        min_score=args.min_score,
        ask=ask_options(args),
        batch_size=args.batch_size,
        box_image=args.box_image,
    )
    return PredictJob(options)


def model_options(args: argparse.Namespace) -> ModelOptions | EndpointOptions:
    """Return the options of the model to load, or of the server that answers."""
    if args.endpoint is None:
        for name, default in ((o.name, o.default) for o in fields(EndpointOptions)):
            if default is not MISSING and getattr(args, name, default) != default:
                raise InputError(f"--{name.replace('_', '-')} needs --endpoint")
        return fill(ModelOptions, args, codec=args.weights)
    here = ["base", "device", "dtype", "quantize", "tokenizer"]
    here += ["past_end"] if args.vllm_grammar else ["past_end", "max_objects"]
    given = [name for name in here if getattr(args, name) is not None]
    given += ["min_objects"] * (args.min_objects > 0 and not args.vllm_grammar)
    given += ["engine"] * (args.engine != "auto") + ["no_grammar"] * args.no_grammar
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{names} can't be combined with --endpoint: the server decides that")
    return fill(EndpointOptions, args, codec=args.weights)


class _Overlay:
    """Draws copies of the pictures while they are predicted."""

    def __init__(
        self, folder: Path, pictures: Sequence[PictureFile | Unread], paste: Paste
    ) -> None:
        self._folder, self._paste = folder, paste
        self._pictures = {item.name: item for item in pictures if isinstance(item, PictureFile)}
        self._copies = png_names(self._pictures)
        self._tried: set[str] = set()
        self.failed: list[str] = []
        """Why pictures were not drawn."""
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is no directory; name one for --overlay")
        for item in self._pictures.values():
            if item.path.lower().endswith(".png"):  # refused before a model is loaded
                self._copy(item)

    def draw(self, items: Sequence[PictureFile], result: Result) -> None:
        """Draw the pictures of a batch that could be read.

        They last through a power cut before the journal has the batch.
        """
        drawn = {
            self._draw(items[row], result.detections, image).parent
            for image, row in enumerate(result.rows)
        }
        for folder in drawn:
            sync_folder(folder)

    def draw_rest(self, coco: Path) -> None:
        """Draw what an earlier run has not, or what a power cut has damaged."""
        missing = {
            name
            for name, item in self._pictures.items()
            if name not in self._tried and not whole_png(self._copy(item))
        }
        if not missing:
            return
        detections = from_coco(coco)
        for index, name in enumerate(detections.names):
            if name in missing:
                self._draw(self._pictures[name], detections, index)

    def _draw(self, item: PictureFile, detections: Detections, image: int) -> Path:
        self._tried.add(item.name)
        copy = self._copy(item)
        try:
            picture = draw(item.path, detections, index=image, paste=self._paste)
        except InputError as error:  # it was deleted or damaged since it was predicted
            self.failed.append(str(error))
            return copy
        with replacing(copy, "wb") as file:
            picture.save(file, "PNG")
            file.flush()
            os.fsync(file.fileno())
        return copy

    def _copy(self, item: PictureFile) -> Path:
        copy = inside(self._folder, self._copies[item.name])
        if copy == Path(item.path).resolve():
            raise InputError(f"{item.path} would be drawn over; choose another --overlay DIR")
        return copy


def _report(
    job: PredictJob,
    finish: Finish,
    converted: Conversion | None,
    issues: Issues,
    skipped: Counter[str],
    undrawn: Sequence[str],
    output: Output,
) -> None:
    written, report = finish.written, finish.written.report
    source = job.info()["model"]
    seconds = {"load": round(finish.loading, 2), "predict": round(finish.seconds, 2)}
    data = {
        "output": str(written.path),
        "model": source,
        "images": report.images,
        "resumed": written.kept,
        "annotations": report.annotations,
        "issues": issues.count,
        "issue_rows": issues.first,
        "empty_boxes": report.empty_boxes,
        "left_out": report.left_out(),
        "unread": [{"name": row["image"], "reason": row["reason"]} for row in written.failed],
        "skipped_files": skipped,
        **({"undrawn": undrawn} if undrawn else {}),
        "seconds": seconds,
        **(converted.data() if converted else {}),
    }
    loaded = f", loaded in {finish.loading:.1f} s" if finish.loading else ""
    each = (written.rows - written.kept) / finish.seconds if finish.seconds else 0.0
    lines = [
        *(converted.lines() if converted else [objects_of(report, written.path)]),
        f"model {source}{loaded}, {each:.2f} pictures/s",
    ]
    if issues.count:
        lines.append(f"parse issues: {counted(written.issues)}")
    lines += report_lines(report)
    output.result(data, lines)
    _list_failed(written.failed, output)
    if skipped:
        output.note(f"skipped {kinds_of(skipped)}: convert them to JPEG or PNG first")
    output.listed(issues.lines(), issues.count, "--issues FILE writes")
    output.listed([f"not drawn: {reason}" for reason in undrawn])
    if converted:
        converted.notes(output)


def _list_failed(failed: Sequence[Failure], output: Output) -> None:
    output.listed([f"skipped: {row['reason']}" for row in failed])
