import json

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from palidecode.cli import main
from palidecode.demo.answers_demo import run


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
    assert main(["demo", "--answers", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "lighthouse" in printed
    assert "fisherman's hut" in printed
    assert len(COCO(str(tmp_path / "out/coco.json")).anns) == 7
    with Image.open(tmp_path / "out/overlay.png") as overlay:
        assert overlay.size == (960, 600)


def test_the_demo_speaks_json(tmp_path, capsys):
    main(["demo", "--answers", "-o", str(tmp_path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [row["mask_iou"] for row in said["rows"]].count(None) == 2
