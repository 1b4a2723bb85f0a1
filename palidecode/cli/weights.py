"""``palidecode weights``: list, fetch, check and convert the mask codec's weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from palidecode.cli.options import add_output, fill
from palidecode.cli.output import DONE, SKIPPED, Output
from palidecode.codec import load_codec
from palidecode.codec.fetch import fetch, verify
from palidecode.codec.weights import (
    DEMO_ID,
    GOOGLE_BYTES,
    GOOGLE_FILE,
    GOOGLE_ID,
    cache_dir,
    convert,
    find_weights,
    shipped_path,
)

if TYPE_CHECKING:
    Actions = argparse._SubParsersAction[argparse.ArgumentParser]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the actions of ``palidecode weights`` and their options."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_action(actions, "list", _list, "List the available weights and mark the default.")
    added = _add_action(actions, "fetch", _fetch, "Download Google's weights (8.5 MB).")
    added.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="file to write (default: in the cache)"
    )
    added = _add_action(
        actions, "verify", _verify, "Check that these weights decode like Google's."
    )
    added.add_argument(
        "weights",
        nargs="?",
        help="a weights file, google-oid or palidecode-demo (default: those that decode would use)",
    )
    added = _add_action(
        actions, "convert", _convert, "Convert weights between .npz and .safetensors."
    )
    added.add_argument("source", help="a weights file, google-oid or palidecode-demo")
    added.add_argument("target", type=Path, help="file to write, .npz or .safetensors")


def _add_action(
    actions: Actions, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)
    add_output(parser)
    parser.set_defaults(action=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run an action of ``palidecode weights``."""
    code: int = args.action(args)
    return code


def _list(args: argparse.Namespace) -> int:
    used = find_weights()
    rows = [(GOOGLE_ID, cache_dir() / GOOGLE_FILE), (DEMO_ID, shipped_path())]
    if used not in [path for _, path in rows]:
        rows.append(("PALIDECODE_WEIGHTS", used))
    listed = []
    lines = []
    for name, path in rows:
        here, default = path.is_file(), path == used
        listed.append({"id": name, "path": str(path), "here": here, "default": default})
        state = "default" if default else "available" if here else "not fetched"
        lines.append(f"{name:<16} {state:<12} {path}")
    fill(Output, args).result(listed, lines)
    return DONE


def _fetch(args: argparse.Namespace) -> int:
    output = fill(Output, args)
    with output.progress("fetching", GOOGLE_BYTES, unit="B") as bar:
        path = fetch(args.output, progress=lambda done, _: bar.update(done - bar.n))
    output.result({"path": str(path)}, [str(path)])
    return DONE


def _verify(args: argparse.Namespace) -> int:
    """Check the weights; the exit code is 1 if they are not Google's codec."""
    codec = load_codec(args.weights)
    result = verify(codec)
    correlations = ", ".join(f"{value:.3f}" for value in result.correlations)
    verdict = (
        "pass: these weights decode the codes of Google's checkpoints"
        if result.passed
        else "fail: NOT the codec of Google's checkpoints; run: palidecode weights fetch"
    )
    lines = [codec.id, f"correlation with five published fields: {correlations}", verdict]
    fill(Output, args).result({"id": codec.id, **result._asdict()}, lines)
    return DONE if result.passed else SKIPPED


def _convert(args: argparse.Namespace) -> int:
    weights = convert(args.source, args.target)
    data = {"id": weights.id, "output": str(args.target)}
    fill(Output, args).result(data, [f"{weights.id} written to {args.target}"])
    return DONE
