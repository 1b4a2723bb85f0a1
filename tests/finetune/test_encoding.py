import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from palidecode import InputError, encode_boxes, encode_masks, loc_to_xyxy
from palidecode.finetune.encoding import crop_rles
from palidecode.geometry.masks import crop_masks, rounded_corners

WIDTH, HEIGHT = 97, 61


def rle_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def blob(seed, width=WIDTH, height=HEIGHT):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    a, b = rng.uniform(1, width / 2), rng.uniform(1, height / 2)
    grid_y, grid_x = np.mgrid[:height, :width]
    return ((grid_x - x) / a) ** 2 + ((grid_y - y) / b) ** 2 < 1


def reference_crop(mask, xyxy):
    """big_vision's, step by step: corners rounded in the image, bilinear with antialias."""
    height, width = mask.shape
    x1, x2 = (round(min(max(x, 0), width)) for x in xyxy[::2])
    y1, y2 = (round(min(max(y, 0), height)) for y in xyxy[1::2])
    if x2 <= x1 or y2 <= y1:
        return np.zeros((64, 64), np.float32)
    image = Image.fromarray(mask[y1:y2, x1:x2].astype(np.float32))
    return np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))


boxes = st.tuples(
    st.floats(-20, WIDTH + 20),
    st.floats(-20, HEIGHT + 20),
    st.floats(-20, WIDTH + 20),
    st.floats(-20, HEIGHT + 20),
)


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 10_000), box=boxes)
def test_crops_of_rle_equal_crops_of_the_decoded_mask(seed, box):
    mask = blob(seed)
    crop = crop_rles([rle_of(mask)], [box])[0]
    assert np.array_equal(crop, crop_masks(mask[None], [box])[0])
    assert np.array_equal(crop, reference_crop(mask, box))


def test_crops_hold_the_mask_and_nothing_else():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 30:50] = True
    inside, outside, wider = crop_rles(
        [rle_of(mask)] * 3, [[30, 10, 50, 20], [60, 30, 80, 40], [20, 0, 60, 30]]
    )
    assert (inside == 1).all()
    assert (outside == 0).all()
    assert wider.mean() == pytest.approx(10 * 20 / (40 * 30), abs=0.01)


def test_rle_of_images_of_different_sizes_and_kinds():
    small, large = blob(1), blob(2, 300, 200)
    counts = np.diff(np.flatnonzero(np.diff(small.ravel("F").astype(int), prepend=-1, append=-1)))
    first = [0] if small[0, 0] else []
    plain = {"size": [HEIGHT, WIDTH], "counts": [*first, *counts.tolist()]}
    crops = crop_rles([plain, rle_of(large)], [[0, 0, WIDTH, HEIGHT], [10, 20, 250, 190]])
    assert np.array_equal(crops[0], reference_crop(small, [0, 0, WIDTH, HEIGHT]))
    assert np.array_equal(crops[1], reference_crop(large, [10, 20, 250, 190]))


def test_masks_and_their_rle_have_the_same_codes(demo_codec):
    masks = np.stack([blob(seed) for seed in range(600)])  # more than one chunk
    xyxy = np.array([[seed % 20, 3, 60 + seed % 30, 55] for seed in range(600)], float)
    codes = encode_masks(masks, xyxy, demo_codec)
    assert codes.shape == (600, 16)
    assert codes.dtype == np.uint8
    assert np.array_equal(codes, encode_masks([rle_of(mask) for mask in masks], xyxy, demo_codec))
    assert np.array_equal(codes, encode_masks(list(masks), xyxy, demo_codec))
    assert np.array_equal(codes, demo_codec.encode(crop_masks(masks, xyxy)))


def test_codes_decode_to_the_mask(demo_codec):
    mask = np.zeros((200, 200), bool)
    mask[20:180, 20:100] = True  # the left half of its box
    codes = encode_masks(mask[None], [[20, 20, 180, 180]], demo_codec)
    field = demo_codec.decode(codes)[0] > 0
    assert field[:, :28].mean() > 0.95
    assert field[:, 36:].mean() < 0.05


@pytest.mark.parametrize("masks", [[], np.zeros((0, 8, 8), bool)])
def test_nothing_encodes_to_nothing(masks, demo_codec):
    assert encode_masks(masks, [], demo_codec).shape == (0, 16)


@pytest.mark.parametrize(
    ("masks", "xyxy", "said"),
    [
        (np.zeros((2, 8, 8), bool), [[0, 0, 4, 4]], r"masks \(2\) must be as many as boxes \(1\)"),
        (np.zeros((1, 8, 8), bool), [[0, 0, np.nan, 4]], "box 0 has coordinates"),
        (np.full((1, 8, 8), 255, np.uint8), [[0, 0, 4, 4]], r"\[0, 1\]"),
        ([np.zeros((8, 8)), np.zeros((8, 9))], [[0, 0, 4, 4]] * 2, "one array"),
        ([{"size": [8, 8], "counts": [3]}], [[0, 0, 4, 4]], "sum to 3"),
        ([{"size": [8, 8]}], [[0, 0, 4, 4]], "'counts'"),
    ],
)
def test_masks_that_cannot_be_encoded(masks, xyxy, said, demo_codec):
    with pytest.raises(InputError, match=said):
        encode_masks(masks, xyxy, demo_codec)


@pytest.mark.parametrize("xyxy", [[], [[0, 0, 1, 1]] * 2])
def test_crops_need_a_box_each(xyxy):
    with pytest.raises(InputError, match=r"RLEs \(1\) must be as many"):
        crop_rles([rle_of(blob(0))], xyxy)


def test_corners_are_clipped_then_rounded_half_to_even():
    assert rounded_corners([-3, 2.5, 3.5, 99], (10, 20)) == (0, 2, 4, 20)


@settings(deadline=None)
@given(
    left=st.floats(0, 600),
    top=st.floats(0, 440),
    width=st.floats(2, 40),
    height=st.floats(2, 40),
    divisor=st.sampled_from([1023, 1024]),
)
def test_boxes_come_back_within_half_a_bin(left, top, width, height, divisor):
    box = [[left, top, left + width, top + height]]
    loc = encode_boxes(box, (640, 480), divisor)
    assert loc.dtype == np.int16
    back = loc_to_xyxy(loc, (640, 480), divisor=divisor)
    slack = np.array([640, 480, 640, 480]) / divisor
    at_the_edge = np.array(box) > np.array([640, 480, 640, 480]) * (1 - 1 / 1024)
    assert (abs(back - box) <= np.where(at_the_edge, 1.01, 0.5 + 1e-4) * slack).all()


def test_the_divisor_of_boxes_is_used_and_checked():
    assert encode_boxes([[0, 0, 320, 480]], (640, 480), 1023).tolist() == [[0, 0, 1023, 512]]
    assert encode_boxes([[0, 0, 160, 120]], (640, 480), 1024).tolist() == [[0, 0, 256, 256]]
    with pytest.raises(InputError, match="divisor"):
        encode_boxes([[0, 0, 1, 1]], (640, 480), 1000)
