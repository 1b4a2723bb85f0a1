import dataclasses

import numpy as np
import pytest
from PIL import Image

from palidecode import InputError, decode, draw
from palidecode.drawing import color_of
from tests.samples import CODES, answer

GREY = Image.new("RGB", (320, 240), "#808080")


def changed(image):
    return (np.asarray(image) != np.asarray(GREY)).any(axis=2)


def test_the_box_is_drawn_where_it_is():
    found = decode([answer("cat", (256, 256, 512, 512))], (320, 240))
    drawn = changed(draw(GREY, found, labels=False))
    rows, columns = np.nonzero(drawn)
    # OpenCV's antialiased lines spill over by a pixel.
    edges = (columns.min(), columns.max(), rows.min(), rows.max())
    assert np.abs(np.array(edges) - (80, 160, 60, 120)).max() <= 1
    assert not drawn[63:118, 83:158].any()


def test_masks_are_translucent_and_of_the_labels_colour(demo_codec):
    found = decode([answer("cat", codes=CODES)], (320, 240), demo_codec)
    drawn = draw(GREY, found, labels=False, boxes=False)
    mask = found.to_masks()[0]
    assert changed(drawn)[mask].mean() > 0.97
    assert changed(drawn)[~mask].mean() < 0.05
    inside = np.median(np.asarray(drawn)[mask], axis=0)
    expected = 0.55 * 128 + 0.45 * np.array(color_of("cat"))
    assert np.abs(inside - expected).max() <= 2
    outline = changed(draw(GREY, found, labels=False, boxes=False, alpha=0))
    assert 0 < outline.sum() < mask.sum() / 2


def test_labels_are_written_beside_each_other():
    text = " ; ".join(answer(label, (300, 300, 600, 600)) for label in ("cat", "dog", "猫's «é»"))
    found = decode([text], (320, 240), scores=[[0.5, 0.25, 0.125]])
    with_labels = changed(draw(GREY, found, boxes=False))
    assert with_labels.any()
    apart = [changed(draw(GREY, found.select([row]), boxes=False)).sum() for row in range(3)]
    assert with_labels.sum() == sum(apart)


def test_colours_are_stable_and_apart():
    assert color_of("cat") == color_of("Cat") == (18, 217, 117)
    names = ["cat", "dog", "person", "car", "tree", "bus", "chair", "cup"]
    colours = np.array([color_of(name) for name in names], float)
    assert len({tuple(colour) for colour in colours}) == len(names)


def test_a_resized_picture_gets_scaled_boxes():
    found = decode([answer("a", (256, 256, 512, 512))], (320, 240))
    small = Image.new("RGB", (160, 120), "#808080")
    rows, columns = np.nonzero((np.asarray(draw(small, found, labels=False)) != 128).any(axis=2))
    assert np.abs(np.array([columns.min() - 40, rows.min() - 30])).max() <= 1


def test_odd_boxes_do_not_break_drawing(demo_codec):
    text = " ; ".join(
        answer(str(row), loc, CODES)
        for row, loc in enumerate([(700, 700, 100, 100), (5, 5, 5, 5), (0, 0, 1023, 1023)])
    )
    drawn = draw(GREY, decode([text], (320, 240), demo_codec))
    assert drawn.size == GREY.size


def test_the_picture_itself_is_not_changed():
    array = np.full((240, 320, 3), 128, np.uint8)
    draw(array, decode([answer("a")], (320, 240)))
    assert (array == 128).all()


def test_a_picture_taken_sideways_is_drawn_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it
    Image.new("RGB", (240, 320), "#808080").save(tmp_path / "a.png", exif=exif)
    found = decode([answer("cat", (256, 256, 512, 512))], (320, 240))
    with Image.open(tmp_path / "a.png") as held_sideways:
        drawn = draw(held_sideways, found)
    assert drawn.size == (320, 240)
    assert (np.asarray(drawn) == np.asarray(draw(GREY, found))).all()
    assert (np.asarray(drawn) == np.asarray(draw(tmp_path / "a.png", found))).all()


@pytest.mark.parametrize("shape", [(240, 320), (240, 320, 3), (240, 320, 4)])
def test_arrays_are_grey_rgb_or_rgba(shape):
    array = np.full(shape, 128, np.uint8)
    if shape[2:] == (4,):
        array[:, :, 3] = 255
    found = decode([answer("cat", (256, 256, 512, 512))], (320, 240))
    assert (np.asarray(draw(array, found)) == np.asarray(draw(GREY, found))).all()


def test_transparent_parts_are_white():
    found = decode([""], (320, 240))
    clear = draw(np.zeros((240, 320, 4), np.uint8), found)
    assert (np.asarray(clear) == 255).all()
    assert (np.asarray(draw(Image.new("RGBA", (320, 240)), found)) == 255).all()


@pytest.mark.parametrize(
    ("picture", "options", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), {}, "a picture array must be"),
        (np.full((4, 4, 3), 2.5), {}, r"floats must be in"),
        ("nowhere.png", {}, "no such picture"),
        (GREY, {"alpha": 2}, "alpha"),
        (GREY, {"index": 4}, "image 4"),
        (GREY, {"font": "nowhere.ttf"}, "nowhere.ttf"),
    ],
)
def test_what_can_not_be_drawn_is_said(picture, options, message):
    with pytest.raises(InputError, match=message):
        draw(picture, decode([answer("a")], (320, 240)), **options)


def test_boxes_that_are_no_numbers_are_not_drawn_and_far_ones_are_clipped():
    found = decode([" ; ".join([answer("cat")] * 3)], [(100, 100)])
    far = [[np.nan] * 4, [-1e38, -1e38, 1e38, 1e38], [20, 20, 60, 60]]
    found = dataclasses.replace(found, xyxy=np.array(far, np.float32))
    canvas = np.zeros((100, 100, 3), np.uint8)
    drawn = np.asarray(draw(canvas, found, labels=False))
    assert drawn.any()
    np.testing.assert_array_equal(drawn, draw(canvas, found[2:], labels=False))
