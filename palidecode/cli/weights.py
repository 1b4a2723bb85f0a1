"""``palidecode weights``: list, fetch, check and convert the mask codec's weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from palidecode.cli.options import fill
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
    load_weights,
    remember,
    shipped_path,
)

if TYPE_CHECKING:
    Actions = argparse._SubParsersAction[argparse.ArgumentParser]


def run(args: argparse.Namespace) -> int:
    """Run an action of ``palidecode weights``."""
    return _ACTIONS[args.action](args)


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
        path = fetch(args.output, progress=lambda done, _: bar.update(done - bar.done))
    output.result({"path": str(path)}, [str(path)])
    return DONE


def _verify(args: argparse.Namespace) -> int:
    """Check the weights; the exit code is 1 if they are not Google's codec."""
    weights = load_weights(args.weights)
    result = verify(load_codec(weights, precision="float32"))
    if result.passed and weights.id != GOOGLE_ID:
        remember(weights.arrays)
        weights = load_weights(args.weights)
    correlations = ", ".join(f"{value:.3f}" for value in result.correlations)
    if result.passed:
        verdict = "pass: these weights decode the codes of Google's checkpoints"
    elif weights.id == DEMO_ID:
        verdict = (
            "palidecode's own codec, as it should be: it decodes the answers of models trained "
            "with it. Answers of Google's checkpoints need Google's codec: palidecode weights fetch"
        )
    else:
        verdict = "fail: NOT the codec of Google's checkpoints; run: palidecode weights fetch"
    lines = [
        weights.id,
        f"correlation with five published fields of Google's codec: {correlations}",
        verdict,
    ]
    fill(Output, args).result({"id": weights.id, **result._asdict()}, lines)
    return DONE if result.passed else SKIPPED


def _convert(args: argparse.Namespace) -> int:
    weights = convert(args.source, args.target)
    data = {"id": weights.id, "output": str(args.target)}
    fill(Output, args).result(data, [f"{weights.id} written to {args.target}"])
    return DONE


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": _list,
    "fetch": _fetch,
    "verify": _verify,
    "convert": _convert,
}
