"""Properties of COCO files that people have: odd flags, byte order marks, missing names."""

import json

import numpy as np
import pytest

from palidecode import InputError, evaluate_coco, from_coco, to_finetuning_rows
from palidecode.coco.categories import read_categories
from palidecode.coco.mask_reading import read_mask, read_masks
from palidecode.coco.reading import Row, read_dataset, read_outline
from palidecode.coco.skips import Skips
from palidecode.files import check_size
from tests.coco.samples import square


@pytest.mark.parametrize(
    ("given", "crowd"),
    [(None, 0), ("0", 0), ("false", 0), (False, 0), (0.0, 0), ("1", 1), (True, 1), ("true", 1)],
)
def test_iscrowd_in_every_form(dataset, given, crowd):
    dataset["annotations"][0]["iscrowd"] = given
    skips = Skips()
    read = read_dataset(dataset, Row, skips)
    assert bool(read.annotations.rows[0].iscrowd) == crowd
    assert (len(read.annotations.rows), str(skips)) == (4, "")


def test_a_byte_order_mark_is_passed_over(dataset, tmp_path):
    path = tmp_path / "bom.json"
    for odd in (False, True):  # the fast path and the careful one
        dataset["annotations"][0]["iscrowd"] = "0" if odd else 0
        path.write_text(json.dumps(dataset), encoding="utf-8-sig")
        assert len(read_dataset(path, Row, Skips()).annotations.rows) == 4
    path.write_text('["cat", "dog"]', encoding="utf-8-sig")
    assert [item["name"] for item in read_categories(path)] == ["cat", "dog"]
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n", encoding="utf-8-sig")
    assert [item["name"] for item in read_categories(names)] == ["cat", "dog"]


def test_images_without_a_file_name_take_the_end_of_their_address(dataset):
    url = "http://images.cocodataset.org/val2017/000000397133.jpg"
    dataset["images"][0] = {"id": 7, "coco_url": url, "width": 640, "height": 480}
    dataset["images"][1]["coco_url"] = url
    images = read_dataset(dataset, Row, Skips()).images.rows
    assert [image.file_name for image in images] == ["000000397133.jpg", "b.jpg", "none.jpg"]


@pytest.mark.parametrize("empty", [None, [], [[]], [[], []]])
def test_empty_rings_are_no_segmentation(dataset, empty):
    dataset["annotations"][1]["segmentation"] = empty
    assert read_mask(read_outline(empty), (640, 480)) == (None, 0)
    read = read_masks([read_outline(empty), square(1, 1, 9)], np.array([[640, 480]] * 2))
    assert (read.missing.tolist(), read.damaged.any()) == ([True, False], False)
    detections = from_coco(dataset)
    assert detections.has_mask.tolist() == [True, False, True, True]


def test_sizes_may_be_whole_floats_and_numbers_of_numpy(dataset):
    assert check_size([640.0, np.float64(480)]) == (640, 480)
    assert check_size((np.int64(640), np.float32(480))) == (640, 480)
    assert check_size(np.array([640, 480])) == (640, 480)
    for wrong in (
        [np.True_, 480],
        [640.5, 480],
        [True, 480],
        [float("nan"), 480],
        [float("inf"), 480],
    ):
        with pytest.raises(InputError, match="a size must be"):
            check_size(wrong)


def test_ids_as_text_and_as_numbers_are_one(dataset):
    rows = list(to_finetuning_rows(dataset))
    for annotation in dataset["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    for image in dataset["images"]:
        image |= {"width": "640", "height": "480"}
    assert list(to_finetuning_rows(dataset)) == rows
    for image in dataset["images"]:
        image["id"] = str(image["id"])
    assert list(to_finetuning_rows(dataset)) == rows


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"category_id": None}, "category_id must be a whole number, got None"),
        ({"iscrowd": "perhaps"}, "iscrowd must be 0 or 1, got 'perhaps'"),
        ({"image_id": [1]}, "image_id must be a whole number or a text, got [1]"),
    ],
)
def test_rows_that_can_not_be_read_say_why(dataset, changed, said):
    skips = Skips()
    dataset["annotations"][0] |= changed
    del dataset["annotations"][1]["image_id"]
    read_dataset(dataset, Row, skips)
    assert f"annotations[0]: {said}" in str(skips)
    assert "annotations[1]: has no 'image_id'" in str(skips)


def test_images_that_were_labelled_for_some_categories_are_noted(dataset):
    for image in dataset["images"][:2]:
        image |= {"neg_category_ids": [8], "not_exhaustive_category_ids": []}
    with pytest.warns(UserWarning, match="2 images labelled for some categories alone"):
        assert len(list(to_finetuning_rows(dataset))) == 3
    assert len(list(to_finetuning_rows(dataset, classes="present"))) == 2
    result = evaluate_coco(dataset, dataset, scores="ignore")
    assert [(skip.reason, skip.count) for skip in result.noted] == [("lvis", 2)]
