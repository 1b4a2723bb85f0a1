"""Datasets that people have: odd categories, sizes and annotations, encoded."""

import json

import pytest
from PIL import Image

from palidecode import EncodeReport, InputError, to_finetuning_rows
from palidecode.cli import main
from tests.coco.samples import SIZE, annotation


def rows_of(dataset, **options):
    report = EncodeReport()
    rows = list(to_finetuning_rows(dataset, report=report, **options))
    return {row["image"]: row for row in rows}, report


@pytest.fixture
def encode(dataset, tmp_path, capsys):
    """Encodes the dataset; returns the exit code, the rows, and what was printed on stderr."""

    def run(*options):
        source, out = tmp_path / "coco.json", tmp_path / "rows.jsonl"
        source.write_text(json.dumps(dataset))
        out.unlink(missing_ok=True)
        code = main(["encode", str(source), "-o", str(out), *map(str, options)])
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, rows, capsys.readouterr().err

    return run


def test_only_chosen_categories_are_asked_for(dataset):
    rows, report = rows_of(dataset, categories=["bird", "cat"])
    assert {row["prefix"] for row in rows.values()} == {"detect cat ; bird"}
    assert "dog" not in rows["a.jpg"]["suffix"]
    assert (report.objects, report.left_out()) == (3, {})
    with pytest.raises(InputError, match="no category is called 'unicorn'"):
        rows_of(dataset, categories=["unicorn"])


def test_grouping_categories_are_noted(dataset, encode):
    dataset["categories"][0]["supercategory"] = "animals"
    dataset["categories"].append({"id": 9, "name": "animals", "supercategory": "none"})
    code, rows, printed = encode()
    assert (code, rows[0]["prefix"].endswith("; animals")) == (0, True)
    assert "only group others are asked for too: animals; --categories" in printed
    code, rows, printed = encode("--categories", "cat", "dog")
    assert (code, rows[0]["prefix"], printed) == (0, "detect cat ; dog", "")


def test_crowds_are_objects_on_request(dataset, encode):
    dataset["annotations"] = [annotation(7, 3, 300, 40, 64, iscrowd=1)]
    assert rows_of(dataset)[0]["a.jpg"]["suffix"] == ""
    rows, report = rows_of(dataset, crowds=True)
    assert (rows["a.jpg"]["suffix"].endswith(" cat"), report.left_out()) == (True, {})
    assert encode()[0] == 0  # crowds are skipped by design
    assert encode("--crowds")[1][0]["suffix"].endswith(" cat")


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}, {"width": 0, "height": 0}])
def test_sizes_come_from_the_pictures(dataset, encode, tmp_path, size):
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg")
    dataset["images"] = [{"id": 7, "file_name": "a.jpg", **size}]
    dataset["annotations"] = dataset["annotations"][:1]
    code, rows, _ = encode("--images", tmp_path)
    assert (code, [(row["width"], row["height"]) for row in rows]) == (0, [SIZE])
    code, rows, printed = encode()
    assert (code, rows) == (2, [])
    assert "no image gives a row: " in printed
    assert "bad_images 1 (images[0]: a size must be" in printed


def test_every_reason_is_printed_if_no_row_results(dataset, encode, tmp_path):
    Image.new("RGB", (320, 240)).save(tmp_path / "a.jpg")
    code, _, printed = encode("--images", tmp_path)
    assert code == 2
    assert "image 0: a.jpg is 320×240 in" in printed
    assert "image 1: " in printed
    assert "b.jpg: no such picture" in printed


def test_a_picture_whose_objects_are_unreadable_gives_no_row(dataset):
    dataset["annotations"] = [
        annotation(7, None, 300, 40, 64),
        annotation(5, 99, 10, 20, 100),
    ]
    rows, report = rows_of(dataset)
    assert list(rows) == ["none.jpg"]
    assert report.images_without_objects == 2
    dataset["annotations"].append(annotation(7, 3, 160, 30, 32))
    assert rows_of(dataset)[0]["a.jpg"]["suffix"].endswith(" cat")


def test_rotated_objects_are_counted(dataset, encode):
    for item, angle in zip(dataset["annotations"], (45.0, 0, 360, None), strict=True):
        item["attributes"] = {"occluded": False, "rotation": angle}
    assert rows_of(dataset)[1].rotated == 1
    code, _, printed = encode()
    assert code == 1
    assert "objects with a rotation (attributes.rotation): 1;" in printed


def test_good_rings_are_used_and_bad_ones_counted(dataset):
    dataset["annotations"][0]["segmentation"].append([10, 10, 12, 12])
    rows, report = rows_of(dataset, boxes="masks")
    assert (report.objects, report.left_out()) == (4, {"bad_rings": 1})
    assert rows["a.jpg"]["suffix"].count("cat") == 2
