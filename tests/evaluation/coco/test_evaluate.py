"""COCO evaluation: the numbers, against pycocotools; and what answers of models need around it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import palidecode
from palidecode import CocoWriter, InputError, UnscoredWarning, compare_coco, evaluate_coco
from palidecode.cli import main
from palidecode.evaluation.coco import engine
from palidecode.evaluation.coco.result import random_orders
from tests.evaluation.problems import problem
from tests.references import best_on_each_object, score_free, without_repeats
from tests.samples import answer, written

GT = "instances_val2014_100.json"


@pytest.fixture
def coco100(shared_data):
    return shared_data / "coco100"


def results_of(coco100, kind):
    return coco100 / f"instances_val2014_fake{kind}100_results.json"


def pycocotools_stats(truth, results, kind, **params):
    """The reference's twelve numbers, its chatter thrown away."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy({"info": {}, **truth})
        gt.createIndex()
        if not results:
            dt = COCO()
            dt.dataset = {**gt.dataset, "annotations": []}
            dt.createIndex()
        else:
            dt = gt.loadRes(copy.deepcopy(results))
        evaluator = COCOeval(gt, dt, kind)
        vars(evaluator.params).update(params)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


SQUARE = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 32, 32], "area": 1024}
        | {"iscrowd": 0, "segmentation": [[0, 0, 32, 0, 32, 32, 0, 32]]}
    ],
}
# The right box has the lowest score, behind an inverted and an empty one.
ODD = f"{answer('cat', (512, 512, 0, 0))} ; {answer('cat', (0, 8, 0, 512))} ; "
ODD += answer("cat", (0, 0, 512, 512))


def test_inverted_and_empty_boxes_cost_as_much_as_handed_directly(tmp_path):
    detections = palidecode.decode([ODD], (64, 64), scores=[[0.9, 0.8, 0.7]])
    rows = [
        {"image_id": 1, "category_id": 1, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for (x1, y1, x2, y2), score in zip(
            detections.xyxy.tolist(), detections.scores.tolist(), strict=True
        )
    ]
    directly = evaluate_coco(SQUARE, rows).metrics
    assert directly["AP50"] == pytest.approx(1 / 3)
    written = palidecode.to_coco(detections, file_names=["a.jpg"])
    assert evaluate_coco(SQUARE, written).metrics == directly
    results = palidecode.to_coco_results(detections, categories=SQUARE)
    assert evaluate_coco(SQUARE, results).metrics == directly
    assert pycocotools_stats(SQUARE, results, "bbox")[1] == pytest.approx(1 / 3)
    dropped = palidecode.to_coco_results(detections, categories=SQUARE, drop_empty=True)
    assert evaluate_coco(SQUARE, dropped).metrics["AP50"] == pytest.approx(1)


def test_decode_and_evaluate_count_boxes_without_an_area(tmp_path, capsys):
    truth, coco = tmp_path / "truth.json", tmp_path / "coco.json"
    truth.write_text(json.dumps(SQUARE))
    row = {"image": "a.jpg", "width": 64, "height": 64, "output": ODD}
    decode = ["decode", str(written(tmp_path, [row])), "-o", str(coco)]
    for more, wrong, told in (
        ([], 2, "inverted or empty boxes: 2, written without width or height"),
        (["--drop-empty"], 0, "skipped: dropped_boxes 2"),
    ):
        assert main([*decode, *more]) == 0
        assert told in capsys.readouterr().out
        with pytest.warns(UnscoredWarning):
            rates = evaluate_coco(truth, coco).rates
        assert (rates.right, rates.wrong, rates.missed) == (1, wrong, 0)
    assert main(["decode", "--text", ODD, "--size", "64x64", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["coco"]
    assert printed["info"]["empty_boxes"] == 2


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_printed_numbers_of_coco100(coco100, kind):
    text = (coco100 / "val2014_fake_eval_res.txt").read_text()
    part = text.split(f"type={kind}")[1].split("type=")[0]
    printed = [float(value) for value in re.findall(r"\] = (\d\.\d{3})", part)]
    assert len(printed) == 12
    result = evaluate_coco(coco100 / GT, results_of(coco100, kind), kind)
    assert result.stats.round(3).tolist() == printed
    assert result.skipped == ()
    truth = json.loads((coco100 / GT).read_text())
    results = json.loads(results_of(coco100, kind).read_text())
    np.testing.assert_allclose(result.stats, pycocotools_stats(truth, results, kind), atol=1e-6)
    again = evaluate_coco(truth, results, kind)
    assert again.stats.tolist() == result.stats.tolist()


def test_boxes_of_results_that_have_masks_alone(coco100):
    """Their sizes are the masks' areas, as pycocotools' `loadRes` sets them."""
    truth = json.loads((coco100 / GT).read_text())
    results = json.loads(results_of(coco100, "segm").read_text())
    assert not any("bbox" in row for row in results)
    result = evaluate_coco(truth, results)
    np.testing.assert_allclose(result.stats, pycocotools_stats(truth, results, "bbox"), atol=1e-6)
    for row, mask in zip(results, [row["segmentation"] for row in results], strict=True):
        row["bbox"] = coco_mask.toBbox(mask).tolist()
    assert abs(evaluate_coco(truth, results).stats - result.stats).max() > 0.005


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"iou_thresholds": [0.3, 0.5, 0.75]}, {"iouThrs": np.array([0.3, 0.5, 0.75])}),
        ({"iou_thresholds": (0.5,)}, {"iouThrs": np.array([0.5])}),
        ({"max_detections": (1, 2, 5)}, {"maxDets": [1, 2, 5]}),
        ({"micro": True}, {"useCats": 0}),
        (
            {"micro": True, "max_detections": [3, 30, 300]},
            {"useCats": 0, "maxDets": [3, 30, 300]},
        ),
    ],
)
def test_other_settings_agree_with_pycocotools(coco100, kind, ours, theirs):
    truth = json.loads((coco100 / GT).read_text())
    results = json.loads(results_of(coco100, kind).read_text())
    result = evaluate_coco(truth, results, kind, **ours)
    want = pycocotools_stats(truth, results, kind, **theirs)
    if "max_detections" in ours:  # pycocotools looks for 100 there, and gives an AP of -1
        assert want[0] == -1
        assert 0 < result.stats[0] < 1
        want[0] = result.stats[0]
    np.testing.assert_allclose(result.stats, want, atol=1e-6)
    standard = evaluate_coco(truth, results, kind)
    assert result.rows() == standard.rows()
    assert result.rates == standard.rates
    assert abs(result.stats - standard.stats).max() > 0.01


def test_settings_are_checked(coco100):
    files = coco100 / GT, results_of(coco100, "bbox")
    for wrong in (
        {"iou_thresholds": []},
        {"iou_thresholds": [50]},
        {"max_detections": [100]},
        {"max_detections": [100, 10, 1]},
        {"micro": True, "bootstrap": 10},
    ):
        with pytest.raises(InputError, match=next(iter(wrong))):
            evaluate_coco(*files, **wrong)


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("block", range(6))
def test_random_problems_agree_with_pycocotools(masks, block):
    kind, compared = ("segm" if masks else "bbox"), 0
    for seed in range(20 * block, 20 * block + 20):
        truth, results = problem(seed, masks)
        if not truth["annotations"]:
            continue
        tied = len(results) > 1 and len({row["score"] for row in results}) == 1
        if tied:
            results[0]["score"] += 0.01
        ours = evaluate_coco(truth, results, kind)
        want = pycocotools_stats(truth, results, kind)
        np.testing.assert_allclose(ours.stats, want, atol=1e-6, err_msg=f"seed {seed}")
        assert sum(ours.tide["counts"].values()) >= 0
        compared += 1
    assert compared >= 17  # 12 blocks: 204 problems or more


def test_a_class_has_the_ap_of_its_own_evaluation(coco100):
    truth, results = coco100 / GT, results_of(coco100, "bbox")
    whole = {row["category"]: row for row in evaluate_coco(truth, results).rows()}
    for name in ("person", "chair", "bicycle"):
        alone = evaluate_coco(truth, results, categories=[name])
        assert whole[name]["AP"] == pytest.approx(alone.stats[0], abs=1e-12)
        assert whole[name]["AP50"] == pytest.approx(alone.stats[1], abs=1e-12)
        assert whole[name]["AR100"] == pytest.approx(alone.stats[8], abs=1e-12)
        assert [row["category"] for row in alone.rows()] == [name]
    with pytest.raises(InputError, match="no category is called 'unicorn'"):
        evaluate_coco(truth, results, categories=["unicorn"])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_kinds_of_errors_are_those_of_tide(coco100, kind):
    result = evaluate_coco(coco100 / GT, results_of(coco100, kind), kind)
    names = {"Cls": "class", "Loc": "localisation", "Both": "both", "Dupe": "duplicate"}
    names["Bkg"] = "background"
    for tide, ours in names.items():
        assert result.kinds.get(ours, 0) == result.tide["counts"][tide]
    rows = result.match_rows
    assert len(rows) == result.predictions + result.rates.missed
    right = [row for row in rows if row["kind"] == "ok"]
    assert len(right) == result.rates.right
    assert all(row["iou"] >= 0.5 and row["truth_category"] == row["category"] for row in right)
    assert rows[0]["kind"] not in ("ok", "missed")
    assert rows[-1]["kind"] == "ok"
    images = result.image_rows
    assert sum(row["right"] for row in images) == result.rates.right
    assert sum(row["missed"] for row in images) == result.rates.missed
    assert result.rates.right + result.rates.missed == result.objects
    counts = result.confusion.counts
    assert counts[:-1].sum() == result.objects
    assert result.confusion.names[-1] == "background"
    assert np.trace(counts) > 0.7 * result.rates.right


def scene_of(classes, seed, objects=40, predictions=60, crowds=0.2):
    """Ground truth with crowds, and predictions around its objects."""
    rng = np.random.default_rng(seed)
    images = [{"id": n, "file_name": f"{n}", "width": 640, "height": 480} for n in range(6)]
    boxes = np.hstack([rng.uniform(0, 200, (objects, 2)), rng.uniform(20, 150, (objects, 2))])
    truths = [
        {
            "id": n,
            "image_id": int(rng.integers(6)),
            "category_id": int(rng.integers(classes)),
            "bbox": box.tolist(),
            "area": float(box[2] * box[3]),
            "iscrowd": int(rng.random() < crowds),
        }
        for n, box in enumerate(boxes)
    ]
    predicted = []
    for _ in range(predictions):
        truth = truths[rng.integers(objects)]
        own = rng.random() < 0.6
        predicted.append(
            {
                "image_id": truth["image_id"],
                "category_id": truth["category_id"] if own else int(rng.integers(classes)),
                "bbox": np.maximum(truth["bbox"] + rng.uniform(-20, 20, 4), 1).tolist(),
                "score": round(float(rng.random()), 2),
            }
        )
    names = [{"id": n, "name": f"class {n}"} for n in range(classes)]
    return {"images": images, "annotations": truths, "categories": names}, predicted


@pytest.mark.parametrize("predictions", [1, 60, 900])
@pytest.mark.parametrize("classes", [1, 5])
def test_the_confusion_matrix_is_hotcocos(classes, predictions):
    result = evaluate_coco(*scene_of(classes, predictions, predictions=predictions))
    evaluator = result.engine.evaluate(result.predicted)
    dense = np.asarray(evaluator.confusion_matrix(0.5)["matrix"], np.int64)
    names = [item["name"] for item in result.scene.categories]
    used = [*(names.index(name) for name in result.confusion.names[:-1]), classes]
    assert (result.confusion.counts == dense[np.ix_(used, used)]).all()
    assert result.confusion.counts.sum() == dense.sum()


@pytest.mark.parametrize("crowds", [0, 0.3])
@pytest.mark.parametrize(("classes", "predictions"), [(1, 1), (5, 60), (1, 900), (9, 30)])
def test_f1_without_scores_is_the_references(classes, predictions, crowds):
    truth, results = scene_of(classes, predictions, predictions=predictions, crowds=crowds)
    result = evaluate_coco(truth, results)
    ranked = sorted(results, key=lambda row: -row["score"])
    thresholds = np.linspace(0.5, 0.95, 10)
    wanted = score_free(truth["annotations"], ranked, thresholds)
    assert result.score_free.f1.tolist() == pytest.approx(wanted, abs=1e-12)
    numbers = result.score_free.numbers
    assert list(numbers.values()) == pytest.approx([wanted[0], wanted[9], np.mean(wanted)])
    assert result.score_free.micro[0] == pytest.approx(result.rates.f1)
    assert result.as_dict()["score_free"]["F1@0.5"] == numbers["F1@0.5"]


def test_f1_without_scores_ignores_the_order_and_knows_nothing_without_objects():
    truth, results = scene([[(1, 100), (1, 112)]], [[(1, 108, None), (1, 96, None)]])
    found = [evaluate_coco(truth, rows, scores="ignore") for rows in (results, results[::-1])]
    assert found[0].score_free.as_dict() == found[1].score_free.as_dict()
    assert found[0].score_free.numbers["F1@0.5"] == 1
    empty = evaluate_coco({**truth, "annotations": []}, [])
    assert np.isnan(empty.numbers["F1@mean"])
    assert empty.score_free.as_dict()["F1@mean"] is None


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(("classes", "predictions"), [(1, 60), (5, 200), (4, 1)])
def test_ap_of_subsets_is_that_of_the_rows_left(classes, predictions, iou):
    truth, results = scene_of(classes, predictions, predictions=predictions)
    rng = np.random.default_rng(predictions)
    for row, score in zip(results, rng.permutation(len(results)), strict=True):
        row["score"] = (score + 1) / len(results)  # no ties
    result = evaluate_coco(truth, results, nms=iou, score_thresholds=[0.25, 0.6])
    left = {
        f"AP@nms{iou:g}": without_repeats(results, iou),
        f"NMS-AP@{iou:g}": best_on_each_object(truth["annotations"], results, iou),
        "AP@score0.25": [row for row in results if row["score"] >= 0.25],
        "AP@score0.6": [row for row in results if row["score"] >= 0.6],
    }
    found = {some.name: some.ap for some in result.subsets}
    assert found == {name: pytest.approx(ap_of(truth, rows)) for name, rows in left.items()}
    assert result.stats == pytest.approx(evaluate_coco(truth, results).stats)  # all predictions
    assert result.numbers.items() >= found.items()
    assert result.as_dict()["subsets"] == found


def ap_of(truth, results):
    return pycocotools_stats(with_ids(truth), results, "bbox")[0]


def with_ids(truth):
    """The truth with ids from 1: pycocotools loses a match with the id 0."""
    rows = [row | {"id": row["id"] + 1} for row in truth["annotations"]]
    return {**truth, "annotations": rows}


def test_a_box_with_every_label_raises_ap_and_not_nms_ap():
    every = [(label, 0, score) for label, score in ((1, 0.9), (2, 0.8), (3, 0.7))]
    truth, results = scene([[(1, 0)], [(2, 0)], [(3, 0)]], [every] * 3, ("cat", "dog", "bird"))
    numbers = evaluate_coco(truth, results, nms=0.5).numbers
    assert numbers["AP"] == pytest.approx(numbers["AP@nms0.5"])
    assert numbers["NMS-AP@0.5"] == pytest.approx(1 / 3)
    assert numbers["AP"] > 0.4


def test_subsets_of_predictions_without_scores_are_means_over_orders():
    truth, results = scene([[(1, 0)]], [[(1, 0, None), (1, 2, None), (1, 60, None)]])
    found = evaluate_coco(truth, results, nms=0.5, scores="ignore").numbers["AP@nms0.5"]
    orders = [
        [row | {"score": score} for row, score in zip(results, scores.tolist(), strict=True)]
        for scores in random_orders(len(results), 10, 0)
    ]
    each = [ap_of(truth, without_repeats(rows, 0.5)) for rows in orders]
    assert len(set(each)) > 1
    assert found == pytest.approx(np.mean(each))
    with pytest.raises(InputError, match="score_thresholds need scores that differ"):
        evaluate_coco(truth, results, score_thresholds=[0.5], scores="ignore")
    for bad in ({"nms": 0}, {"nms": 1.5}, {"score_thresholds": [float("nan")]}):
        with pytest.raises(InputError, match=next(iter(bad))):
            evaluate_coco(truth, results, **bad)


def test_subsets_have_intervals_and_are_compared():
    truth, results = scene_of(3, 1, objects=80, predictions=200)
    better = [row for row in results if row["score"] > 0.2]
    result = evaluate_coco(truth, results, nms=0.5, bootstrap=50)
    interval = result.intervals["NMS-AP@0.5"]
    assert interval.low <= result.numbers["NMS-AP@0.5"] == interval.value <= interval.high
    both = compare_coco(truth, results, better, nms=0.5, score_thresholds=[0.2], bootstrap=50)
    data = both.as_dict()
    names = ["AP@nms0.5", "NMS-AP@0.5", "AP@score0.2"]
    for name in names:
        wanted = both.second.numbers[name] - both.first.numbers[name]
        assert data["differences"][name] == wanted == data["intervals"][name]["value"]
    assert data["differences"]["AP@score0.2"] == pytest.approx(0, abs=0.01)
    assert [row[0] for row in both.changes()][12:15] == names


def test_classes_in_blocks_have_the_numbers_of_all_together(monkeypatch):
    scene = scene_of(12, 0, objects=90, predictions=200, crowds=0.05)
    for options in ({}, {"iou_thresholds": [0.4, 0.75], "max_detections": [1, 2, 3]}):
        together = evaluate_coco(*scene, **options)
        monkeypatch.setattr(engine, "_BLOCK", 5)
        blocks = evaluate_coco(*scene, **options)
        monkeypatch.undo()
        assert blocks.stats == pytest.approx(together.stats, abs=1e-14)
        assert blocks.rows() == together.rows()
        for one, other in zip(blocks.curves, together.curves, strict=True):
            assert (one.precision == other.precision).all()


@pytest.mark.slow
def test_memory_and_metrics_do_not_grow_with_the_square_of_the_classes(tmp_path):
    peaks, sizes = [], []
    for classes in (80, 1203):
        for name, data in zip(("gt", "pred"), scene_of(classes, 1, 3000, 3000, 0), strict=True):
            (tmp_path / f"{name}.json").write_text(json.dumps(data))
        code = "from pathlib import Path; from palidecode.cli import main\n"
        code += "main('evaluate gt.json pred.json -o out --json --bootstrap 0'.split())\n"
        # `ru_maxrss` begins with the memory of the process that started this one.
        code += "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.splitlines()[-1]))
        sizes.append((tmp_path / "out" / "metrics.json").stat().st_size)
    assert peaks[1] - peaks[0] < 300 * 1024
    assert sizes[1] < 1 << 20


def test_curves_thresholds_and_calibration(coco100):
    result = evaluate_coco(coco100 / GT, results_of(coco100, "bbox"))
    mean = result.curves[0]
    assert (mean.name, mean.iou) == ("all classes", 0.5)
    assert mean.precision.mean() == pytest.approx(result.metrics["AP50"])
    assert (np.diff(mean.precision) <= 1e-12).all()
    best = result.best_threshold
    kept = [row for row in result.match_rows if (row["score"] or 0) >= best["score"]]
    right = sum(row["kind"] == "ok" for row in kept)
    assert best["f1"] == pytest.approx(2 * right / (len(kept) + result.objects))
    assert best["f1"] >= result.rates.f1
    assert sum(found["count"] for found in result.calibration["bins"]) == result.predictions
    json.dumps(result.as_dict(), allow_nan=False)


def scene(boxes, found, names=("cat", "dog")):
    """One image a row: truths and predictions as (class, x, score)."""
    truth = {
        "images": [
            {"id": n, "file_name": f"pictures/{n}.jpg", "width": 400, "height": 100}
            for n in range(len(boxes))
        ],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(names)],
        "annotations": [],
    }
    results = []
    for n, (given, said) in enumerate(zip(boxes, found, strict=True)):
        for category, x in given:
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": n,
                    "category_id": category,
                    "bbox": [x, 10, 40, 40],
                    "area": 1600,
                    "iscrowd": 0,
                }
            )
        for category, x, score in said:
            row = {"image_id": n, "category_id": category, "bbox": [x, 10, 40, 40]}
            results.append(row if score is None else {**row, "score": score})
    return truth, results


def test_without_scores_no_order_is_privileged():
    truth, results = scene(
        [[(1, 0), (1, 100), (1, 200)], [(1, 0)]],
        [[(1, 0, None), (1, 300, None), (1, 100, None)], [(1, 60, None), (1, 2, None)]],
    )
    with pytest.warns(UnscoredWarning, match="have no scores"):
        result = evaluate_coco(truth, results, orders=200)
    assert result.unscored
    assert result.orders == 200
    assert result.spread[0] > 0
    want = (3, 2, 1)
    assert (result.rates.right, result.rates.wrong, result.rates.missed) == want
    with pytest.warns(UnscoredWarning):
        turned = evaluate_coco(truth, results[::-1], orders=200)
    assert turned.rates == result.rates
    error = result.spread[0] / np.sqrt(200)
    assert turned.stats[0] == pytest.approx(result.stats[0], abs=5 * error)
    assert result.curves == []
    assert result.calibration is None
    assert result.best_threshold is None
    json.dumps(result.as_dict(), allow_nan=False)
    # All the same score is no score.
    with pytest.warns(UnscoredWarning, match="all have the score 1"):
        same = evaluate_coco(truth, [{**row, "score": 1.0} for row in results], orders=200)
    assert same.stats.tolist() == result.stats.tolist()
    ignored = evaluate_coco(truth, results, scores="ignore", orders=200)  # asked for: no warning
    assert ignored.stats.tolist() == result.stats.tolist()


@pytest.mark.parametrize("call", [evaluate_coco, lambda t, r: compare_coco(t, r, r, bootstrap=0)])
def test_a_warning_names_the_line_that_called(call):
    with pytest.warns(UnscoredWarning) as caught:
        call(*scene([[(1, 0)]], [[(1, 0, None)]]))
    assert {warning.filename for warning in caught} == {__file__}


def test_rates_do_not_depend_on_the_order_of_close_objects():
    # The first prediction fits both objects, the second only one: a greedy matching in the
    # order of the file would give the shared object away.
    truth, results = scene([[(1, 100), (1, 112)]], [[(1, 108, None), (1, 96, None)]])
    for rows in (results, results[::-1]):
        found = evaluate_coco(truth, rows, scores="ignore")
        assert (found.rates.right, found.rates.wrong) == (2, 0)


def test_some_scores_are_an_error():
    truth, results = scene([[(1, 0)]], [[(1, 0, 0.5), (1, 50, None)]])
    with pytest.raises(InputError, match=r"without a score: 1 of 2 \(first results\[1\]"):
        evaluate_coco(truth, results)


def test_duplicates_are_merged_and_counted():
    truth, results = scene(
        [[(1, 0), (2, 100)]],
        [[(1, 0, 0.5), (1, 1, 0.9), (1, 0, 0.4), (2, 0, 0.8), (2, 100, 0.7), (1, 30, 0.3)]],
    )
    plain = evaluate_coco(truth, results)
    assert plain.kinds["duplicate"] == 2
    merged = evaluate_coco(truth, results, merge_duplicates=0.9)
    (skip,) = merged.skipped
    assert (skip.reason, skip.count) == ("merged", 2)
    assert merged.predictions == 4
    assert "duplicate" not in merged.kinds
    assert max(row["score"] for row in merged.match_rows if row["kind"] == "ok") == 0.9
    exact = evaluate_coco(truth, results, merge_duplicates=1.0)
    assert exact.skipped[0].count == 1
    for bad in (0, 1.5):
        with pytest.raises(InputError, match="merge_duplicates"):
            evaluate_coco(truth, results, merge_duplicates=bad)


def test_a_dataset_of_predictions_is_matched_by_names(tmp_path):
    truth, _ = scene([[(1, 0), (2, 100)], [(2, 40)]], [[], []])
    path = tmp_path / "answers.json"
    # The second picture comes first, and the writer's own categories in another order.
    answers = [
        "<loc0102><loc0102><loc0512><loc0205> dog ; <loc0102><loc0700><loc0512><loc0800> cow"
    ]
    answers += ["<loc0102><loc0000><loc0512><loc0102> cat"]
    with CocoWriter(path) as writer:
        found = palidecode.decode(answers, [(400, 100)] * 2, scores=[[0.9, 0.8], [0.7]])
        writer.add(found, ["1.jpg", "0.jpg"])
    result = evaluate_coco(truth, path)
    assert (result.rates.right, result.rates.missed) == (2, 1)
    (skip,) = result.skipped
    assert (skip.reason, skip.names) == ("unknown_category", {"cow": 1})
    assert "'cow' 1" in str(skip)


def test_only_what_prompts_asked_for_is_evaluated():
    truth, results = scene(
        [[(1, 0), (2, 100)], [(1, 0), (2, 100)]],
        [[(1, 0, 0.9), (2, 300, 0.8)], [(1, 0, 0.9), (2, 100, 0.7)]],
    )
    said = {
        "images": [{**truth["images"][0], "asked": ["cat"]}, truth["images"][1]],
        "categories": truth["categories"],
        "annotations": results,
    }
    result = evaluate_coco(truth, said)
    assert (result.objects, result.rates.right, result.rates.wrong) == (3, 3, 0)
    left_out = {(skip.side, skip.reason): skip.count for skip in result.skipped}
    assert left_out == {("truth", "not_asked"): 1, ("prediction", "not_asked"): 1}
    again = {**truth["images"][0], "id": 99, "asked": ["dog"]}  # another prompt, the same picture
    result = evaluate_coco(truth, {**said, "images": [*said["images"], again]})
    assert (result.objects, result.rates.right, result.rates.wrong) == (4, 3, 1)
    said["images"], said["info"] = truth["images"], {"asked": ["dog"]}
    result = evaluate_coco(truth, said)
    assert [row["category"] for row in result.rows()] == ["dog"]


def test_boxes_of_results_that_only_have_masks(coco100):
    boxes = evaluate_coco(coco100 / GT, results_of(coco100, "segm"), "bbox")
    truth = json.loads((coco100 / GT).read_text())
    results = json.loads(results_of(coco100, "segm").read_text())
    want = pycocotools_stats(truth, results, "bbox")
    np.testing.assert_allclose(boxes.stats[[0, 1, 2, 6, 7, 8]], want[[0, 1, 2, 6, 7, 8]], atol=1e-6)


def test_comparison(coco100):
    truth, first = coco100 / GT, results_of(coco100, "bbox")
    results = json.loads(first.read_text())
    worse = [row for row in results if row["category_id"] != 1]
    found = compare_coco(truth, first, worse, bootstrap=50)
    assert found.differences[0] < 0
    assert found.intervals["AP"].high < 0
    assert found.better["AP"] == 0
    assert [row["category"] for row in found.rows() if row["AP_difference"]] == ["person"]
    same = compare_coco(truth, first, first, bootstrap=20)
    assert (same.differences == 0).all()
    assert same.intervals["AP"].low == same.intervals["AP"].high == 0
    json.dumps(found.as_dict(), allow_nan=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnscoredWarning)
        bare = [{k: v for k, v in row.items() if k != "score"} for row in results]
        mixed = compare_coco(truth, first, bare, bootstrap=0)
    assert mixed.first.unscored
    assert mixed.second.unscored
    np.testing.assert_allclose(mixed.differences, 0)


def test_command(coco100, tmp_path, capsys):
    arguments = [str(coco100 / GT), str(results_of(coco100, "bbox"))]
    assert main(["evaluate", *arguments, "-o", str(tmp_path), "--min", "AP=0.5"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"AP +0\.505", shown)
    assert "person" in shown
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert round(told["bbox"]["metrics"]["AP"], 3) == 0.505
    gate = ["--min", "AP=0.51", "--min", "precision=0.8", "--json"]
    assert main(["evaluate", *arguments, *gate]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["below"] == ["bbox AP is 0.505, below 0.51"]
    assert "bbox AP is 0.505, below 0.51" in told.err
    for wrong in ("mAP=0.5", "AP", "AP=high", "AP=nan"):
        assert main(["evaluate", *arguments, "--min", wrong]) == 2
        assert "--min" in capsys.readouterr().err


def test_command_with_both_types_intervals_and_no_scores(coco100, capsys):
    arguments = [str(coco100 / GT), str(results_of(coco100, "segm")), "--iou-type", "both"]
    assert main(["evaluate", *arguments, "--bootstrap", "20", "--scores", "ignore"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("NO SCORES") == 2
    assert "95%" in shown
    assert main(["evaluate", *arguments, "--categories", "person", "dog", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(row["category"] for row in told["segm"]["classes"]) == ["dog", "person"]


def test_command_compare(coco100, capsys):
    files = [str(results_of(coco100, kind)) for kind in ("segm", "bbox")]
    options = ["--gt", str(coco100 / GT), "--bootstrap", "20"]
    assert main(["compare", *files, *options]) == 0
    shown = capsys.readouterr().out
    assert "B - A" in shown
    assert "95% interval" in shown
    assert main(["compare", *files, *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bbox"]["differences"]["AP"] > 0


def test_command_says_what_was_left_out(coco100, tmp_path, capsys):
    results = json.loads(results_of(coco100, "bbox").read_text())
    results[0]["category_id"] = 999
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    assert main(["evaluate", str(coco100 / GT), str(path)]) == 1
    assert re.search(
        r"SKIPPED:\n +1 prediction of unknown categories .*'999' 1", capsys.readouterr().out
    )


def test_the_two_exceptions_to_equal_to_pycocotools():
    """Both are in docs/evaluation.md."""
    right = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 32, 32], "score": 0.9}]
    zero = copy.deepcopy(SQUARE)
    zero["annotations"][0]["id"] = 0
    assert evaluate_coco(zero, right).metrics["AP50"] == pytest.approx(1)
    assert pycocotools_stats(zero, right, "bbox")[1] == pytest.approx(0)
    assert pycocotools_stats(SQUARE, right, "bbox")[1] == pytest.approx(1)
    negative = [{**right[0], "bbox": [32, 0, -32, 32], "score": 0.95}, *right]
    assert evaluate_coco(SQUARE, negative).metrics["AP50"] == pytest.approx(1 / 2)
    assert pycocotools_stats(SQUARE, negative, "bbox")[1] == pytest.approx(1)
    empty = [{**right[0], "bbox": [32, 0, 0, 32], "score": 0.95}, *right]
    assert pycocotools_stats(SQUARE, empty, "bbox")[1] == pytest.approx(1 / 2)
