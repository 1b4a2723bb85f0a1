"""The options of ``palidecode finetune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import add_messages

EXAMPLES = """\
palidecode finetune train.jsonl --images pictures/ --val val.jsonl \\
    --model paligemma2-3b-pt-224 -o screws/
palidecode finetune train.jsonl --images pictures/ --model demo \\
    --full --rate 5e-4 --soft-loc 3 --steps 500 -o mine/
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode finetune``."""
    parser.add_argument(
        "rows", type=Path, metavar="ROWS.jsonl", help="rows as palidecode encode writes them"
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a directory as transformers saves it, a big_vision .npz, a hub name, or demo",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="directory to write"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="directory of the pictures (default: of ROWS)"
    )
    parser.add_argument(
        "--val",
        dest="held_back",  # `val` is a file that encode writes
        type=Path,
        metavar="FILE",
        help="rows to evaluate on; the best weights are kept",
    )
    _add_training(parser)
    _add_variation(parser)
    _add_weights(parser)
    add_messages(parser)


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    for name, default, text in (
        ("--epochs", 3.0, "times that each row is seen"),
        ("--warmup", 0.03, "share of the steps over which the rate rises"),
        ("--soft-loc", 0.0, "spread of loc targets in bins; for small models"),
        ("--clip", 1.0, "limit of the gradient's norm"),
        ("--decay", 0.0, "weight decay"),
    ):
        help = f"{text} (default: %(default)s)"
        group.add_argument(name, type=float, default=default, metavar="X", help=help)
    for name, whole, text in (
        ("--batch-size", 8, "rows that are computed together"),
        ("--accumulate", 1, "batches that make one step"),
        ("--longest", 512, "tokens of prompt and answer; longer rows are left out"),
        ("--seed", 0, "of the order of the rows and of new weights"),
        ("--evaluate-every", 200, "steps between two evaluations"),
        ("--save-every", 200, "steps between two checkpoints"),
    ):
        help = f"{text} (default: %(default)s)"
        group.add_argument(name, type=int, default=whole, metavar="N", help=help)
    group.add_argument("--steps", type=int, metavar="N", help="steps (default: by --epochs)")
    group.add_argument(
        "--rate",
        type=float,
        metavar="X",
        help="peak of the learning rate (default: 2e-4 for adapters, 1e-5 with --full)",
    )


def _add_variation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("variation of the rows, new at each use")
    group.add_argument(
        "--flip",
        action="store_true",
        help="mirror every second picture, its boxes and masks, unless its text has left or right",
    )
    group.add_argument(
        "--crop",
        type=float,
        metavar="SHARE",
        help="cut out a random window with at least this share of each side (default: none)",
    )
    group.add_argument(
        "--order",
        choices=("given", "left-to-right", "random"),
        default="given",
        help="order of the objects in an answer (default: %(default)s)",
    )
    group.add_argument(
        "--noise",
        type=int,
        default=0,
        metavar="N",
        help="fill answers up to N objects with random boxes that aren't in the loss, but their "
        "class is (PaliGemma 2's recipe; default: %(default)s)",
    )
    group.add_argument(
        "--noise-token",
        default="<unused0>",
        metavar="TOKEN",
        help="class of those boxes: a token that no class needs (default: %(default)s)",
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("weights")
    group.add_argument(
        "--rank", type=int, default=16, metavar="N", help="of the adapters (default: %(default)s)"
    )
    group.add_argument(
        "--alpha", type=float, metavar="X", help="of the adapters (default: twice the rank)"
    )
    group.add_argument(
        "--targets",
        nargs="+",
        choices=("attention", "mlp", "projector", "vision"),
        default=["attention", "mlp"],
        metavar="LAYERS",
        help="layers that are trained: attention, mlp, projector, vision (default: attention mlp, "
        "the decoder's)",
    )
    group.add_argument(
        "--full", action="store_true", help="train the weights themselves, not adapters"
    )
    group.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="float32",
        help="number type of the model (default: %(default)s)",
    )
    group.add_argument(
        "--recompute",
        action="store_true",
        help="keep no values inside of layers: less memory, a third more time",
    )
    group.add_argument(
        "--device", help="cpu, cuda, mps … (default: the first available of cuda, mps and cpu)"
    )
    group.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json (default: the model's own)"
    )
