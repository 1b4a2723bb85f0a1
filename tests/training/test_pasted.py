"""Scenes with a class that the tiny model has never seen."""

import json

import numpy as np

from training.scenes import pasted
from training.scenes.draw import scene

SEED = 11  # of no split


def test_arrows_lie_on_the_scene_and_all_stays_visible():
    arrows = 0
    for index in range(30):
        before, after = scene(SEED, index, 96), pasted.pasted(SEED, index, 96)
        old = len(before.labels)
        assert after.labels == before.labels + [pasted.NEW] * (len(after.labels) - old)
        assert 1 <= len(after.labels) - old <= 2
        arrows += len(after.labels) - old
        assert sum(mask.astype(int) for mask in after.masks).max() == 1
        for mask, box in zip(after.masks, after.boxes, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        for earlier, now in zip(before.masks, after.masks[:old], strict=True):
            assert not (now & ~earlier).any()
            assert now.sum() >= 0.25 * earlier.sum()
        changed = (np.abs(after.image.astype(int) - before.image).max(2) > 40) & ~after.masks[-1]
        assert changed.mean() < 0.2
        again = pasted.pasted(SEED, index, 96)
        assert (again.image == after.image).all()
    assert 35 < arrows < 55


def test_the_command_writes_a_coco_file(tmp_path, capsys):
    pasted.main(["--seed", str(SEED), "--count", "3", "--size", "64", "-o", str(tmp_path)])
    assert "3 scenes with" in capsys.readouterr().out
    truth = json.loads((tmp_path / "instances.json").read_text())
    assert [row["name"] for row in truth["categories"]][-1] == pasted.NEW
    assert {row["image_id"] for row in truth["annotations"] if row["category_id"] == 17} == {
        1,
        2,
        3,
    }
    assert all((tmp_path / image["file_name"]).exists() for image in truth["images"])
