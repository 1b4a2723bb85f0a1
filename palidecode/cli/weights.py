"""``palidecode weights``: the mask codec's weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palidecode.cli.options import add_json
from palidecode.cli.output import DONE, LEFT_OUT, progress_bar


def add_options(parser: argparse.ArgumentParser) -> None:
    """The actions of ``palidecode weights``, and their options."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _action(actions, "list", _list, "Which weights are here, and which is used.")
    fetch = _action(actions, "fetch", _fetch, "Download Google's weights (8.5 MB).")
    fetch.add_argument("-o", "--output", type=Path, metavar="FILE", help="instead of the cache")
    verify = _action(actions, "verify", _verify, "Do these weights decode as Google's do?")
    verify.add_argument("weights", nargs="?", help="a file, google-oid or palidecode-demo")
    convert = _action(actions, "convert", _convert, "Between .npz and .safetensors.")
    convert.add_argument("source")
    convert.add_argument("target", type=Path)


def _action(
    actions: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
    add_json(parser)
    parser.set_defaults(action=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """``palidecode weights``."""
    code: int = args.action(args)
    return code


def _list(args: argparse.Namespace) -> int:
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


def _fetch(args: argparse.Namespace) -> int:
    """``palidecode weights fetch``."""
    from palidecode.codec.fetch import fetch
    from palidecode.codec.weights import GOOGLE_BYTES

    with progress_bar(args, "fetching", GOOGLE_BYTES, unit="B", unit_scale=True) as bar:
        path = fetch(args.output, progress=lambda done, _: bar.update(done - bar.n))
    print(json.dumps({"path": str(path)}) if args.json else path)
    return DONE


def _verify(args: argparse.Namespace) -> int:
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


def _convert(args: argparse.Namespace) -> int:
    """``palidecode weights convert``."""
    from palidecode.codec.weights import convert

    weights = convert(args.source, args.target)
    said = {"id": weights.id, "output": str(args.target)}
    print(json.dumps(said) if args.json else f"{weights.id} written to {args.target}")
    return DONE
