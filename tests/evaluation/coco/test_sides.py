"""Ground truth and predictions that differ: matched by a rule, or noted with examples."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from palidecode import (
    CategoryMap,
    InputError,
    compare_coco,
    evaluate_coco,
    from_coco_results,
    to_finetuning_rows,
)
from palidecode.cli import main

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


def reasons(skips):
    return {skip.reason: skip.count for skip in skips}


def resized(size, image=IMAGE):
    return [image | {"id": 5, "width": size[0], "height": size[1]}]


def test_sizes_that_differ_are_noted_with_both_or_scaled(tmp_path, capsys):
    half = row(
        image_id=5,
        category_id=7,
        score=0.9,
        bbox=[50, 25, 100, 75],
        segmentation=[[50, 25, 150, 25, 150, 100, 50, 100]],
    )
    small = predicted(images=resized((320, 240)), annotations=[half])
    for kind in ("bbox", "segm"):
        result = evaluate_coco(a_truth(), small, kind)
        assert (result.rates.right, reasons(result.noted)["other_size"]) == (0, 1)
        shown = next(str(skip.such_as) for skip in result.noted if skip.reason == "other_size")
        assert shown == "'a.jpg': 320×240, in the ground truth 640×480"
        scaled = evaluate_coco(a_truth(), small, kind, scale_to_truth=True)
        assert (round(scaled.stats[0], 9), reasons(scaled.noted)) == (1, {})
    files = tmp_path / "truth.json", tmp_path / "small.json"
    for path, content in zip(files, (a_truth(), small), strict=True):
        path.write_text(json.dumps(content))
    truth, answers = map(str, files)
    assert main(["evaluate", truth, answers]) == 1
    assert "'a.jpg': 320×240, in the ground truth 640×480" in capsys.readouterr().out
    assert main(["compare", answers, answers, "--gt", truth, "--bootstrap", "0"]) == 1
    assert "320×240" in capsys.readouterr().out
    scaled_too = ["--scale-to-truth", "--min", "AP=1"]
    assert main(["evaluate", truth, answers, "--iou-type", "both", *scaled_too]) == 0
    assert main(["compare", answers, answers, "--gt", truth, "--scale-to-truth"]) == 0


def test_masks_as_rle_are_scaled_from_their_own_size():
    mask = np.zeros((240, 320), np.uint8, order="F")
    mask[25:100, 50:150] = 1
    rle = coco_mask.encode(mask)
    rle["counts"] = rle["counts"].decode()
    results = [row(score=0.9, bbox=[50, 25, 100, 75], segmentation=rle)]
    assert reasons(evaluate_coco(a_truth(), results, "segm").skipped) == {"bad_mask": 1}
    scaled = evaluate_coco(a_truth(), results, "segm", scale_to_truth=True)
    assert (round(scaled.stats[0], 9), scaled.skipped) == (1, ())


def test_turned_pictures_are_noted_and_not_scaled():
    turned = predicted(images=resized((480, 640)))
    for scale in (False, True):
        result = evaluate_coco(a_truth(), turned, scale_to_truth=scale)
        assert reasons(result.noted) == {"turned": 1}
        assert result.rates.right == 1


def test_a_truth_of_crowds_alone_is_noted_and_counted_on_request(tmp_path, capsys):
    truth = a_truth(annotations=[row(id=1, iscrowd=1)])
    result = evaluate_coco(truth, [row(score=0.9)], "segm")
    assert (result.objects, reasons(result.noted)) == (0, {"all_crowds": 1})
    result = evaluate_coco(truth, [row(score=0.9)], "segm", crowds=True)
    assert (round(result.stats[0], 9), result.objects, reasons(result.noted)) == (1, 1, {})
    change = compare_coco(truth, [row(score=0.9)], [], crowds=True, bootstrap=0)
    assert round(change.differences[0], 9) == -1
    files = tmp_path / "truth.json", tmp_path / "results.json"
    for path, content in zip(files, (truth, [row(score=0.9)]), strict=True):
        path.write_text(json.dumps(content))
    assert main(["evaluate", *map(str, files)]) == 1
    assert "--crowds" in capsys.readouterr().out
    assert main(["evaluate", *map(str, files), "--crowds"]) == 0


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("train\\a.jpg", "train/a.jpg"),
        ("train/caf\u00e9.jpg", "C:\\pictures\\cafe\u0301.jpg"),
    ],
)
def test_file_names_are_matched_in_every_writing(truth, prediction):
    truth = a_truth(images=[IMAGE | {"file_name": truth}, IMAGE | {"id": 2, "file_name": "b.jpg"}])
    named = predicted(images=[IMAGE | {"id": 5, "file_name": prediction}])
    result = evaluate_coco(truth, named)
    assert (result.rates.right, result.skipped) == (1, ())


def test_a_name_that_several_images_share_is_called_ambiguous():
    images = [IMAGE | {"file_name": "x/a.jpg"}, IMAGE | {"id": 2, "file_name": "y/a.jpg"}]
    truth = a_truth(images=[*images, IMAGE | {"id": 3, "file_name": "b.jpg"}])
    with pytest.raises(InputError, match=r"'a\.jpg' is ambiguous"):
        evaluate_coco(truth, predicted())
    more = [*predicted()["images"], IMAGE | {"id": 6, "file_name": "b.jpg"}]
    answers = [row(image_id=number, category_id=7, score=number / 10) for number in (6, 5)]
    result = evaluate_coco(truth, predicted(images=more, annotations=answers))
    assert reasons(result.skipped) == {"ambiguous": 1, "unknown_image": 1}
    assert next(s.such_as for s in result.skipped if s.reason == "ambiguous") == "'a.jpg'"
    # Two images of the predictions whose names fit one image.
    for names, skipped, noted in (
        (("a.jpg", "old/a.jpg"), {"ambiguous": 1, "unknown_image": 1}, {}),
        (("a.jpg", "a.jpg"), {}, {"same_name": 2}),
    ):
        both = [IMAGE | {"id": n, "file_name": name} for n, name in zip((5, 6), names, strict=True)]
        result = evaluate_coco(a_truth(), predicted(images=both, annotations=answers))
        assert (reasons(result.skipped), reasons(result.noted)) == (skipped, noted)
        assert result.rates.right == 1


def test_ids_as_text_are_the_same_as_numbers():
    for truth_id, id_ in ((1, "1"), ("1", 1), ("a", "a")):
        truth = a_truth(images=[IMAGE | {"id": truth_id}], annotations=[row(image_id=truth_id)])
        results = [row(image_id=id_, category_id="1", score=0.9)]
        result = evaluate_coco(truth, results)
        assert (result.rates.right, result.skipped) == (1, ())
        assert len(from_coco_results(results, truth)) == 1


def test_boxes_in_another_unit_are_noted():
    x, y, width, height = BOX
    fractions = row(bbox=[x / 640, y / 480, width / 640, height / 480], score=0.9)
    assert reasons(evaluate_coco(a_truth(), [fractions]).noted) == {"fractions": 1}
    tiny = a_truth(images=[IMAGE | {"width": 2, "height": 2}])
    one_pixel = evaluate_coco(tiny, [row(bbox=[0, 0, 1, 1], score=0.9)])
    assert "fractions" not in reasons(one_pixel.noted)
    bins = [row(bbox=[160, 107, 320, y], score=y / 1000) for y in (300, 900)]
    assert reasons(evaluate_coco(a_truth(), bins).noted) == {"bins": 1}
    few = bins[1:] + [row(score=0.5)] * 9
    assert reasons(evaluate_coco(a_truth(), few).noted) == {}
    large = a_truth(images=[IMAGE | {"width": 2000, "height": 1000}])
    assert reasons(evaluate_coco(large, bins).noted) == {}
