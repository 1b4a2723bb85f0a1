"""``palidecode convert``: between COCO and the files of other tools."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palidecode import interop
from palidecode.cli.options import fill
from palidecode.cli.output import DONE, SKIPPED, Output, skip_lines
from palidecode.coco.detections import sound_rows
from palidecode.coco.reading import ImageRow, Row, no_collection, read_dataset, sized_images
from palidecode.coco.skips import Skips, needs_a_look
from palidecode.errors import InputError
from palidecode.files import STDOUT, refuse_overwriting, replacing
from palidecode.formats import (
    CROWDS,
    FOLDERS,
    WRITERS,
    ConvertReport,
    Dataset,
    Labelled,
    LabelledPicture,
    read_cvat,
    read_voc,
    read_yolo,
)
from palidecode.formats.labelstudio import DEFAULT_URL, config_of, write_labelstudio
from palidecode.geometry.boxes import box_area
from palidecode.geometry.rle import rings_to_rle, rle_to_crop
from palidecode.version import __version__
from palidecode.wording import many

_WITHOUT_SCORES = ("yolo", "yolo-seg", "voc", "cvat", "createml")
_LABELS = (".txt", ".xml", ".yaml")  # files of a folder that is read
_BY_DESIGN = {CROWDS}
"""Objects that a format has no word for."""


@dataclass(frozen=True)
class Conversion:
    """A dataset that was written: where, what was skipped, and the labelling config if any."""

    to: str
    output: Path
    dataset: Dataset
    report: ConvertReport
    skips: Skips
    config: Path | None

    def data(self) -> dict[str, object]:
        """Return the result as JSON values."""
        return {
            "output": str(self.output),
            "pictures": len(self.dataset.pictures),
            "objects": self.report.objects,
            "skipped": dict(self.report.skipped),
            "unread": [skip.as_dict() for skip in self.skips.skipped],
            "noted": [skip.as_dict() for skip in self.skips.noted],
            "stale": self.report.stale,
            **({} if self.config is None else {"config": str(self.config)}),
        }

    def lines(self) -> list[str]:
        """Return the result as lines."""
        pictures = many(len(self.dataset.pictures), "picture")
        written = f"{many(self.report.objects, 'object')} of {pictures} in {self.output}"
        return [written, *([] if self.config is None else [f"labelling config: {self.config}"])]

    def notes(self, output: Output) -> None:
        """Print what was skipped and what an earlier conversion left."""
        for reason, count in self.report.skipped.items():
            output.note(f"skipped: {reason}: {count}")
        for title, listed in (("skipped", self.skips.skipped), ("noted", self.skips.noted)):
            output.listed([line.strip() for line in skip_lines(title, listed) if line])
        if self.to in _WITHOUT_SCORES and _scored(self.dataset):
            output.note(f"{self.to} has no scores: they are not written")
        stale = self.report.stale
        if stale:
            files = many(len(stale), "file")
            output.note(f"of an earlier conversion, and of no picture: {files}")
            output.listed(stale)

    @property
    def code(self) -> int:
        """The exit code."""
        left = self.report.skipped.keys() - _BY_DESIGN or self.report.stale
        look = left or needs_a_look(self.skips.skipped, self.skips.noted)
        return SKIPPED if look else DONE


def run(args: argparse.Namespace) -> int:
    """Run ``palidecode convert``."""
    output, report, skips = fill(Output, args), ConvertReport(), Skips()
    if args.origin == args.to:
        raise InputError(f"{args.to} to {args.to} is no conversion; choose --to or --from")
    check_output(args.to, args.output, [args.source])
    dataset = _read(args, report, skips)
    done = _write(dataset, args.to, args.output, args.url, report, skips)
    output.result(done.data(), done.lines())
    done.notes(output)
    return done.code


def convert_coco(source: Path, to: str, path: Path) -> Conversion:
    """Convert a COCO dataset to another format."""
    skips = Skips()
    return _write(_read_coco(source, skips), to, path, DEFAULT_URL, ConvertReport(), skips)


def check_output(to: str, path: Path, inputs: Sequence[Path]) -> None:
    """Refuse outputs that are an input, or that a format can't be written to.

    Raises
    ------
    InputError
    """
    if path == Path(STDOUT) and to in FOLDERS:
        raise InputError(f"-o - is the standard output, but {to} is a folder")
    if to == "parquet":
        interop.load("pyarrow")
    target = path.resolve()
    for source in inputs:
        if (
            target.is_file()
            and target.suffix in _LABELS
            and target.is_relative_to(source.resolve())
        ):
            raise InputError(f"{path}: is an input and would be overwritten; name another")
    if to == "labelstudio":
        refuse_overwriting([config_of(path)], inputs)


def _scored(dataset: Dataset) -> bool:
    return any(item.score is not None for picture in dataset.pictures for item in picture.objects)


def _read(args: argparse.Namespace, report: ConvertReport, skips: Skips) -> Dataset:
    if args.origin == "yolo":
        return read_yolo(args.source, args.images, report)
    if args.origin == "voc":
        return read_voc(args.source, report)
    if args.origin == "cvat":
        return read_cvat(args.source, report)
    return _read_coco(args.source, skips)


def _read_coco(path: Path, skips: Skips) -> Dataset:
    """Read a COCO dataset; rings and RLE stay as they are, classes are in the order of ids."""
    with no_collection():
        read = read_dataset(path, Row, skips, needs=("images", "categories"), unused=("id", "area"))
    images = _named(sized_images(read, skips), skips)
    pictures = [
        LabelledPicture(image.file_name or "", image.width, image.height, id=image.id)
        for image in images
    ]
    rows = read.annotations.numbered()
    for row, index, label, (x, y, width, height), rle in sound_rows(
        rows, images, read.categories, "truth", skips
    ):
        rings = row.segmentation
        mask = (
            [ring for ring in rings if len(ring) >= 6 and len(ring) % 2 == 0]
            if isinstance(rings, list)
            else rle
        )
        box = (x, y, x + width, y + height)
        item = Labelled(label, box, row.score, mask or None, bool(row.iscrowd))
        pictures[index].objects.append(item)
    categories = sorted(read.categories, key=lambda category: category["id"])
    return Dataset(pictures, list(dict.fromkeys(category["name"] for category in categories)))


def _named(images: list[ImageRow], skips: Skips) -> list[ImageRow]:
    """Return the images that have a file name, once each; skip the others."""
    often = Counter(image.file_name for image in images)
    named = []
    for offset, image in enumerate(images):
        if image.file_name and often[image.file_name] == 1:
            named.append(image)
        else:
            reason = "ambiguous" if image.file_name else "bad_name"
            skips.add("image", reason, offset, image.file_name or f"id {image.id}")
    return named


def _write(
    dataset: Dataset, to: str, path: Path, url: str, report: ConvertReport, skips: Skips
) -> Conversion:
    config = None
    if to == "coco":
        _write_coco(dataset, path, report)
    elif to == "labelstudio":
        config = write_labelstudio(dataset, path, report, url=url)
    else:
        WRITERS[to](dataset, path, report)
    return Conversion(to, path, dataset, report, skips, config)


def _write_coco(dataset: Dataset, path: Path, report: ConvertReport) -> None:
    """Write a COCO dataset; images, annotations and categories are numbered from 1."""
    number = {label: index for index, label in enumerate(dataset.classes, 1)}
    annotations: list[dict[str, Any]] = []
    images = []
    for image_id, picture in enumerate(dataset.pictures, 1):
        sides = {"width": picture.width, "height": picture.height}
        images.append({"id": image_id, "file_name": picture.name, **sides})
        for item in picture.objects:
            row = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(
                row | {"category_id": number[item.label]} | _annotation(item, picture)
            )
    report.objects += len(annotations)
    content = {
        "info": {"description": f"palidecode {__version__}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for name, index in number.items()],
    }
    with replacing(path) as file:
        json.dump(content, file, ensure_ascii=False)
        file.write("\n")


def _annotation(item: Labelled, picture: LabelledPicture) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box
    rings = item.mask if isinstance(item.mask, list) else None
    area = float(box_area([item.box])[0])
    if rings:
        rle = rings_to_rle(rings, (picture.width, picture.height))
        area = float(rle_to_crop(rle).mask.sum())
    return {
        "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(area, 3),
        "iscrowd": int(item.crowd),
        **({"segmentation": rings} if rings else {}),
        **({} if item.score is None else {"score": item.score}),
    }
