import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from palidecode.errors import InputError
from palidecode.geometry.masks import MaskCrop
from palidecode.geometry.rle import check_rle, crop_to_rle, read_runs, rle_to_crop, runs_in_window
from tests.references import whole_image

SOUND = {"size": [3, 4], "counts": [2, 5, 5]}


def encoded(image):
    """Encode a whole image with pycocotools."""
    rle = coco_mask.encode(np.asfortranarray(image, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@st.composite
def crops(draw):
    """A crop and its image, touching the image's borders more often than not."""
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    left, top, right, bottom = (draw(st.sampled_from([0, 0, 1, 7])) for _ in range(4))
    mask = draw(npst.arrays(bool, (h, w)))
    layout = np.asfortranarray if draw(st.booleans()) else np.ascontiguousarray
    return MaskCrop(left, top, layout(mask)), (left + w + right, top + h + bottom)


@settings(deadline=None, max_examples=200)
@given(crops())
def test_a_crop_becomes_what_pycocotools_makes_of_the_whole_image(case):
    crop, size = case
    assert crop_to_rle(crop, size) == encoded(whole_image(crop, size))


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize(
    ("x", "y", "shape"),
    [(0, 0, (480, 640)), (5, 0, (480, 3)), (0, 7, (2, 640)), (639, 479, (1, 1)), (9, 9, (0, 0))],
)
def test_full_and_empty_crops(value, x, y, shape):
    crop, size = MaskCrop(x, y, np.full(shape, value)), (640, 480)
    assert crop_to_rle(crop, size) == encoded(whole_image(crop, size))


@pytest.mark.parametrize(("x", "y"), [(-1, 0), (0, -1), (5, 0), (0, 5)])
def test_a_crop_that_leaves_its_image_is_refused(x, y):
    with pytest.raises(InputError, match="leaves its image"):
        crop_to_rle(MaskCrop(x, y, np.ones((6, 6), bool)), (10, 10))


@settings(deadline=None, max_examples=200)
@given(npst.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_rle_comes_back_as_mask_and_as_tight_crop(image):
    rle, size = encoded(image), image.shape[::-1]
    assert (coco_mask.decode(rle) == image).all()
    crop = rle_to_crop(rle)
    assert (whole_image(crop, size) == image).all()
    if image.any():
        edges = (crop.mask[0], crop.mask[-1], crop.mask[:, 0], crop.mask[:, -1])
        assert all(edge.any() for edge in edges)
    else:
        assert crop.mask.shape == (0, 0)


def test_runs_of_no_length_are_read():
    rle = {"size": [3, 4], "counts": [0, 2, 0, 3, 7]}
    assert coco_mask.decode(check_rle(rle)).T.ravel().tolist() == [True] * 5 + [False] * 7
    assert rle_to_crop(rle).mask.sum() == 5


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30).filter(any))
def test_lists_of_counts_become_the_text_that_pycocotools_writes(counts):
    size = [1, sum(counts)]
    expected = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)
    found = check_rle({"size": size, "counts": counts})
    assert found == {"size": size, "counts": expected["counts"].decode()}
    assert check_rle(found) == found
    assert check_rle({"size": size, "counts": expected["counts"]}) == found


def test_numbers_of_numpy_are_as_good_as_pythons():
    rle = {"size": np.array([3, 4]), "counts": list(np.array([2, 5, 5]))}
    assert check_rle(rle) == check_rle(SOUND)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (None, "needs 'size' and 'counts'"),
        ([[1, 2, 3]], "needs 'size' and 'counts'"),
        ({"size": [3, 4]}, "needs 'size' and 'counts'"),
        (SOUND | {"size": [3]}, "must be .height, width."),
        (SOUND | {"size": 7}, "must be .height, width."),
        (SOUND | {"size": [0, 4]}, "must be .height, width."),
        (SOUND | {"size": [-3, -4]}, "must be .height, width."),
        (SOUND | {"size": [3, float("inf")]}, "must be .height, width."),
        (SOUND | {"size": [3, "x"]}, "must be .height, width."),
        ({"size": [1 << 20, 1 << 20], "counts": [1 << 40]}, "more than an RLE's"),
        (SOUND | {"counts": [2, 5, 4]}, "sum to 11, but 4×3 pixels are 12"),
        (SOUND | {"counts": []}, "sum to 0"),
        (SOUND | {"counts": ""}, "sum to 0"),
        (SOUND | {"counts": [2, -5, 15]}, "a run of -5 pixels"),
        (SOUND | {"counts": [1 << 62] * 4 + [12]}, "sum to 18446744073709551628"),
        (SOUND | {"counts": [1 << 70]}, "longer than any image"),
        (SOUND | {"counts": [2.5, 9.5]}, "ASCII text or a list of integers"),
        (SOUND | {"counts": [[2, 5], [5]]}, "ASCII text or a list of integers"),
        (SOUND | {"counts": ["2"]}, "ASCII text or a list of integers"),
        (SOUND | {"counts": None}, "ASCII text or a list of integers"),
        (SOUND | {"counts": 1 << 40}, "ASCII text or a list of integers"),
        (SOUND | {"counts": "2é"}, "ASCII text or a list of integers"),
        (SOUND | {"counts": "25 5"}, "' ' is not of COCO's RLE alphabet"),
        (SOUND | {"counts": "25\0"}, "is not of COCO's RLE alphabet"),
        (SOUND | {"counts": b"25\xff"}, "ASCII text or a list of integers"),
        (SOUND | {"counts": "25P"}, "end in the middle of a number"),
        (SOUND | {"counts": "2" + "P" * 6 + "0" + "55"}, "more than six characters"),
        (SOUND | {"counts": "2O5"}, "a run of -1 pixels"),
    ],
)
def test_hostile_rle_is_an_input_error(rle, message):
    for read in (check_rle, rle_to_crop):
        with pytest.raises(InputError, match=message):
            read(rle)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_whatever_text_is_let_through_fills_the_image(text):
    rle = {"size": [3, 4], "counts": text}
    try:
        checked = check_rle(rle)
    except InputError:
        return
    assert (whole_image(rle_to_crop(checked), (4, 3)) == coco_mask.decode(checked)).all()


def test_the_longest_run_is_written_and_read():
    rle = crop_to_rle(MaskCrop(0, 0, np.ones((1, 1), bool)), (1 << 14, 1 << 15))
    assert check_rle(rle) == rle
    assert rle_to_crop(rle).mask.tolist() == [[True]]


@settings(deadline=None, max_examples=100)
@given(st.lists(npst.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), max_size=6))
def test_runs_of_many_masks_are_those_of_each(images):
    runs, ends = read_runs([encoded(image) for image in images])
    parts = [part.ravel() for part in np.split(runs, ends)[:-1]]
    assert len(parts) == len(images)
    for own, image in zip(parts, images, strict=True):
        (height, width), value = image.shape, image.T.ravel()
        assert np.repeat(np.arange(len(own)) % 2 == 1, own).tolist() == value.tolist()
        x, y = width // 2, height // 3
        assert (runs_in_window(own, height, (x, y, width, height)) == image[y:, x:]).all()
        assert runs_in_window(own, height, (x, y, x, height)).shape == (0, 0)


def test_one_damaged_text_among_many_is_named():
    good = check_rle(SOUND)
    for counts, message in (("", "sum to 0"), ("2P", "middle of a number"), ("0", "sum to 0")):
        with pytest.raises(InputError, match=message):
            read_runs([good, {"size": [3, 4], "counts": counts}, good])
