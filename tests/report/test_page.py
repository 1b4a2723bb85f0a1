"""The report page: its content, its notices about omissions, and its safety."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from palidecode import InputError, UnscoredWarning, evaluate_coco
from palidecode.cli import main
from palidecode.geometry.rle import rle_to_crop
from palidecode.report import write_report
from palidecode.report.gallery import (
    KINDS,
    MOST_DRAWN,
    MOST_PICTURES,
    SIDE,
    Thumbnails,
    choose,
    gallery,
    outline,
)
from palidecode.report.page import MOST_CONFUSED
from tests.report.example import drawn_truth, noisy_predictions


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with truth.json, found.json and pictures/."""
    folder = tmp_path_factory.mktemp("example")
    truth, pictures = drawn_truth(30)
    (folder / "pictures").mkdir()
    for image, picture in zip(truth["images"], pictures, strict=True):
        Image.fromarray(picture).save(folder / "pictures" / image["file_name"])
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(noisy_predictions(truth, 3)))
    return folder


def data_of(html):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert "<" not in text
    return json.loads(text)


def page_of(tmp_path, results, **more):
    write_report(tmp_path / "index.html", results, **more)
    return (tmp_path / "index.html").read_text()


def run(example, out, *more):
    files = [str(example / name) for name in ("truth.json", "found.json")]
    return main(["evaluate", *files, "-o", str(out), *more])


def test_the_command_writes_numbers_and_page(example, tmp_path, capsys):
    pictures = str(example / "pictures")
    assert run(example, tmp_path, "--iou-type", "both", "--images", pictures) == 0
    assert "index.html" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "metrics.json"]
    told = json.loads((tmp_path / "metrics.json").read_text())
    html = (tmp_path / "index.html").read_text()
    data = data_of(html)
    assert list(data["kinds"]) == ["bbox", "segm"]
    assert len(data["thumbs"]) == 30
    with Image.open(io.BytesIO(base64.b64decode(data["thumbs"][0]))) as thumb:
        assert (thumb.format, max(thumb.size)) == ("WEBP", 160)
    for kind, shown in data["kinds"].items():
        pictures = shown["pictures"]
        for word in ("right", "wrong", "missed"):
            assert sum(picture[word] for picture in pictures) == told[kind]["at_iou_50"][word]
        kinds = [KINDS[row[1]] for picture in pictures for row in picture["predictions"]]
        for word, count in told[kind]["kinds"].items():
            if word != "missed":
                assert kinds.count(word) == count
        assert sum(len(picture["truths"]) for picture in pictures) == told[kind]["objects"]
        scores = [picture["f1"] for picture in pictures if picture["f1"] is not None]
        assert scores == sorted(scores)
        masked = all(row[-1] for picture in pictures for row in picture["truths"])
        assert masked == (kind == "segm")
        assert f'id="panel-{kind}"' in html
        for name in ("AP", "AP50", "AR100"):
            assert f"{told[kind]['metrics'][name]:.3f}" in html
            low = told[kind]["intervals"][name]["low"]
            assert f"{low:.3f}" in html
    assert html.count("<svg") == 12  # kinds, two curves, calibration, F1 and sizes, of each


def test_the_page_needs_nothing_and_lets_nothing_in(example, tmp_path):
    result = evaluate_coco(example / "truth.json", example / "found.json")
    html = page_of(tmp_path, {"bbox": result}, images=example / "pictures")
    bare = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html).replace("http://www.w3.org/2000/svg", "")
    assert "http" not in bare.replace("http-equiv", "")
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", bare)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy.startswith("default-src 'none'")
    script = re.findall(r"<script>(.*?)</script>", html, re.S)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_same_evaluation_gives_the_same_page(example, tmp_path):
    pages = []
    for _ in range(2):
        result = evaluate_coco(example / "truth.json", example / "found.json", bootstrap=20)
        pages.append(page_of(tmp_path, {"bbox": result}))
    assert pages[0] == pages[1]


def test_names_are_text(tmp_path):
    hostile = ("</script><script>window.hacked=1</script>", '"><img src=x onerror=hack()>', "$a$&")
    truth, _ = drawn_truth(5, names=hostile)
    truth["images"][0]["file_name"] = "<b>bold</b>.png"
    found = noisy_predictions(truth, 1)
    html = page_of(tmp_path, {"bbox": evaluate_coco(truth, found)}, truth_name="<i>t</i>")
    assert "<script>window" not in html
    assert "<img" not in html
    assert "<i>t" not in html
    assert "<b>bold" not in html
    data = data_of(html)
    assert data["kinds"]["bbox"]["classes"] == list(hostile)
    assert "<b>bold</b>.png" in [p["name"] for p in data["kinds"]["bbox"]["pictures"]]


def test_without_the_extra_the_numbers_are_written(example, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("palidecode.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(example, tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    said = capsys.readouterr()
    assert "it needs matplotlib: pip install 'palidecode[report]'" in said.err
    assert "index.html" not in said.out


def test_the_folder_of_pictures_is_checked(example, tmp_path, capsys):
    assert run(example, tmp_path, "--images", str(tmp_path / "nowhere")) == 2
    assert "no such directory" in capsys.readouterr().err
    files = [str(example / name) for name in ("truth.json", "found.json")]
    assert main(["evaluate", *files, "--images", str(example)]) == 2
    assert "-o DIR" in capsys.readouterr().err


def test_pictures_that_are_missing_or_of_another_size_are_named(example, tmp_path):
    truth = json.loads((example / "truth.json").read_text())
    truth["images"][0]["file_name"] = "gone.png"
    truth["images"][1]["width"] = 320
    truth["images"][2]["file_name"] = "../outside.png"
    result = evaluate_coco(truth, json.loads((example / "found.json").read_text()))
    html = page_of(tmp_path, {"bbox": result}, images=example / "pictures")
    assert "2 pictures could not be read" in html
    assert "gone.png: no such picture" in html
    assert "leads out of the folder" in html
    assert "1 picture of another size" in html
    pictures = {p["name"]: p for p in data_of(html)["kinds"]["bbox"]["pictures"]}
    assert pictures["gone.png"]["thumb"] is None
    assert pictures["picture 003.png"]["thumb"] is not None


def test_unknown_sizes_come_from_the_picture_or_the_boxes(example):
    truth = json.loads((example / "truth.json").read_text())
    for image in truth["images"]:
        del image["width"], image["height"]
    result = evaluate_coco(truth, json.loads((example / "found.json").read_text()))
    shown = gallery(result, Thumbnails(example / "pictures"), 10**9).pictures
    aspects = {p["name"]: p["width"] / p["height"] for p in shown}
    assert aspects["picture 000.png"] == pytest.approx(90 / 140, rel=0.01)
    assert aspects["picture 001.png"] == pytest.approx(160 / 120, rel=0.01)
    for picture in gallery(result, Thumbnails(None), 10**9).pictures:
        assert max(picture["width"], picture["height"]) == SIDE
        for _, _, x, y, width, height, _ in picture["truths"]:
            assert x + width <= picture["width"] + 0.2
            assert y + height <= picture["height"] + 0.2


def test_an_outline_covers_its_mask():
    mask = np.zeros((120, 200), np.uint8)
    cv2.circle(mask, (70, 60), 45, 1, -1)
    cv2.circle(mask, (70, 60), 18, 0, -1)
    cv2.rectangle(mask, (150, 20), (180, 100), 1, -1)
    rle = coco_mask.encode(np.asfortranarray(mask))
    path = outline(rle_to_crop({"size": rle["size"], "counts": rle["counts"].decode()}), 2.0)
    rings = [
        np.array([point.split() for point in ring.split("L")], np.float64)
        for ring in re.findall(r"M([^Z]+)Z", path)
    ]
    assert len(rings) == 3
    drawn = np.zeros((240, 400), np.uint8)
    cv2.fillPoly(drawn, [ring.round().astype(np.int32) for ring in rings], 1)  # even-odd
    whole = mask.repeat(2, axis=0).repeat(2, axis=1)
    assert (drawn & whole).sum() / (drawn | whole).sum() > 0.93


def test_without_scores_there_are_no_curves(example, tmp_path):
    found = [
        {key: value for key, value in row.items() if key != "score"}
        for row in json.loads((example / "found.json").read_text())
    ]
    with pytest.warns(UnscoredWarning):
        result = evaluate_coco(example / "truth.json", found)
    html = page_of(tmp_path, {"bbox": result})
    assert "<h2>No scores</h2>" in html
    assert "± 0." in html
    assert "Precision over recall" not in html
    assert "Calibration of scores" not in html
    assert 'data-filter="score-from"' not in html
    assert data_of(html)["kinds"]["bbox"]["pictures"][0]["predictions"] is not None


def test_what_was_left_out_and_what_is_too_low_is_on_the_page(example, tmp_path, capsys):
    found = json.loads((example / "found.json").read_text())
    found += [{**found[0], "image_id": 999}, {**found[0], "category_id": 77}]
    found[1]["score"] = 12.5  # no probability
    (tmp_path / "found.json").write_text(json.dumps(found))
    files = [str(example / "truth.json"), str(tmp_path / "found.json")]
    out = tmp_path / "report"
    subsets = ["--nms", "0.5", "--score-thresholds", "0.3", "--min", "NMS-AP@0.5=0.98"]
    assert main(["evaluate", *files, "-o", str(out), "--min", "AP=0.99", *subsets]) == 1
    printed = capsys.readouterr()
    told = json.loads((out / "metrics.json").read_text())["bbox"]
    html = (out / "index.html").read_text()
    assert "prediction of unknown images" in html
    assert "below 0.99" in html
    assert "are not probabilities" in html
    assert "below 0.99" in printed.err
    assert "below 0.98" in printed.err
    assert list(told["subsets"]) == ["AP@nms0.5", "NMS-AP@0.5", "AP@score0.3"]
    for name, value in told["subsets"].items():
        assert f'<th scope="row">{name}</th><td class="n">{value:.3f}</td>' in html
        assert re.search(rf"  {re.escape(name)} +{value:.3f}   0\.", printed.out)
        assert name in told["intervals"]


@pytest.mark.parametrize("predictions", ["none", "no objects"])
def test_a_page_of_next_to_nothing(tmp_path, predictions):
    truth, _ = drawn_truth(2)
    found = noisy_predictions(truth)
    if predictions == "none":
        found = []
    else:
        truth["annotations"] = []
    html = page_of(tmp_path, {"bbox": evaluate_coco(truth, found)})
    assert len(data_of(html)["kinds"]["bbox"]["pictures"]) == 2


def test_crowded_pictures_say_what_they_do_not_draw(tmp_path):
    truth, _ = drawn_truth(1)
    row = noisy_predictions(truth, 5)[0]
    found = [{**row, "score": 0.9 - n / 1000, "bbox": [n % 90, 3, 20, 20]} for n in range(150)]
    result = evaluate_coco(truth, found)
    shown = gallery(result, Thumbnails(None), 10**9)
    assert len(shown.pictures[0]["predictions"]) == MOST_DRAWN
    assert "not drawn: 50 objects and predictions;" in shown.notices[0]
    assert "not drawn: 50 objects and predictions;" in page_of(tmp_path, {"bbox": result})


def test_a_full_gallery_says_how_many_pictures_are_not_there(example):
    result = evaluate_coco(example / "truth.json", example / "found.json")
    thumbnails = Thumbnails(example / "pictures")
    shown = gallery(result, thumbnails, 5000)
    count = len(shown.pictures)
    assert 1 < count < 30
    assert len(thumbnails.encoded) == count
    assert f"here: {count} of 30 pictures:" in shown.notices[0]
    assert shown.pictures[0]["f1"] == min(p["f1"] for p in shown.pictures)


def test_every_class_and_kind_finds_a_picture(example):
    result = evaluate_coco(example / "truth.json", example / "found.json")
    chosen = choose(result, most=16)
    assert len(chosen) == len(set(chosen)) == 16
    worst = [row["image_id"] - 1 for row in result.image_rows]
    assert chosen[:8] == worst[:8]
    pairs = set(zip(result.predicted.category.tolist(), result.matches.kind.tolist(), strict=True))
    there = np.isin(result.predicted.image, chosen)
    assert pairs == set(
        zip(
            result.predicted.category[there].tolist(),
            result.matches.kind[there].tolist(),
            strict=True,
        )
    )


def test_many_classes_share_a_row_of_the_confusion(tmp_path):
    names = tuple(f"class {n}" for n in range(MOST_CONFUSED + 12))
    truth, _ = drawn_truth(80, names=names)
    result = evaluate_coco(truth, noisy_predictions(truth, 2))
    html = page_of(tmp_path, {"bbox": result})
    used = len(result.confusion.names) - 1
    assert f"{used - MOST_CONFUSED} others" in html
    table = re.search(r'<table class="matrix".*?</table>', html, re.S)[0]
    counts = [int(n) for n in re.findall(r'<td class="[^"]+" style[^>]+>(\d+)</td>', table)]
    assert sum(counts) == result.confusion.counts.sum()


@pytest.mark.slow
def test_five_thousand_pictures_fit_into_a_page(tmp_path):
    rng = np.random.default_rng(0)
    images, objects, answers = 5000, 36_000, 180_000
    sides = rng.uniform(10, 200, (objects, 2))
    boxes = np.concatenate([rng.uniform(0, 1, (objects, 2)) * ([640, 480] - sides), sides], 1)
    of, category = rng.integers(images, size=objects), rng.integers(80, size=objects)
    picked = rng.integers(objects, size=answers)
    moved = boxes[picked] + rng.normal(0, 6, (answers, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], 1)
    said = np.where(rng.random(answers) < 0.2, rng.integers(80, size=answers), category[picked])
    truth = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(images)
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(80)],
        "annotations": [
            {"id": n + 1, "image_id": i, "category_id": c, "bbox": box, "area": box[2] * box[3]}
            for n, (i, c, box) in enumerate(
                zip(of.tolist(), category.tolist(), boxes.tolist(), strict=True)
            )
        ],
    }
    columns = (of[picked], said, moved, rng.random(answers))
    found = [
        {"image_id": i, "category_id": c, "bbox": box, "score": score}
        for i, c, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]
    html = page_of(tmp_path, {"bbox": evaluate_coco(truth, found)})
    assert len(html) < 25_000_000
    assert len(data_of(html)["kinds"]["bbox"]["pictures"]) == MOST_PICTURES
    assert f"here: {MOST_PICTURES} of 5,000 pictures:" in html


def test_a_page_that_cannot_be_written_is_one_line(example, tmp_path):
    result = evaluate_coco(example / "truth.json", example / "found.json")
    with pytest.raises(InputError, match="is a folder"):
        write_report(tmp_path, {"bbox": result})
