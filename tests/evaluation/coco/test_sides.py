"""Ground truth and predictions that differ: matched by a rule, or noted with examples."""

import json

import pytest

from palidecode import CategoryMap, InputError, evaluate_coco, to_finetuning_rows

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}
BOX = [100, 50, 200, 150]
RING = [100, 50, 300, 50, 300, 200, 100, 200]


def a_truth(**changed):
    return {
        "images": [IMAGE],
        "categories": [{"id": 0, "name": "fish"}, {"id": 1, "name": "fish"}],
        "annotations": [row(id=1, area=30000, iscrowd=0)],
    } | changed


def row(**changed):
    return {"image_id": 1, "category_id": 1, "bbox": BOX, "segmentation": [RING]} | changed


def predicted(**changed):
    """A dataset of predictions whose category has another id."""
    return {
        "images": [IMAGE | {"id": 5}],
        "categories": [{"id": 7, "name": "fish"}],
        "annotations": [row(image_id=5, category_id=7, score=0.9)],
    } | changed


def test_the_category_0_is_asked_for_like_any_other():
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    truth = a_truth(categories=categories, annotations=[row(id=1, category_id=0)])
    named = predicted(categories=[{"id": 7, "name": "cat"}])
    for of_info, of_image in ((["cat"], None), (None, ["cat"])):
        images = [{**named["images"][0], "asked": of_image}]
        result = evaluate_coco(truth, named | {"info": {"asked": of_info}, "images": images})
        assert (round(result.stats[0], 9), result.rates.right, result.skipped) == (1, 1, ())


def test_categories_of_one_name_are_told_apart_by_id():
    result = evaluate_coco(a_truth(), [row(score=0.9)])
    assert (round(result.stats[0], 9), result.rates.right) == (1, 1)
    wrong = evaluate_coco(a_truth(), [row(score=0.9, category_id=0)])
    assert wrong.rates.right == 0
    assert evaluate_coco(a_truth(), [row(score=0.9)], categories=["fish"]).rates.right == 1


def test_an_unused_category_of_the_same_name_does_not_matter(tmp_path):
    assert evaluate_coco(a_truth(), predicted()).rates.right == 1
    (answer,) = to_finetuning_rows(a_truth())
    assert answer["prefix"] == "detect fish"
    assert answer["suffix"].endswith(" fish")
    assert CategoryMap(a_truth()).id_of("fish") == 1


def test_a_name_that_two_used_categories_share_is_one_clear_line(tmp_path):
    truth = a_truth(annotations=[row(id=1), row(id=2, category_id=0)])
    assert evaluate_coco(truth, [row(score=0.9)]).rates.right == 1
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    wanted = r"truth\.json: the categories 0 and 1 are both called 'fish'; rename one .* results"
    with pytest.raises(InputError, match=wanted):
        evaluate_coco(path, predicted())
    with pytest.raises(InputError, match="both called 'fish'; rename or remove"):
        CategoryMap(truth["categories"])
