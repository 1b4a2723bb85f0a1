import cv2
import numpy as np
import pytest

from palidecode.errors import InputError
from palidecode.geometry.masks import (
    PASTES,
    check_paste,
    crop_masks,
    paste_big_vision,
    paste_subpixel,
    shrink,
)
from tests.references import pasted_image, sampled_image, whole_image


def random_field(rng):
    """A smooth field, or one whose neighbours jump: rounding shows there first."""
    noise = rng.standard_normal((64, 64)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 4) * 8 if rng.random() < 0.5 else np.sign(noise)


def random_box(rng, kind):
    low, high = {"tiny": (0, 6), "small": (2, 62), "edge": (62, 67), "large": (64, 200)}[kind]
    x, y = rng.uniform(-60, 150, 2)
    w, h = rng.uniform(low, high, 2)
    return [x, y, x + w, y + h]


@pytest.mark.parametrize("kind", ["tiny", "small", "edge", "large"])
def test_paste_equals_big_visions_bit_by_bit(kind):
    rng = np.random.default_rng(len(kind))
    for _ in range(60):
        field, box, size = random_field(rng), random_box(rng, kind), (150, 130)
        found = whole_image(paste_big_vision(field, box, size), size)
        assert (found == pasted_image(field, box, size)).all(), box


@pytest.mark.parametrize("width", [63, 64, 65])
@pytest.mark.parametrize("height", [63, 64, 65])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_paste_where_pillow_starts_to_antialias(width, height, scale):
    field = random_field(np.random.default_rng(width)) * np.float32(scale)
    box, size = (3.9, 5.1, 3 + width + 0.7, 5 + height + 0.2), (100, 100)
    assert (
        whole_image(paste_big_vision(field, box, size), size) == pasted_image(field, box, size)
    ).all()


def test_paste_of_a_field_that_is_zero_along_a_line():
    """Exact zeros after the resize are not mask, whoever does the resize."""
    field = np.repeat(np.linspace(-1, 1, 64, dtype=np.float32)[None], 64, axis=0)
    field[::2] *= -1
    box, size = (0, 0, 192, 128), (192, 128)
    assert (paste_big_vision(field, box, size).mask == pasted_image(field, box, size)).all()


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 30),
        (10.2, 10, 10.9, 30),
        (30, 10, 10, 30),
        (10, 30, 30, 10),
        (-40, 0, -1, 20),
        (100, 0, 140, 20),
        (0, 80, 20, 99),
        (-500, -500, -400, -400),
        (-0.9, -0.9, 0.9, 0.9),
    ],
)
def test_paste_is_empty_for_boxes_without_a_pixel_in_the_image(box):
    crop = paste_big_vision(np.ones((64, 64), np.float32), box, (100, 80))
    assert crop.mask.size == 0
    assert 0 <= crop.x0 <= 100
    assert 0 <= crop.y0 <= 80


def test_negative_corners_are_truncated_towards_zero_and_cut_off():
    crop = paste_big_vision(np.ones((64, 64), np.float32), (-0.9, -20.5, 5.9, 3.9), (100, 80))
    assert (crop.x0, crop.y0, crop.mask.shape) == (0, 0, (3, 5))


def test_the_threshold_is_above_not_at():
    field = np.full((64, 64), 0.5, np.float32)
    assert not paste_big_vision(field, (0, 0, 80, 80), (80, 80), threshold=0.5).mask.any()
    assert paste_big_vision(field, (0, 0, 80, 80), (80, 80), threshold=0.4).mask.all()


@pytest.mark.parametrize(
    "box", [(0, 0, np.nan, 5), (0, 0, np.inf, 5), (1, 2, 3), "abcd", None, (0, 0, 1e9, 1e9)]
)
def test_paste_refuses_boxes_that_are_not_numbers_or_far_too_large(box):
    with pytest.raises(InputError, match="box"):
        paste_big_vision(np.ones((64, 64), np.float32), box, (100, 80))


def test_crop_masks_rounds_the_corners_and_fills_the_crop():
    masks = np.zeros((1, 100, 100), bool)
    masks[0, 20:60, 30:90] = True
    assert crop_masks(masks, [[29.6, 19.6, 90.4, 60.4]]).min() == 1
    assert crop_masks(masks, [[28, 20, 90, 60]]).min() < 1


def test_crop_masks_antialiases():
    stripes = np.tile(np.arange(256) % 2, (256, 1)).astype(bool)
    crop = crop_masks(stripes[None], [[0, 0, 256, 256]])
    assert abs(crop[0, :, 1:-1] - 0.5).max() < 0.1


@pytest.mark.parametrize("box", [(5, 5, 5.4, 9), (9, 9, 5, 5), (-9, 0, -1, 9), (50, 0, 60, 9)])
def test_crop_masks_is_zero_where_the_box_is_empty(box):
    assert not crop_masks(np.ones((1, 20, 20), bool), [box]).any()


def test_crop_masks_of_nothing_and_of_the_wrong_shape():
    assert crop_masks(np.zeros((0, 9, 9), bool), []).shape == (0, 64, 64)
    with pytest.raises(InputError, match=r"shape \(1, H, W\)"):
        crop_masks(np.zeros((2, 9, 9), bool), [[0, 0, 1, 1]])


def test_pasting_what_was_cropped_gives_the_mask_back():
    yy, xx = np.mgrid[:200, :300]
    mask = ((yy - 100) / 60) ** 2 + ((xx - 150) / 90) ** 2 < 1
    field = 2 * shrink(mask[40:160, 60:240]) - 1
    again = whole_image(paste_big_vision(field, (60, 40, 240, 160), (300, 200)), (300, 200))
    assert (again & mask).sum() / (again | mask).sum() > 0.98


@pytest.mark.parametrize("kind", ["tiny", "small", "edge", "large"])
def test_subpixel_paste_reads_the_field_at_pixel_centres(kind):
    rng = np.random.default_rng(len(kind) + 10)
    for _ in range(25):
        box, size = random_box(rng, kind), (150, 130)
        # Away from zero, so that rounding to float32 decides no pixel.
        field = random_field(rng)
        field += np.where(np.abs(field) < 1e-3, np.float32(2e-3), np.float32(0))
        found = whole_image(paste_subpixel(field, box, size), size)
        assert (found != sampled_image(field, box, size)).sum() <= 1, box


def test_subpixel_paste_follows_the_box():
    """Moved by whole pixels the mask moves along; a field without zeros fills pixel centres."""
    field, size = random_field(np.random.default_rng(5)), (200, 200)
    first = paste_subpixel(field, (10.3, 20.6, 90.1, 70.2), size)
    moved = paste_subpixel(field, (17.3, 25.6, 97.1, 75.2), size)
    assert (moved.x0 - first.x0, moved.y0 - first.y0) == (7, 5)
    assert (moved.mask == first.mask).all()
    full = paste_subpixel(np.ones((64, 64), np.float32), (10.4, 20.6, 90.6, 70.4), size)
    assert (full.x0, full.y0, *full.mask.shape) == (10, 21, 49, 81)
    assert full.mask.all()


@pytest.mark.parametrize(
    "box",
    [(10, 10, 10, 30), (30, 10, 10, 30), (10.6, 10, 11.4, 30), (-40, 0, -1, 20), (100, 0, 140, 20)],
)
def test_subpixel_paste_of_nothing(box):
    crop = paste_subpixel(np.ones((64, 64), np.float32), box, (100, 80))
    assert crop.mask.size == 0
    assert 0 <= crop.x0 <= 100
    assert 0 <= crop.y0 <= 80


def test_subpixel_paste_of_a_box_far_larger_than_its_image():
    crop = paste_subpixel(np.ones((64, 64), np.float32), (-1e12, -1e12, 1e12, 1e12), (100, 80))
    assert crop.mask.shape == (80, 100)
    assert crop.mask.all()


@pytest.mark.parametrize("box", [(0, 0, np.nan, 5), (0, 0, np.inf, 5), (0, 0, 5), "box"])
def test_subpixel_paste_refuses_what_is_no_box(box):
    with pytest.raises(InputError, match="a box must be four finite numbers"):
        paste_subpixel(np.ones((64, 64), np.float32), box, (100, 80))


def test_ways_to_paste():
    assert [check_paste(name) for name in PASTES] == ["subpixel", "big_vision"]
    with pytest.raises(InputError, match="paste must be one of subpixel, big_vision, got 'int'"):
        check_paste("int")
