"""Samples of an answer that vote, against a slow count of the votes."""

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import palidecode
from palidecode import Detections
from palidecode.detections.merging import leaders
from palidecode.detections.voting import vote
from tests.samples import random_detections


def sampled(seed, samples=3, count=60):
    """Objects of which half repeat others, a little moved, and the sample of each."""
    rng = np.random.default_rng(seed)
    found = random_detections(count, seed=seed)
    again = rng.integers(0, count, count)
    moved = replace(found.select(again), xyxy=found.xyxy[again] + rng.integers(-1, 2, (count, 4)))
    every = found + moved
    every = replace(
        every,
        image_index=every.image_index % len(found.sizes),
        sizes=found.sizes,
        names=found.names,
        image_ids=found.image_ids,
        codes=rng.integers(0, 128, (2 * count, 16), np.uint8),
        has_mask=rng.random(2 * count) < 0.7,
        codes_id="palidecode-demo",
        codec=palidecode.load_codec("palidecode-demo"),
    )
    return every, rng.integers(0, samples, 2 * count)


@pytest.mark.parametrize("seed", range(4))
def test_scores_boxes_and_masks_are_votes(seed):
    found, sample = sampled(seed)
    united, led = vote(found, sample, 3), leaders(found)
    masks, rles = found.to_masks(), united.to_rle()
    assert len(united) == len(np.unique(led)) < len(found)
    counts = []
    for row, leader in enumerate(np.unique(led)):
        rows = np.flatnonzero(led == leader)
        counts.append(len(rows))
        scores = [1.0 if np.isnan(found.scores[n]) else float(found.scores[n]) for n in rows]
        best = [
            max((s for s, n in zip(scores, rows, strict=True) if sample[n] == k), default=0)
            for k in range(3)
        ]
        assert united.scores[row] == np.float32(sum(best) / 3)
        assert united.labels[row] == found.labels[leader]
        weights = scores if any(scores) else [1.0] * len(rows)
        box = sum(w * found.xyxy[n].astype(float) for w, n in zip(weights, rows, strict=True))
        np.testing.assert_allclose(united.xyxy[row], box / sum(weights), rtol=1e-6)
        some = [(s, masks[n]) for s, n in zip(scores, rows, strict=True) if found.has_mask[n]]
        assert united.has_mask[row] == bool(some)
        if some:
            shares = [s for s, _ in some] if any(s for s, _ in some) else [1.0] * len(some)
            total = sum(s * mask for s, (_, mask) in zip(shares, some, strict=True))
            wanted = 2 * total >= sum(shares) if len(rows) > 1 else some[0][1]
            assert coco_mask.decode(rles[row]).astype(bool).tolist() == wanted.tolist()
    assert max(counts) > 2
    assert min(counts) == 1


def test_one_sample_keeps_what_nms_keeps_and_scores():
    found = random_detections(50, seed=2)
    found = found.select(~np.isnan(found.scores))
    united, kept = vote(found, np.zeros(len(found), np.int64), 1), found.nms(0.55)
    assert united.labels == kept.labels
    assert united.scores.tolist() == kept.scores.tolist()
    assert len(vote(Detections.empty(), np.zeros(0, np.int64), 5)) == 0
