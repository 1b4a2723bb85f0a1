"""``palidecode view``: write a page of pictures with their objects."""

from __future__ import annotations

import argparse
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from palidecode.answers.assembler import ParseIssue
from palidecode.answers.rows import holds_rows, one_size
from palidecode.cli.options import fill
from palidecode.cli.output import DONE, SKIPPED, Output, skip_lines
from palidecode.coco.detections import from_coco, from_coco_results
from palidecode.coco.skips import needs_a_look
from palidecode.coco.writing import CocoReport
from palidecode.detections import Detections
from palidecode.errors import InputError
from palidecode.files import regular
from palidecode.report import RawAnswer, made_with, write_view
from palidecode.runs.answers import AnswerDecoder, DecodeJob, DecodeOptions, by_picture, decode_rows
from palidecode.wording import many

_HEAD = 256  # bytes that tell a list from an object


@dataclass
class _Content:
    """Content of a file: objects, the answers about each picture, what was skipped or is odd."""

    found: Detections
    answers: list[list[RawAnswer]] = field(default_factory=list)
    problems: Sequence[tuple[int, str]] = ()
    report: CocoReport = field(default_factory=CocoReport)

    def notices(self) -> list[str]:
        """Return lines about what was skipped."""
        rows = [f"line {line} of the answers: {reason}" for line, reason in self.problems[:10]]
        if len(self.problems) > len(rows):
            rows.append(f"and {many(len(self.problems) - len(rows), 'more line')} with problems")
        skipped = [f"skipped: {skip}" for skip in self.report.skipped]
        return [*skipped, *map(str, self.report.noted), *rows]


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode view``."""
    output, source = fill(Output, args), Path(args.source)
    images = Path(args.images or source.parent)
    if not images.is_dir():
        raise InputError(f"{images}: no such directory of pictures")
    if source.suffix == ".json" and not holds_rows(source):
        content = _from_json(source, args.dataset)
    else:
        content = _from_answers(source, fill(DecodeOptions, args, images=str(images)))
    count = len(content.found.sizes)
    with output.progress("writing the page", count, "pictures") as bar:
        missing = write_view(
            args.output,
            content.found,
            images,
            name=source.name,
            answers=content.answers,
            facts=made_with(source),
            notices=content.notices(),
            step=bar.update,
        )
    page, report = args.output / "index.html", content.report
    data = {
        "output": str(page),
        "pictures": count,
        "objects": len(content.found),
        "issues": len(content.found.issues),
        "missing": missing,
        "problems": [{"line": line, "reason": reason} for line, reason in content.problems],
        "skipped": [skip.as_dict() for skip in report.skipped],
        "noted": [skip.as_dict() for skip in report.noted],
    }
    objects = f"{many(len(content.found), 'object')} of {many(count, 'picture')} in {page}"
    lines = [*skip_lines("SKIPPED", report.skipped), *skip_lines("noted", report.noted)]
    output.result(data, [objects, *lines])
    output.problems(content.problems)
    output.listed(missing)
    look = needs_a_look(report.skipped, report.noted)
    return SKIPPED if missing or content.problems or look else DONE


def _from_json(path: Path, dataset: Path | None) -> _Content:
    """Read a COCO dataset, or a results list with its dataset."""
    report = CocoReport()
    if dataset is not None:
        return _Content(from_coco_results(path, dataset, report=report), report=report)
    if _is_list(path):
        raise InputError(
            f"{path}: is a results list; name the dataset of its images and categories: "
            "--dataset FILE"
        )
    return _Content(from_coco(path, crowds=True, report=report), report=report)


def _is_list(path: Path) -> bool:
    try:
        with regular(path).open("rb") as file:
            return file.read(_HEAD).removeprefix(BOM_UTF8).lstrip().startswith(b"[")
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def _from_answers(path: Path, options: DecodeOptions) -> _Content:
    """Decode answers, and put those about the same picture together."""
    rows = list(one_size(DecodeJob(options).items(path)))
    if not rows:
        raise InputError(f"{path}: no answers in this file")
    ((answers, decoded, problems),) = decode_rows(rows, AnswerDecoder.load(options), len(rows))
    found, names = by_picture(answers, decoded)
    issues: list[list[ParseIssue]] = [[] for _ in answers]
    for index, issue in decoded.issues:
        issues[index].append(issue)
    about: dict[str, list[RawAnswer]] = {name: [] for name in names}
    for row, odd in zip(answers, issues, strict=True):
        about[row.name].append(RawAnswer(row.prompt, row.answer, odd))
    return _Content(found, list(about.values()), [(item.line, item.reason) for item in problems])
