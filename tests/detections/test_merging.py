"""What several looks found becomes one object each."""

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import palidecode
from palidecode import Detections, InputError
from palidecode.detections.merging import MERGE_IOU, Looks, leaders, unite
from palidecode.geometry.boxes import box_iou
from tests.samples import random_detections


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.55, 1.0])
def test_merging_keeps_what_nms_keeps(seed, iou):
    found = random_detections(80, seed=seed)
    found.xyxy[3] = found.xyxy[3, [2, 3, 0, 1]]
    found.xyxy[5, 2] = np.inf
    found.scores[7] = np.nan
    led = leaders(found, iou)
    kept = found.select(np.flatnonzero(led == np.arange(len(found))))
    votes = np.unique(led, return_counts=True)[1]
    assert kept.xyxy.tolist() == found.nms(iou).xyxy.tolist()
    assert votes.sum() == len(found)
    assert len(votes) == len(kept)


def test_a_row_is_led_by_the_kept_row_that_overlaps_it_most():
    found = random_detections(80, seed=5)
    led = leaders(found, 0.2)
    kept = np.flatnonzero(led == np.arange(len(found)))
    assert len(kept) < len(found)
    overlaps = box_iou(found.xyxy, found.xyxy)
    rank = np.where(np.isnan(found.scores), np.inf, -found.scores)
    for row in np.flatnonzero(led != np.arange(len(found))):
        alike = [
            k
            for k in kept
            if found.labels[k] == found.labels[row]
            and found.image_index[k] == found.image_index[row]
            and (rank[k], k) < (rank[row], row)
        ]
        assert overlaps[row, led[row]] == max(overlaps[row, alike])
        assert overlaps[row, led[row]] > 0.2


@pytest.mark.parametrize("seed", range(3))
def test_united_masks_are_the_union_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    found = replace(
        random_detections(30, seed=seed),
        codes=rng.integers(0, 128, (30, 16), np.uint8),
        has_mask=rng.random(30) < 0.7,
        codes_id="palidecode-demo",
        codec=palidecode.load_codec("palidecode-demo"),
    )
    leader_of = {}
    groups = zip(found.image_index.tolist(), rng.integers(0, 4, 30).tolist(), strict=True)
    led = np.array([leader_of.setdefault(group, row) for row, group in enumerate(groups)])
    united = unite(found, led)
    masks = found.to_masks()
    assert len(united) == len(leader_of) < 30
    assert np.array_equal(united.scores, found.scores[np.unique(led)], equal_nan=True)
    for row, leader in enumerate(np.unique(led)):
        rows = np.flatnonzero(led == leader)
        some = [masks[other] for other in rows if masks[other] is not None]
        assert united.has_mask[row] == bool(some)
        assert united.xyxy[row, 0] == found.xyxy[rows, 0].min()
        assert united.xyxy[row, 3] == found.xyxy[rows, 3].max()
        if some:
            mask = coco_mask.decode(united.to_rle()[row])
            assert mask.astype(bool).tolist() == np.any(some, axis=0).tolist()


def test_nothing_to_merge():
    empty = Detections.empty()
    assert len(empty.nms(MERGE_IOU)) == len(unite(empty, leaders(empty))) == 0
    with pytest.raises(InputError, match=r"iou must be in \[0, 1\], got -1"):
        leaders(empty, -1)


# --- Looks --------------------------------------------------------------------------------------

SIZES = np.array([[97, 61], [40, 33]])
WINDOWS = np.array([[0, 0, 97, 61], [0, 0, 53, 37], [44, 24, 97, 61], [0, 0, 40, 33], [7, 5, 8, 6]])
LOOKS = Looks(WINDOWS, np.array([0, 0, 0, 1, 1]), SIZES, ["a.png", "b.png"])


def found_in(looks, rows, codec=None):
    """Detections of looks, from (look, label, xyxy in the look, score)."""
    sides = looks.windows[:, 2:] - looks.windows[:, :2]
    rng = np.random.default_rng(3)
    numbers, labels, boxes, scores = zip(*rows, strict=True)
    return Detections(
        xyxy=np.array(boxes, np.float32),
        labels=list(labels),
        scores=np.array(scores, np.float32),
        image_index=np.array(numbers),
        sizes=sides,
        codes=rng.integers(0, 128, (len(rows), 16), np.uint8),
        has_mask=np.full(len(rows), codec is not None),
        codec=codec,
        codes_id="palidecode-demo",
    )


@pytest.mark.parametrize("as_rle", [False, True])
def test_what_a_look_finds_is_the_same_pixels_in_the_picture(demo_codec, as_rle):
    rng = np.random.default_rng(1)
    rows = []
    for look in (0, 1, 2, 3, 4, 2, 1):
        width, height = (WINDOWS[look, 2:] - WINDOWS[look, :2]).tolist()
        bins = np.sort(rng.integers(0, 1024, (2, 2)), axis=0)
        box = (bins * [width, height] / 1024).ravel().tolist()
        rows.append((look, "cat", box, 0.5))
    found = found_in(LOOKS, rows, demo_codec)
    if as_rle:
        found = replace(found, rles=found.to_rle())
    placed = LOOKS.place(found)
    assert placed.names == ["a.png", "b.png"]
    masks = zip(found.to_masks(), placed.to_masks(), strict=True)
    for row, (part, whole) in enumerate(masks):
        x1, y1, x2, y2 = WINDOWS[rows[row][0]]
        wanted = np.zeros(SIZES[placed.image_index[row]][::-1], bool)
        wanted[y1:y2, x1:x2] = part
        assert whole.tolist() == wanted.tolist()
        assert (placed.xyxy[row] - found.xyxy[row]).tolist() == [x1, y1, x1, y1]


def test_objects_are_cut_by_inner_edges_alone():
    rows = [
        (0, "cat", [0, 0, 97, 61], 1),  # the whole picture
        (1, "cat", [0, 0, 53, 37], 1),
        (1, "cat", [0, 0, 52.5, 36], 1),
        (1, "cat", [0, 0, 50, 30], 1),
        (2, "cat", [0, 0, 53, 37], 1),
    ]
    cut = LOOKS.cut(found_in(LOOKS, rows)).astype(int).tolist()
    assert cut == [[0] * 4, [0, 0, 1, 1], [0, 0, 1, 0], [0] * 4, [1, 1, 0, 0]]


TILES = Looks(
    np.array([[0, 0, 100, 60], [0, 0, 55, 60], [45, 0, 100, 60]]),
    np.zeros(3, int),
    np.array([[100, 60]]),
    ["a.png"],
)


def test_a_whole_object_goes_before_the_parts_that_edges_cut():
    rows = [
        (0, "cat", [30, 10, 62, 50], 0.6),
        (1, "cat", [31, 10, 55, 50], 0.9),
        (2, "dog", [60 - 45, 10, 30, 50], 0.8),
    ]
    merged = TILES.merge(found_in(TILES, rows))
    assert merged.xyxy.tolist() == [[30, 10, 62, 50], [60, 10, 75, 50]]
    assert merged.scores.tolist() == pytest.approx([0.6, 0.8])


def test_two_parts_of_an_object_are_united_across_the_edge(demo_codec):
    rows = [
        (1, "cat", [31, 10, 55, 50], 0.9),
        (2, "cat", [0, 11, 25, 50], 0.7),
        (2, "dog", [0, 11, 25, 50], 0.7),  # of another label
        (2, "cat", [0, 51, 25, 59], 0.7),  # not beside it
        (1, "cat", [40, 52, 50, 58], float("nan")),
    ]
    found = found_in(TILES, rows, demo_codec)
    merged = TILES.merge(found)
    assert merged.xyxy[0].tolist() == [31, 10, 70, 50]
    assert merged.scores.tolist() == pytest.approx([0.8, 0.35, 0.35, np.nan], nan_ok=True)
    masks = TILES.place(found).to_masks()
    assert (masks[0] ^ masks[1]).any()
    assert merged.to_masks()[0].tolist() == (masks[0] | masks[1]).tolist()
    assert [rle is None for rle in merged.rles] == [False, True, True, True]


def test_four_tiles_share_an_object():
    corners = [(0, 0), (45, 0), (0, 25), (45, 25)]
    looks = Looks(
        np.array([[x, y, x + 55, y + 35] for x, y in corners]),
        np.zeros(4, int),
        np.array([[100, 60]]),
        [""],
    )
    boxes = [[20, 10, 55, 35], [0, 10, 30, 35], [20, 0, 55, 20], [0, 0, 30, 20]]
    merged = looks.merge(found_in(looks, [(n, "cat", box, 0.5) for n, box in enumerate(boxes)]))
    assert merged.xyxy.tolist() == [[20, 10, 75, 45]]
    assert merged.scores.tolist() == [0.5]


def test_a_second_look_replaces_what_overlaps_best(demo_codec):
    sizes = np.array([[100, 60], [50, 50]])
    whole = Looks(np.array([[0, 0, 100, 60], [0, 0, 50, 50]]), np.arange(2), sizes, ["a", "b"])
    first = whole.place(
        found_in(
            whole,
            [
                (0, "cat", [10, 10, 30, 30], 0.64),
                (0, "dog", [50, 20, 70, 40], 0.5),
                (0, "cat", [8, 12, 28, 28], 0.3),  # the first again
                (1, "cat", [10, 10, 20, 20], 0.8),  # not looked at
            ],
            demo_codec,
        )
    )
    looks = Looks(
        np.array([[0, 0, 40, 40], [40, 10, 80, 50], [0, 0, 40, 40]]), np.zeros(3, int), sizes, []
    )
    looks = replace(looks, names=["a", "b"])
    second = found_in(
        looks,
        [
            (0, "dog", [10, 10, 30, 30], 0.9),
            (0, "cat", [11, 10, 30, 31], 0.36),
            (0, "cat", [0, 0, 12, 12], 0.9),
            (1, "dog", [30, 30, 40, 40], 0.9),  # elsewhere
            (2, "cat", [11, 10, 30, 31], 0.25),
        ],
        demo_codec,
    )
    refined = looks.refine(first, second, np.array([0, 1, 2]))
    assert refined.labels == ["cat", "dog", "cat"]
    assert refined.xyxy.tolist() == [[11, 10, 30, 31], [50, 20, 70, 40], [10, 10, 20, 20]]
    assert refined.scores.tolist() == pytest.approx([0.48, 0.25, 0.8])
    assert refined.codes[0].tolist() == second.codes[1].tolist()
    assert refined.image_index.tolist() == [0, 0, 1]
    assert refined.names == ["a", "b"]


def test_looks_that_find_nothing():
    nothing = found_in(LOOKS, [(0, "cat", [0, 0, 1, 1], 1)]).select([])
    assert LOOKS.merge(nothing).sizes.tolist() == SIZES.tolist()
    assert len(LOOKS.refine(LOOKS.place(nothing), nothing, np.arange(0))) == 0
