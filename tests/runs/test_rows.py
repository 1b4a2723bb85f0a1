"""Detections as rows, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from palidecode.coco.shards import Result
from palidecode.detections import Detections, decode
from palidecode.errors import InputError
from palidecode.geometry.rle import Rle
from palidecode.runs.rows import detections_of, rows_of
from tests.samples import CODES, answer


def same(found: Detections, other: Detections) -> bool:
    for name in ("xyxy", "scores", "image_index", "sizes", "has_mask"):
        mine, theirs = getattr(found, name), getattr(other, name)
        equal_nan = name in ("xyxy", "scores")
        if mine.dtype != theirs.dtype or not np.array_equal(mine, theirs, equal_nan=equal_nan):
            return False
    masks = found.to_rle() == other.to_rle()
    return masks and (found.labels, found.issues) == (other.labels, other.issues)


def test_detections_to_rows_and_back_exactly(demo_codec):
    texts = [f"{answer('cat', codes=CODES)} ; {answer('dog')} ; oh", "", answer("ü \u2028")]
    sizes, scores = [(333, 77), (64, 64), (1000, 3)], [[0.1, 1 / 3], [], None]
    found = decode(texts, sizes, demo_codec, scores=scores)
    result = Result(found, [0, 1, 2], [f"{number}.jpg" for number in range(3)], {})
    rows = json.loads(json.dumps(rows_of(result), allow_nan=False))
    assert same(detections_of(rows), found)
    assert detections_of(rows).names == ["0.jpg", "1.jpg", "2.jpg"]
    assert [row["image"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    assert rows[0]["codes"] == [bytes(CODES).hex(), None]
    assert rows[0]["issues"][0]["kind"] == "stray_text"
    assert rows[2]["scores"] == [None]
    assert same(detections_of([]), decode([], []))


def test_rows_with_rle():
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[3:9, 20:60] = 1
    rle = Rle(size=[64, 64], counts=coco_mask.encode(mask)["counts"].decode())
    found = decode([f"{answer('cat')} ; {answer('dog')}"], [(64, 64)])
    found.has_mask[0] = True
    given = Detections(**{**vars(found), "rles": [rle, None]})
    rows = json.loads(json.dumps(rows_of(Result(given, [0], ["a"], {}))))
    assert rows[0]["codes"] == [None, None]
    assert same(detections_of(rows), given)


def test_rows_that_failed_keep_their_place():
    found = decode([answer("cat")], (64, 64))
    rows = rows_of(Result(found, [1], ["a", "b", "c"], {0: "cut", 1: "no score", 2: "bomb"}))
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    assert [row["reason"] for row in rows] == ["cut", "no score", "bomb"]
    assert [row["labels"] for row in rows] == [[], ["cat"], []]
    assert [("width" in row) for row in rows] == [False, True, False]


@pytest.mark.parametrize(
    "change", [{"boxes": [[1, 2]]}, {"labels": 3}, {"issues": [{"kind": "mine"}]}, {"width": "x"}]
)
def test_other_rows_are_refused(change):
    (row,) = rows_of(Result(decode([answer("cat")], (64, 64)), [0], ["a"], {}))
    with pytest.raises(InputError, match="a row is not one of palidecode's"):
        detections_of([row | change])
