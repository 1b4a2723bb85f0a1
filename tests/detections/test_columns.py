"""Rows of Detections: selected, joined, filtered, suppressed; the names of their images."""

from dataclasses import replace

import numpy as np
import pytest

from palidecode import Detections, InputError, decode, from_coco, load_codec
from tests.references import suppressed
from tests.samples import CODES, answer, random_detections


@pytest.fixture
def found(demo_codec):
    texts = [f"{answer('cat', codes=CODES)} ; {answer('dog')}", "", f"{answer('owl')} junk ;;"]
    return decode(
        texts,
        [(64, 48), (32, 32), (80, 60)],
        demo_codec,
        scores=[[0.5, 0.25], None, None],
        names=["a.jpg", "b.jpg", "c.jpg"],
        image_ids=[7, "x", None],
    )


def test_an_index_selects_one_object(found):
    assert found[0].labels == ["cat"]
    assert found[-1].labels == ["owl junk"]
    assert found[np.int64(1)].scores.tolist() == [0.25]
    assert found[0].sizes.tolist() == found.sizes.tolist()
    assert found[2].image_index.tolist() == [2]
    assert found[0].to_rle() == found.to_rle()[:1]
    for outside in (3, -4):
        with pytest.raises(IndexError, match=f"object {outside} is not one of the 3"):
            _ = found[outside]
    with pytest.raises(IndexError):
        _ = Detections.empty()[0]


def test_masks_slices_and_indices_select_objects(found):
    assert found[found.scores > 0.3].labels == ["cat"]
    assert found[1:3].labels == ["dog", "owl junk"]
    assert found[::-1].labels == ["owl junk", "dog", "cat"]
    assert found[[2, -3]].labels == ["owl junk", "cat"]
    assert len(found[1:3].sizes) == 3
    assert found[[]].names == found.names
    with pytest.raises(IndexError):
        _ = found[np.array([True, False])]


def test_iteration_gives_each_object(found):
    assert [one.labels for one in found] == [["cat"], ["dog"], ["owl junk"]]
    assert all(isinstance(one, Detections) for one in found)
    assert list(Detections.empty()) == []


def test_names_and_ids_stay_beside_their_images(found):
    assert found.names == ["a.jpg", "b.jpg", "c.jpg"]
    assert found.image_ids == [7, "x", None]
    third = found.image("c.jpg")
    assert (third.labels, third.names, third.image_ids) == (["owl junk"], ["c.jpg"], [None])
    assert {image for image, _ in third.issues} == {0}
    assert found.image(0).image_ids == [7]
    plain = decode([answer("cat"), ""], (8, 8))
    assert (plain.names, plain.image_ids) == (["", ""], [None, None])


def test_images_that_are_not_there_are_refused(found):
    with pytest.raises(InputError, match=r"no image is called 'd.jpg'; there are 'a.jpg', 'b.jpg'"):
        found.image("d.jpg")
    with pytest.raises(InputError, match="no image is called ''; there are no names"):
        decode("", (8, 8)).image("")
    with pytest.raises(InputError, match=r"2 images are called 'a.jpg': select by index: \[0, 3\]"):
        (found + found).image("a.jpg")
    with pytest.raises(InputError, match=r"as many as the images \(3\)"):
        replace(found, names=["a.jpg"])
    with pytest.raises(InputError, match=r"as many as the images \(2\)"):
        decode(["", ""], (8, 8), image_ids=[1, 2, 3])


def test_adding_appends_images(found):
    both = found + found.image(2)
    assert both.labels == ["cat", "dog", "owl junk", "owl junk"]
    assert both.image_index.tolist() == [0, 0, 2, 3]
    assert both.names == ["a.jpg", "b.jpg", "c.jpg", "c.jpg"]
    assert both.image_ids == [7, "x", None, None]
    assert [image for image, _ in both.issues] == [2, 2, 3, 3]
    assert both.to_rle()[0] == found.to_rle()[0]
    assert len(found + Detections.empty()) == 3
    with pytest.raises(TypeError):
        _ = found + 1


def test_nothing_joined_is_empty():
    empty = Detections.concat([])
    assert (len(empty), empty.names, empty.sizes.shape) == (0, [], (0, 2))
    assert empty.to_dict() == []
    assert len(Detections.empty().filter(score=0.5, area=(0, 1), label="a").nms(0.5)) == 0


def test_images_of_one_name_and_size_join_on_request(found):
    other = decode([answer("fox"), answer("bee")], [(80, 60), (9, 9)], names=["c.jpg", "a.jpg"])
    other = replace(other, image_ids=[3, 4])
    joined = Detections.concat([found, other], merge_images=True)
    assert joined.names == ["a.jpg", "b.jpg", "c.jpg", "a.jpg"]  # the second a.jpg is smaller
    assert joined.image("c.jpg").labels == ["owl junk", "fox"]
    assert joined.image_ids == [7, "x", 3, 4]
    assert joined.image_index.tolist() == [0, 0, 2, 2, 3]
    unnamed = decode([answer("a"), answer("b")], (8, 8))
    assert len(Detections.concat([unnamed], merge_images=True).sizes) == 2


def test_masks_of_files_and_of_codes_join(found, dataset):
    joined = found + from_coco(dataset)
    assert joined.to_rle()[:1] == found.to_rle()[:1]
    assert joined.to_rle()[3:] == from_coco(dataset).to_rle()
    assert joined.codec is found.codec


def test_codes_of_different_weights_do_not_join(found):
    google = decode([answer("a", codes=CODES)], (8, 8), codes_id="google-oid")
    with pytest.raises(InputError, match="masks of google-oid and palidecode-demo can't be joined"):
        _ = found + google
    _ = found + google[[]]  # without masks there is nothing to decode
    assert len(found[[1, 2]] + decode([answer("a")], (8, 8))) == 3
    rles = replace(google, codec=load_codec("palidecode-demo"), codes_id="palidecode-demo")
    assert len(found + replace(google, rles=rles.to_rle())) == 4


def test_filters(found):
    assert found.filter(label="cat").labels == ["cat"]
    assert found.filter(label=["dog", "owl junk", "emu"]).labels == ["dog", "owl junk"]
    assert found.filter(score=0.25).labels == ["cat", "dog"]  # the third has none
    assert found.filter(score=0).labels == ["cat", "dog"]
    assert found.filter(label="dog", score=0.3).labels == []
    assert len(found.filter().sizes) == 3


def test_the_area_is_that_of_the_mask_or_else_of_the_box(found):
    pixels = int(found.to_masks()[0].sum())
    assert found.area.tolist() == [pixels, *found.area[1:].tolist()]
    assert found.area[1] == pytest.approx((600 / 1024 * 64) * (600 / 1024 * 48))
    assert 0 < pixels < found.area[1]
    assert found.filter(area=(pixels, pixels)).labels == ["cat"]
    assert found.filter(area=(pixels + 1, np.inf)).labels == ["dog", "owl junk"]
    inverted = replace(found, xyxy=found.xyxy[:, [2, 3, 0, 1]], has_mask=np.zeros(3, bool))
    assert inverted.area.tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_is_that_of_the_reference(seed, agnostic):
    found = random_detections(60, seed=seed)
    found.xyxy[3] = found.xyxy[3, [2, 3, 0, 1]]
    found.xyxy[5, 2] = np.inf
    labels = ["" if agnostic else label for label in found.labels]
    groups = list(zip(found.image_index.tolist(), labels, strict=True))
    for iou in (0.0, 0.3, 0.5):
        dropped = suppressed(found.xyxy, found.scores, groups, iou)
        kept = found.nms(iou, class_agnostic=agnostic)
        assert dropped.any()
        assert kept.xyxy.tolist() == found.xyxy[~dropped].tolist()
        assert kept.labels == found[~dropped].labels


def test_nms_prefers_known_scores_and_then_the_first():
    boxes = [answer(label, (0, 0, 500, 500)) for label in ("a", "a", "b")]
    found = decode([" ; ".join(boxes)], (64, 64), scores=[[float("nan"), 0.1, 0.9]])
    assert found.nms(0.5).scores.tolist() == pytest.approx([0.1, 0.9])
    assert found.nms(0.5, class_agnostic=True).labels == ["b"]
    unscored = decode([" ; ".join(boxes)], (64, 64))
    assert len(unscored.nms(0.5)) == 2
    assert len(found.nms(1)) == 3
    with pytest.raises(InputError, match=r"iou must be in \[0, 1\], got 1.5"):
        found.nms(1.5)


def test_boxes_below_zero_suppress_only_their_class():
    xyxy = np.array([[-30, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    found = replace(random_detections(2, 1), xyxy=xyxy, labels=["a", "b"])
    assert len(found.nms(0.1)) == 2


@pytest.mark.slow
def test_a_million_objects_are_no_problem(tmp_path):
    found = random_detections(1_000_000, 200_000)
    assert len(found.image(199_999)) == (found.image_index == 199_999).sum()
    assert len(found.filter(label="cat", score=0.5)) > 0
    assert len(found + found) == 2_000_000
    assert len(found.nms(0.5)) < 1_000_000
    assert len(repr(found).splitlines()) == 13
    assert len(found.to_pandas()) == 1_000_000
    found.to_csv(tmp_path / "objects.csv")
    assert (tmp_path / "objects.csv").read_bytes().count(b"\n") == 1_000_001


@pytest.mark.parametrize("rows", ["cat", 1.5, [[0]], None])
def test_rows_that_are_no_indices_are_refused_in_a_line(rows):
    found = decode(["<loc0046><loc0538><loc0795><loc1022> cat"], [(640, 480)])
    assert len(found.select(0)) == 1
    with pytest.raises(InputError, match="rows must be indices, a boolean mask or a slice, got"):
        found.select(rows)
