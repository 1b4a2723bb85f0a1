"""The command line: arguments in, library calls, progress, exit codes.

0: everything done. 1: done, but something was left out, and what is said. 2: nothing done,
and why in one line. 130, 143: stopped by SIGINT or SIGTERM; the same command goes on.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from palidecode.cli.commands import (
    DONE,
    FAILED,
    add_journal_options,
    run_demo,
    run_draw,
    run_weights_convert,
    run_weights_fetch,
    run_weights_list,
    run_weights_verify,
)
from palidecode.cli.encode import DEFAULT_SHARE, run_encode
from palidecode.cli.evaluate import add_evaluation
from palidecode.cli.evaluate_referring import add_referring_options, run_evaluate_referring
from palidecode.cli.predict import add_options
from palidecode.cli.ray import add_ray_options, run_decode, run_predict
from palidecode.errors import InputError, PalidecodeError
from palidecode.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name or a label may hold what the terminal's encoding can't say; JSON stays JSON.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            code: int = args.run(args)
        sys.stdout.flush()
    except PalidecodeError as error:
        print(f"palidecode: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("palidecode: stopped; no unfinished file was left", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader went away (`| head`): nothing more to say, and no traceback at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"palidecode: warning: {message}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="palidecode",
        description="PaliGemma's answers to boxes, masks and COCO JSON.",
        epilog="Exit codes: 0 done, 1 done but something was left out, 2 failed; 130 and 143: "
        "stopped by SIGINT or SIGTERM, and the same command goes on.",
    )
    parser.add_argument("--version", action="version", version=f"palidecode {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = _command(commands, "predict", run_predict, "Run a PaliGemma on pictures: COCO JSON.")
    add_options(predict)
    add_ray_options(predict, gpus=True)
    _add_decode(commands)
    _add_draw(commands)
    _add_encode(commands)
    add_evaluation(commands, _command)
    text = "Answers to referring expressions against masks: mIoU, cIoU, gIoU, box accuracy."
    add_referring_options(_command(commands, "evaluate-referring", run_evaluate_referring, text))
    _add_weights(commands)
    _add_demo(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[..., int], text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object for machines")
    return parser


def _add_decode(commands: Any) -> None:
    parser = _command(commands, "decode", run_decode, "Answers to a COCO file.")
    parser.add_argument(
        "answers",
        nargs="?",
        type=Path,
        metavar="ANSWERS.jsonl",
        help="rows with 'output' or 'token_ids', and 'image' or 'width' and 'height'",
    )
    parser.add_argument("--text", help="one answer instead of a file; needs --size")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the COCO file to write")
    parser.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="answers at once (default: 256)"
    )
    _add_answer_options(parser)
    group = parser.add_argument_group("COCO")
    group.add_argument("--categories", type=Path, metavar="FILE", help="COCO file or list of names")
    group.add_argument(
        "--match", choices=("exact", "loose"), default="exact", help="loose: case, plurals, aliases"
    )
    group.add_argument(
        "--unmapped",
        choices=("keep", "drop", "error"),
        default="keep",
        help="labels that are none of --categories (default: keep, as new categories)",
    )
    group.add_argument(
        "--segmentation",
        choices=("polygons", "exact", "rle", "none"),
        default="polygons",
        help="smooth polygons (default), polygons along pixel edges, RLE, or boxes only",
    )
    group.add_argument("--simplify", type=float, default=0.0, metavar="PIXELS")
    group.add_argument("--min-area", type=float, default=0.0, metavar="PIXELS", help="of a part")
    add_journal_options(parser)
    add_ray_options(parser)


def _add_answer_options(parser: Any) -> None:
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures")
    parser.add_argument("--size", type=_size, metavar="WxH", help="of pictures not named otherwise")
    parser.add_argument("--divisor", type=int, choices=(1024, 1023), default=1024)
    parser.add_argument("--clip", action="store_true", help="keep boxes inside the picture")
    parser.add_argument("--weights", metavar="FILE", help="mask codec: a file, or google-oid")
    parser.add_argument("--backend", choices=("auto", "onnx", "torch"), default="auto")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json, for labels of token_ids"
    )
    parser.add_argument(
        "--label-from-prompt",
        action="store_true",
        help="label what has no label with what its prompt asked for",
    )


def _add_draw(commands: Any) -> None:
    parser = _command(commands, "draw", run_draw, "Boxes, masks and labels on pictures.")
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="answers (.jsonl), a COCO file (.json), or a picture with --text",
    )
    parser.add_argument("--text", help="one answer about the picture SOURCE")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder (or file) to write"
    )
    _add_answer_options(parser)
    parser.add_argument("--alpha", type=float, default=0.45, help="opacity of masks, 0 to 1")
    parser.add_argument("--font", type=Path, metavar="FILE", help="a TrueType font for labels")


def _add_encode(commands: Any) -> None:
    parser = _command(commands, "encode", run_encode, "A COCO file to fine-tuning rows.")
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


def _add_weights(commands: Any) -> None:
    text = "The mask codec's weights: list, fetch, verify, convert."
    parser = commands.add_parser("weights", help=text, description=text)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _command(actions, "list", run_weights_list, "Which weights are here, and which is used.")
    fetch = _command(actions, "fetch", run_weights_fetch, "Download Google's weights (8.5 MB).")
    fetch.add_argument("-o", "--output", type=Path, metavar="FILE", help="instead of the cache")
    verify = _command(
        actions, "verify", run_weights_verify, "Do these weights decode as Google's do?"
    )
    verify.add_argument("weights", nargs="?", help="a file, google-oid or palidecode-demo")
    convert = _command(actions, "convert", run_weights_convert, "Between .npz and .safetensors.")
    convert.add_argument("source")
    convert.add_argument("target", type=Path)


def _add_demo(commands: Any) -> None:
    about = "Run the bundled tiny model on pictures it has never seen, and measure it."
    parser = _command(commands, "demo", run_demo, about)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("palidecode-demo"),
        metavar="DIR",
        help="where to write (default: palidecode-demo)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--image", type=Path, metavar="FILE", help="a picture of your own instead")
    which.add_argument(
        "--answers",
        action="store_true",
        help="decode bundled answers about a bundled picture instead: needs no torch",
    )
    parser.add_argument("--prompt", help="with --image, for instance 'detect star ; circle'")
    parser.add_argument(
        "--model", default="demo", metavar="DIR", help="another model of such scenes"
    )


def _size(text: str) -> tuple[int, int]:
    from palidecode.files import check_size

    try:
        width, _, height = text.lower().replace("×", "x").partition("x")
        return check_size((int(width), int(height)))
    except (ValueError, InputError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, for instance 640x480"
        ) from None
