"""``palidecode predict``: its options, and what it does."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palidecode.commands import DONE, LEFT_OUT, progress_bar, read_categories
from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.coco import CocoWriter
    from palidecode.detections import Detections
    from palidecode.prediction import PictureFile, PredictOptions, Task, Unread

SCORES = ("product", "label", "box", "objectness", "mean")
_SHOWN = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """All of ``palidecode predict``."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="pictures or folders")
    parser.add_argument(
        "--model",
        required=True,
        help="a folder as transformers saves it, a big_vision .npz, a hub name, or demo",
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


def run_predict(args: argparse.Namespace) -> int:
    """``palidecode predict``."""
    from palidecode.coco import CocoWriter, MaskFormat
    from palidecode.prediction import find_pictures, predict_pictures

    if args.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {args.batch_size}")
    pictures = find_pictures(args.images)
    began = time.perf_counter()
    decoder = _load(args)
    loaded = time.perf_counter()
    options, names = _options(args, decoder.classes)
    writer = CocoWriter(
        args.output,
        categories=names or None,
        form=MaskFormat(args.segmentation),
        info={"model": decoder.source, "task": options.task, "prompts": list(options.prompts)}
        | ({"asked": names} if names else {}),
    )
    unread: list[Unread] = []
    issues = 0
    with writer, progress_bar(args, options.task + "ing", len(pictures)) as bar:
        for fine, found, failed in predict_pictures(decoder, pictures, options, args.batch_size):
            writer.add(found, [item.name for item in fine])
            if args.overlay is not None:
                _overlay(args.overlay, fine, found)
            issues += len(found.issues)
            unread += failed
            bar.update(len(fine) + len(failed))
        if not writer.report.images:
            _say_unread(args, unread)
            raise InputError(f"no picture could be read; {args.output} was not written")
    seconds = time.perf_counter() - loaded
    _say(args, writer, decoder.source, issues, unread, (loaded - began, seconds))
    return LEFT_OUT if unread or writer.report.left_out() else DONE


def _load(args: argparse.Namespace) -> Any:
    from palidecode.codec import load_codec
    from palidecode.pipeline import PaliDecoder

    return PaliDecoder.from_pretrained(
        args.model,
        args.dtype,
        args.device,
        args.quantize,
        codec=load_codec(args.weights) if args.weights else None,
        tokenizer=args.tokenizer,
    )


def _options(args: argparse.Namespace, known: tuple[str, ...]) -> tuple[PredictOptions, list[str]]:
    """What to ask, and the names of all that is asked for, where they are known."""
    from palidecode.categories import check_categories
    from palidecode.prediction import PredictOptions, prompts_for
    from palidecode.runtime.grammar import GrammarOptions, asked_labels

    verb = (args.prompt or "").strip().partition(" ")[0]
    task: Task | None = args.task
    if task is None and verb in ("detect", "segment"):
        task = "segment" if verb == "segment" else "detect"
    if task is None:
        raise InputError(
            "what should be looked for? --prompt 'detect cat ; dog' or 'segment cat', or --task "
            "with --classes FILE"
        )
    names = list(known)
    if args.classes is not None:
        names = [str(item["name"]) for item in check_categories(read_categories(args.classes))]
    if args.prompt is not None and args.classes is not None:
        raise InputError("give --prompt or --classes, not both")
    prompts = prompts_for(task, names, args.prompt, args.per_class)
    if args.prompt is not None:
        asked = asked_labels(args.prompt if verb == task else f"{task} {args.prompt}")
        names = [] if asked is None else asked[1]
    grammar = False if args.no_grammar else GrammarOptions(max_objects=args.max_objects)
    ask = {
        "grammar": grammar,
        "over": "vocabulary" if args.no_grammar else "allowed",
        "score": args.score,
        "sub_bin": args.sub_bin,
        "divisor": args.divisor,
        "clip": args.clip,
        "max_new_tokens": args.max_new_tokens,
    }
    return PredictOptions(task, prompts, args.min_score, ask), names


def _overlay(folder: Path, pictures: list[PictureFile], found: Detections) -> None:
    from palidecode.drawing import draw
    from palidecode.files import inside, replacing

    for index, item in enumerate(pictures):
        target = inside(folder, str(Path(item.name).with_suffix(".png")))
        with replacing(target, "wb") as file:
            draw(item.path, found, index=index).save(file, "PNG")


def _say(
    args: argparse.Namespace,
    writer: CocoWriter,
    source: str,
    issues: int,
    unread: list[Unread],
    seconds: tuple[float, float],
) -> None:
    report = writer.report
    if args.json:
        summary = {
            "output": str(args.output),
            "model": source,
            "images": report.images,
            "annotations": report.annotations,
            "issues": issues,
            "left_out": report.left_out(),
            "unread": [item._asdict() for item in unread],
            "seconds": {"load": round(seconds[0], 2), "predict": round(seconds[1], 2)},
        }
        print(json.dumps(summary, ensure_ascii=False))
        return
    each = report.images / seconds[1] if seconds[1] else 0.0
    print(f"{report.annotations} objects of {report.images} pictures in {args.output}")
    print(f"model {source}, loaded in {seconds[0]:.1f} s, {each:.2f} pictures/s")
    if issues:
        print(f"odd in the answers: {issues}")
    if report.left_out():
        print("left out: " + ", ".join(f"{k} {v}" for k, v in report.left_out().items()))
    _say_unread(args, unread)


def _say_unread(args: argparse.Namespace, unread: list[Unread]) -> None:
    if args.json:
        return
    for item in unread[:_SHOWN]:
        print(f"palidecode: left out: {item.reason}", file=sys.stderr)
    if len(unread) > _SHOWN:
        print(f"palidecode: and {len(unread) - _SHOWN} more (all with --json)", file=sys.stderr)
