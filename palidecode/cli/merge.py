"""``palidecode merge``: write an adapter and its base as one model."""

from __future__ import annotations

import argparse

from palidecode.cli.options import fill
from palidecode.cli.output import DONE, Output
from palidecode.pipeline.adapting import merge
from palidecode.wording import many


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode merge``."""
    merged = merge(args.adapter, args.output, args.base)
    changed = f"{many(merged.changed, 'tensor')} changed by the adapter"
    lines = [f"{merged.folder}: {merged.bytes / 1e9:.2f} GB, {changed}"]
    fill(Output, args).result(merged._asdict() | {"folder": str(merged.folder)}, lines)
    return DONE
