"""What several looks found becomes one object each."""

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import palidecode
from palidecode import Detections, InputError
from palidecode.detections.merging import leaders, mean_boxes, merge, unite
from palidecode.geometry.boxes import box_iou
from tests.samples import random_detections


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.55, 1.0])
def test_merging_keeps_what_nms_keeps(seed, iou):
    found = random_detections(80, seed=seed)
    found.xyxy[3] = found.xyxy[3, [2, 3, 0, 1]]
    found.xyxy[5, 2] = np.inf
    found.scores[7] = np.nan
    kept, votes = merge(found, iou)
    assert kept.xyxy.tolist() == found.nms(iou).xyxy.tolist()
    assert votes.sum() == len(found)
    assert len(votes) == len(kept)


def test_a_row_is_led_by_the_kept_row_that_overlaps_it_most():
    found = random_detections(80, seed=5)
    led = leaders(found, 0.2)
    kept = np.flatnonzero(led == np.arange(len(found)))
    assert len(kept) < len(found)
    overlaps = box_iou(found.xyxy, found.xyxy)
    rank = np.where(np.isnan(found.scores), np.inf, -found.scores)
    for row in np.flatnonzero(led != np.arange(len(found))):
        alike = [
            k
            for k in kept
            if found.labels[k] == found.labels[row]
            and found.image_index[k] == found.image_index[row]
            and (rank[k], k) < (rank[row], row)
        ]
        assert overlaps[row, led[row]] == max(overlaps[row, alike])
        assert overlaps[row, led[row]] > 0.2


def test_mean_boxes_are_weighted_by_scores():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 14, 10], [50, 50, 60, 60]], np.float32)
    found = replace(random_detections(3, 1), xyxy=boxes, scores=np.float32([0.75, 0.25, 0.5]))
    mean = mean_boxes(found, np.array([0, 0, 2]))
    assert mean.xyxy.tolist() == [[0, 0, 11, 10], [0, 0, 11, 10], [50, 50, 60, 60]]
    unknown = replace(found, scores=np.float32([np.nan, np.nan, 0]))
    assert mean_boxes(unknown, np.array([0, 0, 2])).xyxy[0].tolist() == [0, 0, 12, 10]


@pytest.mark.parametrize("seed", range(3))
def test_united_masks_are_the_union_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    found = replace(
        random_detections(30, seed=seed),
        codes=rng.integers(0, 128, (30, 16), np.uint8),
        has_mask=rng.random(30) < 0.7,
        codes_id="palidecode-demo",
        codec=palidecode.load_codec("palidecode-demo"),
    )
    leader_of = {}
    groups = zip(found.image_index.tolist(), rng.integers(0, 4, 30).tolist(), strict=True)
    led = np.array([leader_of.setdefault(group, row) for row, group in enumerate(groups)])
    united = unite(found, led)
    masks = found.to_masks()
    assert len(united) == len(leader_of) < 30
    assert np.array_equal(united.scores, found.scores[np.unique(led)], equal_nan=True)
    for row, leader in enumerate(np.unique(led)):
        rows = np.flatnonzero(led == leader)
        some = [masks[other] for other in rows if masks[other] is not None]
        assert united.has_mask[row] == bool(some)
        assert united.xyxy[row, 0] == found.xyxy[rows, 0].min()
        assert united.xyxy[row, 3] == found.xyxy[rows, 3].max()
        if some:
            mask = coco_mask.decode(united.to_rle()[row])
            assert mask.astype(bool).tolist() == np.any(some, axis=0).tolist()


def test_nothing_to_merge():
    empty = Detections.empty()
    assert len(merge(empty)[0]) == len(unite(empty, leaders(empty))) == 0
    assert len(mean_boxes(empty, leaders(empty))) == 0
    with pytest.raises(InputError, match=r"iou must be in \[0, 1\], got -1"):
        leaders(empty, -1)
