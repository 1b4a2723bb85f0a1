"""``--ray``: `palidecode predict` and `palidecode decode` on a cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from palidecode.cli import commands
from palidecode.cli import predict as commands_predict
from palidecode.cli.commands import GO_ON, progress_bar, read_categories, say_decoded, say_resumed
from palidecode.cli.predict import asked_of, say_predicted
from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.ray_data import Found, WrittenCoco
    from palidecode.ray_data.running import CocoOptions
    from palidecode.runs.stopping import Stopping


def add_ray_options(parser: Any, *, gpus: bool = False) -> None:
    """Of commands that can run on a cluster."""
    group = parser.add_argument_group(
        "on a cluster",
        "The same on Ray: workers write shards beside the output, which all machines must see; "
        "they are merged at the end. A run that died goes on with the shards that are missing.",
    )
    group.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="auto: the cluster this machine belongs to; HOST:PORT; nothing: all cores of this "
        "machine",
    )
    group.add_argument("--workers", type=int, metavar="N", help="(default: as many as fit)")
    group.add_argument("--worker-cpus", type=float, default=1.0, metavar="N", help="of each")
    if gpus:
        group.add_argument(
            "--pictures",
            metavar="DIR",
            help="of a COCO .json or a .jsonl that stands in place of IMAGE",
        )
        group.add_argument(
            "--worker-gpus",
            type=float,
            metavar="N",
            help="of each (default: 1 where there are any)",
        )
    group.add_argument("--shard-size", type=int, metavar="N", help="rows finished together")


def run_predict(args: argparse.Namespace) -> int:
    """``palidecode predict``, here or on a cluster."""
    if args.ray is None:
        if args.pictures is not None:
            raise InputError("--pictures needs --ray; without it name the pictures' folder")
        return commands_predict.run_predict(args)
    if args.overlay is not None:
        raise InputError("--overlay draws on one machine; afterwards: palidecode draw coco.json")
    _check(args)

    def find() -> Found:
        from palidecode.pipeline.checkpoint import describe
        from palidecode.ray_data import PREDICTED, predict

        options, _ = asked_of(args, describe(args.model).classes)
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
            **options.ask,
        )

    def writing(found: Found) -> CocoOptions:
        from palidecode.coco.writing import MaskFormat
        from palidecode.ray_data.running import CocoOptions

        return CocoOptions(found.categories, form=MaskFormat(args.segmentation))

    def say(found: Found, written: WrittenCoco, seconds: float) -> int:
        return say_predicted(
            args,
            written.report,
            found.info["model"],
            issues=sum(written.issues.values()),
            resumed=written.kept,
            failed={row["image"]: row["reason"] for row in written.failed},
            seconds={"predict": seconds},
        )

    return _run(args, "predicting", find, writing, say)


def run_decode(args: argparse.Namespace) -> int:
    """``palidecode decode``, here or on a cluster."""
    if args.ray is None:
        return commands.run_decode(args)
    if args.text is not None or args.answers is None:
        raise InputError("--ray decodes files of answers")
    if args.output is None:
        raise InputError("name the file to write: -o coco.json")
    _check(args)

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
        return say_decoded(args, written.report, written.issues, problems, written.kept)

    return _run(args, "decoding", find, writing, say)


def _check(args: argparse.Namespace) -> None:
    if args.no_journal:
        raise InputError("--ray keeps its shards until the end: it can't do with --no-journal")


def _run(
    args: argparse.Namespace,
    doing: str,
    find: Callable[[], Found],
    writing: Callable[[Found], CocoOptions],
    say: Callable[[Found, WrittenCoco, float], int],
) -> int:
    from palidecode.ray_data import connected
    from palidecode.ray_data.running import write
    from palidecode.runs.journal import Row, journal_path
    from palidecode.runs.stopping import run_stoppable

    def go_on(shards: int) -> None:
        if shards:
            say_resumed(args, f"{shards} shards", journal_path(args.output))

    done: list[tuple[WrittenCoco, float]] = []

    def work(stopping: Stopping) -> int:
        began = time.perf_counter()
        with progress_bar(args, doing) as bar:

            def on_shard(row: Row) -> None:
                bar.update(row["rows"])
                stopping.check()

            written = write(
                found,
                args.output,
                writing(found),
                restart=args.restart,
                keep_journal=args.keep_journal,
                on_begin=go_on,
                on_shard=on_shard,
            )
        done.append((written, time.perf_counter() - began))
        return 0

    # Ray prints what it has to say of workers that died, which is no JSON.
    aside = redirect_stdout(sys.stderr) if args.json else nullcontext()
    with aside, connected(args.ray):
        found = find()
        code = run_stoppable(work, GO_ON)
    return say(found, *done[0]) if done else code
