"""The options of ``palidecode serve``."""

from __future__ import annotations

import argparse

from palidecode.cli.options import add_base, add_messages

EXAMPLES = """\
palidecode serve --open
palidecode serve --model paligemma2-3b-mix-448 --port 8080
palidecode serve --model DIR --host 0.0.0.0 --api-key "$KEY"
palidecode serve --model none
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode serve``."""
    parser.add_argument(
        "--model",
        default="demo",
        help="a directory, an adapter's, a big_vision .npz, a hub name, demo, the tiny model in "
        "this package, or none, to read answers only (default: demo)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port, or 0 for a free one (default: 8000)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    _add_model(parser)
    _add_access(parser)
    _add_label_studio(parser)
    _add_limits(parser)
    add_messages(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--adapter",
        dest="adapters",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="adapter of the model, which requests name as MODEL:NAME; may be repeated",
    )
    add_base(group)
    group.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), help="precision")
    group.add_argument("--device", help="cpu, cuda, mps … (default: the first there is)")
    group.add_argument("--quantize", choices=("int8", "int4"), help="smaller weights on a CPU")
    group.add_argument(
        "--engine",
        choices=("auto", "torch", "onnx"),
        default="auto",
        help="library that runs the model (default: auto)",
    )
    group.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json (default: the model's)")
    group.add_argument("--revision", help="branch, tag or commit of a hub model")


def _add_access(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("access")
    group.add_argument(
        "--api-key", metavar="KEY", help="ask every request for this key (Authorization: Bearer)"
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of another page that may ask, https://example.org, or a host name of this "
        "server; may be repeated",
    )
    group.add_argument(
        "--allow-urls",
        action="store_true",
        help="fetch pictures by their address, never from private networks",
    )


def _add_label_studio(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "label studio",
        "The access token is read from the environment, LABEL_STUDIO_API_KEY.",
    )
    group.add_argument(
        "--images", metavar="DIR", help="directory of the local files that tasks name"
    )
    group.add_argument(
        "--label-studio", metavar="URL", help="Label Studio whose pictures may be fetched"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    for name, default, text in (
        ("--max-body", 32 << 20, "bytes of a request"),
        ("--max-pixels", 50_000_000, "pixels of a picture"),
        ("--max-pictures", 8, "pictures of a prompt"),
        ("--max-new-tokens", 1024, "tokens of an answer"),
        ("--batch-size", 16, "answers that are written together"),
        ("--queue", 64, "requests that may wait; more are told to come back (429)"),
    ):
        help = f"{text} (default: %(default)s)"
        group.add_argument(name, type=int, default=default, metavar="N", help=help)
    for name, seconds, text in (
        ("--timeout", 120.0, "seconds that an answer may take"),
        ("--body-timeout", 30.0, "seconds that a request may take to arrive"),
    ):
        help = f"{text} (default: %(default)g)"
        group.add_argument(name, type=float, default=seconds, metavar="S", help=help)
