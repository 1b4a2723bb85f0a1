import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from palidecode import InputError, box_iou, loc_to_xyxy, xyxy_to_loc
from palidecode.geometry.boxes import box_area, expected_bins, paired_iou, xywh_to_xyxy

locs = hnp.arrays(np.int64, st.tuples(st.integers(0, 6), st.just(4)), elements=st.integers(0, 1023))
sides = st.integers(1, 5000)


@settings(deadline=None, max_examples=200)
@given(locs, sides, sides, st.sampled_from([1023, 1024]), st.booleans())
def test_bins_to_pixels_as_one_would_write_it(loc, width, height, divisor, clip):
    found = loc_to_xyxy(loc, (width, height), divisor=divisor, clip=clip)
    assert found.dtype == np.float32
    assert found.shape == (len(loc), 4)
    for (y1, x1, y2, x2), box in zip(loc.tolist(), found.tolist(), strict=True):
        values = [x1 * width, y1 * height, x2 * width, y2 * height]
        expected = [v / divisor for v in values]
        if clip:
            expected = [min(v, side) for v, side in zip(expected, [width, height] * 2, strict=True)]
        assert box == pytest.approx(expected, rel=1e-6)


@settings(deadline=None, max_examples=200)
@given(locs, sides, sides, st.sampled_from([1023, 1024]))
def test_pixels_to_bins_undoes_it(loc, width, height, divisor):
    pixels = loc_to_xyxy(loc, (width, height), divisor=divisor)
    assert (xyxy_to_loc(pixels, (width, height), divisor=divisor) == loc).all()


def test_each_box_has_its_own_size():
    loc = [[0, 0, 512, 512]] * 2
    assert loc_to_xyxy(loc, [(100, 50), (10, 20)]).tolist() == [[0, 0, 50, 25], [0, 0, 5, 10]]


def test_the_published_cats():
    loc = [[46, 538, 795, 1022], [110, 0, 1022, 512]]
    assert loc_to_xyxy(loc, (640, 480)).tolist() == [
        [336.25, 21.5625, 638.75, 372.65625],
        [0, 51.5625, 320, 479.0625],
    ]


def test_a_published_box_in_whole_pixels():
    """Bins of an answer on a 448 px picture, from a notebook of JoeJoe1313."""
    pixels = loc_to_xyxy([[415, 520, 890, 1023]], (448, 448))
    assert np.trunc(pixels).tolist() == [[227, 181, 447, 389]]


def test_encoding_clips_to_the_last_bin():
    assert xyxy_to_loc([[-5, 0, 100, 200]], (100, 100)).tolist() == [[0, 0, 1023, 1023]]
    assert xyxy_to_loc([[50, 50, 100, 100]], (100, 100), divisor=1023).tolist() == [
        [512, 512, 1023, 1023]
    ]


@pytest.mark.parametrize(
    ("side", "with_1023", "with_1024"),
    [(16, 0.962, 0.920), (32, 0.981, 0.959), (320, 0.998, 0.996)],
)
def test_what_the_divisor_costs(side, with_1023, with_1024):
    """Boxes encoded big_vision's way in 640 px, decoded both ways: the docs' table."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 640 - side, (4000, 2))
    boxes = np.concatenate([corners, corners + side], axis=1)
    loc = xyxy_to_loc(boxes, (640, 640), divisor=1023)
    for divisor, expected in ((1023, with_1023), (1024, with_1024)):
        back = loc_to_xyxy(loc, (640, 640), divisor=divisor)
        ious = [
            box_iou(a[None], b[None])[0, 0] for a, b in zip(boxes[:800], back[:800], strict=True)
        ]
        assert np.mean(ious) == pytest.approx(expected, abs=0.004)


boxes = hnp.arrays(
    np.float64, st.tuples(st.integers(0, 5), st.just(4)), elements=st.integers(0, 50)
)


def xywh(xyxy):
    return np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)


@settings(deadline=None, max_examples=100)
@given(boxes, boxes)
def test_iou_is_that_of_pycocotools(a, b):
    a, b = (np.concatenate([x[:, :2], x[:, :2] + x[:, 2:] + 1], axis=1) for x in (a, b))
    found = box_iou(a, b)
    assert found.shape == (len(a), len(b))
    if found.size:
        expected = coco_mask.iou(xywh(a), xywh(b), [0] * len(b))
        assert found == pytest.approx(expected)
        count = min(len(a), len(b))
        assert paired_iou(a[:count], b[:count]) == pytest.approx(found.diagonal())


def test_iou_of_empty_and_inverted_boxes_is_0():
    assert (
        box_iou([[5, 5, 5, 5], [9, 9, 2, 2]], [[5, 5, 5, 5], [0, 0, 9, 9]]).tolist() == [[0, 0]] * 2
    )
    assert box_area([[9, 9, 2, 2], [0, 0, 3, 2]]).tolist() == [0, 6]


def test_paired_iou():
    a = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4], [5, 5, 5, 5]]
    b = [[0, 0, 10, 10], [5, 0, 15, 10], [6, 6, 9, 9], [5, 5, 5, 5]]
    assert paired_iou(a, b).tolist() == [1, pytest.approx(1 / 3), 0, 0]


def test_xywh_to_corners():
    assert xywh_to_xyxy([[1, 2, 3, 6]]).tolist() == [[1, 2, 4, 8]]


def test_no_boxes():
    assert loc_to_xyxy([], (5, 5)).shape == (0, 4)
    assert loc_to_xyxy([], []).shape == (0, 4)
    assert xyxy_to_loc([], (5, 5)).shape == (0, 4)
    assert box_iou([], [[0, 0, 1, 1]]).shape == (0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loc_to_xyxy([[1, 2, 3]], (5, 5)), "shape"),
        (lambda: loc_to_xyxy([[1, 2, 3, "x"]], (5, 5)), "loc must be numbers"),
        (lambda: loc_to_xyxy([[1, 2, 3, 4]], (0, 5)), "positive"),
        (lambda: loc_to_xyxy([[1, 2, 3, 4]], (float("nan"), 5)), "positive"),
        (lambda: loc_to_xyxy([[1, 2, 3, 4]], [(5, 5)] * 3), "one such pair per row"),
        (lambda: loc_to_xyxy([[1, 2, 3, 4]], [(5, 5), (5,)]), "sizes must be numbers"),
        (lambda: loc_to_xyxy(np.zeros((3, 0)), (5, 5)), "shape"),
        (lambda: loc_to_xyxy([[1, 2, 3, 4]], (5, 5), divisor=1000), "1024"),
        (lambda: xyxy_to_loc([[1, 2, 3, float("inf")]], (5, 5)), "box 0"),
        (lambda: xyxy_to_loc([[1, 2, 3, 4]], (5, 5), divisor=0), "1024"),
    ],
)
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def slow_mean(mode, weights, radius):
    near = [bin_ for bin_ in range(1024) if mode - radius <= bin_ <= mode + radius]
    total = sum(float(weights[bin_]) for bin_ in near)
    return sum(bin_ * float(weights[bin_]) for bin_ in near) / total if total else mode


@pytest.mark.parametrize("radius", [0, 1, 12, 2000])
def test_expected_bins_are_means_around_the_bin(radius):
    rng = np.random.default_rng(4)
    modes = np.array([0, 3, 500, 1020, 1023, 700])
    weights = rng.random((6, 1024)).astype(np.float32) ** 8
    weights[5] = 0
    weights[5, 3] = 1  # nothing around its bin
    found = expected_bins(modes, weights, radius)
    wanted = [slow_mean(*both, radius) for both in zip(modes, weights, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    if radius < 500:
        assert (np.abs(found - modes) <= radius).all()
        assert found[5] == 700
