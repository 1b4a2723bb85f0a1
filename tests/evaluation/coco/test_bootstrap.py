"""Bootstrap intervals: against plain resampling, and whether they hold what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from palidecode import InputError, compare_coco, evaluate_coco
from palidecode.evaluation.coco.bootstrap import centred, percentiles, share_above
from palidecode.evaluation.coco.engine import METRICS

GT = "instances_val2014_100.json"
RESULTS = "instances_val2014_fakebbox100_results.json"


def world(images, seed, hit=0.7):
    """Random pictures, and a detector that finds a share of what is there."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": n, "width": 400, "height": 400} for n in range(images)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [],
    }
    results = []
    for image in range(images):
        share = hit * rng.uniform(0.4, 1.3)
        for place in range(rng.integers(1, 6)):
            row = {"image_id": image, "category_id": 1, "bbox": [place * 60, 10, 40, 40]}
            truth["annotations"].append({**row, "id": len(truth["annotations"]) + 1})
            if rng.random() < share:
                results.append({**row, "score": float(rng.normal(1, 0.5))})
            if rng.random() < 0.3:
                off = {**row, "bbox": [place * 60, 200, 40, 40]}
                results.append({**off, "score": float(rng.normal(0, 0.5))})
    return truth, results


def resampled_ap(truth, results, rng):
    """AP of a bootstrap sample, the slow way: pictures copied under new ids."""
    count = len(truth["images"])
    picked = rng.integers(count, size=count)
    copied = {"categories": truth["categories"], "images": [], "annotations": []}
    found = []
    for new, old in enumerate(picked.tolist()):
        copied["images"].append({**truth["images"][old], "id": new})
        for row in truth["annotations"]:
            if row["image_id"] == old:
                number = len(copied["annotations"]) + 1
                copied["annotations"].append({**row, "image_id": new, "id": number})
        found += [{**row, "image_id": new} for row in results if row["image_id"] == old]
    return evaluate_coco(copied, found).stats[0]


def test_the_width_is_that_of_plain_resampling():
    truth, results = world(30, seed=1)
    result = evaluate_coco(truth, results)
    rng = np.random.default_rng(2)
    plain = np.array([resampled_ap(truth, results, rng) for _ in range(400)])
    found = result.bootstrap(2000)["AP"]
    assert found.standard_error == pytest.approx(plain.std(), rel=0.12)
    low, high = np.quantile(plain, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)
    assert found.low < found.value < found.high
    assert found.value == result.stats[0]


def test_intervals_hold_the_ap_of_such_pictures():
    worlds = [world(60, seed) for seed in range(100, 180)]
    results = [evaluate_coco(*pair) for pair in worlds]
    expected = np.mean([result.stats[0] for result in results])
    found = [result.bootstrap(200, confidence=0.9)["AP"] for result in results]
    share = np.mean([interval.low <= expected <= interval.high for interval in found])
    # 80 intervals at 90 %: three standard deviations are 10 %.
    assert 0.78 <= share <= 1.0
    spread = np.std([result.stats[0] for result in results])
    assert np.mean([interval.standard_error for interval in found]) == pytest.approx(
        spread, rel=0.3
    )


def test_a_seed_below_zero_is_refused():
    with pytest.raises(InputError, match="a seed is a whole number from 0, got -1"):
        evaluate_coco({}, [], seed=-1)


def test_seeded(shared_data):
    folder = shared_data / "coco100"
    result = evaluate_coco(folder / GT, folder / RESULTS, bootstrap=30, seed=4)
    assert set(result.intervals) == {
        *("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "ARs", "ARm", "ARl"),
        *("precision", "recall", "F1"),
    }
    assert result.intervals == result.bootstrap(30, seed=4)
    assert result.intervals["AP"] != result.bootstrap(30, seed=5)["AP"]
    for name, interval in result.intervals.items():
        assert interval.value == {**result.metrics, **result.as_dict()["at_iou_50"]}[name]
        assert interval.low < interval.value < interval.high
    json.dumps(result.as_dict(), allow_nan=False)


def test_pairing_makes_intervals_narrower(shared_data):
    folder = shared_data / "coco100"
    results = json.loads((folder / RESULTS).read_text())
    rng = np.random.default_rng(0)
    fewer = [row for row in results if rng.random() < 0.97]
    found = compare_coco(folder / GT, results, fewer, bootstrap=100)
    alone = found.first.bootstrap(100)["AP"]
    paired = found.intervals["AP"]
    assert paired.high - paired.low < 0.6 * (alone.high - alone.low)
    assert paired.value == pytest.approx(found.second.stats[0] - found.first.stats[0])
    assert paired.high < 0
    assert found.better["AP"] < 0.05
    recall = found.intervals["recall"]
    assert recall.value == pytest.approx(found.second.rates.recall - found.first.rates.recall)
    assert recall.low <= recall.value <= recall.high <= 0
    one = found.first.bootstrap(100)["recall"]
    assert recall.high - recall.low < 0.6 * (one.high - one.low)
    assert found.better["recall"] < 0.05


def spoiled(results, rng, share):
    """Results with some boxes moved, so that a comparison is close."""
    return [
        {**row, "bbox": [row["bbox"][0] + row["bbox"][2], *row["bbox"][1:]]}
        if rng.random() < share
        else row
        for row in results
    ]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_intervals_and_shares_do_not_contradict_each_other(confidence):
    excluded = close = 0
    for seed in range(12):
        truth, results = world(15, seed=seed)
        rng = np.random.default_rng(seed)
        a, b = spoiled(results, rng, 0.05), spoiled(results, rng, 0.05 * (seed % 4))
        found = compare_coco(truth, a, b, bootstrap=100, confidence=confidence, seed=seed)
        for name, interval in found.intervals.items():
            share, tail = found.better[name], (1 - confidence) / 2 + 1e-9
            assert interval.low <= interval.high
            if interval.low > 0:
                assert share >= 1 - tail
            if interval.high < 0:
                assert share <= tail
            if share > 1 - tail:
                assert interval.low >= 0
            if share < tail:
                assert interval.high <= 0
            outside = interval.low > 0 or interval.high < 0
            excluded, close = excluded + outside, close + (not outside)
    assert min(excluded, close) > 5


def test_edges_of_intervals_are_resamples():
    drawn = np.array([[value] for value in (0.5, -0.1, 0.2, 0.3, -0.2, 0.1, 0.4, 0.6, 0.7, 0.8)])
    for confidence, low, high in ((0.8, -0.1, 0.7), (0.95, -0.2, 0.8), (0.6, 0.1, 0.6)):
        (found,) = percentiles(drawn, ["AP"], np.array([0.3]), confidence, -1.0).values()
        assert (found.value, found.low, found.high) == (0.3, low, high)
        assert (found.low > 0) == (share_above(drawn, ["AP"], ["AP"])["AP"] >= 0.5 + confidence / 2)


def test_halves_that_agree_are_one_number():
    drawn = np.full((10, 12), 0.1 + 0.2)
    moved = centred(drawn, np.zeros(12), images=7)
    assert share_above(moved, METRICS, ["AP"]) == {"AP": 0.5}


def test_rates_are_resampled_as_pictures():
    truth, results = world(40, seed=3)
    result = evaluate_coco(truth, results, bootstrap=2000)
    assert evaluate_coco(truth, results).intervals == {}
    counts = {row["image_id"]: row for row in result.image_rows}
    rng = np.random.default_rng(9)
    plain = []
    for _ in range(2000):
        drawn = [counts[image] for image in rng.integers(40, size=40).tolist()]
        right, wrong, missed = (
            sum(row[name] for row in drawn) for name in ("right", "wrong", "missed")
        )
        f1 = 2 * right / (2 * right + wrong + missed)
        plain.append([right / (right + wrong), right / (right + missed), f1])
    for name, column in zip(("precision", "recall", "F1"), np.transpose(plain), strict=True):
        found = result.intervals[name]
        assert found.low < found.value < found.high
        assert found.standard_error == pytest.approx(column.std(), rel=0.1)
        assert [found.low, found.high] == pytest.approx(
            np.quantile(column, [0.025, 0.975]).tolist(), abs=0.01
        )


def test_rates_of_few_pictures():
    truth, results = world(2, seed=0)
    nothing = evaluate_coco(truth, [], bootstrap=10)
    assert "precision" not in nothing.intervals
    assert nothing.intervals["recall"].high == 0
    one = {**truth, "images": truth["images"][:1]}
    alone = [row for row in results if row["image_id"] == 0]
    truths = [row for row in truth["annotations"] if row["image_id"] == 0]
    assert evaluate_coco({**one, "annotations": truths}, alone, bootstrap=10).intervals == {}


def test_without_scores(shared_data):
    folder = shared_data / "coco100"
    result = evaluate_coco(folder / GT, folder / RESULTS, scores="ignore", orders=3, bootstrap=20)
    assert result.intervals["AP"].value == result.stats[0]


def test_arguments():
    result = evaluate_coco(*world(5, seed=0))
    for wrong in ({"resamples": 3}, {"confidence": 1.0}, {"seed": -1}):
        with pytest.raises(InputError):
            result.bootstrap(**{"resamples": 20, **wrong})
