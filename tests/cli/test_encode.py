"""`palidecode encode`: COCO files to rows, and back."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from palidecode import to_finetuning_rows
from palidecode.cli import main
from tests.coco.samples import SIZE, annotation


@pytest.fixture
def coco(dataset, tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(dataset))
    return path


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_encode_writes_rows_and_says_the_round_trip(coco, dataset, tmp_path, capsys):
    out = tmp_path / "new" / "train.jsonl"
    assert main(["encode", str(coco), "-o", str(out)]) == 0
    assert rows_in(out) == list(to_finetuning_rows(dataset))
    printed, warned = capsys.readouterr()
    assert "3 rows in" in printed
    assert printed.splitlines()[-1].startswith("all classes        4")
    assert warned == ""


def test_encode_warns_of_the_demo_codec_once(coco, tmp_path, capsys):
    out = tmp_path / "train.jsonl"
    command = ["encode", str(coco), "-o", str(out), "--task", "segment", "--json"]
    assert main([*command, "--weights", "palidecode-demo"]) == 0
    printed, warned = capsys.readouterr()
    assert warned.count("palidecode weights fetch") == 1
    summary = json.loads(printed)
    assert summary["codec"] == "palidecode-demo"
    assert summary["files"] == {str(out): 3}
    assert summary["round_trip"]["overall"]["mask_iou"] > 0.9
    assert set(summary["round_trip"]["classes"]) == {"cat", "dog"}


def test_encode_splits_by_image(coco, tmp_path, capsys):
    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    command = ["encode", str(coco), "-o", str(train), "--val", str(val), "--val-share", "0.4"]
    assert main([*command, "--seed", "1"]) == 0
    capsys.readouterr()
    both = [rows_in(train), rows_in(val)]
    assert [len(rows) for rows in both] == [2, 1]
    assert {row["image"] for rows in both for row in rows} == {"a.jpg", "b.jpg", "none.jpg"}


def test_encode_counts_what_it_leaves_out(coco, dataset, tmp_path, capsys):
    dataset["annotations"] += [annotation(7, 1, 0, 0, 9, iscrowd=1), annotation(7, 2, 0, 0, 9)]
    dataset["categories"].append({"id": 20, "name": "a;b"})
    coco.write_text(json.dumps(dataset))
    out = tmp_path / "train.jsonl"
    assert main(["encode", str(coco), "-o", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "skipped: crowds 1, unknown_categories 1, bad_labels ('a;b' 0)" in printed
    out.write_text("as it was")
    assert main(["encode", str(coco), "-o", str(out), "--invalid", "error"]) == 2
    assert "a;b" in capsys.readouterr().err
    assert out.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco.json", "train.jsonl"]


def test_encode_looks_for_pictures(coco, dataset, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", SIZE).save(folder / "a.jpg")
    Image.new("RGB", (480, 640)).save(folder / "b.jpg")
    out = tmp_path / "train.jsonl"
    command = ["encode", str(coco), "-o", str(out), "--images", str(folder)]
    assert main(command) == 1
    printed, said = capsys.readouterr()
    assert [row["image"] for row in rows_in(out)] == ["a.jpg"]
    assert "image 1: b.jpg is 480×640" in said
    assert "image 2:" in said
    assert "skipped" not in printed  # the annotations of b.jpg went with it
    dataset["images"][0]["file_name"] = "../coco.json"
    coco.write_text(json.dumps(dataset))
    assert main(command) == 2
    assert "no image gives a row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--val-share", "0.2"], "--val val.jsonl"),
        (["--val", "{out}"], "two files"),
        (["--val", "{folder}/v.jsonl", "--val-share", "1"], "between 0 and 1"),
        (["--images", "{folder}/nowhere"], "no such directory"),
        (["--max-objects", "0"], "--max-objects must be a whole number from 1 up, got 0"),
        (["-o", "{coco}"], "would be overwritten"),
        (["--task", "segment", "--weights", "{folder}/no.npz"], "no.npz"),
    ],
)
def test_encode_refuses_and_writes_nothing(coco, tmp_path, capsys, extra, said):
    out = tmp_path / "train.jsonl"
    filled = [text.format(out=out, folder=tmp_path, coco=coco) for text in extra]
    before = coco.read_text()
    assert main(["encode", str(coco), "-o", str(out), *filled]) == 2
    assert said in capsys.readouterr().err
    assert coco.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["coco.json"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default:.*reads 'suffix', the ground truth")
def test_coco_and_back(shared_data, tmp_path, capsys):
    """The inverse gives the file back within the loss that `encode` says."""
    source = shared_data / "coco100" / "instances_val2014_100.json"
    rows, back = tmp_path / "train.jsonl", tmp_path / "back.json"
    weights = ["--weights", "palidecode-demo", "--json"]
    assert main(["encode", str(source), "-o", str(rows), "--task", "segment", *weights]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["left_out"] == {"crowds": 9}
    decoded = ["decode", str(rows), "-o", str(back), "--segmentation", "rle", *weights]
    assert main([*decoded, "--categories", str(source)]) == 0
    made, true = json.loads(back.read_text()), json.loads(source.read_text())
    true["annotations"] = [item for item in true["annotations"] if not item["iscrowd"]]
    assert [(image["file_name"], image["width"], image["height"]) for image in made["images"]] == [
        (image["file_name"], image["width"], image["height"]) for image in true["images"]
    ]
    names = [
        {image["id"]: image["file_name"] for image in dataset["images"]} for dataset in (made, true)
    ]
    assert [names[0][item["image_id"]] for item in made["annotations"]] == sorted(
        (names[1][item["image_id"]] for item in true["annotations"]),
        key=list(names[0].values()).index,
    )
    by_image = {image["id"]: [] for image in true["images"]}
    for item in true["annotations"]:
        by_image[item["image_id"]].append(item)
    ordered = [item for items in by_image.values() for item in items]
    sizes = {image["id"]: (image["height"], image["width"]) for image in true["images"]}
    boxes, masks = [], []
    for found, item in zip(made["annotations"], ordered, strict=True):
        assert found["category_id"] == item["category_id"]
        rle = coco_mask.merge(coco_mask.frPyObjects(item["segmentation"], *sizes[item["image_id"]]))
        masks.append(coco_mask.iou([found["segmentation"]], [rle], [0])[0, 0])
        boxes.append(coco_mask.iou(np.array([found["bbox"]]), np.array([item["bbox"]]), [0])[0, 0])
    overall = summary["round_trip"]["overall"]
    assert overall["objects"] == 830
    assert np.mean(boxes) == pytest.approx(overall["box_iou"], abs=1e-3)
    assert np.mean(masks) == pytest.approx(overall["mask_iou"], abs=1e-6)
    assert overall["box_iou"] > 0.98
    assert overall["mask_iou"] > 0.85
