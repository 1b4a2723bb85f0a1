"""Rows of answers that ``palidecode evaluate`` reads; loads what decodes them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from palidecode.cli.decode import has_no_loc
from palidecode.cli.output import NO_LOC, Output
from palidecode.coco.reading import AnyRow, read_dataset
from palidecode.coco.skips import Skips
from palidecode.coco.writing import CocoOptions
from palidecode.errors import InputError
from palidecode.evaluation.coco.sides import sizes_by_name
from palidecode.files import read_json
from palidecode.runs.answers import DecodeJob, DecodeOptions
from palidecode.runs.local import RunOptions, write_coco


class DecodedRows(NamedTuple):
    """Decoded rows of answers: their dataset; problems and notes."""

    dataset: dict[str, object]
    odd: dict[str, Sequence[object]]


def decode_rows(args: argparse.Namespace, output: Output) -> DecodedRows:
    """Decode rows of answers as ``palidecode decode`` does; sizes are those of the truth."""
    truth = read_dataset(args.gt, AnyRow, Skips(), name="the ground truth", needs=("images",))
    keys = {"output_key": args.output_key, "image_key": args.image_key}
    job = DecodeJob(DecodeOptions(**keys, box_image=args.box_image))
    items = job.items(args.predictions, sizes_by_name(truth.images.rows))
    with TemporaryDirectory() as folder:
        path = Path(folder, "coco.json")
        written = write_coco(job, items, path, CocoOptions(), RunOptions(no_journal=True))
        dataset = read_json(path) if written.report.images else None
    output.problems([(row["line"], row["reason"]) for row in written.failed])
    if dataset is None:
        raise InputError(f"{args.predictions}: no usable row")
    notes = [NO_LOC] if has_no_loc(written) else []
    for note in notes:
        output.note(note)
    return DecodedRows(dataset, {"problems": written.failed, "notes": notes})
