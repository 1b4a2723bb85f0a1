"""Pictures that are drawn while they are predicted, or after a stop."""

import json

from PIL import Image

from palidecode.cli.predict import _Overlay
from palidecode.coco.shards import Result
from palidecode.coco.writing import to_coco
from palidecode.detections import decode
from palidecode.files import whole_png
from palidecode.runs.sources import find_pictures
from tests.samples import answer

NAMES = ["a.png", "b.png", "c.png"]


def test_pictures_that_are_gone_or_damaged_are_listed_and_the_others_drawn(tmp_path):
    pictures, drawn = tmp_path / "in", tmp_path / "out"
    pictures.mkdir()
    for name in NAMES:
        Image.effect_noise((64, 48), 50).convert("RGB").save(pictures / name)
    items = find_pictures([pictures])
    detections = decode([answer("cat")] * 3, (64, 48))
    result = Result(detections, [0, 1, 2], NAMES, {})
    (pictures / "a.png").unlink()
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:100])
    overlay = _Overlay(drawn, items, "subpixel")
    overlay.draw(items, result)
    assert [path.name for path in drawn.iterdir()] == ["c.png"]
    assert [reason.split(": ")[0] for reason in overlay.failed] == [
        str(pictures / "a.png"),
        str(pictures / "b.png"),
    ]


def test_what_a_power_cut_damaged_is_drawn_again(tmp_path):
    pictures, drawn, coco = tmp_path / "in", tmp_path / "out", tmp_path / "coco.json"
    pictures.mkdir()
    for name in NAMES:
        Image.effect_noise((64, 48), 50).convert("RGB").save(pictures / name)
    items = find_pictures([pictures])
    detections = decode([answer("cat")] * 3, (64, 48))
    coco.write_text(json.dumps(to_coco(detections, file_names=NAMES)))
    _Overlay(drawn, items, "subpixel").draw(items, Result(detections, [0, 1, 2], NAMES, {}))
    wanted = {path.name: path.read_bytes() for path in drawn.iterdir()}
    (drawn / "a.png").write_bytes(b"")
    (drawn / "b.png").write_bytes(bytes(len(wanted["b.png"])))
    resumed = _Overlay(drawn, items, "subpixel")
    resumed.draw_rest(coco)
    assert all(map(whole_png, drawn.iterdir()))
    assert {path.name: path.read_bytes() for path in drawn.iterdir()} == wanted
    (pictures / "a.png").unlink()
    (drawn / "a.png").write_bytes(b"")
    resumed = _Overlay(drawn, items, "subpixel")
    resumed.draw_rest(coco)
    assert len(resumed.failed) == 1
