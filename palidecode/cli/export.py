"""``palidecode export``: write a model as ONNX graphs, for machines without torch."""

from __future__ import annotations

import argparse

from palidecode.cli.options import fill
from palidecode.cli.output import DONE, Output
from palidecode.pipeline.export import export


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode export``."""
    written = export(
        args.model, args.output, args.quantize, tokenizer=args.tokenizer, base=args.base
    )
    size = written.bytes / 1e9
    lines = [
        f"{written.folder}: {written.precision}, {size:.2f} GB, in {written.seconds:.1f} s",
        f"run it without torch: palidecode predict PICTURES --model {written.folder}",
    ]
    data = written._asdict() | {"folder": str(written.folder)}
    fill(Output, args).result(data, lines)
    return DONE
