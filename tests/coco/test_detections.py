"""COCO files to detections: what is good is used, what isn't is listed."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from palidecode import (
    CocoReport,
    InputError,
    SkippedRowsWarning,
    from_coco,
    from_coco_results,
)


def test_real_coco_annotations_are_read(shared_data):
    path = shared_data / "coco100/instances_val2014_100.json"
    report = CocoReport()
    found = from_coco(path, report=report)
    assert (len(found), report.crowds) == (830, 9)
    assert len(from_coco(path, crowds=True)) == 839
    data = json.loads(path.read_text())
    solid = [item for item in data["annotations"] if not item["iscrowd"]]
    areas = [coco_mask.area(rle) for rle in found.to_rle()]
    # COCO's own areas are those of the polygons, not of their pixels.
    assert np.median([area / item["area"] for area, item in zip(areas, solid, strict=True)]) == (
        pytest.approx(1, abs=0.03)
    )


def test_real_results_are_read(shared_data):
    folder = shared_data / "coco100"
    for name in ("fakebbox100", "fakesegm100"):
        path = folder / f"instances_val2014_{name}_results.json"
        found = from_coco_results(path, folder / "instances_val2014_100.json")
        rows = json.loads(path.read_text())
        assert len(found) == len(rows)
        assert found.scores.tolist() == pytest.approx([row["score"] for row in rows])


IMAGES = [{"id": 1, "width": 10, "height": 8}]
GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 7}, r"annotations\[0\] is about image 7"),
        ({"category_id": 3}, r"unknown categories \('3' 1\)"),
        ({"bbox": [1, 2, 3]}, "four finite"),
        ({"bbox": [1, 2, 3, float("nan")]}, "box is NaN, .*nan"),
        ({"bbox": "all"}, "got 'all'"),
        ({"segmentation": [[1, 2, 3, 4]]}, "three x, y pairs"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, "three x, y pairs"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "an image of"),
        ({"segmentation": {"size": [8, 10], "counts": [81]}}, "sum to 81"),
        ({"segmentation": {"size": [8, 10], "counts": "~~~~"}}, "alphabet"),
        ({"segmentation": 5}, "polygons or an RLE, got 5"),
        ({"score": "high"}, "could not be read"),
    ],
)
def test_annotations_that_can_not_be_read_are_named(change, message):
    dataset = {
        "images": IMAGES,
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [GOOD | change],
    }
    with pytest.raises(InputError, match=message):
        from_coco(dataset)
    dataset["annotations"] = [GOOD, *dataset["annotations"], GOOD]
    report = CocoReport()
    with pytest.warns(SkippedRowsWarning, match=message.replace("[0", "[1")) as warned:
        found = from_coco(dataset, report=report)
    assert warned[0].filename == __file__
    assert (found.labels, found.xyxy.tolist()) == (["a", "a"], [[1, 1, 5, 5]] * 2)
    assert [skip.count for skip in report.skipped] == [1]
    assert report.left_out() == {"skipped": 1}


def test_results_that_can_not_be_read_are_skipped():
    dataset = {"images": IMAGES, "categories": [{"id": 1, "name": "a"}]}
    good = GOOD | {"score": 0.5}
    bad = [good | {"image_id": 2}, 7, good | {"score": float("nan")}]
    report = CocoReport()
    with pytest.warns(SkippedRowsWarning, match=r"results\[2\]: not an object: 7"):
        found = from_coco_results([good, *bad, good], dataset, report=report)
    assert found.scores.tolist() == [0.5, 0.5]
    assert {skip.reason for skip in report.skipped} == {"unknown_image", "unreadable", "bad_score"}
    with pytest.raises(InputError, match="no row can be read: 1 prediction of unknown images"):
        from_coco_results(bad[:1], dataset)


def test_images_and_categories_that_can_not_be_read_are_skipped():
    dataset = {
        "images": [{"id": 3, "width": 5, "height": 0}, {"id": 4, "width": "x"}, *IMAGES],
        "categories": [{"id": 1, "name": "a"}, {"id": "two", "name": "b"}],
        "annotations": [GOOD, GOOD | {"image_id": 3}],
    }
    report = CocoReport()
    with pytest.warns(SkippedRowsWarning, match=r"images\[0\]"):
        found = from_coco(dataset, report=report)
    assert (len(found), found.sizes.tolist()) == (1, [[10, 8]])
    assert {(skip.side, skip.reason) for skip in report.skipped} == {
        ("image", "no_size"),
        ("image", "unreadable"),
        ("category", "unreadable"),
        ("truth", "unknown_image"),
    }


def test_rings_that_are_no_polygon_are_skipped_alone():
    rings = [[1, 1, 5, 1, 5, 5, 1, 5], [2, 2]]
    dataset = {
        "images": IMAGES,
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [GOOD | {"segmentation": rings}],
    }
    with pytest.warns(SkippedRowsWarning, match="rings of fewer than three points"):
        found = from_coco(dataset)
    assert coco_mask.area(found.to_rle()[0]) == 16


def test_far_polygons_cost_no_memory():
    far = [[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9]]
    dataset = {
        "images": IMAGES,
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [GOOD | {"segmentation": far}],
    }
    assert coco_mask.area(from_coco(dataset).to_rle()[0]) == 80


@pytest.mark.parametrize("data", [[], {}, {"images": 3}, 5])
def test_what_is_no_dataset_is_refused(tmp_path, data):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="COCO dataset"):
        from_coco(path)


def test_a_dataset_given_as_results_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(InputError, match="use from_coco"):
        from_coco_results(path, {"images": [], "categories": []})


def test_image_entries_without_a_size_are_refused():
    with pytest.raises(InputError, match="width"):
        from_coco({"images": [{"id": 1}], "annotations": [], "categories": []})
