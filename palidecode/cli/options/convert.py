"""The options of ``palidecode convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from palidecode.cli.options import FORMATS, add_messages

EXAMPLES = """\
palidecode convert coco.json --to yolo -o dataset/
palidecode convert coco.json --to labelstudio -o tasks.json
palidecode convert dataset/ --from yolo --to coco -o coco.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``palidecode convert``."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a COCO dataset; with --from, a directory (yolo, voc) or a file (cvat)",
    )
    parser.add_argument(
        "--from",
        dest="origin",
        choices=("coco", "yolo", "voc", "cvat"),
        default="coco",
        help="format of SOURCE (default: %(default)s)",
    )
    parser.add_argument(
        "--to",
        choices=("coco", *FORMATS),
        default="coco",
        help="format to write (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="directory (yolo, yolo-seg, voc) or file (the others) to write, with any name",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="with --from yolo: directory of the pictures, which have the sizes (default: "
        "SOURCE/images)",
    )
    parser.add_argument(
        "--url",
        default="/data/local-files/?d=",
        help="with --to labelstudio: address of the pictures, in front of their names (default: "
        "%(default)s)",
    )
    add_messages(parser)
