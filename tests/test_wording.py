"""Counts, tables, and the commands that print them without loading shapely."""

import subprocess
import sys

from palidecode.wording import aligned, many


def test_counts_have_their_nouns():
    assert [many(count, "picture") for count in (0, 1, 1200)] == [
        "0 pictures",
        "1 picture",
        "1,200 pictures",
    ]
    assert [many(count, "box", "boxes") for count in (1, 2)] == ["1 box", "2 boxes"]


def test_columns_are_aligned():
    assert aligned([("class", "AP"), ("cat", "0.5"), ("hot dog", "-")]) == [
        "  class     AP",
        "  cat      0.5",
        "  hot dog    -",
    ]


def test_evaluate_loads_neither_shapely_nor_the_mask_codec():
    code = (
        "import sys, palidecode.cli.evaluate, palidecode.cli.compare\n"
        "print(sorted({'shapely', 'onnxruntime', 'palidecode.detections'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
