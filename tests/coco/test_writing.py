import contextlib
import io
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace

import hotcoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from palidecode import (
    CocoReport,
    CocoWriter,
    Detections,
    InputError,
    MaskFormat,
    decode,
    from_coco,
    from_coco_results,
    to_coco,
    to_coco_results,
)
from palidecode.coco.writing import Annotation
from tests.samples import CODES, answer

TEXTS = [
    f"{answer('cat', codes=CODES)} ; {answer('dog', (0, 0, 300, 500))}",
    "nothing here",
    answer("cat", (10, 20, 30, 40), CODES),
]
SIZES = [(320, 240), (100, 50), (64, 640)]


@pytest.fixture
def found(demo_codec):
    return decode(TEXTS, SIZES, demo_codec, scores=[[0.75, 0.5], None, [0.25]])


def load(dataset, path):
    path.write_text(json.dumps(dataset))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize("segmentation", ["polygons", "exact", "rle"])
def test_pycocotools_loads_what_is_written(found, tmp_path, segmentation):
    coco = load(to_coco(found, segmentation=segmentation), tmp_path / "coco.json")
    assert sorted(coco.imgs) == [1, 2, 3]
    assert [item["name"] for item in coco.cats.values()] == ["cat", "dog"]
    masks = found.to_masks()
    for row, annotation in enumerate(coco.anns.values()):
        x1, y1, x2, y2 = found.xyxy[row].tolist()
        assert annotation["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=2e-3)
        assert annotation["iscrowd"] == 0
        assert annotation["score"] == pytest.approx(found.scores[row])
        if masks[row] is None:
            assert annotation["segmentation"] == []
            assert annotation["area"] == pytest.approx(
                annotation["bbox"][2] * annotation["bbox"][3]
            )
        else:
            assert annotation["area"] == masks[row].sum()
            agreement = (coco.annToMask(annotation) == masks[row]).mean()
            assert agreement == 1 if segmentation == "rle" else agreement > 0.98


def test_hotcoco_loads_what_is_written(found, tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(to_coco(found)))
    truth = hotcoco.COCO(str(path))
    assert len(truth.get_ann_ids()) == 3
    results = tmp_path / "results.json"
    results.write_text(json.dumps(to_coco_results(found)))
    assert len(truth.load_res(str(results)).get_ann_ids()) == 3


def test_without_masks_only_boxes_are_written(found):
    assert all(
        not item["segmentation"] for item in to_coco(found, segmentation="none")["annotations"]
    )


def test_an_unknown_format_is_refused(found):
    with pytest.raises(InputError, match="polygons, exact, rle, none"):
        to_coco(found, segmentation="svg")


NO_AREA = (
    f"{answer('c', (512, 256, 0, 512), CODES)} ; {answer('c', (0, 512, 0, 0), CODES)} ; "
    f"{answer('c', (0, 0, 512, 512), CODES)}"
)
"""An inverted box, an empty one and a good one of a 100×100 picture, with masks."""


def test_inverted_and_empty_boxes_are_written_without_a_side(demo_codec):
    report = CocoReport()
    found = decode([NO_AREA], (100, 100), demo_codec)
    dataset = to_coco(found, report=report)
    boxes = [item["bbox"] for item in dataset["annotations"]]
    assert boxes == [[25, 50, 25, 0], [50, 0, 0, 0], [0, 0, 50, 50]]
    empty = [(item["area"], item["segmentation"]) for item in dataset["annotations"][:2]]
    assert empty == [(0, [])] * 2
    assert dataset["annotations"][2]["segmentation"]
    assert (report.empty_boxes, report.left_out()) == (2, {})
    assert dataset["info"]["empty_boxes"] == 2
    results = to_coco_results(found, categories=["c"])
    assert [row["bbox"] for row in results] == boxes
    assert ["segmentation" in row for row in results] == [False, False, True]


def test_boxes_without_an_area_can_be_dropped(demo_codec):
    report = CocoReport()
    found = decode([NO_AREA], (100, 100), demo_codec)
    dataset = to_coco(found, drop_empty=True, report=report)
    assert [item["bbox"] for item in dataset["annotations"]] == [[0, 0, 50, 50]]
    assert report.left_out() == dataset["info"]["left_out"] == {"dropped_boxes": 2}
    assert report.empty_boxes == 0
    assert len(to_coco_results(found, categories=["c"], drop_empty=True)) == 1


def test_infinite_boxes_are_skipped():
    found = decode([NO_AREA], (100, 100))
    xyxy = found.xyxy.copy()
    xyxy[2, 3], xyxy[0, 0] = np.inf, np.nan
    report = CocoReport()
    dataset = to_coco(replace(found, xyxy=xyxy), report=report)
    assert [item["bbox"] for item in dataset["annotations"]] == [[50, 0, 0, 0]]
    assert (report.left_out(), report.empty_boxes) == ({"infinite_boxes": 2}, 1)


def test_labels_that_do_not_map_are_kept_dropped_or_refused(found):
    categories = [{"id": 17, "name": "cat"}]
    kept = to_coco(found, categories=categories)
    assert [item["category_id"] for item in kept["annotations"]] == [17, 18, 17]
    report = CocoReport()
    dropped = to_coco(found, categories=categories, unmapped="drop", report=report)
    assert [item["category_id"] for item in dropped["annotations"]] == [17, 17]
    assert report.unmapped == {"dog": 1}
    assert dropped["info"]["left_out"] == {"unmapped_labels": {"dog": 1}}
    assert [item["id"] for item in dropped["annotations"]] == [1, 2]
    with pytest.raises(InputError, match="'dog'"):
        to_coco(found, categories=categories, unmapped="error")


def test_results_drop_unknown_categories_by_default_and_have_scores():
    found = decode([f"{answer('cat')} ; {answer('dog')}"], (64, 64))
    report = CocoReport()
    results = to_coco_results(found, categories=["cat"], image_ids=[39769], report=report)
    assert [(row["image_id"], row["category_id"], row["score"]) for row in results] == [
        (39769, 1, 1.0)
    ]
    assert "segmentation" not in results[0]
    assert report.unmapped == {"dog": 1}


@pytest.mark.parametrize(
    "names", [{"file_names": ["a"]}, {"image_ids": [1, 2]}, {"image_ids": [1, 1, 2]}]
)
def test_names_and_ids_must_fit_the_images(found, names):
    with pytest.raises(InputError, match=r"as many as the images|different"):
        to_coco(found, **names)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cat", "dog", "fisherman's hut", "猫"]),
            st.tuples(*[st.integers(0, 1023)] * 4),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_coco_and_back_is_the_same(demo_codec, objects):
    text = " ; ".join(answer(label, loc, CODES if mask else None) for label, loc, mask in objects)
    found = decode([text], (500, 400), demo_codec)
    solid = (found.xyxy[:, 2:] > found.xyxy[:, :2]).all(axis=1)
    again = from_coco(json.loads(json.dumps(to_coco(found, segmentation="rle"))))
    assert again.labels == found.labels
    lacking = found.xyxy.copy()
    lacking[:, 2:] = np.maximum(lacking[:, 2:], lacking[:, :2])
    assert np.allclose(again.xyxy, lacking, atol=2e-3)
    assert again.to_rle() == replace(found, has_mask=found.has_mask & solid).to_rle()
    assert again.sizes.tolist() == [[500, 400]]


def test_names_and_ids_of_a_file_are_kept_without_being_told(dataset, tmp_path):
    dataset["images"].append({"id": "k-1", "file_name": "ü/4.jpg", "width": 9, "height": 8})
    read = from_coco(dataset)
    again = to_coco(read, categories=dataset)
    assert again["images"] == dataset["images"]
    assert [row["image_id"] for row in again["annotations"]] == [7, 7, 5, 7]
    results = to_coco_results(read, categories=dataset, default_score=0.5)
    assert [row["image_id"] for row in results] == [7, 7, 5, 7]
    assert from_coco_results(results, dataset).names == read.names
    with CocoWriter(tmp_path / "coco.json", categories=dataset) as writer:
        for index in range(4):
            writer.add(read.image(index))
        writer.add(read.image("a.jpg"))  # written before, so only its objects are
    written = json.loads((tmp_path / "coco.json").read_text())
    assert written["images"] == dataset["images"]
    assert [row["image_id"] for row in written["annotations"]] == [7, 7, 7, 5, 7, 7, 7]
    assert from_coco(tmp_path / "coco.json").image_ids == [7, 5, 9, "k-1"]


def test_unknown_ids_are_the_next_free_numbers(found, tmp_path):
    some = replace(found, image_ids=[None, 1, None], names=["", "b.jpg", "c.jpg"])
    ids = [(image["id"], image["file_name"]) for image in to_coco(some)["images"]]
    assert ids == [(2, "2"), (1, "b.jpg"), (3, "c.jpg")]
    with CocoWriter(tmp_path / "coco.json") as writer:
        writer.add(some.image(1))
        writer.add(some.image(0))
        writer.add(some.image(2))
    written = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert [image["id"] for image in written] == [1, 2, 3]


def test_an_id_of_two_images_is_refused(dataset, tmp_path):
    read = from_coco(dataset)
    both = read + replace(read, names=["d.jpg", "e.jpg", "f.jpg"])
    with pytest.raises(InputError, match=r"7 is there twice; image_ids=range\(1, 7\) numbers"):
        to_coco(both)
    assert len(to_coco(both, image_ids=range(1, 7))["images"]) == 6
    with (
        pytest.raises(InputError, match=r"'d.jpg' has the id 7, which another image has"),
        CocoWriter(tmp_path / "coco.json") as writer,
    ):
        writer.add(both)


def test_results_and_back_are_the_same(found):
    dataset = to_coco(found)
    again = from_coco_results(to_coco_results(found), dataset)
    assert again.labels == found.labels
    assert again.scores.tolist() == found.scores.tolist()
    assert again.to_rle() == found.to_rle()
    assert len(again.to_polygons()[0].parts) >= 1


def test_writer_and_to_coco_write_the_same(found, tmp_path):
    path = tmp_path / "deep" / "coco.json"
    with CocoWriter(path, form=MaskFormat("rle")) as writer:
        for index in range(3):
            writer.add(found.image(index), [f"{index}.jpg"])
    written = json.loads(path.read_text())
    expected = to_coco(found, segmentation="rle", file_names=["0.jpg", "1.jpg", "2.jpg"])
    assert written == expected
    assert writer.report.images == 3


def test_writer_makes_one_image_of_answers_about_one_picture(tmp_path):
    path = tmp_path / "coco.json"
    found = decode([answer("a"), answer("b"), answer("c")], (8, 8))
    with CocoWriter(path) as writer:
        writer.add(found, ["x.png", "y.png", "x.png"])
        with pytest.raises(InputError, match=r"'y\.png' is 9×8 here but 8×8 in an earlier"):
            writer.add(decode([answer("d")], (9, 8)), ["y.png"])
    written = json.loads(path.read_text())
    assert [(image["id"], image["file_name"]) for image in written["images"]] == [
        (1, "x.png"),
        (2, "y.png"),
    ]
    assert [item["image_id"] for item in written["annotations"]] == [1, 2, 1]


def test_writer_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text("before")
    with (
        pytest.raises(InputError, match=r"as many as the images \(3\)"),
        CocoWriter(path) as writer,
    ):
        writer.add(decode([answer("a")] * 3, (8, 8)), ["one.png"])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 16 KiB that is full."""
    folder = tmp_path / "full"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount")
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    with suppress(OSError), (folder / "data").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_tmpdir_is_not_needed_or_named(full_disk, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(full_disk))
    detections = decode([answer("cat")], (64, 64))
    with CocoWriter(tmp_path / "coco.json") as writer:
        writer.add(detections, ["a" * 200])
    assert json.loads((tmp_path / "coco.json").read_text())["images"][0]["file_name"] == "a" * 200
    with (
        pytest.raises(InputError, match=r"temporary files \(TMPDIR\): No space left"),
        CocoWriter("-") as writer,
    ):
        writer.add(detections, ["a.jpg"])
    target = full_disk / "coco.json"
    with (
        pytest.raises(InputError, match=f"{target}: can't be written: No space left"),
        CocoWriter(target) as writer,
    ):
        writer.add(detections, ["a.jpg"])
    assert [path.name for path in full_disk.iterdir()] == ["data"]


def test_annotations_are_the_same_json_as_before():
    rings = [[0.01, 1234567.89, 1e-05, -0.0, 5.0, 1e16, 123.45], [1.0, 2.0, 3.3]]
    for segmentation in (rings, [], {"size": [4, 6], "counts": 'a"\\b'}):
        found = Annotation(0, 1, [1.5, 2.0, 3.125, 0.0], 9.5, segmentation, 0.25)
        assert json.loads("{" + found.text()) == {
            "bbox": found.bbox,
            "area": 9.5,
            "segmentation": segmentation,
            "score": 0.25,
            "iscrowd": 0,
        }


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_ring_that_is_not_finite_is_refused(number):
    with pytest.raises(ValueError, match="not finite"):
        Annotation(0, 1, [0.0] * 4, 0.0, [[0.0, number]], None).text()


def test_sides_of_boxes_are_rounded_as_python_does():
    rng = np.random.default_rng(0)
    low, more = rng.uniform(0, 900, (500, 2)), rng.uniform(0, 300, (500, 2))
    corners = np.concatenate([low, low + more], axis=1).astype(np.float32)
    found = Detections(
        xyxy=corners,
        labels=["cat"] * 500,
        scores=np.ones(500, np.float32),
        image_index=np.zeros(500, np.int64),
        sizes=np.array([(1280, 960)]),
        codes=np.zeros((500, 16), np.uint8),
        has_mask=np.zeros(500, bool),
    )
    for row, box in zip(to_coco(found)["annotations"], corners.astype(float), strict=True):
        x1, y1, x2, y2 = (round(value, 3) for value in box.tolist())
        assert row["bbox"] == [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
        assert row["area"] == round(row["bbox"][2] * row["bbox"][3], 3)
