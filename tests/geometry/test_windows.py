"""Tiles of pictures, and the surroundings of boxes."""

from itertools import pairwise

import numpy as np
import pytest

from palidecode.errors import InputError
from palidecode.geometry.windows import check_overlap, check_tiles, surroundings, tile_windows

SIZES = [(64, 64), (101, 67), (1, 1), (3, 200), (640, 479)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiles", ["2x2", "3x1", "1x4", "5x3", "16x16"])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_picture_and_overlap(size, tiles, overlap):
    windows = tile_windows(size, tiles, overlap, 224)
    width, height = size
    if not len(windows):
        assert min(int(tiles[0]), width) == min(int(tiles[-1]), height) == 1
        return
    covered = np.zeros((height, width), int)
    for x1, y1, x2, y2 in windows:
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    assert len({tuple(window) for window in windows.tolist()}) == len(windows)
    assert len({(x2 - x1, y2 - y1) for x1, y1, x2, y2 in windows.tolist()}) == 1
    for low, high in ((0, 2), (1, 3)):
        spans = sorted({(window[low], window[high]) for window in windows.tolist()})
        for (start, end), (after, _) in pairwise(spans):
            assert end - after >= overlap * (end - start) - 1


def test_two_by_two_tiles_of_a_picture():
    windows = tile_windows((90, 45), "2x2", 0.2, 224)
    assert windows.tolist() == [[0, 0, 50, 25], [40, 0, 90, 25], [0, 20, 50, 45], [40, 20, 90, 45]]


@pytest.mark.parametrize(
    ("size", "columns", "rows"),
    [
        ((80, 80), 0, 0),
        ((81, 80), 2, 1),
        ((320, 161), 4, 3),
        ((9999, 30), 4, 1),
    ],
)
def test_auto_follows_the_size_that_the_model_sees(size, columns, rows):
    windows = tile_windows(size, "auto", 0.2, 80)
    assert len(windows) == columns * rows
    assert len({x1 for x1, *_ in windows.tolist()}) == columns


def test_a_picture_of_few_pixels_has_fewer_tiles():
    assert tile_windows((2, 1), "4x4", 0.2, 80).tolist() == []
    assert tile_windows((2, 1), "4x4", 0, 80).tolist() == [[0, 0, 1, 1], [1, 0, 2, 1]]
    assert len(tile_windows((3, 9), "16x2", 0.2, 80)) == 4


@pytest.mark.parametrize(
    "tiles", ["", "2", "2x", "0x2", "2x17", "2 x 2", "-1x2", "many", 2, "02x2"]
)
def test_other_tiles_are_refused(tiles):
    with pytest.raises(InputError, match="tiles must be 'auto', or columns and rows up to 16"):
        check_tiles(tiles)


@pytest.mark.parametrize("overlap", [-0.1, 0.51, float("nan")])
def test_other_overlaps_are_refused(overlap):
    with pytest.raises(InputError, match=r"overlap must be between 0 and 0\.5"):
        check_overlap(overlap)


def test_surroundings_are_whole_pixels_of_the_picture():
    boxes = [[10, 20, 20.5, 30], [0, 0, 100, 50], [99.9, 49.9, 99.95, 49.95], [0.1, 0.1, 0.2, 0.2]]
    windows = surroundings(boxes, 0.5, (100, 50))
    assert windows.tolist() == [[4, 15, 26, 35], [0, 0, 100, 50], [99, 49, 100, 50], [0, 0, 1, 1]]
    assert len(surroundings(np.zeros((0, 4)), 0.5, (100, 50))) == 0
