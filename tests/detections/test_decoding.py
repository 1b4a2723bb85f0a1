import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from palidecode import CodecMismatchWarning, Detections, InputError, ParseError, decode, load_codec
from palidecode.geometry.boxes import box_iou
from tests.samples import CODES, answer


def test_boxes_labels_and_images_of_several_answers():
    found = decode([answer("cat"), "", f"{answer('dog')} ; {answer('owl')}"], [(1024, 512)] * 3)
    assert found.labels == ["cat", "dog", "owl"]
    assert found.image_index.tolist() == [0, 2, 2]
    assert found.xyxy[0].tolist() == [200, 50, 800, 350]
    assert found.sizes.tolist() == [[1024, 512]] * 3
    assert np.isnan(found.scores).all()
    assert not found.has_mask.any()


def test_one_text_and_one_size_need_no_lists():
    assert decode(answer("cat"), (64, 64)).labels == ["cat"]


def test_the_divisor_is_used():
    loc = (0, 0, 1023, 1023)
    assert decode(answer("a", loc), (100, 50), divisor=1023).xyxy[0].tolist() == [0, 0, 100, 50]
    assert decode(answer("a", loc), (100, 50)).xyxy[0, 2] < 100


def test_nothing_found_works_everywhere(demo_codec):
    for answers in ([], [""], ["no objects here"]):
        found = decode(answers, [(8, 8)] * len(answers), demo_codec)
        assert len(found) == 0
        assert found.to_rle() == found.to_masks() == found.to_polygons() == []
        assert found.fields().shape == (0, 64, 64)
        assert len(found.select([])) == 0
        assert found.xyxy.shape == (0, 4)


def test_rle_masks_and_exact_polygons_are_one_mask(demo_codec):
    found = decode([f"{answer('a', codes=CODES)} ; {answer('b')}"], (320, 200), demo_codec)
    rle, none = found.to_rle()
    mask = found.to_masks()[0]
    assert none is None
    assert found.to_masks()[1] is None
    assert rle["size"] == [200, 320]
    assert (coco_mask.decode(rle) == mask).all()
    assert mask.any()
    polygons = found.to_polygons("exact", holes="keyhole")[0]
    again = coco_mask.merge(coco_mask.frPyObjects(polygons.to_coco(), 200, 320))
    assert (coco_mask.decode(again) == mask).mean() > 0.999


def test_smooth_polygons_lie_on_the_mask(demo_codec):
    found = decode([answer("a", codes=CODES)], (640, 480), demo_codec)
    (polygons,) = found.to_polygons()
    drawn = coco_mask.merge(coco_mask.frPyObjects(polygons.to_coco(), 480, 640))
    assert coco_mask.iou([drawn], found.to_rle(), [0])[0, 0] > 0.93


def test_masks_come_in_chunks_but_in_order(demo_codec):
    rng = np.random.default_rng(0)
    answers = []
    for row in range(700):
        codes = rng.integers(0, 128, 16).tolist() if row % 3 else None
        answers.append(answer(str(row), codes=codes))
    found = decode(answers, (96, 96), demo_codec)
    rles = found.to_rle()
    assert [rle is not None for rle in rles] == found.has_mask.tolist()
    assert found.select([601]).to_rle() == [rles[601]]


def test_select_and_image_keep_rows_together(demo_codec):
    texts = [
        f"{answer('a', codes=CODES)} ; {answer('b')}",
        f"{answer('c')} ; {answer('d')} junk ;;",
    ]
    found = decode(texts, [(10, 20), (30, 40)], demo_codec, scores=[[0.1, 0.2], None])
    assert found.select(found.scores > 0.15).labels == ["b"]
    assert found.select(slice(1, 3)).labels == ["b", "c"]
    second = found.image(1)
    assert second.labels == ["c", "d junk"]
    assert second.sizes.tolist() == [[30, 40]]
    assert second.image_index.tolist() == [0, 0]
    assert {image for image, _ in second.issues} == {0}
    with pytest.raises(InputError, match="image 2"):
        found.image(2)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[0.5]], r"as many as answers \(2\)"),
        ([[0.5, 0.5], None], "answer 0 has 1 box but 2 scores"),
    ],
)
def test_scores_must_fit(scores, message):
    with pytest.raises(InputError, match=message):
        decode([answer("a"), answer("b")], (8, 8), scores=scores)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (4.5, 3), (float("nan"), 3), (1, 2, 3)])
def test_sizes_must_be_pixels(size):
    with pytest.raises(InputError, match="size"):
        decode([answer("a")], [size])


def test_strict_names_the_answer():
    with pytest.raises(ParseError, match="answer 1"):
        decode([answer("a"), "<loc0001> b"], (8, 8), strict=True)


def test_token_ids_of_a_batch():
    ids = np.array(
        [[256100, 256200, 256700, 256800, 4991, 1], [256100, 256200, 256700, 256800, 1, 0]]
    )
    found = decode(ids, (1024, 1024), detokenize=lambda run: " cat" if run == [4991] else "?")
    assert found.labels == ["cat", ""]
    assert found.xyxy.tolist() == [[200, 100, 800, 700]] * 2


def test_default_weights_warn_that_the_shapes_are_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("PALIDECODE_CACHE", str(tmp_path))
    monkeypatch.delenv("PALIDECODE_WEIGHTS", raising=False)
    found = decode([answer("a", codes=CODES)], (64, 64))
    assert found.codes_id == "google-oid"
    with pytest.warns(CodecMismatchWarning, match="palidecode weights fetch"):
        found.to_rle()


def test_a_codec_that_was_given_is_the_one_of_its_codes(demo_codec):
    found = decode([answer("a", codes=CODES)], (64, 64), demo_codec)
    assert found.codes_id == "palidecode-demo"
    assert found.to_rle()[0] is not None
    mixed = decode([answer("a", codes=CODES)], (64, 64), demo_codec, codes_id="google-oid")
    with pytest.warns(CodecMismatchWarning):
        mixed.to_rle()


def test_fields_of_rows_without_codes_are_refused(demo_codec):
    found = decode([answer("a")], (64, 64), demo_codec)
    with pytest.raises(InputError, match="no codes"):
        found.fields([0])


def test_columns_that_do_not_fit_are_refused():
    found = decode([answer("a")], (64, 64))
    columns = {name: getattr(found, name) for name in found.__dataclass_fields__}
    for name, value in (
        ("xyxy", np.zeros((2, 4), np.float32)),
        ("sizes", np.zeros((2, 3), np.int64)),
        ("image_index", np.array([3])),
        ("rles", []),
    ):
        with pytest.raises(InputError):
            Detections(**{**columns, name: value})


def test_the_two_cats_of_39769_lie_where_people_drew_them(shared_data):
    truth = json.loads((shared_data / "cats_39769/coco_annotations.json").read_text())
    rows = map(json.loads, (shared_data / "outputs.jsonl").read_text().splitlines())
    text = next(row["output"] for row in rows if row["output"].startswith("<loc0046><loc0538>"))
    found = decode([text], [(640, 480)])
    annotations = truth["annotations"] if isinstance(truth, dict) else truth
    xywh = np.array([item["bbox"] for item in annotations if item["category_id"] == 17])
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    best = box_iou(found.xyxy, boxes).max(axis=1)
    assert found.labels == ["cat", "cat"]
    assert best == pytest.approx([0.939, 0.914], abs=0.002)


def test_backends_make_the_same_masks():
    text = answer("a", codes=CODES)
    masks = [
        decode(
            text, (300, 200), load_codec("palidecode-demo", backend, precision="float32")
        ).to_masks()[0]
        for backend in ("onnx", "torch")
    ]
    assert (masks[0] == masks[1]).mean() > 0.9999
