"""``palidecode encode``: convert a COCO dataset to fine-tuning examples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from palidecode.cli.options import fill
from palidecode.cli.output import DONE, SKIPPED, Output, counted
from palidecode.cli.progress import Progress
from palidecode.cli.terminal import message
from palidecode.codec import load_codec
from palidecode.codec.weights import DEMO_ID
from palidecode.errors import InputError
from palidecode.files import replacing
from palidecode.finetune.objects import (
    EncodeReport,
    GroundTruth,
    RowOptions,
)
from palidecode.finetune.prefixes import PrefixLengths
from palidecode.finetune.roundtrip import RoundTrip
from palidecode.finetune.rows import encode_images, split_images
from palidecode.runs.answers import read_tokenizer
from palidecode.wording import many

if TYPE_CHECKING:
    from palidecode.finetune.rows import EncodedImage

_SHARE = 0.1
_SHOWN_PROBLEMS = 10
_BY_DESIGN = {"crowds", "over_the_cap", "images_without_objects"}
"""Reasons to skip entries that need no attention."""
_DEMO_CODEC = (
    f"warning: these seg codes are {DEMO_ID}'s. Never fine-tune a Google checkpoint on them: its "
    "codes mean other shapes. For Google's codec run: palidecode weights fetch"
)


@dataclass(frozen=True)
class _Files:
    """The dataset, its pictures, and the files to write."""

    coco: Path
    output: Path
    images: Path | None
    val: Path | None
    val_share: float | None

    @property
    def written(self) -> list[Path]:
        """Return the files to write."""
        return [path for path in (self.output, self.val) if path is not None]

    def check(self) -> None:
        """Raise `InputError` for files that don't fit together."""
        if self.val is None and self.val_share is not None:
            raise InputError("--val-share needs a second file to write: --val val.jsonl")
        if self.val is not None and self.val.resolve() == self.output.resolve():
            raise InputError(f"{self.val}: --val and -o must be two files")
        if self.images is not None and not self.images.is_dir():
            raise InputError(f"{self.images}: no such directory of pictures")


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode encode``."""
    output, files = fill(Output, args), fill(_Files, args)
    files.check()
    options = fill(RowOptions, args)
    codec = None if options.task == "detect" else load_codec(args.weights, args.backend)
    if codec is not None and codec.id == DEMO_ID:
        message(_DEMO_CODEC)
    report = EncodeReport()
    truth = GroundTruth(files.coco, options, report, files.images)
    problems = [] if files.images is None else truth.check_pictures(files.images)
    trip = RoundTrip(codec, options.divisor)
    lengths = PrefixLengths(_token_counter(args.tokenizer))
    with output.progress("encoding", len(truth.images), "images") as bar:
        measured = _measured(encode_images(truth, codec), trip, lengths, bar)
        counts = _write(files, truth, measured, problems)
    data = {
        "files": counts,
        "images": report.images,
        "objects": report.objects,
        "codec": None if codec is None else codec.id,
        "left_out": report.left_out(),
        "problems": [{"image": index, "reason": reason} for index, reason in problems],
        "rotated": report.rotated,
        "grouping": report.grouping,
        "prefix_tokens": lengths.as_dict(),
        "round_trip": trip.as_dict(),
    }
    output.result(data, _text(counts, report, trip))
    output.problems(problems, "image")
    if lengths.rows:
        output.note(lengths.warning())
    if report.grouping:
        output.note(
            f"categories without annotations that only group others are asked for too: "
            f"{', '.join(report.grouping)}; --categories chooses others"
        )
    if report.rotated:
        output.note(
            f"objects with a rotation (attributes.rotation): {report.rotated}; COCO's boxes are "
            "upright, and theirs are those before the rotation"
        )
    unwanted = report.left_out().keys() - _BY_DESIGN
    return SKIPPED if problems or unwanted or report.rotated else DONE


def _no_row(files: _Files, report: EncodeReport, problems: list[tuple[int, str]]) -> str:
    """Return the message of a dataset without a row, with every reason."""
    reasons = [
        f"{name} {count}" + (f" ({report.examples[name]})" if name in report.examples else "")
        for name, count in report.left_out().items()
    ]
    reasons += [f"image {index}: {reason}" for index, reason in problems[:_SHOWN_PROBLEMS]]
    if len(problems) > _SHOWN_PROBLEMS:
        reasons.append(f"and {many(len(problems) - _SHOWN_PROBLEMS, 'more image')}")
    shown = "; ".join(reasons) or "it has no images"
    return f"{files.coco}: no image gives a row: {shown}; {files.output} was not written"


def _measured(
    chunks: Iterator[list[EncodedImage]], trip: RoundTrip, lengths: PrefixLengths, bar: Progress
) -> Iterator[EncodedImage]:
    for chunk in chunks:
        trip.add(chunk)
        for image in chunk:
            lengths.add(image.row["prefix"])
        bar.update(len(chunk))
        yield from chunk


def _token_counter(path: str | None) -> Callable[[str], int] | None:
    """Return a function that counts the tokens of a text; None without a tokenizer."""
    if path is None:
        return None
    tokenizer = read_tokenizer(path)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _write(
    files: _Files,
    truth: GroundTruth,
    encoded: Iterator[EncodedImage],
    problems: list[tuple[int, str]],
) -> dict[str, int]:
    """Write the rows into one file or two; return the number of rows of each."""
    if not truth.images:
        raise InputError(_no_row(files, truth.report, problems))
    held_back: set[str] = set()
    if files.val is not None:
        share = _SHARE if files.val_share is None else files.val_share
        names = [image.name for image in truth.images]
        held_back = split_images(names, share, truth.options.seed)
    counts = {str(path): 0 for path in files.written}
    with ExitStack() as stack:
        opened: dict[str, IO[str]] = {name: stack.enter_context(replacing(name)) for name in counts}
        for image in encoded:
            name = str(files.val if image.row["image"] in held_back else files.output)
            opened[name].write(json.dumps(image.row, ensure_ascii=False) + "\n")
            counts[name] += 1
        if not any(counts.values()):
            raise InputError(_no_row(files, truth.report, problems))
    return counts


def _text(counts: dict[str, int], report: EncodeReport, trip: RoundTrip) -> list[str]:
    """Return the lines of what was written, the round trip and what was skipped."""
    lines = [f"{many(count, 'row')} in {name}" for name, count in counts.items()]
    lines += ["", "Upper bound left by encoding, for a model without any mistake:", ""]
    lines += trip.table().split("\n")
    if report.left_out():
        lines += ["", f"skipped: {counted(report.left_out())}"]
    return lines
