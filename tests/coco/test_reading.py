"""Bad COCO files: a named error or a counted skip, and never a crash inside the engine."""

from __future__ import annotations

import copy
import json
import math
import warnings

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from palidecode import InputError, evaluate_coco
from palidecode.cli import main
from palidecode.coco.mask_reading import read_masks
from palidecode.coco.reading import Row, RunLengths, read_dataset, read_predictions
from palidecode.coco.skips import Skips
from tests.evaluation.problems import HEIGHT, WIDTH, problem

RING = [10, 10, 50, 10, 50, 40, 10, 40]
RLE = coco_mask.frPyObjects([RING], HEIGHT, WIDTH)[0]
RLE = {"size": [HEIGHT, WIDTH], "counts": RLE["counts"].decode()}
TRUTH = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 2, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30], "area": 1200,
         "iscrowd": 0, "segmentation": [RING]},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [10, 10, 40, 30], "area": 1200,
         "iscrowd": 0, "segmentation": RLE},
    ],
}  # fmt: skip
RESULTS = [
    {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30], "score": 0.9, "segmentation": RLE},
    {"image_id": 2, "category_id": 2, "bbox": [11, 10, 40, 30], "score": 0.8, "segmentation": RLE},
]


def truth_with(**changes):
    """The ground truth, its first annotation changed."""
    truth = copy.deepcopy(TRUTH)
    truth["annotations"][0].update(changes)
    return truth


def results_with(**changes):
    """The results and a third one, changed."""
    row = {**copy.deepcopy(RESULTS[0]), **changes}
    return [*RESULTS, {key: value for key, value in row.items() if value is not ...}]


SKIPPED = {
    "unknown image": (results_with(image_id=9), "unknown_image"),
    "unknown image, a name": (results_with(image_id="a.jpg"), "unknown_image"),
    "unknown category": (results_with(category_id=9), "unknown_category"),
    "negative category": (results_with(category_id=-1), "unknown_category"),
    "no image": (results_with(image_id=...), "unreadable"),
    "an image that is a list": (results_with(image_id=[1]), "unreadable"),
    "half an image": (results_with(image_id=1.5), "unreadable"),
    "NaN score": (results_with(score=math.nan), "bad_score"),
    "infinite score": (results_with(score=math.inf), "bad_score"),
    "text as score": (results_with(score="high"), "unreadable"),
    "NaN box": (results_with(bbox=[math.nan, 0, 10, 10]), "bad_box"),
    "endless box": (results_with(bbox=[0, 0, math.inf, 10]), "bad_box"),
    "gigantic box": (results_with(bbox=[1e308] * 4), "bad_box"),
    "three numbers": (results_with(bbox=[1, 2, 3]), "unreadable"),
    "a row that is a number": ([*RESULTS, 7], "unreadable"),
    "no box, no mask": (results_with(bbox=..., segmentation=...), "no_box"),
}


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "list"])
def test_predictions_that_are_skipped(name, as_file, tmp_path):
    rows, reason = SKIPPED[name]
    source = rows
    if as_file:
        source = tmp_path / "results.json"
        source.write_text(json.dumps(rows))
    result = evaluate_coco(TRUTH, source)
    assert [(s.side, s.reason, s.count) for s in result.skipped] == [("prediction", reason, 1)]
    assert result.predictions == 2
    assert result.stats.tolist() == evaluate_coco(TRUTH, RESULTS).stats.tolist()
    assert result.skipped[0].examples


def test_examples_say_where_rows_stand():
    def told(skips):
        return [(skip.reason, skip.examples) for skip in skips]

    bad = results_with(score=math.nan)
    assert told(evaluate_coco(TRUTH, bad).skipped) == [("bad_score", ("results[2]",))]
    dataset = {**TRUTH, "annotations": [{**row, "id": n} for n, row in enumerate(bad, 1)]}
    assert told(evaluate_coco(TRUTH, dataset).skipped) == [("bad_score", ("annotations[2]",))]
    found = evaluate_coco(TRUTH, [*RESULTS, 7, {**RESULTS[0], "image_id": 9}])
    assert sorted(told(found.skipped)) == [
        ("unknown_image", ("results[3] is about image 9",)),
        ("unreadable", ("results[2]: not an object: 7",)),
    ]
    found = evaluate_coco(truth_with(bbox=[0, 0, -1, 5]), RESULTS)
    assert told(found.skipped) == [("negative_box", ("annotations[0]",))]
    assert told(evaluate_coco(TRUTH, RESULTS[:1]).noted) == [("no_answer", ("b.jpg",))]
    many = [{**RESULTS[0], "score": 1 - abs(n - 3) / 200} for n in range(104)]
    found = evaluate_coco(TRUTH, [*many, RESULTS[1]])
    assert told(found.noted) == [("clipped", tuple(f"results[{n}]" for n in range(100, 104)))]
    assert found.noted[0].such_as == "results[100], results[101], results[102], results[103]"
    found = evaluate_coco(TRUTH, [*many, *many[4:], RESULTS[1]])
    assert found.noted[0].count == 104
    assert found.noted[0].such_as.startswith("such as results[")
    unknown = evaluate_coco(TRUTH, results_with(category_id=9)).skipped[0]
    assert (str(unknown).endswith("('9' 1)"), unknown.such_as) == (True, "")


def test_negative_and_outlying_boxes_are_wrong_answers():
    for box, reason in (
        ([50, 40, -40, -30], "negative_box"),
        ([500, 500, 10, 10], "outside"),
        ([-50, -50, 10, 10], "outside"),
        ([10, 10, 0, 30], "empty_box"),
    ):
        result = evaluate_coco(TRUTH, results_with(bbox=box))
        assert result.skipped == ()
        assert [(s.reason, s.count) for s in result.noted] == [(reason, 1)]
        assert (result.rates.right, result.rates.wrong) == (2, 1)
        assert result.match_rows[0]["kind"] == "background"


BAD_MASKS = {
    "another size": {"size": [HEIGHT, WIDTH + 1], "counts": RLE["counts"]},
    "sides swapped": {"size": [WIDTH, HEIGHT], "counts": RLE["counts"]},
    "cut short": {"size": [HEIGHT, WIDTH], "counts": RLE["counts"][:-1]},
    "strange characters": {"size": [HEIGHT, WIDTH], "counts": "\x01zz{{"},
    "not ASCII": {"size": [HEIGHT, WIDTH], "counts": "äöü"},
    "endless number": {"size": [HEIGHT, WIDTH], "counts": "o" * 30},
    "empty text": {"size": [HEIGHT, WIDTH], "counts": ""},
    "list that is short": {"size": [HEIGHT, WIDTH], "counts": [5, 3]},
    "negative runs": {"size": [HEIGHT, WIDTH], "counts": [-5, WIDTH * HEIGHT + 5]},
    "empty list": {"size": [HEIGHT, WIDTH], "counts": []},
    "two points": [[1, 1, 5, 5]],
    "NaN point": [[1, 1, 5, 5, math.nan, 3]],
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_damaged_masks_are_skipped(name):
    result = evaluate_coco(TRUTH, results_with(segmentation=BAD_MASKS[name]), "segm")
    assert [(s.side, s.reason, s.count) for s in result.skipped] == [("prediction", "bad_mask", 1)]
    assert result.stats.tolist() == evaluate_coco(TRUTH, RESULTS, "segm").stats.tolist()
    truth = truth_with(segmentation=BAD_MASKS[name])
    result = evaluate_coco(truth, RESULTS, "segm")
    assert [(s.side, s.reason, s.count) for s in result.skipped] == [("truth", "bad_mask", 1)]
    assert result.objects == 1


def test_missing_masks():
    result = evaluate_coco(TRUTH, results_with(segmentation=...), "segm")
    assert [(s.side, s.reason) for s in result.noted] == [("prediction", "no_mask")]
    assert (result.rates.right, result.rates.wrong) == (2, 1)
    result = evaluate_coco(truth_with(segmentation=[]), RESULTS, "segm")
    assert [(s.side, s.reason) for s in result.skipped] == [("truth", "no_mask")]
    bare = [{key: row[key] for key in row if key != "segmentation"} for row in RESULTS]
    with pytest.raises(InputError, match="no prediction has a mask; evaluate the boxes"):
        evaluate_coco(TRUTH, bare, "segm")
    rings = truth_with(segmentation=[RING, [1, 1, 2, 2]])
    result = evaluate_coco(rings, RESULTS, "segm")
    assert [(s.reason, s.count) for s in result.noted] == [("bad_ring", 1)]
    assert result.stats[0] == pytest.approx(1)
    sizeless = copy.deepcopy(TRUTH)
    del sizeless["images"][0]["width"]
    with pytest.raises(InputError, match="masks need the picture's width and height"):
        evaluate_coco(sizeless, RESULTS, "segm")
    assert evaluate_coco(sizeless, RESULTS).stats[0] > 0


@pytest.mark.parametrize("mask", [[RING], RLE, {"size": [HEIGHT, WIDTH], "counts": [9]}])
def test_a_mask_in_a_picture_without_a_size_says_nothing(mask):
    truth = truth_with(segmentation=mask)
    truth["annotations"][0].pop("bbox")
    truth["images"][0]["width"] = 0
    result = evaluate_coco(truth, RESULTS)
    assert [(s.side, s.reason, s.count) for s in result.skipped] == [("truth", "bad_mask", 1)]
    assert result.objects == 1


def test_annotations_that_are_skipped():
    for changes, reason in (
        ({"image_id": 5}, "unknown_image"),
        ({"category_id": 5}, "unknown_category"),
        ({"bbox": [10, 10, -5, 5]}, "negative_box"),
        ({"bbox": [math.nan] * 3 + [1]}, "bad_box"),
        ({"bbox": "here"}, "unreadable"),
        ({"area": -5}, "bad_area"),
    ):
        result = evaluate_coco(truth_with(**changes), RESULTS)
        assert [(s.side, s.reason, s.count) for s in result.skipped] == [("truth", reason, 1)]
        assert result.objects == 1


def test_repeated_ids_are_errors():
    truth = truth_with(id=2)
    with pytest.raises(InputError, match="annotations: the id 2 is there 2 times"):
        evaluate_coco(truth, RESULTS)
    for kind in ("images", "categories"):
        truth = copy.deepcopy(TRUTH)
        truth[kind].append(truth[kind][0])
        with pytest.raises(InputError, match=f"{kind}: the id"):
            evaluate_coco(truth, RESULTS)


def test_files_that_are_something_else(tmp_path, capsys):
    files = {
        "truth.json": json.dumps(TRUTH),
        "results.json": json.dumps(RESULTS),
        "empty.json": "",
        "cut.json": json.dumps(TRUTH)[:200],
        "text.json": "hello",
        "number.json": "7",
        "deep.json": "[" * 100_000,
        "no_images.json": json.dumps({"annotations": [], "categories": []}),
        "nothing.json": json.dumps({"images": [], "annotations": [], "categories": []}),
        "bad_image.json": json.dumps({**TRUTH, "images": [{"id": None}]}),
        "bad_size.json": json.dumps(
            {**TRUTH, "images": [{**TRUTH["images"][0], "width": math.nan}]}
        ),
        "bad_category.json": json.dumps({**TRUTH, "categories": [{"id": "one", "name": "cat"}]}),
        "others.json": json.dumps([{**RESULTS[0], "image_id": 77}]),
        "other_names.json": json.dumps(
            {**TRUTH, "images": [{"id": 1, "file_name": "x.jpg"}], "annotations": []}
        ),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")

    def error(truth, results):
        with pytest.raises(InputError) as caught:
            evaluate_coco(tmp_path / truth, tmp_path / results)
        assert main(["evaluate", str(tmp_path / truth), str(tmp_path / results)]) == 2
        assert str(caught.value) in capsys.readouterr().err
        return str(caught.value)

    assert "is a results list, not a COCO dataset" in error("results.json", "results.json")
    assert "is empty" in error("empty.json", "results.json")
    assert "is empty" in error("truth.json", "empty.json")
    assert "JSON is nested too deeply" in error("deep.json", "results.json")
    for name in ("cut.json", "text.json"):
        assert "not JSON" in error(name, "results.json")
        assert "not JSON" in error("truth.json", name)
    assert "can't be read" in error("binary.json", "results.json")
    assert "can't be read" in error("missing.json", "results.json")
    assert "no list of 'images' and 'annotations'" in error("number.json", "results.json")
    assert "a COCO dataset has 'images', 'annotations' and" in error("truth.json", "number.json")
    assert "no list of 'images'" in error("no_images.json", "results.json")
    assert "has no images" in error("nothing.json", "results.json")
    assert "images[0]" in error("bad_image.json", "results.json")
    assert "width must be a whole number" in error("bad_size.json", "results.json")
    assert "category 0" in error("bad_category.json", "results.json")
    assert "no prediction (1) is about an image" in error("truth.json", "others.json")
    assert "none of its pictures is in the ground truth" in error("truth.json", "other_names.json")
    # A dataset given as predictions is fine: it is what `decode` writes. It has no scores.
    same = [str(tmp_path / "truth.json")] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["evaluate", *same]) == 0
    told = capsys.readouterr()
    assert "NO SCORES" in told.out
    assert "have no scores: AP depends on their order" in told.err


def test_no_predictions_and_no_objects():
    result = evaluate_coco(TRUTH, [])
    assert result.stats[0] == 0
    assert (result.rates.missed, result.skipped) == (2, ())
    assert math.isnan(result.rates.precision)
    json.dumps(result.as_dict(), allow_nan=False)
    result = evaluate_coco({**TRUTH, "annotations": []}, RESULTS)
    assert set(result.stats.tolist()) == {-1.0}
    assert result.as_dict()["metrics"]["AP"] is None
    # Nothing that was said is right, however often a picture is drawn.
    assert {name: found.high for name, found in result.bootstrap(20).items()} == {
        "precision": 0.0,
        "F1": 0.0,
    }
    result = evaluate_coco({**TRUTH, "annotations": []}, [])
    assert result.rows() == result.match_rows == []
    json.dumps(result.as_dict(), allow_nan=False)


def test_both_readers_read_the_same(tmp_path):
    for seed in range(30):
        truth, results = problem(seed, masks=seed % 2 == 0)
        sources = (tmp_path / "truth.json", tmp_path / "results.json")
        for path, data in zip(sources, (truth, results), strict=True):
            path.write_text(json.dumps(data))
        odd = copy.deepcopy(results)
        for row in odd:
            row["image_id"] = float(row["image_id"])  # sends the file the careful way
        fast = read_predictions(sources[1], Row, Skips())
        careful = read_predictions(odd, Row, Skips())
        assert careful.annotations.rows == fast.annotations.rows
        offsets = careful.annotations.offsets.tolist()
        assert offsets == fast.annotations.offsets.tolist() == list(range(len(odd)))
        changed = copy.deepcopy(truth)
        changed["annotations"].append({"image_id": 1.5})
        skips = Skips()
        fast = read_dataset(sources[0], Row, Skips())
        careful = read_dataset(changed, Row, skips)
        assert careful.annotations.rows == fast.annotations.rows
        assert careful.images.rows == fast.images.rows
        assert careful.categories == fast.categories
        assert skips.skipped[0].count == 1


def test_numpy_and_bytes_in_rows():
    rows = [
        {
            "image_id": np.int64(1),
            "category_id": np.int32(1),
            "bbox": np.array([10, 10, 40, 30.0]),
            "score": np.float32(0.5),
            "segmentation": coco_mask.frPyObjects([RING], HEIGHT, WIDTH)[0],
        },
        {**RESULTS[1], "bbox": [np.float64(v) for v in RESULTS[1]["bbox"]]},
    ]
    for kind in ("bbox", "segm"):
        result = evaluate_coco(TRUTH, rows, kind)
        assert result.skipped == ()
        assert result.rates.right == 2


def test_many_run_lengths_are_judged_as_one_by_one():
    rng = np.random.default_rng(5)
    texts = [RLE["counts"]]
    for _ in range(300):
        mask = (rng.random((HEIGHT, WIDTH)) < rng.choice([0.001, 0.5, 1])).astype(np.uint8)
        text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
        if rng.random() < 0.5:  # damage it
            place = int(rng.integers(len(text)))
            text = text[:place] + chr(int(rng.integers(40, 120))) + text[place + 1 :]
        texts.append(text)
    from palidecode.geometry.rle import check_rle

    def is_sound(text):
        try:
            check_rle({"size": [HEIGHT, WIDTH], "counts": text})
        except InputError:
            return False
        return True

    rows = [RunLengths((HEIGHT, WIDTH), text) for text in texts]
    found = read_masks(rows, np.full((len(rows), 2), (WIDTH, HEIGHT)))
    assert (~found.damaged).tolist() == [is_sound(text) for text in texts]
    assert 50 < found.damaged.sum() < 200


JUNK = [None, -1, 0, 1.5, 1e30, 2**70, math.nan, math.inf, "", "x", [], [[]], {}, True, [1e400]]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_junk_anywhere_is_an_error_or_counted(kind):
    rng = np.random.default_rng(11)
    for _ in range(400):
        truth, results = copy.deepcopy(TRUTH), copy.deepcopy(RESULTS)
        rows = [*truth["images"], *truth["categories"], *truth["annotations"], *results]
        row = rows[rng.integers(len(rows))]
        row[str(rng.choice(list(row)))] = JUNK[rng.integers(len(JUNK))]
        try:
            result = evaluate_coco(truth, results, kind, scores="ignore", orders=1)
        except InputError:
            continue
        left_out = {skip.side: skip.count for skip in result.skipped}
        assert result.objects + left_out.get("truth", 0) >= 1
        assert result.predictions + left_out.get("prediction", 0) == 2
        json.dumps(result.as_dict(), allow_nan=False)


@pytest.mark.parametrize("damage", ["", ', {"image_id": 7}'])
def test_of_a_key_twice_the_last_value_counts(tmp_path, damage):
    """On both paths: a sound file's, and that of a file with a row that can't be read."""
    row = '{"image_id": 1, "image_id": 2, "category_id": 1, "bbox": [9, 9, 9, 9]'
    row += ', "bbox": [1, 1, 4, 4]'
    (tmp_path / "twice.json").write_text(f'[{row}, "score": 0.1, "score": 0.9}}{damage}]')
    skips = Skips()
    read = read_predictions(tmp_path / "twice.json", Row, skips)
    ((_, first), *_) = read.annotations.numbered()
    assert (first.image_id, first.bbox, first.score) == (2, (1, 1, 4, 4), 0.9)
