"""``palidecode predict``: run PaliGemma on pictures and write COCO JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from palidecode.cli.jobs import Finish, RayOptions, add_ray, run_job
from palidecode.cli.options import add_journal, add_output, add_paste, fill
from palidecode.cli.output import DONE, SKIPPED, Output, counted
from palidecode.coco.categories import category_names, read_categories
from palidecode.coco.detections import read_detections
from palidecode.coco.shards import Failure, Result
from palidecode.coco.writing import CocoOptions, MaskFormat
from palidecode.detections import Detections, draw
from palidecode.errors import InputError
from palidecode.files import inside, png_names, replacing
from palidecode.geometry.masks import Paste
from palidecode.pipeline import AskOptions, GrammarOptions, ModelOptions
from palidecode.pipeline.checkpoint import DTYPES
from palidecode.pipeline.scoring import DEFAULT_SCORE, Score
from palidecode.prompts import Task
from palidecode.runs.local import RunOptions
from palidecode.runs.pictures import PictureFile, PredictJob, find_pictures, predict_options

_SHOWN = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode predict``."""
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="pictures or directories of pictures"
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a directory as transformers saves it, a big_vision .npz, a hub name, or demo, the "
        "tiny model in this package",
    )
    add_output(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="COCO file to write"
    )
    _add_question(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--overlay", type=Path, metavar="DIR", help="also draw the pictures, into this directory"
    )
    group.add_argument(
        "--segmentation",
        choices=("polygons", "exact", "rle", "none"),
        default="rle",
        help="smooth polygons, polygons along pixel edges, RLE (default), or boxes only",
    )
    add_paste(group)
    group.add_argument(
        "--min-score", type=float, default=0.0, metavar="S", help="skip objects below (default: 0)"
    )
    group.add_argument("--clip", action="store_true", help="clip boxes to their picture")
    _add_model(parser)
    add_journal(parser)
    add_ray(parser, pictures=True)


def _add_question(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to look for")
    group.add_argument("--prompt", help="for instance 'segment cat ; dog'")
    group.add_argument(
        "--task",
        choices=get_args(Task),
        help="with --classes, or with a model that lists its classes: ask for all of them",
    )
    group.add_argument("--classes", type=Path, metavar="FILE", help="COCO file or list of names")
    group.add_argument(
        "--per-class", action="store_true", help="one prompt per class (default: one for all)"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--device", help="cpu, cuda, mps … (default: the first available of cuda, mps and cpu)"
    )
    group.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: %(default)s)"
    )
    group.add_argument(
        "--quantize", choices=("int8", "int4"), help="on a CPU: faster and less exact"
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="pictures that are predicted together (default: %(default)s)",
    )
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="tokens of the longest answer (default: %(default)s)",
    )
    group.add_argument(
        "--score",
        choices=get_args(Score),
        default=DEFAULT_SCORE,
        help="recipe of the scores (default: %(default)s)",
    )
    group.add_argument(
        "--sub-bin", action="store_true", help="boxes finer than a bin, from probabilities"
    )
    group.add_argument(
        "--divisor",
        type=int,
        choices=(1024, 1023),
        default=1024,
        help="number of loc bins per side of a picture (default: %(default)s)",
    )
    group.add_argument(
        "--no-grammar", action="store_true", help="allow answers that are not well-formed"
    )
    group.add_argument(
        "--max-objects", type=int, metavar="N", help="objects per answer (default: any number)"
    )
    group.add_argument(
        "--weights", metavar="FILE", help="mask codec: a weights file, or google-oid"
    )
    group.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json (default: the model's own)"
    )


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode predict``."""
    output, ray, options = fill(Output, args), fill(RayOptions, args), fill(RunOptions, args)
    if ray.ray is None and ray.pictures is not None:
        raise InputError("--pictures needs --ray; without it name the directory of the pictures")
    if ray.ray is not None and args.overlay is not None:
        raise InputError("--overlay can't be combined with --ray; use palidecode draw afterwards")
    pictures = find_pictures(args.images) if ray.ray is None else []
    job = _job(args)
    coco = CocoOptions(list(job.names) or None, form=fill(MaskFormat, args))
    overlay = None if args.overlay is None else _Overlay(args.overlay, pictures, args.paste)
    finish = run_job(
        job,
        pictures,
        args.images,
        args.output,
        coco,
        options,
        ray,
        output,
        f"{job.options.task}ing",
        overlay.draw if overlay else lambda items, result: None,
    )
    if isinstance(finish, int):
        return finish
    written = finish.written
    if not written.report.images:
        _list_failed(written.failed, output)
        raise InputError(f"no picture could be read; {written.path} was not written")
    if overlay is not None:
        overlay.draw_rest(written.path)
    _report(job, finish, output)
    return SKIPPED if written.failed or written.report.left_out() else DONE


def _job(args: argparse.Namespace) -> PredictJob:
    """Return the job that the options ask for."""
    grammar = False if args.no_grammar else GrammarOptions(max_objects=args.max_objects)
    over = "vocabulary" if args.no_grammar else "allowed"
    options = predict_options(
        fill(ModelOptions, args, codec=args.weights),
        prompt=args.prompt,
        task=args.task,
        classes=category_names(read_categories(args.classes)),
        per_class=args.per_class,
        min_score=args.min_score,
        ask=fill(AskOptions, args, grammar=grammar, over=over),
        batch_size=args.batch_size,
    )
    return PredictJob(options)


class _Overlay:
    """Draws copies of the pictures while they are predicted."""

    def __init__(self, folder: Path, pictures: Sequence[PictureFile], paste: Paste) -> None:
        self._folder, self._paste = folder, paste
        self._pictures = {item.name: item for item in pictures}
        self._copies = png_names(self._pictures)

    def draw(self, items: Sequence[PictureFile], result: Result) -> None:
        """Draw the pictures of a batch that could be read."""
        for image, row in enumerate(result.rows):
            self._draw(items[row], result.detections, image)

    def draw_rest(self, coco: Path) -> None:
        """Draw pictures that an earlier run has finished without, from the COCO file."""
        missing = {name for name, item in self._pictures.items() if not self._copy(item).exists()}
        if not missing:
            return
        detections, images = read_detections(coco)
        for index, image in enumerate(images):
            if image.file_name in missing:
                self._draw(self._pictures[image.file_name], detections, index)

    def _draw(self, item: PictureFile, detections: Detections, image: int) -> None:
        with replacing(self._copy(item), "wb") as file:
            picture = draw(item.path, detections, index=image, paste=self._paste)
            picture.save(file, "PNG")

    def _copy(self, item: PictureFile) -> Path:
        copy = inside(self._folder, self._copies[item.name])
        if copy == Path(item.path).resolve():
            raise InputError(f"{item.path} would be drawn over; choose another --overlay DIR")
        return copy


def _report(job: PredictJob, finish: Finish, output: Output) -> None:
    written, report = finish.written, finish.written.report
    issues = sum(written.issues.values())
    source = job.info()["model"]
    seconds = {"load": round(finish.loading, 2), "predict": round(finish.seconds, 2)}
    data = {
        "output": str(written.path),
        "model": source,
        "images": report.images,
        "resumed": written.kept,
        "annotations": report.annotations,
        "issues": issues,
        "left_out": report.left_out(),
        "unread": [{"name": row["image"], "reason": row["reason"]} for row in written.failed],
        "seconds": seconds,
    }
    loaded = f", loaded in {finish.loading:.1f} s" if finish.loading else ""
    each = (written.rows - written.kept) / finish.seconds if finish.seconds else 0.0
    lines = [
        f"{report.annotations} objects of {report.images} pictures in {written.path}",
        f"model {source}{loaded}, {each:.2f} pictures/s",
    ]
    if issues:
        lines.append(f"parse issues: {issues}")
    if report.left_out():
        lines.append(f"skipped: {counted(report.left_out())}")
    output.result(data, lines)
    _list_failed(written.failed, output)


def _list_failed(failed: Sequence[Failure], output: Output) -> None:
    for row in failed[:_SHOWN]:
        output.note(f"skipped: {row['reason']}")
    if len(failed) > _SHOWN:
        output.note(f"and {len(failed) - _SHOWN} more (failures.jsonl lists all of them)")
