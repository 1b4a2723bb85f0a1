import json

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from palidecode.cli import main
from palidecode.demo.answers_demo import run
from palidecode.files import read_json
from training.scene_shapes import CLASSES

from .tiny_models import one_thread, write_folder


def test_the_demo_finds_every_object_where_it_is(tmp_path):
    report = run(tmp_path)
    assert len(report.rows) == 7
    assert min(row.box_iou for row in report.rows) > 0.95
    masks = [row.mask_iou for row in report.rows if row.mask_pixels is not None]
    assert len(masks) == 5
    assert min(masks) > 0.8
    assert np.mean(masks) > 0.88
    assert any("stray_text" in issue for issue in report.issues)


def test_the_demo_writes_a_picture_and_a_coco_file(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "lighthouse" in printed
    assert "fisherman's hut" in printed
    assert len(COCO(str(tmp_path / "out/coco.json")).anns) == 7
    with Image.open(tmp_path / "out/overlay.png") as overlay:
        assert overlay.size == (960, 600)


def test_the_demo_speaks_json(tmp_path, capsys):
    main(["demo", "-o", str(tmp_path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [row["mask_iou"] for row in said["rows"]].count(None) == 2


def test_the_demo_runs_a_model_on_the_bundled_scenes(tmp_path, capsys):
    folder = write_folder(tmp_path / "model")
    notes = {"codes": "palidecode-demo", "classes": list(CLASSES)}
    (folder / "palidecode.json").write_text(json.dumps(notes))
    with one_thread():
        assert main(["demo", "--model", str(folder), "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "12 pictures it has never seen" in printed
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["coco.json", "metrics.json", "overlays", "sheet.png"]
    metrics = read_json(tmp_path / "out/metrics.json")
    # Random weights find nothing, and the numbers say so.
    assert metrics["boxes"]["AP50"] < 0.1
    assert metrics["found"] == len(read_json(tmp_path / "out/coco.json")["annotations"])
    assert len(metrics["examples"]) == 3
