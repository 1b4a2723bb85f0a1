"""LVIS's federated ground truth: the numbers of lvis 0.5.3, and its rules in every other one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from palidecode import InputError, compare_coco, evaluate_coco
from palidecode.cli import main
from palidecode.evaluation.coco import engine
from tests.evaluation.make_lvis import KINDS, SEEDS
from tests.evaluation.problems import lvis_problem

RECORDED = json.loads((Path(__file__).parents[1] / "lvis.json").read_text())


@pytest.mark.parametrize("block", [256, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_numbers_are_those_of_lvis(seed, kind, block, monkeypatch):
    monkeypatch.setattr(engine, "_BLOCK", block)
    truth, results = lvis_problem(seed, kind == "segm")
    assert max(Counter(row["image_id"] for row in results).values()) > 300
    result = evaluate_coco(truth, results, kind)
    found = {**result.metrics, **result.lvis}
    for name in ("AR1", "AR10", "AR100"):
        assert found.pop(name) == -1
    wanted = {name.replace("@", ""): value for name, value in RECORDED[kind][seed].items()}
    for size in "sml":
        wanted[f"AR{size}"] = wanted.pop(f"AR{size}300")
    assert found == {name: pytest.approx(value, abs=1e-12) for name, value in wanted.items()}
    assert (found["APr"] == -1) == (seed == 0)


def federated(predicted, truths=((1, 0), (2, 100))):
    """One picture: cats and dogs, dogs not all annotated, no bird, and nobody looked for fish."""
    image = {"id": 1, "file_name": "a.jpg", "width": 400, "height": 100}
    image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [2]}
    names = enumerate(("cat", "dog", "bird", "fish"), 1)
    categories = [{"id": n, "name": name, "frequency": "f"} for n, name in names]
    boxes = {"image_id": 1, "area": 1600, "iscrowd": 0}
    rows = [
        boxes | {"id": n, "category_id": category, "bbox": [x, 10, 40, 40]}
        for n, (category, x) in enumerate(truths, 1)
    ]
    results = [
        {"image_id": 1, "category_id": category, "bbox": [x, 10, 40, 40], "score": score}
        for category, x, score in predicted
    ]
    return {"images": [image], "categories": categories, "annotations": rows}, results


FOUND = [
    (1, 0, 0.9),  # right
    (1, 300, 0.8),  # wrong: cats are labelled
    (2, 100, 0.7),  # right
    (2, 300, 0.6),  # excused: some dogs have no annotation
    (3, 300, 0.5),  # wrong: there is no bird
    (4, 300, 0.4),  # not counted: nobody looked for fish
]


def test_every_number_follows_the_rules():
    result = evaluate_coco(*federated(FOUND), nms=0.5)
    assert (result.rates.right, result.rates.wrong, result.rates.missed) == (2, 2, 0)
    assert result.kinds == {"ok": 2, "background": 2, "ignored": 1, "missed": 0}
    assert [(skip.reason, skip.count) for skip in result.skipped] == [("not_labelled", 1)]
    assert [(skip.reason, skip.count) for skip in result.noted] == [("lvis", 1)]
    assert result.score_free.wrong[0].tolist() == [1, 0, 1, 0]
    assert result.score_free.micro[0] == result.rates.f1 == pytest.approx(2 / 3)
    assert result.confusion.names == ["cat", "dog", "bird", "background"]
    wanted = np.diag([1, 1, 0, 0])
    wanted[3] = [1, 0, 1, 0]  # on nothing
    assert (result.confusion.counts == wanted).all()
    dog = next(row for row in result.rows() if row["category"] == "dog")
    assert (dog["precision"], dog["AP"], dog["AR100"]) == (1, pytest.approx(1), None)
    assert result.best_threshold["score"] == 0.7
    assert "AR300" in result.summary()
    assert "AR10:" not in result.summary()
    plain = federated(FOUND)
    del plain[0]["images"][0]["neg_category_ids"]
    assert evaluate_coco(*plain).rates.wrong == 4  # COCO's rules
    assert evaluate_coco(*plain).lvis == {}


def test_predictions_without_scores_and_some_categories_follow_the_rules():
    truth, results = federated(FOUND)
    with_none = [{k: v for k, v in row.items() if k != "score"} for row in results]
    result = evaluate_coco(truth, with_none, scores="ignore")
    assert (result.rates.right, result.rates.wrong, result.rates.missed) == (2, 2, 0)
    some = evaluate_coco(truth, results, categories=["dog", "fish"])
    assert (some.rates.right, some.rates.wrong, some.kinds["ignored"]) == (1, 0, 1)
    assert some.metrics["AP"] == pytest.approx(1)


def test_a_picture_that_says_nothing_is_labelled_for_all():
    truth, results = federated(FOUND)
    truth["images"].append({**truth["images"][0], "id": 2, "file_name": "b.jpg"})
    del truth["images"][1]["neg_category_ids"]
    del truth["images"][1]["not_exhaustive_category_ids"]
    again = [row | {"image_id": 2} for row in results]
    result = evaluate_coco(truth, results + again)
    # On the second picture there is no object: everything is wrong.
    assert (result.rates.right, result.rates.wrong) == (2, 2 + len(again))


def test_intervals_and_differences_of_lvis_numbers():
    truth, results = lvis_problem(1)
    result = evaluate_coco(truth, results, bootstrap=20)
    for name in ("AP", "ARs", "APr", "AR300"):
        interval = result.intervals[name]
        assert interval.low <= interval.value <= interval.high
        assert interval.low < interval.high
    assert "AR100" not in result.intervals
    changes = compare_coco(truth, results, results[::2], bootstrap=20)
    named = {name: b - a for name, a, b, _ in changes.changes() if name in result.lvis}
    assert list(named) == ["APr", "APc", "APf", "AR300"]
    for name, change in named.items():
        assert changes.intervals[name].value == change


def test_the_command_prints_lvis_numbers_and_tests_them(tmp_path, capsys):
    truth, results = lvis_problem(1)
    for name, data in (("gt", truth), ("found", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    files = [str(tmp_path / "gt.json"), str(tmp_path / "found.json")]
    out = tmp_path / "page"
    assert main(["evaluate", *files, "-o", str(out), "--min", "APr=0.05"]) == 0
    printed = capsys.readouterr().out
    told = json.loads((out / "metrics.json").read_text())["bbox"]
    html = (out / "index.html").read_text()
    for name, value in told["lvis"].items():
        assert f"  {name:<9} {value:.3f}" in printed
        assert f'<th scope="row">{name}</th><td class="n">{value:.3f}</td>' in html
    assert "AR100" not in printed
    assert f"neither right nor wrong: {told['kinds']['ignored']:,}\n" in printed
    assert "ignored" not in printed
    assert "whose objects are not all annotated" in html
    assert main(["evaluate", *files, "--min", "APr=0.99"]) == 1
    assert "bbox APr is" in capsys.readouterr().err
    for image in truth["images"]:
        del image["neg_category_ids"]
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    assert main(["evaluate", *files, "--min", "APr=0.1"]) == 1
    assert "bbox APr is -, below 0.1" in capsys.readouterr().err


def test_a_box_without_an_area_is_wrong_though_lvis_leaves_it_out():
    truth, results = federated([(1, 0, 0.5)])
    empty = results[0] | {"bbox": [0, 10, 0, 40], "score": 0.9}
    rates = evaluate_coco(truth, [*results, empty]).rates
    assert (rates.right, rates.wrong) == (1, 1)


def test_what_cannot_be_lvis_is_one_line():
    truth, results = federated(FOUND)
    for settings in ({"micro": True}, {"max_detections": [1, 2, 3]}):
        with pytest.raises(InputError, match="can't be combined with LVIS"):
            evaluate_coco(truth, results, **settings)
    truth["images"][0]["neg_category_ids"] = "3"
    with pytest.raises(InputError, match="image 1: neg_category_ids must be a list"):
        evaluate_coco(truth, results)
