import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import palidecode
from palidecode.cli import main
from palidecode.demo.answers_demo import run
from palidecode.files import read_json
from tests.runtime.tiny_models import one_thread, write_folder
from tests.samples import DEMO

SCENES = DEMO / "scenes"


def test_the_demo_finds_every_object_where_it_is(tmp_path):
    report = run(tmp_path)
    assert len(report.rows) == 7
    assert min(row.box_iou for row in report.rows) > 0.95
    masks = [row.mask_iou for row in report.rows if row.mask_pixels is not None]
    assert len(masks) == 5
    assert min(masks) > 0.8
    assert np.mean(masks) > 0.88
    assert any("stray_text" in issue for issue in report.issues)


def test_the_answers_demo_writes_a_picture_and_a_coco_file(tmp_path, capsys):
    assert main(["demo", "--answers", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "lighthouse" in printed
    assert "fisherman's hut" in printed
    assert len(COCO(str(tmp_path / "out/coco.json")).anns) == 7
    with Image.open(tmp_path / "out/overlay.png") as overlay:
        assert overlay.size == (960, 600)


def test_the_answers_demo_speaks_json(tmp_path, capsys):
    main(["demo", "--answers", "-o", str(tmp_path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [row["mask_iou"] for row in said["rows"]].count(None) == 2


@pytest.mark.slow
def test_the_demo_runs_its_model_on_pictures_it_has_never_seen(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "12 unseen pictures" in printed
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["coco.json", "metrics.json", "overlays", "sheet.png"]
    assert len(list((tmp_path / "overlays").iterdir())) == 12
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["boxes"]["AP50"] > 0.5
    assert metrics["mask_iou"] > 0.65
    assert metrics["found"] == len(read_json(tmp_path / "coco.json")["annotations"])
    assert len(metrics["examples"]) == 3


def test_the_demo_with_another_model(tmp_path, capsys):
    folder = write_folder(tmp_path / "model")
    classes = [item["name"] for item in read_json(SCENES / "instances.json")["categories"]]
    notes = {"codes": "palidecode-demo", "classes": classes}
    (folder / "palidecode.json").write_text(json.dumps(notes))
    with one_thread():
        assert main(["demo", "--model", str(folder), "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    # Random weights find nothing, and the numbers say so.
    assert read_json(tmp_path / "out/metrics.json")["boxes"]["AP50"] < 0.1


def test_the_demo_on_a_picture_of_ones_own(tmp_path, capsys):
    truth = read_json(SCENES / "instances.json")
    names = {item["id"]: item["name"] for item in truth["categories"]}
    first = truth["annotations"][0]
    assert truth["images"][0]["id"] == first["image_id"]
    with Image.open(SCENES / truth["images"][0]["file_name"]) as picture:
        picture.resize((300, 300)).save(tmp_path / "mine.png")
    prompt = f"detect {names[first['category_id']]}"
    command = ["demo", "--image", str(tmp_path / "mine.png"), "--prompt", prompt]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert prompt in printed
    assert "On photographs it guesses" in " ".join(printed.split())
    assert (tmp_path / "out/mine.png").exists()
    assert main([*command, "-o", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["objects"]) == len(palidecode.parse(said["answer"]).objects)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--prompt", "detect star"], "add --image"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--model", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_the_demo_cannot_do_is_said(given, said, tmp_path, capsys):
    assert main(["demo", *given, "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
