"""The options of ``palidecode predict``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import (
    add_base,
    add_box_image,
    add_divisor,
    add_drop_empty,
    add_format,
    add_issues,
    add_journal,
    add_messages,
    add_paste,
    add_ray,
)

EXAMPLES = """\
palidecode predict pictures/ --model demo --task segment -o coco.json
palidecode predict pictures/ --model paligemma2-3b-mix-448 \\
    --prompt "detect cat ; dog" -o coco.json --overlay drawn/
palidecode predict pictures/ --model demo --format yolo -o dataset/
palidecode predict pictures/ --endpoint http://localhost:8000/v1 \\
    --model NAME --prompt "detect cat" -o coco.json
palidecode predict "shots/*.jpg" --model DIR --task detect \\
    --classes names.txt --classes-per-prompt 1 -o coco.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode predict``."""
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="pictures, directories of pictures, globs in quotes, http(s) addresses, or lists of "
        "these, one a line: a .txt file, - (stdin), or rows with 'image' or 'images' in a .jsonl",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a directory as transformers saves it, an adapter's as PEFT saves it, a big_vision "
        ".npz, a hub name, or demo, the tiny model in this package; with --endpoint the server's "
        "name of it",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="COCO file to write, or see --format",
    )
    add_format(parser)
    add_issues(parser)
    _add_question(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--overlay", type=Path, metavar="DIR", help="also draw the pictures, into this directory"
    )
    group.add_argument(
        "--segmentation",
        choices=("polygons", "exact", "rle", "none"),
        default="polygons",
        help="smooth polygons (default), polygons along pixel edges, RLE, or boxes only",
    )
    add_paste(group)
    add_drop_empty(group)
    add_min_score(group)
    group.add_argument("--clip", action="store_true", help="clip boxes to their picture")
    add_looks(parser)
    add_model(parser)
    add_server(parser)
    add_answers(parser)
    add_messages(parser)
    add_journal(parser)
    add_ray(parser, pictures=True)


def _add_question(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to look for")
    group.add_argument(
        "--prompt",
        action="append",
        help="for instance 'segment cat ; dog'; may be repeated: all are asked of every picture "
        "(default: all classes that the model lists)",
    )
    group.add_argument(
        "--task",
        choices=("detect", "segment"),
        help="with --classes, or with a model that lists its classes: ask for all of them",
    )
    group.add_argument("--classes", type=Path, metavar="FILE", help="COCO file or list of names")
    add_box_image(group)
    add_classes_per_prompt(group)


def add_classes_per_prompt(group: argparse._ArgumentGroup) -> None:
    """Add the options of how many classes a prompt asks for."""
    group.add_argument(
        "--classes-per-prompt",
        type=int,
        metavar="N",
        help="ask for so many classes at a time (default: all in one prompt)",
    )
    group.add_argument(
        "--per-class",
        action="store_const",
        dest="classes_per_prompt",
        const=1,
        help="--classes-per-prompt 1",
    )


def add_min_score(group: argparse._ArgumentGroup) -> None:
    """Add the option of the least score."""
    group.add_argument(
        "--min-score", type=float, default=0.0, metavar="S", help="skip objects below (default: 0)"
    )


def add_looks(parser: argparse.ArgumentParser) -> None:
    """Add the options of looking at parts of pictures, and again at objects."""
    group = parser.add_argument_group("closer looks")
    group.add_argument(
        "--tiles",
        metavar="CxR",
        help="ask about the whole picture and its tiles, so many columns and rows as 2x2, or auto; "
        "costs a look for each tile (default: the whole picture alone)",
    )
    group.add_argument(
        "--overlap",
        type=float,
        default=0.2,
        metavar="F",
        help="share of a tile's side that the next one repeats (default: %(default)s)",
    )
    group.add_argument(
        "--zoom",
        action="store_true",
        help="ask again about the surroundings of each object; costs a look for each",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model that is loaded."""
    group = parser.add_argument_group("model")
    add_base(group)
    group.add_argument(
        "--device", help="cpu, cuda, mps … (default: the first available of cuda, mps and cpu)"
    )
    group.add_argument(
        "--engine",
        choices=("auto", "torch", "onnx"),
        default="auto",
        help="what computes (default: %(default)s, which takes ONNX Runtime for exported models, "
        "for int8 and int4 on a CPU and where torch isn't installed)",
    )
    group.add_argument(
        "--dtype",
        choices=("bfloat16", "float32", "float16"),
        help="number type of the weights (default: bfloat16, with ONNX Runtime float32)",
    )
    group.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="on a CPU: faster and less exact (default: none)",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="pictures that are predicted together (default: 8; with --endpoint four for each "
        "request at a time)",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="mask codec: a weights file, google-oid or palidecode-demo (default: the model's)",
    )
    group.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json (default: the model's own)"
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server that answers instead."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--endpoint",
        metavar="URL",
        help="ask an OpenAI-compatible server, as http://host:8000/v1 (default: load the model)",
    )
    group.add_argument(
        "--concurrency",
        type=int,
        default=8,
        metavar="N",
        help="requests at a time; of each worker with --ray (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds that a request may take (default: %(default)g)",
    )
    group.add_argument(
        "--retries",
        type=int,
        default=5,
        metavar="N",
        help="further tries of a request that fails (default: %(default)s)",
    )
    group.add_argument(
        "--top-logprobs",
        type=int,
        default=20,
        metavar="K",
        help="likeliest tokens to ask for in each token's place; scores use <eos> among them "
        "(default: %(default)s; 1024 with --sub-bin)",
    )
    group.add_argument(
        "--api-key-env",
        default="PALIDECODE_API_KEY",
        metavar="NAME",
        help="environment variable that holds the API key (default: %(default)s)",
    )
    group.add_argument(
        "--vllm-grammar",
        action="store_true",
        help="send vLLM the grammar of every prompt; needs its backend guidance",
    )


def add_answers(parser: argparse.ArgumentParser) -> None:
    """Add the options of how a model answers."""
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="tokens of the longest answer (default: %(default)s)",
    )
    group.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="sample each answer so often, at --temperature, and unite them (default: 1)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="above 0 answers are sampled (default: 0, the likeliest token)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of sampled answers (default: 0)"
    )
    group.add_argument(
        "--score",
        choices=("label", "box", "objectness", "mean", "product"),
        default="product",
        help="recipe of the scores (default: %(default)s)",
    )
    group.add_argument(
        "--sub-bin", action="store_true", help="boxes finer than a bin, from probabilities"
    )
    add_divisor(group)
    group.add_argument(
        "--no-grammar", action="store_true", help="allow answers that are not well-formed"
    )
    group.add_argument(
        "--max-objects", type=int, metavar="N", help="objects per answer (default: any number)"
    )
    group.add_argument(
        "--min-objects",
        type=int,
        default=0,
        metavar="N",
        help="objects per answer, as far as the limits allow (default: %(default)s)",
    )
    group.add_argument(
        "--past-end",
        type=float,
        metavar="S",
        help="where the model ends an answer, go on as long as objects score S; 0 goes on up to "
        "the limits, for models that were trained with finetune --noise (use --score label)",
    )
