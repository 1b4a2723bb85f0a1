"""`palidecode evaluate` of rows of answers: the numbers of decode and evaluate."""

import json

import pytest

from palidecode.cli import main
from tests.samples import DEMO, answer, written

pytestmark = pytest.mark.filterwarnings("ignore")  # no scores
TRUTH = DEMO / "truth.json"


def evaluate(capsys, truth, predictions, *options):
    code = main(["evaluate", str(truth), str(predictions), "--json", *map(str, options)])
    return code, json.loads(capsys.readouterr().out or "null")


def test_rows_have_the_numbers_of_their_decoded_file(capsys, tmp_path):
    weights = ["--weights", "palidecode-demo"]
    coco, rows = tmp_path / "coco.json", tmp_path / "rows.json"
    answers = [json.loads(line) for line in (DEMO / "answers.jsonl").read_text().splitlines()]
    answers = [{"file_name": f"elsewhere\\{r['image']}", "text": r["output"]} for r in answers]
    rows.write_text(json.dumps([{**row, "codec": "palidecode-demo"} for row in answers]))
    main(["decode", str(DEMO / "answers.jsonl"), "--images", str(DEMO), "-o", str(coco), *weights])
    capsys.readouterr()
    code, wanted = evaluate(capsys, TRUTH, coco, "--iou-type", "both")
    again, found = evaluate(capsys, TRUTH, rows, "--iou-type", "both")
    assert (found.pop("problems"), found.pop("notes")) == ([], [])
    assert (again, found["bbox"], found["segm"]) == (code, wanted["bbox"], wanted["segm"])
    assert found["bbox"]["metrics"]["AP50"] > 0.5


def truth_of(folder, names):
    box = {"bbox": [200, 100, 600, 600], "category_id": 1, "iscrowd": 0, "area": 360000}
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    data = {
        "images": [{**image, "width": 1024, "height": 1024} for image in images],
        "annotations": [{**box, "id": n + 1, "image_id": n} for n in range(len(names))],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "gt.json").write_text(json.dumps(data))
    return folder / "gt.json"


def test_rows_about_unknown_pictures_are_listed(capsys, tmp_path):
    truth = truth_of(tmp_path, ["a.png", "b.png"])
    rows = [{"image": name, "output": answer("cat")} for name in ("a.png", "b.png", "c.png")]
    code, found = evaluate(capsys, truth, written(tmp_path, rows[:2]))
    assert (code, found["bbox"]["at_iou_50"]["right"], found["bbox"]["at_iou_50"]["missed"]) == (
        0,
        2,
        0,
    )
    code, found = evaluate(capsys, truth, written(tmp_path, rows))
    assert (code, found["bbox"]["at_iou_50"]["right"]) == (1, 2)
    reason = "'c.png': no such picture in the ground truth, or no size of it"
    assert found["problems"] == [{"line": 3, "reason": reason}]


def test_the_keys_of_rows_can_be_named(capsys, tmp_path):
    truth = truth_of(tmp_path, ["a.png"])
    rows = written(tmp_path, [{"image": "x", "photo": "a.png", "mine": answer("cat"), "text": "?"}])
    options = ("--output-key", "mine", "--image-key", "photo")
    code, found = evaluate(capsys, truth, rows, *options)
    assert (code, found["bbox"]["at_iou_50"]["right"]) == (0, 1)


def test_rows_that_say_nothing_are_noted(capsys, tmp_path):
    truth = truth_of(tmp_path, ["a.png"])
    code, found = evaluate(capsys, truth, written(tmp_path, [{"image": "a.png", "output": "cat"}]))
    assert (code, found["bbox"]["at_iou_50"]["missed"]) == (1, 1)
    assert "skip_special_tokens=False" in found["notes"][0]


def test_rows_without_a_usable_one_are_an_error(capsys, tmp_path):
    truth = truth_of(tmp_path, ["a.png"])
    rows = written(tmp_path, [{"image": "b.png", "output": answer("cat")}])
    assert main(["evaluate", str(truth), str(rows)]) == 2
    assert "no usable row" in capsys.readouterr().err
