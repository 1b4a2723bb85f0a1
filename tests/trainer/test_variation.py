"""Versions of rows against the truth: the moved annotations, encoded."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from palidecode.answers.parsing import parse
from palidecode.codec import load_codec
from palidecode.codec.weights import DEMO_ID
from palidecode.errors import InputError
from palidecode.finetune.encoding import encode_boxes, encode_masks
from palidecode.geometry.boxes import loc_to_xyxy
from palidecode.geometry.masks import paste_subpixel
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.trainer.examples import read_examples
from palidecode.trainer.variation import Variation, Varying
from tests.samples import DEMO

SIZE = (640, 480)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
BOXES = {"red": (0, 10, 203, 181), "green": (250, 33, 391, 471), "blue": (411, 97, 640, 480)}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(DEMO / "model" / "tokenizer.json")


@pytest.fixture(scope="module")
def codec():
    return load_codec(DEMO_ID)


def suffix_of(boxes, size=SIZE):
    locs = encode_boxes(np.array(list(boxes.values()), float).reshape(-1, 4), size)
    words = ["".join(f"<loc{bin_:04d}>" for bin_ in loc) for loc in locs.tolist()]
    return " ; ".join(f"{loc} {name}" for loc, name in zip(words, boxes, strict=True))


def example_of(folder, tokenizer, suffix, prefix="detect red ; green ; blue", size=SIZE):
    image = Image.new("RGB", size, "white")
    for name, box in BOXES.items():
        image.paste(COLOURS[name], box)
    image.save(folder / "a.png")
    row = {"image": "a.png", "prefix": prefix, "suffix": suffix}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    return read_examples(folder / "rows.jsonl", None, tokenizer, 4096, DEMO_ID).rows[0]


def versions(example, tokenizer, variation, codec=None, count=40, longest=512):
    varying = Varying(variation, tokenizer, codec, longest)
    return [varying.vary(example, np.random.default_rng([7, n])) for n in range(count)]


def test_a_mirrored_box_is_that_of_the_mirrored_annotation(tmp_path, tokenizer):
    example = example_of(tmp_path, tokenizer, suffix_of(BOXES))
    made = versions(example, tokenizer, Variation(flip=True))
    assert 10 < sum(version.flipped for version in made) < 30
    mirrored = {n: (SIZE[0] - x2, y1, SIZE[0] - x1, y2) for n, (x1, y1, x2, y2) in BOXES.items()}
    for version in made:
        assert version.suffix == suffix_of(mirrored if version.flipped else BOXES)
        assert version.answer == (*tokenizer.encode(version.suffix), tokenizer.vocabulary.eos)


def test_a_cut_box_is_that_of_the_cut_annotation(tmp_path, tokenizer):
    example = example_of(tmp_path, tokenizer, suffix_of(BOXES))
    made = versions(example, tokenizer, Variation(crop=0.4), count=200)
    left_out = 0
    for version in made:
        if version.window is None:
            assert version.suffix == example.suffix
            continue
        x1, y1, x2, y2 = version.window
        assert x2 - x1 >= 0.4 * SIZE[0] - 1
        assert y2 - y1 >= 0.4 * SIZE[1] - 1
        found = {item.label: item.loc for item in parse(version.suffix).objects}
        for name, box in BOXES.items():
            inside = np.clip(np.array(box, float) - [x1, y1, x1, y1], 0, [x2 - x1, y2 - y1] * 2)
            wide, high = inside[2:] - inside[:2]
            share = wide * high / ((box[2] - box[0]) * (box[3] - box[1]))
            if name not in found:
                assert share < 0.01
                left_out += 1
                continue
            assert share > 0.49
            wanted = encode_boxes(inside[None], (x2 - x1, y2 - y1))[0]
            # Half a bin of the whole picture is more than half a bin of the window.
            assert np.abs(np.array(found[name]) - wanted).max() <= 1
    assert left_out > 50


@pytest.mark.parametrize("variation", [Variation(flip=True), Variation(flip=True, crop=0.5)])
def test_the_picture_moves_with_its_boxes(tmp_path, tokenizer, variation):
    example = example_of(tmp_path, tokenizer, suffix_of(BOXES))
    for version in versions(example, tokenizer, variation):
        (image,) = version.open()
        for item in parse(version.suffix).objects:
            x1, y1, x2, y2 = loc_to_xyxy([item.loc], image.size)[0]
            assert image.getpixel((int(x1 + x2) // 2, int(y1 + y2) // 2)) == COLOURS[item.label]


def true_masks():
    """The masks and boxes of each of the demo's scenes, as arrays."""
    truth = json.loads((DEMO / "scenes" / "instances.json").read_text())
    for image in truth["images"]:
        rows = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        masks = [coco_mask.decode(row["segmentation"]).astype(bool) for row in rows]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
        yield np.stack(masks), np.array(boxes, float), (image["width"], image["height"])


@pytest.mark.parametrize("crop", [None, 0.6])
def test_masks_move_with_their_boxes(tmp_path, tokenizer, codec, crop):
    """Against the true masks: the codes of codes lose little more than codes do."""
    ious, direct = [], []
    for masks, boxes, size in true_masks():
        words = []
        codes = encode_masks(masks, boxes, codec)
        for loc, seg in zip(encode_boxes(boxes, size), codes, strict=True):
            tokens = [*(f"<loc{n:04d}>" for n in loc), *(f"<seg{n:03d}>" for n in seg)]
            words.append("".join(tokens) + f" {len(words)}")
        example = example_of(tmp_path, tokenizer, " ; ".join(words), "segment a", size)
        for version in versions(example, tokenizer, Variation(flip=True, crop=crop), codec, 6):
            if not version.flipped:
                continue
            x1, y1, x2, y2 = version.window or (0, 0, *size)
            for item in parse(version.suffix).objects:
                truth = masks[int(item.label)][y1:y2, x1:x2][:, ::-1]
                box = loc_to_xyxy([item.loc], (x2 - x1, y2 - y1))[0]
                ious.append(iou(item.seg, box, truth, codec))
                best = encode_masks(truth[None], box[None], codec)[0]
                direct.append(iou(best, box, truth, codec))
    assert len(ious) > 50
    assert np.mean(direct) > 0.9
    assert np.mean(ious) > np.mean(direct) - 0.03
    assert min(ious) > 0.5


def iou(seg, box, truth, codec):
    height, width = truth.shape
    pasted = paste_subpixel(codec.decode([seg])[0], box, (width, height))
    mask = np.zeros_like(truth)
    rows, columns = pasted.mask.shape
    mask[pasted.y0 : pasted.y0 + rows, pasted.x0 : pasted.x0 + columns] = pasted.mask
    return (mask & truth).sum() / (mask | truth).sum()


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("detect left cat", "<loc0100><loc0200><loc0300><loc0400> left cat"),
        ("the man on the Right", "<loc0100><loc0200><loc0300><loc0400>"),
        ("caption en", "a cat"),
        ("ocr", ""),
    ],
)
def test_texts_about_sides_and_free_answers_stay(tmp_path, tokenizer, prefix, suffix):
    example = example_of(tmp_path, tokenizer, suffix, prefix)
    for version in versions(example, tokenizer, Variation(flip=True)):
        assert not version.flipped
        assert version.suffix == suffix


def test_orders(tmp_path, tokenizer):
    boxes = {name: BOXES[name] for name in ("blue", "red", "green")}
    example = example_of(tmp_path, tokenizer, suffix_of(boxes))

    def labels(version):
        return tuple(item.label for item in parse(version.suffix).objects)

    left = versions(example, tokenizer, Variation(flip=True, order="left-to-right"))
    assert {labels(version) for version in left} == {
        ("red", "green", "blue"),
        ("blue", "green", "red"),
    }
    assert all(labels(v) == ("blue", "green", "red") for v in left if v.flipped)
    given = versions(example, tokenizer, Variation(flip=True))
    assert {labels(version) for version in given} == {("blue", "red", "green")}
    free = versions(example, tokenizer, Variation(order="random"), count=80)
    assert len({labels(version) for version in free}) == 6


def test_noise_boxes_fill_the_answer(tmp_path, tokenizer):
    noise = tokenizer.token("<0x00>")
    variation = Variation(noise=7, noise_token="<0x00>")
    for suffix in (suffix_of(BOXES), ""):
        example = example_of(tmp_path, tokenizer, suffix)
        v = tokenizer.vocabulary
        for version in versions(example, tokenizer, variation, count=5):
            true = tokenizer.encode(suffix)
            assert list(version.answer[: len(true)]) == true
            rest, quiet = version.answer[len(true) :], version.silent[len(true) :]
            assert not any(version.silent[: len(true)])
            assert rest[-1] == v.eos
            assert rest.count(noise) == 7 - len(parse(suffix).objects)
            for index in np.flatnonzero(np.array(rest) == noise):
                y1, x1, y2, x2 = (token - v.loc_offset for token in rest[index - 4 : index])
                assert 0 <= y1 < y2 < 1024
                assert 0 <= x1 < x2 < 1024
                assert quiet[index - 4 : index + 1] == (True,) * 4 + (False,)
            assert sum(quiet) == 4 * rest.count(noise)
            (cut,) = versions(
                example, tokenizer, variation, count=1, longest=len(version.prompt) + 30
            )
            assert (
                len(version.prompt) + 24 < len(cut.prompt) + len(cut.answer) <= len(cut.prompt) + 30
            )
            assert ";" in tokenizer.decode(rest[:-6])


def test_values_that_can_not_be(tokenizer):
    with pytest.raises(InputError, match=r"crop must be between 0 and 1, got 1.5"):
        Variation(crop=1.5)
    with pytest.raises(InputError, match="order must be one of given, left-to-right, random"):
        Variation(order="down")
    with pytest.raises(InputError, match="has no token '<unused0>'"):
        Varying(Variation(noise=5), tokenizer, None, 512)
