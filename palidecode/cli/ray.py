"""``--ray``: `palidecode predict` and `palidecode decode` on a cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from palidecode.cli.output import RESUMABLE, Output
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


def check(args: argparse.Namespace) -> None:
    """Refuse what a cluster can't do."""
    if args.no_journal:
        raise InputError("--ray keeps its shards until the end: it can't do with --no-journal")


def run(
    args: argparse.Namespace,
    doing: str,
    find: Callable[[], Found],
    writing: Callable[[Found], CocoOptions],
    say: Callable[[Found, WrittenCoco, float], int],
) -> int:
    """Find on the cluster, write, and say what came out."""
    from palidecode.ray_data import connected
    from palidecode.ray_data.running import write
    from palidecode.runs.journal import Row, journal_path
    from palidecode.runs.stopping import run_stoppable

    def go_on(shards: int) -> None:
        if shards:
            Output(args.json).resumed(f"{shards} shards", journal_path(args.output))

    done: list[tuple[WrittenCoco, float]] = []

    def work(stopping: Stopping) -> int:
        began = time.perf_counter()
        with Output(args.json).progress(doing) as bar:

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
        code = run_stoppable(work, RESUMABLE)
    return say(found, *done[0]) if done else code
