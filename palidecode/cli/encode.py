"""``palidecode encode``: a COCO file to fine-tuning rows, and what the encoding costs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from palidecode.cli.options import add_json
from palidecode.cli.output import DONE, LEFT_OUT, progress_bar, say_problems
from palidecode.errors import InputError

if TYPE_CHECKING:
    from palidecode.codec.protocol import MaskCodec
    from palidecode.finetune.objects import EncodeReport, GroundTruth, RowOptions
    from palidecode.finetune.roundtrip import RoundTrip
    from palidecode.finetune.rows import EncodedImage

DEFAULT_SHARE = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``palidecode encode``."""
    add_json(parser)
    parser.add_argument("coco", type=Path, metavar="COCO.json")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the JSONL file to write"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="leave out images whose picture isn't there"
    )
    parser.add_argument("--task", choices=("detect", "segment"), default="detect")
    parser.add_argument("--weights", metavar="FILE", help="mask codec: a file, or google-oid")
    parser.add_argument("--backend", choices=("auto", "onnx", "torch"), default="auto")
    parser.add_argument("--divisor", type=int, choices=(1024, 1023), default=1024)
    group = parser.add_argument_group("what the rows say")
    group.add_argument(
        "--classes",
        choices=("all", "present", "present+absent"),
        default="all",
        help="which classes the prompt asks for (default: all)",
    )
    group.add_argument("--absent", type=int, default=5, metavar="N", help="with present+absent")
    group.add_argument(
        "--order",
        choices=("given", "left-to-right", "area", "shuffled"),
        default="given",
        help="of the objects; area: the largest first",
    )
    group.add_argument("--max-objects", type=int, metavar="N", help="cut the others")
    group.add_argument(
        "--boxes",
        choices=("annotations", "masks"),
        default="annotations",
        help="bbox as given, or the tight box of the mask",
    )
    group.add_argument("--empty-images", choices=("keep", "skip"), default="keep")
    group.add_argument(
        "--invalid",
        choices=("skip", "error"),
        default="skip",
        help="leave out what can't be written (default), or stop at the first",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random")
    group = parser.add_argument_group("validation")
    group.add_argument("--val", type=Path, metavar="FILE", help="a second file, of other images")
    group.add_argument(
        "--val-share", type=float, metavar="SHARE", help=f"of the images (default: {DEFAULT_SHARE})"
    )


def run(args: argparse.Namespace) -> int:
    """Encode, measure, write."""
    from palidecode.files import read_json
    from palidecode.finetune.objects import EncodeReport, GroundTruth
    from palidecode.finetune.roundtrip import RoundTrip
    from palidecode.finetune.rows import encode_images

    _check_targets(args)
    options, codec = _options(args), _codec(args)
    dataset = read_json(args.coco)
    problems: list[tuple[int, str]] = []
    if args.images is not None:
        dataset, problems = with_pictures(dataset, args.images)
    report = EncodeReport()
    truth = GroundTruth(dataset, options, report)
    trip = RoundTrip(codec, args.divisor)
    with progress_bar(args, "encoding", len(truth.images)) as bar:
        counts = _write(args, truth, _measured(encode_images(truth, codec), trip, bar))
    _say_encoded(args, counts, codec, report, trip, problems)
    return LEFT_OUT if problems or report.left_out() else DONE


def _check_targets(args: argparse.Namespace) -> None:
    if args.val is None and args.val_share is not None:
        raise InputError("--val-share needs a second file to write: --val val.jsonl")
    if args.val is not None and args.val.resolve() == args.output.resolve():
        raise InputError(f"{args.val}: --val and -o must be two files")
    if args.coco.resolve() in [p.resolve() for p in (args.output, args.val) if p is not None]:
        raise InputError(f"{args.coco}: would be overwritten; name another file to write")
    if args.images is not None and not args.images.is_dir():
        raise InputError(f"{args.images}: no such folder of pictures")


def _options(args: argparse.Namespace) -> RowOptions:
    from palidecode.finetune.objects import RowOptions

    return RowOptions(
        task=args.task,
        classes=args.classes,
        absent=args.absent,
        order=args.order,
        seed=args.seed,
        max_objects=args.max_objects,
        boxes=args.boxes,
        divisor=args.divisor,
        empty_images=args.empty_images,
        invalid=args.invalid,
    )


def _codec(args: argparse.Namespace) -> MaskCodec | None:
    """The codec of a segment task; says once where its codes mustn't go."""
    from palidecode.codec import load_codec
    from palidecode.codec.weights import DEMO_ID

    if args.task == "detect":
        return None
    codec = load_codec(args.weights, args.backend)
    if codec.id == DEMO_ID:
        print(
            f"palidecode: warning: these seg codes are {DEMO_ID}'s: never fine-tune a Google "
            "checkpoint on them, it speaks other codes; run: palidecode weights fetch",
            file=sys.stderr,
        )
    return codec


def with_pictures(dataset: Any, folder: Path) -> tuple[Any, list[tuple[int, str]]]:
    """A dataset without the images whose picture isn't there or has another size.

    Returns
    -------
    dataset : dict
        The annotations of the images left out are gone too.
    problems : list of (int, str)
        Place of the image, and why.
    """
    if not isinstance(dataset, dict) or not isinstance(dataset.get("images"), list):
        return dataset, []  # the reader says what is wrong with it
    problems: list[tuple[int, str]] = []
    kept, gone = [], set()
    for place, image in enumerate(dataset["images"]):
        try:
            _check_picture(image, folder)
        except InputError as error:
            problems.append((place, str(error)))
            gone.add(image["id"])
        else:
            kept.append(image)
    annotations = dataset.get("annotations")
    if gone and isinstance(annotations, list):
        annotations = [
            annotation for annotation in annotations if _image_id(annotation) not in gone
        ]
    return {**dataset, "images": kept, "annotations": annotations}, problems


def _image_id(annotation: Any) -> int | str | None:
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    return number if isinstance(number, (int, str)) else None


def _check_picture(image: Any, folder: Path) -> None:
    """Raise `InputError` for a picture that isn't the image of the dataset."""
    from palidecode.files import inside, picture_size

    if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
        return  # the reader counts it
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        return
    width, height = picture_size(inside(folder, name))
    if (width, height) != (image.get("width"), image.get("height")):
        raise InputError(
            f"{name} is {width}×{height} in {folder} but "
            f"{image.get('width')}×{image.get('height')} in the COCO file"
        )


def _measured(
    chunks: Iterator[list[EncodedImage]], trip: RoundTrip, bar: Any
) -> Iterator[EncodedImage]:
    for chunk in chunks:
        trip.add(chunk)
        bar.update(len(chunk))
        yield from chunk


def _write(
    args: argparse.Namespace, truth: GroundTruth, encoded: Iterator[EncodedImage]
) -> dict[str, int]:
    """Write the rows into one file or two; how many went into each."""
    from palidecode.files import replacing
    from palidecode.finetune.rows import split_images

    held_back: set[str] = set()
    if args.val is not None:
        share = DEFAULT_SHARE if args.val_share is None else args.val_share
        held_back = split_images([image.name for image in truth.images], share, args.seed)
    counts = {str(path): 0 for path in (args.output, args.val) if path is not None}
    with ExitStack() as stack:
        files: dict[str, IO[Any]] = {name: stack.enter_context(replacing(name)) for name in counts}
        for image in encoded:
            name = str(args.val if image.row["image"] in held_back else args.output)
            files[name].write(json.dumps(image.row, ensure_ascii=False) + "\n")
            counts[name] += 1
        if not any(counts.values()):
            raise InputError(f"{args.coco}: no image gives a row; {args.output} was not written")
    return counts


def _say_encoded(
    args: argparse.Namespace,
    counts: dict[str, int],
    codec: MaskCodec | None,
    report: EncodeReport,
    trip: RoundTrip,
    problems: list[tuple[int, str]],
) -> None:
    left_out = report.left_out()
    if args.json:
        summary = {
            "files": counts,
            "images": report.images,
            "objects": report.objects,
            "codec": None if codec is None else codec.id,
            "left_out": left_out,
            "problems": [{"image": place, "reason": reason} for place, reason in problems],
            "round_trip": trip.as_dict(),
        }
        print(json.dumps(summary, ensure_ascii=False))
        return
    for name, count in counts.items():
        print(f"{count} rows in {name}")
    print("\nA model without any mistake would reach, after encoding and decoding:\n")
    print(trip.table())
    if left_out:
        shown = [f"{name} {_number(count)}" for name, count in left_out.items()]
        print(f"\nleft out: {', '.join(shown)}")
    say_problems(args, problems, "image")


def _number(count: Any) -> str:
    if isinstance(count, int):
        return str(count)
    return "(" + ", ".join(f"{name!r} {number}" for name, number in count.items()) + ")"
