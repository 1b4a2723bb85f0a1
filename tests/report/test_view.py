"""`palidecode view`: the page of pictures with their objects, without a truth."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from palidecode.answers.parsing import parse
from palidecode.cli import main
from palidecode.report import RawAnswer
from palidecode.report.gallery import KINDS, MOST_PICTURES
from tests.report.test_page import data_of

HOSTILE = "</script><script>window.hacked=1</script>"
ANSWER = "Sure! <loc0000><loc0000><loc0512><loc0512> cat ; <loc0512><loc0512><loc1023><loc1023>dog"


@pytest.fixture
def folder(tmp_path):
    """Two pictures, of 200×100 pixels, and a third that isn't there."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 100), "teal").save(tmp_path / name)
    images = [
        {"id": number, "file_name": name, "width": 200, "height": 100}
        for number, name in enumerate(("a.png", "b.png", "gone.png"), 1)
    ]
    square = [[10, 10, 60, 10, 60, 60, 10, 60]]
    objects = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "score": 0.75},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 20, 20]},
    ]
    objects[0]["segmentation"] = square
    data = {
        "info": {"model": "some/model", "prompts": ["detect cat", "detect dog"]},
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": HOSTILE}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(data))
    return tmp_path


def view(folder, *words):
    out = folder / "page"
    code = main(["view", *map(str, words), "-o", str(out)])
    html = (out / "index.html").read_text() if (out / "index.html").exists() else ""
    return code, html


def test_a_dataset_is_shown_and_a_missing_picture_is_a_listed_empty_frame(folder, capsys):
    code, html = view(folder, folder / "coco.json")  # the pictures are beside it
    assert code == 1
    assert "gone.png: no such picture" in capsys.readouterr().err
    data = data_of(html)
    assert data["plain"]
    assert not data["beside"]
    assert len(data["thumbs"]) == 2
    kind = data["kinds"]["view"]
    assert kind["classes"] == [HOSTILE, "dog"]
    first, second, gone = kind["pictures"]
    assert (gone["thumb"], gone["width"], gone["height"]) == (None, 320, 160)
    assert gone["predictions"] == [[1, len(KINDS), None, 0, -1, 0, 0, 32, 32, None]]
    assert second["predictions"] == []
    *row, outline = first["predictions"][0]
    assert row == [0, len(KINDS), 0.75, 0, -1, 16, 16, 80, 80]
    assert outline.startswith("M")
    assert outline.endswith("Z")
    assert HOSTILE not in html
    assert "1 picture could not be read" in html
    for text in ("some/model", "detect cat · detect dog"):
        assert f"<dd>{text}</dd>" in html


def test_a_results_list_needs_its_dataset(folder, capsys):
    row = {"image_id": 2, "category_id": 2, "bbox": [20, 10, 100, 50], "score": 0.5}
    (folder / "results.json").write_text(json.dumps([row]))
    assert view(folder, folder / "results.json") == (2, "")
    assert "--dataset FILE" in capsys.readouterr().err
    code, html = view(folder, folder / "results.json", "--dataset", folder / "coco.json")
    assert code == 1  # gone.png
    kind = data_of(html)["kinds"]["view"]
    assert kind["pictures"][1]["predictions"] == [[0, 8, 0.5, 0, -1, 32, 16, 160, 80, None]]
    assert kind["classes"] == ["dog"]


def test_answers_are_shown_raw_with_their_issues(folder, capsys):
    rows = [
        {"image": "a.png", "prompt": "detect cat ; dog", "output": ANSWER},
        {"image": "b.png", "output": "<loc0000><loc0000><loc1023><loc1023> sky"},
        {"image": "a.png", "prompt": "detect bird", "output": ""},
    ]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, html = view(folder, folder / "answers.jsonl", "--json")
    assert code == 0
    assert json.loads(capsys.readouterr().out)["issues"] == 2
    first, second = data_of(html)["kinds"]["view"]["pictures"]
    assert (first["issues"], second["issues"]) == (2, 0)
    (prompt, pieces), (other, none) = first["answers"]
    assert (prompt, other, none) == ("detect cat ; dog", "detect bird", [])
    assert "".join(text for text, _, _ in pieces) == ANSWER
    assert pieces[0] == ["Sure!", True, ["stray_text"]]
    assert [kind for _, _, kinds in pieces for kind in kinds] == ["stray_text", "missing_space"]
    assert second["answers"] == [["", [[rows[1]["output"], False, []]]]]
    (folder / "rows.json").write_text(json.dumps(rows))
    code, html = view(folder, folder / "rows.json")
    assert (code, data_of(html)["kinds"]["view"]["pictures"]) == (0, [first, second])


def test_token_ids_are_spelled_and_their_issues_marked():
    ids = [12, 256000, 256001, 256002, 256003, 7, 256000 + 1, 1]
    pieces = RawAnswer("", ids, parse(ids).issues).pieces()
    text = "[12]<loc0000><loc0001><loc0002><loc0003>[7]<loc0001>[1]"
    assert "".join(piece for piece, _, _ in pieces) == text
    assert ("[12]", True, ["stray_text"]) in pieces
    assert ("<loc0001>", True, ["missing_loc"]) in [(t, odd, kinds[:1]) for t, odd, kinds in pieces]


def test_many_pictures_are_files_beside_the_page(folder):
    data = json.loads((folder / "coco.json").read_text())
    data["images"] = [
        {"id": number, "file_name": "a.png", "width": 200, "height": 100}
        for number in range(1, MOST_PICTURES + 2)
    ]
    data["images"][5]["file_name"] = "b.png"
    (folder / "many.json").write_text(json.dumps(data))
    code, html = view(folder, folder / "many.json")
    assert code == 0
    shown = data_of(html)
    assert shown["beside"]
    assert "img-src data: 'self';" in html
    assert shown["thumbs"] == ["index_files/0.webp", "index_files/1.webp"]
    with Image.open(folder / "page" / "index_files" / "1.webp") as copy:
        assert (copy.format, copy.size) == ("WEBP", (200, 100))
    pictures = shown["kinds"]["view"]["pictures"]
    assert [pictures[index]["thumb"] for index in (0, 5, 600)] == [0, 1, 0]
