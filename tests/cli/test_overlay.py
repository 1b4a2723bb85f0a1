"""Pictures that are drawn while they are predicted, or after a stop."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from palidecode.cli import main
from palidecode.cli.predict import _Overlay
from palidecode.coco.shards import Result, read_shard
from palidecode.coco.writing import to_coco
from palidecode.detections import decode
from palidecode.files import whole_png
from palidecode.runs.journal import shards_folder
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


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the files' names in /proc")
def test_pictures_are_on_the_disk_before_their_shard(tmp_path, monkeypatch):
    """After a power cut at any moment every finished row has its picture."""
    pictures, drawn, coco = tmp_path / "in", tmp_path / "drawn", tmp_path / "coco.json"
    (pictures / "more").mkdir(parents=True)
    for number in range(5):
        path = pictures / ("more" if number % 2 else "") / f"{number}.jpg"
        Image.effect_noise((64, 48), 50).convert("RGB").save(path)
    synced, lasting, shards = set(), set(), 0
    fsync, replace = os.fsync, os.replace

    def syncing(number):
        fsync(number)
        path = Path(f"/proc/self/fd/{number}").readlink()
        if path.is_dir():  # new names in it last
            lasting.update(file for file in synced if file.parent == path)
        else:
            synced.add(path)

    def replacing(aside, target):
        nonlocal shards
        replace(aside, target)
        if Path(aside) in synced:
            synced.add(Path(target))
        if Path(target).parent == shards_folder(coco):
            shards += 1
            for name, *_ in read_shard(Path(target)).images:
                assert (drawn / name).with_suffix(".png") in lasting

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    words = ["predict", pictures, "--model", "demo", "--prompt", "detect circle", "-o", coco]
    assert main([*map(str, words), "--batch-size", "2", "--overlay", str(drawn)]) == 0
    assert shards >= 2
