"""The page of `palidecode compare -o`: its numbers, its objects, and what it refuses."""

import json
import re

import pytest

from palidecode import compare_coco
from palidecode.cli import main


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Three objects of one class: A detects the first two, B the last two; and a wrong one."""
    monkeypatch.chdir(tmp_path)
    boxes = [[0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10]]
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in (1, 2)]
    rows = [
        {"id": n, "image_id": 2, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0}
        for n, box in enumerate(boxes, 1)
    ]
    categories = [{"id": 1, "name": "</script><b>cat"}]
    truth = {"images": images, "annotations": rows, "categories": categories}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    for name, found in (("a.json", boxes[:2]), ("b.json", [*boxes[1:], [0, 30, 5, 5]])):
        rows = [
            {"image_id": 2, "category_id": 1, "bbox": box, "score": 0.9 - n / 10}
            for n, box in enumerate(found)
        ]
        (tmp_path / name).write_text(json.dumps(rows))
    return tmp_path


def data_of(path):
    text = path.read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def test_every_object_has_its_state_and_the_numbers_are_written(place, capsys):
    words = "compare a.json b.json --gt gt.json -o page --bootstrap 20 --nms 0.5"
    assert main(words.split()) == 0
    assert "written: page/metrics.json, page/index.html" in capsys.readouterr().out
    data = data_of(place / "page/index.html")
    first, second = data["kinds"]["bbox"]["pictures"]
    assert (first["name"], second["name"]) == ("2.png", "1.png")
    assert [row[1] for row in first["truths"]] == [3, 0, 4]  # A alone, both, B alone
    assert (first["only"], first["counts"]) == ([1, 1], [[2, 0], [2, 1]])
    assert [row[4] for row in first["others"]] == [1, 2, -1]
    numbers = json.loads((place / "page/metrics.json").read_text())["bbox"]
    wanted = compare_coco("gt.json", "a.json", "b.json", bootstrap=20, nms=0.5).as_dict()
    assert numbers["differences"] == wanted["differences"]
    assert numbers["differences"].keys() > {"AP", "F1", "F1@mean", "NMS-AP@0.5"}
    assert '<th scope="row">NMS-AP@0.5</th>' in (place / "page/index.html").read_text()
    assert "<b>cat" not in (place / "page/index.html").read_text().partition("<script")[0]


def test_images_need_a_page_and_a_page_is_a_folder(place, capsys):
    assert main(["compare", "a.json", "b.json", "--gt", "gt.json", "--images", "."]) == 2
    assert "--images is for the page" in capsys.readouterr().err
    assert main(["compare", "a.json", "b.json", "--gt", "gt.json", "-o", "page.json"]) == 2
    assert "use the name of a folder" in capsys.readouterr().err
