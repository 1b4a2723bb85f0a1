"""Drawn scenes: the truth is exact, the same everywhere, and prompts keep their rules."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont
from pycocotools.coco import COCO

from palidecode.errors import InputError
from training.scenes import draw as scenes
from training.scenes import glyphs
from training.scenes.draw import (
    CLASSES,
    COLOR_NAMES,
    Scene,
    all_classes_prompt,
    one_phrase_prompt,
    prompt_for,
    scene,
)

SEED = 11  # of no split


@pytest.fixture(scope="module")
def many():
    return [scene(SEED, index, 64) for index in range(400)]


def test_a_scene_depends_on_seed_and_index_alone():
    backwards = {index: scene(SEED, index, 96).image for index in reversed(range(6))}
    for index, image in backwards.items():
        assert (scene(SEED, index, 96).image == image).all()
    assert (backwards[0] != backwards[1]).any()
    assert (scene(SEED + 1, 0, 96).image != backwards[0]).any()


def test_splits_have_seeds_of_their_own():
    seeds = {scenes.TRAIN_SEED, scenes.VALIDATION_SEED, scenes.HELD_OUT_SEED}
    assert len(seeds) == 3
    assert len({scene(seed, 0, 64).image.tobytes() for seed in seeds}) == 3


def test_boxes_are_tight_around_disjoint_masks(many):
    for drawn in many:
        assert drawn.image.shape == (64, 64, 3)
        assert drawn.image.dtype == np.uint8
        assert drawn.boxes.dtype == np.float32
        assert drawn.boxes.shape == (len(drawn.masks), 4)
        assert len(drawn.masks) == len(drawn.labels) == len(drawn.colors)
        for mask, box in zip(drawn.masks, drawn.boxes, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert sum(mask.astype(int) for mask in drawn.masks).max() == 1


def test_a_mask_is_where_the_picture_changes():
    """The truth against the pixels: the nearest object, painted, changes its mask and little
    else (its shadow and half-covered pixels)."""
    for index in range(30):
        rng = np.random.default_rng([SEED, index])
        painter = scenes.background(rng)
        item = scenes._arrange(rng, painter)[-1]
        before = painter(128)
        after = before.copy()
        mask = scenes.paint(after, item)
        changed = (np.abs(after - before).max(2) > 4) | mask
        if not item.shadow:
            grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            assert not (changed & ~grown).any()
        kernel = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert (np.abs(after - before).max(2) > 4)[kernel].mean() > 0.9
        assert (scene(SEED, index, 128).masks[-1] == mask).all()


def test_two_sizes_show_the_same_scene():
    overlaps, shifts = [], []
    for index in range(60):
        small, large = scene(SEED, index, 96), scene(SEED, index, 288)
        assert (small.labels, small.colors) == (large.labels, large.colors)
        shifts.extend((small.boxes * 3 - large.boxes)[-1:])  # the nearest: nothing covers it
        for low, high in zip(small.masks, large.masks, strict=True):
            grown = low.repeat(3, 0).repeat(3, 1)
            overlaps.append((grown & high).sum() / (grown | high).sum())
        shrunk = cv2.resize(large.image, (96, 96), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(int) - small.image).mean() < 12
    assert np.abs(shifts).max() <= 4
    assert np.abs(np.mean(shifts, 0)).max() < 1
    assert min(overlaps) > 0.6  # thin remains of covered objects, a pixel wide at 96
    assert np.mean(overlaps) > 0.93


def test_objects_can_be_seen(many):
    shares = [mask.mean() for drawn in many for mask in drawn.masks]
    assert min(shares) > 0.005
    assert max(shares) > 0.15
    counts = Counter(len(drawn.labels) for drawn in many)
    assert set(counts) == {1, 2, 3, 4, 5}


def test_classes_and_colors_are_balanced(many):
    for names, seen in (
        (CLASSES, Counter(label for drawn in many for label in drawn.labels)),
        (COLOR_NAMES, Counter(color for drawn in many for color in drawn.colors)),
    ):
        even = seen.total() / len(names)
        assert set(seen) == set(names)
        assert 0.5 * even < min(seen.values()) <= max(seen.values()) < 1.6 * even


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_prompts_name_what_answers_them(many, task):
    rng = np.random.default_rng(5)
    absent = colored = 0
    for drawn in many:
        prompt = prompt_for(drawn, rng, task)
        assert prompt.text == f"{task} " + " ; ".join(prompt.phrases)
        assert len(set(prompt.phrases)) == len(prompt.phrases) > 0
        named = [number for numbers in prompt.answers for number in numbers]
        assert len(set(named)) == len(named)
        for phrase, numbers in zip(prompt.phrases, prompt.answers, strict=True):
            *color, label = phrase.split()
            assert label in CLASSES
            right = [
                at
                for at in range(len(drawn.labels))
                if drawn.labels[at] == label and (not color or drawn.colors[at] == color[0])
            ]
            assert list(numbers) == right
            absent += not right
            colored += bool(color)
        assert {phrase for _, phrase in prompt.objects()} <= set(prompt.phrases)
    assert absent > 100
    assert colored > 50


def test_a_prompt_about_one_thing_names_all_that_it_fits(many):
    rng = np.random.default_rng(7)
    kinds = Counter()
    for drawn in many:
        prompt = one_phrase_prompt(drawn, rng, "segment")
        (phrase,), (numbers,) = prompt.phrases, prompt.answers
        assert prompt.text == f"segment {phrase}"
        words = set(phrase.split())
        right = [
            at
            for at, (label, color) in enumerate(zip(drawn.labels, drawn.colors, strict=True))
            if words <= {label, color}
        ]
        assert list(numbers) == right
        kind = (len(words & set(COLOR_NAMES)), len(words & set(CLASSES)), bool(right))
        kinds[kind] += 1
    # A colour, a class, both: each found and not found.
    assert len(kinds) == 6
    assert min(kinds.values()) >= 5


def test_a_color_selects_among_objects_of_one_class():
    truth = Scene(
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((3, 4), np.float32),
        [np.zeros((64, 64), bool)] * 3,
        ["star", "star", "circle"],
        ["red", "blue", "red"],
    )
    prompt = scenes._prompt(truth, "detect", [("star", "red"), ("circle", None), ("cat", None)])
    assert prompt.text == "detect red star ; circle ; cat"
    assert prompt.answers == ((0,), (2,), ())
    assert prompt.objects() == [(0, "red star"), (2, "circle")]
    everything = all_classes_prompt(truth, "segment")
    assert everything.phrases == CLASSES
    assert sorted(everything.objects()) == [(0, "star"), (1, "star"), (2, "circle")]


def test_the_files_are_coco_and_the_same_every_time(tmp_path, capsys):
    for name in ("one", "two"):
        scenes.main(["--seed", "11", "--count", "5", "--size", "80", "-o", str(tmp_path / name)])
    assert "5 scenes" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 6
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    coco = COCO(str(tmp_path / "one" / "instances.json"))
    assert [category["name"] for category in coco.cats.values()] == list(CLASSES)
    for index, image in enumerate(coco.imgs.values()):
        drawn = scene(11, index, 80)
        written = np.asarray(Image.open(tmp_path / "one" / image["file_name"]))
        assert (written == drawn.image).all()
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(found) == len(drawn.masks)
        for annotation, mask, box in zip(found, drawn.masks, drawn.boxes, strict=True):
            assert (coco.annToMask(annotation) == mask).all()
            assert annotation["area"] == mask.sum()
            x, y, width, height = annotation["bbox"]
            assert [x, y, x + width, y + height] == box.tolist()


def test_wrong_options_are_one_clear_line(tmp_path, capsys):
    with pytest.raises(InputError, match="48 pixels"):
        scene(0, 0, 32)
    with pytest.raises(InputError, match="start at 0"):
        scene(-1, 0, 64)
    with pytest.raises(SystemExit):
        scenes.main(["--count", "1", "--size", "9", "-o", str(tmp_path)])
    assert "48 pixels" in capsys.readouterr().err


def test_drawing_needs_no_font():
    code = (
        "import sys; from training.scenes.draw import scene; scene(1, 0, 64)\n"
        "print('fontTools' in sys.modules or 'PIL.ImageFont' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(scenes.__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_silhouettes_come_out_of_a_font(tmp_path):
    path = tmp_path / "font.ttf"
    path.write_bytes(ImageFont.load_default(20).font_bytes)
    with TTFont(path) as font:
        rings = glyphs.contours(font, font.getBestCmap()[ord("O")])
    assert len(rings) == 2
    painted, open_ = glyphs.silhouette(rings, False), glyphs.silhouette(rings, True)
    assert [len(painted["outline"]), len(painted["details"])] == [1, 1]
    assert [len(open_["outline"]), len(open_["details"])] == [2, 0]
    corners = np.array(painted["outline"][0])
    extent = corners.max(0) - corners.min(0)
    assert extent.max() == pytest.approx(1, abs=0.01)
    assert corners.max(0) == pytest.approx(extent / 2, abs=0.01)


def test_shipped_silhouettes_name_their_source_and_licence():
    shipped = json.loads(glyphs.FILE.read_text())
    assert {label: glyph["glyph"] for label, glyph in shipped["glyphs"].items()} == glyphs.GLYPHS
    assert "OFL 1.1" in shipped["source"]["licence"]
    assert "SIL OPEN FONT LICENSE" in glyphs.FILE.with_name("OFL.txt").read_text()
