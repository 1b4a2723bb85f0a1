"""Detections to look at: rows, CSV, pandas, a terminal, a notebook, pictures."""

import csv
import json
import sys
from dataclasses import replace
from html.parser import HTMLParser

import nbclient
import nbformat
import numpy as np
import pandas
import pytest
from PIL import Image, ImageShow

from palidecode import Detections, InputError, decode
from tests.samples import CODES, answer


@pytest.fixture
def found(demo_codec):
    texts = [f"{answer('cat', codes=CODES)} ; {answer('<b>dog</b>, big')}", answer("owl")]
    return decode(
        texts,
        [(64, 48), (80, 60)],
        demo_codec,
        scores=[[0.9, 0.25], None],
        names=["a.jpg", ""],
        image_ids=[7, None],
    )


@pytest.fixture
def pictures(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "navy").save("a.jpg")
    return replace(found, names=["a.jpg", "missing.jpg"])


def test_rows_are_json_values(found):
    rows = found.to_dict()
    assert rows[0] == {
        "image": "a.jpg",
        "image_id": 7,
        "image_index": 0,
        "label": "cat",
        "score": pytest.approx(0.9),
        "x1": 12.5,
        "y1": 4.6875,
        "x2": 50.0,
        "y2": 32.8125,
        "has_mask": True,
    }
    assert [row["label"] for row in rows] == found.labels
    assert (rows[2]["image"], rows[2]["image_id"], rows[2]["score"]) == ("", None, None)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_csv_has_the_same_rows(found, tmp_path):
    path = tmp_path / "objects.csv"
    found.to_csv(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(found.to_dict()[0])
    assert rows[0]["score"] == "0.9"
    assert rows[1]["label"] == "<b>dog</b>, big"
    assert (rows[2]["score"], rows[2]["image_id"]) == ("", "")
    assert float(rows[2]["x2"]) == found.xyxy[2, 2]
    with pytest.raises(InputError, match="is a folder"):
        found.to_csv(tmp_path)


def test_pandas_has_the_same_rows(found):
    frame = found.to_pandas()
    assert list(frame.columns) == list(found.to_dict()[0])
    assert frame.label.tolist() == found.labels
    assert frame.score.isna().tolist() == [False, False, True]
    assert frame.groupby("image_index").size().tolist() == [2, 1]
    frame.loc[0, "x1"] = 0  # a copy
    assert found.xyxy[0, 0] == 12.5
    assert isinstance(Detections.empty().to_pandas(), pandas.DataFrame)


def test_without_pandas_a_line_says_how_to_get_it(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="this needs pandas: pip install pandas"):
        found.to_pandas()


def test_a_terminal_shows_the_first_rows(found):
    lines = repr(found).splitlines()
    assert lines[0] == "Detections: 3 objects in 2 images, 1 with a mask, 0 issues"
    assert lines[1].split() == ["image", "label", "score", "x1", "y1", "x2", "y2", "mask"]
    assert lines[2].split() == ["a.jpg", "cat", "0.900", "12.5", "4.7", "50.0", "32.8", "yes"]
    assert lines[4].split()[:3] == ["#1", "owl", "-"]
    many = Detections.concat([found] * 5)
    assert repr(many).splitlines()[-1] == "  … and 5 more"
    assert repr(Detections.empty()) == (
        "Detections: 0 objects in 0 images, 0 with a mask, 0 issues"
    )
    odd = replace(found, labels=["two\nlines", "\x1b[31mred", "x" * 99 + "\ud800"])
    assert "\x1b" not in repr(odd)
    assert len(repr(odd).splitlines()) == 5
    repr(odd).encode()


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_html_is_a_table_with_escaped_labels(found):
    page = Tags(found._repr_html_())
    assert page.tags.count("table") == 1
    assert page.tags.count("tr") == 4
    assert not {"b", "img", "script"} & set(page.tags)
    assert "<b>dog</b>, big" in page.texts
    assert Tags(Detections.empty()._repr_html_()).tags.count("tr") == 1


def test_html_has_thumbnails_of_pictures_that_are_found(pictures):
    page = Tags(pictures._repr_html_())
    assert page.tags.count("img") == 1
    assert "a.jpg" in page.texts
    with open("a.jpg", "wb") as file:  # a picture that can't be read has none
        file.write(b"no picture")
    assert Tags(pictures._repr_html_()).tags.count("img") == 0


def test_plots_draw_the_objects_on_their_pictures(pictures):
    figure = pictures.plot()
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [axes.get_title() for axes in figure.axes] == ["a.jpg", "missing.jpg"]
    assert drawn[0].shape == (336, 448, 3)  # enlarged, so that lines are thin
    assert (drawn[0][2, 2] == Image.open("a.jpg").getpixel((0, 0))).all()
    assert len(np.unique(drawn[0].reshape(-1, 3), axis=0)) > 9  # boxes, a mask, labels
    assert (drawn[1][0, 0] == 0xEE).all()  # an empty frame
    assert len(pictures.plot(limit=1).axes) == 1
    assert len(Detections.empty().plot().axes) == 1
    unread = replace(Detections.empty(), sizes=np.array([[0, 0]]), names=[""], image_ids=[None])
    assert len(unread.plot().axes) == 1


def test_pictures_come_from_a_folder_or_from_a_list(found, tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    named = replace(found, names=["a.png", "../b.png"])
    assert (named.plot(tmp_path, limit=1).axes[0].images[0].get_array()[0, 0] == (255, 0, 0)).all()
    with pytest.raises(InputError, match="leads out of the folder"):
        named.plot(tmp_path)
    given = [Image.new("RGB", (64, 48), "lime"), np.zeros((60, 80, 3), np.uint8)]
    figure = found.plot(given)
    assert (figure.axes[0].images[0].get_array()[0, 0] == (0, 255, 0)).all()
    with pytest.raises(InputError, match=r"pictures \(1\) must be as many as the images \(2\)"):
        found.plot(given[:1])


def test_show_gives_a_sheet_to_the_desktops_viewer(pictures, monkeypatch):
    shown = []

    class Viewer(ImageShow.Viewer):
        def show(self, image, **options):
            shown.append(image)
            return True

    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()])
    pictures.show()
    assert shown[0].size == (2 * 460 + 12, 460 + 12)
    monkeypatch.setattr(ImageShow, "_viewers", [])
    with pytest.raises(InputError, match="no program shows pictures here"):
        pictures.show()


NOTEBOOK = """
from palidecode import decode
box = "<loc0100><loc0200><loc0700><loc0800> cat"
found = decode([box], (64, 48), names=["a.jpg"])
found
---
found.show()
---
found.plot()
"""


def test_a_notebook_shows_tables_and_pictures(pictures):
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in NOTEBOOK.split("---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (table,), (sheet,), (plot,) = (cell.outputs for cell in notebook.cells)
    assert Tags(table.data["text/html"]).tags.count("table") == 1
    assert Tags(table.data["text/html"]).tags.count("img") == 1
    assert table.data["text/plain"].startswith("Detections: 1 object in 1 image")
    assert "image/png" in sheet.data
    assert "image/png" in plot.data
