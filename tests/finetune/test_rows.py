import json
import math
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from palidecode import (
    EncodeReport,
    InputError,
    encode_boxes,
    encode_masks,
    parse,
    to_finetuning_rows,
)
from palidecode.answers.rows import AnswerRow, read_rows
from palidecode.finetune.objects import GroundTruth, RowOptions, name_problem
from palidecode.finetune.rows import encode_images, split_images
from palidecode.vocab import loc_token
from tests.coco.samples import SIZE, annotation, square


def left_out(dataset, task="detect", **options):
    report = EncodeReport()
    rows = list(to_finetuning_rows(dataset, task, report=report, **options))
    return rows, report.left_out()


def labels(row):
    return [item.label for item in parse(row["suffix"], strict=True).objects]


def test_detect_rows(dataset):
    report = EncodeReport()
    rows = list(to_finetuning_rows(dataset, report=report))
    assert rows[1] == {
        "image": "b.jpg",
        "prefix": "detect cat ; dog ; traffic light ; bird",
        "suffix": "<loc0043><loc0016><loc0256><loc0176> cat",
        "width": 640,
        "height": 480,
    }
    assert [row["image"] for row in rows] == ["a.jpg", "b.jpg", "none.jpg"]
    assert labels(rows[0]) == ["cat", "dog", "cat"]
    assert rows[2]["suffix"] == ""
    assert (report.images, report.objects, report.left_out()) == (3, 4, {})


def test_segment_rows_hold_the_codes_of_their_masks(dataset, demo_codec):
    rows = list(to_finetuning_rows(dataset, "segment", codec=demo_codec))
    assert rows[0]["prefix"].startswith("segment cat ; dog")
    objects = parse(rows[0]["suffix"], strict=True).objects
    masks = np.zeros((3, 480, 640), bool)
    masks[0, 40:104, 300:364] = masks[1, 100:300, 32:232] = masks[2, 30:62, 160:192] = True
    xyxy = [[300, 40, 364, 104], [32, 100, 232, 300], [160, 30, 192, 62]]
    assert [item.seg for item in objects] == [
        tuple(codes) for codes in encode_masks(masks, xyxy, demo_codec).tolist()
    ]
    assert [item.loc for item in objects] == [tuple(b) for b in encode_boxes(xyxy, SIZE).tolist()]


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_rows_are_the_same_whatever_the_chunk(dataset, demo_codec, chunk):
    whole = list(to_finetuning_rows(dataset, "segment", codec=demo_codec, order="shuffled"))
    truth = GroundTruth(dataset, RowOptions("segment", order="shuffled"), EncodeReport())
    chunks = list(encode_images(truth, demo_codec, chunk))
    assert [image.row for images in chunks for image in images] == whole
    assert len(chunks) == {1: 3, 2: 2, 3: 2, 4: 2}[chunk]


def test_rows_are_made_when_they_are_asked_for(dataset, demo_codec):
    report = EncodeReport()
    truth = GroundTruth(dataset, RowOptions("segment"), report)
    chunks = encode_images(truth, demo_codec, 1)
    assert report.images == 0
    next(chunks)
    assert (report.images, report.objects) == (1, 3)


@pytest.mark.parametrize("kind", ["rle", "compressed"])
def test_rle_and_polygons_give_the_same_rows(dataset, demo_codec, kind):
    expected = list(to_finetuning_rows(dataset, "segment", codec=demo_codec))
    for item in dataset["annotations"]:
        rle = coco_mask.frPyObjects(item["segmentation"], 480, 640)[0]
        if kind == "rle":
            flat = coco_mask.decode(rle).ravel("F").astype(int)
            edges = np.flatnonzero(np.diff(flat, prepend=0))
            counts = np.diff(edges, prepend=0, append=len(flat)).tolist()
            item["segmentation"] = {"size": [480, 640], "counts": counts}
        else:
            item["segmentation"] = {"size": [480, 640], "counts": rle["counts"].decode()}
    assert list(to_finetuning_rows(dataset, "segment", codec=demo_codec)) == expected


def test_classes_in_the_prefix(dataset):
    rows = list(to_finetuning_rows(dataset, classes="present"))
    assert [row["prefix"] for row in rows] == ["detect cat ; dog", "detect cat"]
    rows = list(to_finetuning_rows(dataset, classes="present+absent", absent=1))
    names = ["cat", "dog", "traffic light", "bird"]
    for row, count in zip(rows, (3, 2, 1), strict=True):
        asked = row["prefix"].removeprefix("detect ").split(" ; ")
        assert set(labels(row)) <= set(asked)
        assert len(asked) == count
        assert asked == [name for name in names if name in asked]
    (many, *_) = to_finetuning_rows(dataset, classes="present+absent", absent=99)
    assert many["prefix"] == "detect cat ; dog ; traffic light ; bird"


def test_the_seed_settles_the_absent_classes(dataset):
    dataset["categories"] += [{"id": 100 + n, "name": f"thing {n}"} for n in range(50)]

    def prefixes(seed):
        rows = to_finetuning_rows(dataset, classes="present+absent", seed=seed)
        return [row["prefix"] for row in rows]

    assert prefixes(1) == prefixes(1)
    assert prefixes(1) != prefixes(2)
    assert len(set(prefixes(1))) == 3


def test_an_image_that_is_skipped_changes_no_other_row(dataset):
    options = {"classes": "present+absent", "absent": 1, "order": "shuffled"}
    whole = list(to_finetuning_rows(dataset, **options))
    dataset["images"][0]["width"] = 0
    assert list(to_finetuning_rows(dataset, **options)) == whole[1:]


def test_ids_of_images_may_be_text_on_one_side(dataset):
    whole = list(to_finetuning_rows(dataset))
    for item in dataset["annotations"]:
        item["image_id"] = str(item["image_id"])
    assert list(to_finetuning_rows(dataset)) == whole


def test_order(dataset):
    def first_row(**options):
        row = next(to_finetuning_rows(dataset, **options))
        return [item.loc[1] for item in parse(row["suffix"]).objects]

    assert first_row() == [480, 51, 256]
    assert first_row(order="left-to-right") == [51, 256, 480]
    assert first_row(order="area") == [51, 480, 256]
    shuffled = {tuple(first_row(order="shuffled", seed=seed)) for seed in range(40)}
    assert len(shuffled) == 6
    assert first_row(order="shuffled", seed=3) == first_row(order="shuffled", seed=3)


def test_the_cap_cuts_the_last_in_order_and_does_not_ask_for_what_it_cut(dataset):
    rows, gone = left_out(dataset, order="area", max_objects=1)
    assert gone == {"over_the_cap": 2}
    assert labels(rows[0]) == ["dog"]
    assert rows[0]["prefix"] == "detect dog ; traffic light ; bird"
    rows, gone = left_out(dataset, order="area", max_objects=2)
    assert rows[0]["prefix"] == "detect cat ; dog ; traffic light ; bird"


def test_empty_images(dataset):
    rows, gone = left_out(dataset, empty_images="skip")
    assert [row["image"] for row in rows] == ["a.jpg", "b.jpg"]
    assert gone == {"images_without_objects": 1}


def test_boxes_of_masks(dataset):
    dataset["annotations"] = [annotation(7, 3, 0, 0, 640, segmentation=square(64, 48, 128))]
    rows, _ = left_out(dataset, boxes="masks")
    assert parse(rows[0]["suffix"]).objects[0].loc == tuple(
        encode_boxes([[64, 48, 192, 176]], SIZE)[0]
    )
    assert parse(left_out(dataset)[0][0]["suffix"]).objects[0].loc == (0, 0, 1023, 1023)


def test_the_divisor(dataset):
    (row, *_) = to_finetuning_rows(dataset, divisor=1023)
    assert parse(row["suffix"]).objects[0].loc == tuple(
        encode_boxes([[300, 40, 364, 104]], SIZE, 1023)[0]
    )


def test_crowds_are_left_out_and_not_asked_for(dataset):
    dataset["annotations"].append(annotation(5, 1, 0, 0, 300, iscrowd=1))
    for invalid in ("skip", "error"):
        rows, gone = left_out(dataset, invalid=invalid)
        assert gone == {"crowds": 1}
        assert rows[0]["prefix"] == "detect cat ; dog ; traffic light ; bird"
        assert rows[1]["prefix"] == "detect cat ; traffic light ; bird"


BAD = [
    ("detect", {"bbox": [10, 10, 0, 50]}, "degenerate_boxes", "no area"),
    ("detect", {"bbox": [10, 10, -5, 50]}, "degenerate_boxes", "no area"),
    ("detect", {"bbox": [700, 10, 50, 50]}, "degenerate_boxes", "thinner than a loc bin"),
    ("detect", {"bbox": [10, 10, 0.2, 50]}, "degenerate_boxes", "thinner than a loc bin"),
    ("segment", {"bbox": [10.6, 10, 0.8, 50]}, "degenerate_boxes", "no whole pixel"),
    ("segment", {"segmentation": []}, "no_segmentation", "no segmentation"),
    ("segment", {"segmentation": None}, "no_segmentation", "no segmentation"),
    ("segment", {"segmentation": square(700, 0, 50)}, "empty_masks", "no pixel"),
    (
        "segment",
        {"segmentation": {"size": [480, 640], "counts": [480 * 640]}},
        "empty_masks",
        "no pixel",
    ),
    ("segment", {"segmentation": square(500, 300, 50)}, "masks_outside_box", "in the box"),
    ("segment", {"segmentation": {"size": [480, 640]}}, "unreadable", "polygons or an RLE"),
    ("segment", {"segmentation": [[1, 2, 3]]}, "unreadable", "polygon"),
    ("segment", {"segmentation": {"size": [4, 4], "counts": [16]}}, "unreadable", "size"),
    ("segment", {"segmentation": {"size": [480, 640], "counts": "?"}}, "unreadable", "read"),
    ("segment", {"segmentation": 5}, "unreadable", "must be polygons or an RLE, got 5"),
    ("detect", {"bbox": None}, "unreadable", "four finite numbers"),
    ("detect", {"bbox": [0, 0, math.nan, 3]}, "unreadable", "four finite numbers"),
    ("detect", {"bbox": [[0], 0, 4, 3]}, "unreadable", "four finite numbers"),
    ("detect", {"bbox": "all of it"}, "unreadable", "four finite numbers"),
    ("detect", {"image_id": 6}, "unknown_images", "no image 6"),
    ("detect", {"image_id": [7]}, "unreadable", "image_id"),
    ("detect", {"category_id": 2}, "unknown_categories", "no category 2"),
    ("detect", {"category_id": {}}, "unreadable", "category_id"),
]


@pytest.mark.parametrize(("task", "changed", "reason", "said"), BAD)
def test_bad_annotations_are_counted_or_an_error(dataset, demo_codec, task, changed, reason, said):
    good = [row["suffix"] for row in to_finetuning_rows(dataset, task, codec=demo_codec)]
    dataset["annotations"].insert(1, annotation(7, 8, 10, 10, 50, **changed))
    rows, gone = left_out(dataset, task, codec=demo_codec)
    assert gone == {reason: 1}
    assert [row["suffix"] for row in rows] == good
    if "category_id" not in changed and "image_id" not in changed:
        assert rows[0]["prefix"].endswith("traffic light")  # a bird may be there: not asked for
    with pytest.raises(InputError, match=said):
        left_out(dataset, task, codec=demo_codec, invalid="error")


def test_rings_that_are_no_polygon_are_skipped_alone(dataset, demo_codec):
    good = list(to_finetuning_rows(dataset, "segment", codec=demo_codec))
    dataset["annotations"][0]["segmentation"].append([1, 1, 2, 2])
    assert left_out(dataset, "segment", codec=demo_codec) == (good, {"bad_rings": 1})
    with pytest.raises(InputError, match="fewer than three points"):
        left_out(dataset, "segment", codec=demo_codec, invalid="error")


def test_categories_that_can_not_be_read_are_skipped(dataset):
    good = list(to_finetuning_rows(dataset))
    dataset["categories"].append({"id": "one", "name": "fish"})
    assert left_out(dataset) == (good, {"unreadable": 1})


def test_what_is_no_annotation_at_all(dataset):
    dataset["annotations"].append("cat")
    assert left_out(dataset)[1] == {"unreadable": 1}
    with pytest.raises(InputError, match=r"annotations\[4\]: not an object"):
        left_out(dataset, invalid="error")


@pytest.mark.parametrize(
    "image",
    [
        {"file_name": "x.jpg", "width": 5, "height": 5},
        {"id": [1], "file_name": "x.jpg", "width": 5, "height": 5},
        {"id": 1, "width": 5, "height": 5},
        {"id": 1, "file_name": "", "width": 5, "height": 5},
        {"id": 1, "file_name": "\ud800.jpg", "width": 5, "height": 5},
        {"id": 1, "file_name": "x.jpg", "height": 5},
        {"id": 1, "file_name": "x.jpg", "width": 0, "height": 5},
        "x.jpg",
    ],
)
def test_bad_images_are_counted_or_an_error(dataset, image):
    good = list(to_finetuning_rows(dataset))
    dataset["images"].insert(0, image)
    rows, gone = left_out(dataset)
    assert (rows, gone) == (good, {"bad_images": 1})
    with pytest.raises(InputError, match=r"images\[0\]"):
        left_out(dataset, invalid="error")


FORGED = [
    "",
    " cat",
    "cat ; dog",
    "cat\ndog",
    "cat\rdog",
    "cat\u2028dog",
    "<loc0000><loc0000><loc0500><loc0500> cat",
    "cat <seg001>",
    "cat <loc",
    "cat <loc00",
    "<eos>",
    "<image>",
    "<start_of_turn>",
    "a <b>bold</b> cat",
    "two\u2581words",
]


@pytest.mark.parametrize("name", [name for name in FORGED if name.strip() in ("", name)])
def test_names_that_would_forge_structure_are_left_out(dataset, name):
    assert name_problem(name) is not None
    dataset["categories"][0]["name"] = name
    rows, gone = left_out(dataset)
    assert gone == {"bad_labels": Counter({name: 3})}
    assert rows[0]["prefix"] == "detect dog ; traffic light ; bird"
    assert labels(rows[0]) == ["dog"]
    with pytest.raises(InputError, match="category 3: the name"):
        left_out(dataset, invalid="error")


@pytest.mark.parametrize("name", ["fire hydrant", "café", "猫", "o'clock", "a < b", "R2-D2, model"])
def test_names_that_are_fine_come_back(dataset, name):
    dataset["categories"][0]["name"] = name
    (row, *_) = to_finetuning_rows(dataset, invalid="error")
    assert labels(row) == [name, "dog", name]


@pytest.mark.parametrize(
    "options",
    [
        {"task": "caption"},
        {"classes": "some"},
        {"order": "random"},
        {"boxes": "both"},
        {"empty_images": "drop"},
        {"invalid": "ignore"},
        {"divisor": 1000},
        {"absent": -1},
        {"seed": -1},
        {"seed": 0.5},
        {"max_objects": 0},
    ],
)
def test_unknown_options_fail_at_once(dataset, options):
    with pytest.raises(InputError, match=next(iter(options))):
        to_finetuning_rows(dataset, **options)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": None}, "'images'"),
        ({"annotations": {}}, "no list of 'annotations'"),
        ({"categories": None}, "categories"),
        ({"categories": []}, "no category"),
        ({"images": [{"id": 1, "file_name": "a", "width": 2, "height": 2}] * 2}, "the id 1"),
    ],
)
def test_what_is_no_dataset(dataset, changed, said):
    with pytest.raises(InputError, match=said):
        to_finetuning_rows({**dataset, **changed})


def test_answers_read_fine_tuning_rows(tmp_path):
    path = tmp_path / "train.jsonl"
    row = {"image": "a.jpg", "prefix": "detect cat", "suffix": "<loc", "width": 4, "height": 3}
    path.write_text(json.dumps(row))
    with pytest.warns(UserWarning, match="reads 'suffix', the ground truth"):
        found = list(read_rows(path))
    assert found == [AnswerRow(1, "a.jpg", (4, 3), "<loc", "detect cat")]
    path.write_text(json.dumps({**row, "prompt": "", "output": "nothing"}))
    assert list(read_rows(path)) == [AnswerRow(1, "a.jpg", (4, 3), "nothing", "")]


def test_split_is_by_name_and_seeded():
    names = [f"{number // 2}.jpg" for number in range(200)]
    held_back = split_images(names, 0.2, 1)
    assert len(held_back) == 20
    assert held_back == split_images(names, 0.2, 1)
    assert held_back != split_images(names, 0.2, 2)
    assert len(split_images(["a", "b"], 0.01)) == 1
    assert len(split_images(["a", "b"], 0.99)) == 1
    for share in (0, 1, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            split_images(names, share)
    with pytest.raises(InputError, match="split in two"):
        split_images(["a", "a"], 0.5)


def test_every_bin_of_a_row_is_a_token(dataset):
    row = next(to_finetuning_rows(dataset))
    loc = encode_boxes([[300, 40, 364, 104]], SIZE)[0]
    assert row["suffix"].startswith("".join(map(loc_token, loc.tolist())) + " cat ; ")
