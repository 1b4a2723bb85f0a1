"""Detections as predictions, what an evaluation looks like, and the evaluator of training loops."""

import contextlib
import io
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from palidecode import (
    CocoEvaluator,
    Detections,
    InputError,
    UnscoredWarning,
    decode,
    evaluate_coco,
    from_coco,
    from_coco_results,
    to_coco,
    to_coco_results,
)
from tests.evaluation.problems import problem
from tests.samples import CODES, answer


@pytest.fixture(scope="module")
def sides():
    """A truth without crowds, as a dataset, and results for it."""
    for seed in range(1, 60):
        truth, results = problem(seed, masks=True)
        truth["annotations"] = [row for row in truth["annotations"] if not row["iscrowd"]]
        if len(truth["images"]) > 4 and len(results) > 9:
            written = to_coco(from_coco(truth), categories=truth, segmentation="rle")
            if evaluate_coco(written, results, "segm").metrics["AP50"] > 0:
                return written, to_coco_results(found_in(written, results), categories=written)
    raise AssertionError("no such problem")


def found_in(truth, results):
    return from_coco_results(results, truth)


def equal(result, wanted):
    np.testing.assert_array_equal(result.stats, wanted.stats)
    assert result.rates == wanted.rates
    for row, other in zip(result.rows(), wanted.rows(), strict=True):
        best = {"best_score": pytest.approx(other["best_score"])}  # a float32
        assert row == other | best


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_detections_are_evaluated_as_their_file_is(sides, iou_type):
    truth, results = sides
    found = found_in(truth, results)
    wanted = evaluate_coco(truth, results, iou_type)
    assert 0 < wanted.stats[1] < 1
    by_name = replace(found, image_ids=[])
    by_id = replace(found, names=[""] * len(found.sizes))
    in_order = replace(by_id, image_ids=[])
    for given in (found, by_name, by_id, in_order):
        equal(evaluate_coco(truth, given, iou_type), wanted)


def test_names_go_before_ids_and_ids_before_the_order(sides):
    truth, results = sides
    found = found_in(truth, results)
    wanted = evaluate_coco(truth, results)
    wrong = replace(found, image_ids=found.image_ids[::-1])
    equal(evaluate_coco(truth, wrong), wanted)
    order = list(range(len(found.sizes)))[::-1]
    turned = Detections.concat([found.image(index) for index in order])
    equal(evaluate_coco(truth, turned), wanted)
    equal(evaluate_coco(truth, replace(turned, names=[])), wanted)
    nameless = json.loads(json.dumps(truth))
    for image in nameless["images"]:
        del image["file_name"]
    equal(evaluate_coco(nameless, turned), wanted)


def test_the_order_is_that_of_the_file_and_not_of_its_ids():
    boxes = [answer("cat", (0, 0, 500, 500)), answer("cat", (500, 500, 1000, 1000))]
    truth = to_coco(decode(boxes, (64, 64)), image_ids=[9, 4])
    result = evaluate_coco(truth, decode(boxes, (64, 64), scores=[[0.9], [0.8]]))
    assert (result.rates.right, result.rates.wrong) == (2, 0)


def test_images_that_do_not_fit_are_refused():
    truth = to_coco(decode([answer("cat")] * 2, [(64, 64), (32, 32)]))
    for sizes in ([(64, 64)], [(32, 32), (64, 64)]):
        found = decode([answer("cat")] * len(sizes), sizes)
        with pytest.raises(InputError, match=r"neither names nor ids, and aren't .* \(2\)"):
            evaluate_coco(truth, found)
    elsewhere = decode([answer("cat")] * 2, (64, 64), names=["a.jpg", "b.jpg"])
    with pytest.raises(InputError, match="none of its pictures is in the ground truth"):
        evaluate_coco(truth, elsewhere)


def test_nothing_is_lost_on_the_way():
    truth = to_coco(decode([answer("cat")], (64, 64)))
    inverted = answer("cat", (700, 800, 100, 200))
    found = decode(
        [f"{answer('cat')} ; {inverted} ; {answer('emu')}"], (64, 64), scores=[[1, 0.5, 1]]
    )
    result = evaluate_coco(truth, found)
    assert (result.rates.right, result.rates.wrong) == (1, 1)
    assert [skip.reason for skip in result.skipped] == ["unknown_category"]
    none = evaluate_coco(truth, decode([""], (64, 64)))
    assert (none.rates.missed, none.predictions) == (1, 0)
    unlabelled = decode([answer("")], (64, 64), scores=[[1.0]])
    assert evaluate_coco(to_coco(unlabelled), unlabelled).rates.right == 1


def test_unscored_detections_warn():
    found = decode([f"{answer('a')} ; {answer('a', (0, 0, 90, 90))}"], (64, 64))
    with pytest.warns(UnscoredWarning) as warned:
        result = evaluate_coco(to_coco(found), found)
    assert warned[0].filename == __file__
    assert "no scores: means of 10 random orders ± standard deviation" in result.summary()
    assert "= 1.000 ± 0.000" in result.summary()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_batches_give_the_numbers_of_one_call(sides, iou_type):
    truth, results = sides
    found, true = found_in(truth, results), from_coco(truth)
    evaluator = CocoEvaluator(iou_type)
    for _ in range(2):  # epochs
        evaluator.reset()
        for first in range(0, len(true.sizes), 3):
            batch = range(first, min(first + 3, len(true.sizes)))
            evaluator.update(
                Detections.concat([found.image(index) for index in reversed(batch)]),
                Detections.concat([true.image(index) for index in batch]),
            )
        result = evaluator.compute()
        wanted = evaluate_coco(to_coco(true, segmentation="rle"), found, iou_type)
        np.testing.assert_array_equal(result.stats, wanted.stats)
        assert result.rates == wanted.rates
        assert {row["file_name"] for row in result.image_rows} == set(true.names)


def test_batches_that_do_not_fit_are_refused():
    truth = decode([answer("cat")], (64, 64), names=["a.jpg"])
    evaluator = CocoEvaluator()
    with pytest.raises(InputError, match=r"update\(\) adds batches"):
        evaluator.compute()
    evaluator.update(truth, truth)
    with pytest.raises(InputError, match=r"'a.jpg' was added before; reset\(\) begins"):
        evaluator.update(truth, truth)
    with pytest.raises(InputError, match=r"differ by names; 'a.jpg' is on one side only"):
        evaluator.update(replace(truth, names=["b.jpg"]), truth)
    with pytest.raises(InputError, match="differ by names"):
        evaluator.update(truth + truth, truth)
    with pytest.raises(InputError, match="number and sizes must agree"):
        evaluator.update(decode([""], (32, 32)), truth)
    with pytest.raises(InputError, match="iou_type must be"):
        CocoEvaluator("box")


def test_masks_of_batches(demo_codec):
    texts = [answer("boat", codes=CODES), answer("gull", (10, 10, 500, 500), CODES)]
    evaluator = CocoEvaluator("segm", scores="ignore")
    for text in texts:
        truth = decode([text], (320, 240), demo_codec)
        evaluator.update(truth, truth)
    assert evaluator.compute().metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_summary_has_the_lines_of_pycocotools(sides, iou_type):
    truth, results = json.loads(json.dumps(sides))  # pycocotools changes them
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        theirs = COCOeval(coco, coco.loadRes(results), iou_type)
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    wanted = [line for line in printed.getvalue().splitlines() if line.startswith(" Average")]
    summary = evaluate_coco(*sides, iou_type).summary().splitlines()
    assert len(wanted) == 12
    assert summary[0].startswith("boxes: " if iou_type == "bbox" else "masks: ")
    for line, start in zip(summary[1:13], wanted, strict=True):
        assert line.startswith(start)
    assert summary[2].endswith("  AP50: at IoU 0.5: rewards any rough match")
    assert summary[-1].startswith("at IoU 0.5: ")


def test_the_summary_knows_other_settings(sides):
    result = evaluate_coco(
        *sides, iou_thresholds=[0.3, 0.5], max_detections=(1, 5, 300), micro=True
    )
    text = result.summary()
    assert "all classes ranked together" in text
    assert "IoU=0.30:0.50 | area=   all | maxDets=300 ]" in text
    assert "maxDets=  5 ]" in text


def test_an_evaluation_in_a_terminal_a_notebook_and_pandas(sides):
    truth, results = sides
    result = evaluate_coco(truth, results)
    assert repr(result) == result.summary()
    assert result._repr_html_().count("<table>") == 2
    frame = result.to_pandas()
    assert frame.to_dict("records") == result.rows()
    assert frame.set_index("category").AP.notna().any()
    evil = json.loads(json.dumps(truth))
    for category in evil["categories"]:
        category["name"] = f"<script>{category['id']}"
    page = evaluate_coco(evil, results)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_plots_of_an_evaluation(sides):
    result = evaluate_coco(*sides)
    curves, bars = result.plot().axes
    assert [line.get_label() for line in curves.get_lines()] == ["IoU 0.5", "IoU 0.75"]
    widths = [bar.get_width() for bar in bars.patches]
    by_objects = sorted(result.rows(), key=lambda row: row["objects"])
    assert sorted(widths) == sorted(row["AP"] or 0 for row in by_objects)
    unscored = evaluate_coco(*sides, scores="ignore").plot()
    assert unscored.axes[0].get_title() == "no curves without scores"
