"""Rows of referring answers in every form that people have."""

import csv
import gzip
import json

import numpy as np
import pytest

from palidecode import InputError, evaluate_referring
from palidecode.cli import main

BOX = "<loc0102><loc0102><loc0921><loc0921>"
TRUTH = {"size": [640, 480], "bbox": [64, 48, 512, 384]}
REFS = [
    {
        "ref_id": 5,
        "split": "val",
        "image_id": 1,
        "ann_id": 1,
        "sentences": [{"sent_id": 17, "sent": "the cat"}, {"sent_id": 18, "sent": "a dog"}],
    }
]
INSTANCES = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": TRUTH["bbox"]}],
}
CHAT = {"choices": [{"message": {"content": f"{BOX} cat"}}]}


@pytest.mark.parametrize(
    "row",
    [
        {"output": f"{BOX} cat", "text": "the cat"},
        {"generated_text": BOX, "answer": ["the cat", "a cat"]},
        {"prediction": BOX, "expression": "the cat"},
        {"text": BOX, "prefix": "detect the cat"},
        {"answer": [BOX]},
        {"outputs": [{"text": BOX}]},
        {"response": {"body": CHAT}, "custom_id": "17"},
        {"token_ids": (256102, 256102, 256921, 256921, 4991)},
    ],
    ids=lambda row: next(iter(row)),
)
def test_answers_of_every_key(row):
    found = evaluate_referring([row | TRUTH])
    assert (found.boxacc[0.5], found.problems) == (1, [])
    for key in {"sent_id", "custom_id"} - row.keys():
        found = evaluate_referring([{key: "17"} | row], REFS, INSTANCES, missing="skip")
        assert (found.boxacc[0.5], found.missing, found.total) == (1, 1, 1)


def write(rows, path):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                for row in rows
            )
    elif path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
        data = text.encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "csv", "parquet"])
def test_files_of_every_kind(tmp_path, ending):
    rows = [{"generated_text": BOX, "text": "the cat", "sent_id": 17}]
    path = tmp_path / f"answers.{ending}"
    write([row | TRUTH for row in rows], path)
    assert evaluate_referring(path).boxacc[0.5] == 1
    found = evaluate_referring(path, REFS, INSTANCES)
    assert (found.boxacc[0.5], found.total, found.samples[0].invalid) == (1 / 2, 2, "")


def test_the_expression_finds_its_sentence():
    for key in ("expression", "prompt", "text"):
        row = {"ref_id": 5, key: "The cat", "output": BOX}
        found = evaluate_referring([row], REFS, INSTANCES, missing="skip")
        assert found.samples[0].id == 17


@pytest.mark.parametrize("name", ["size", "image_size_wh"])
def test_sizes_may_be_arrays(name):
    row = {"output": BOX, "bbox": TRUTH["bbox"], name: np.array(TRUTH["size"])}
    assert evaluate_referring([row]).boxacc[0.75] == 1


def test_sizes_come_from_the_picture(tmp_path):
    from PIL import Image

    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    row = {"output": BOX, "bbox": TRUTH["bbox"], "image": "a.png"}
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(row))
    found = evaluate_referring(path)
    assert (found.boxacc[0.75], found.samples[0].image) == (1, "a.png")


def test_keys_that_are_not_clear_are_refused(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    both = {"output": BOX, "prediction": "<loc0000><loc0000><loc0009><loc0009>"} | TRUTH
    path.write_text(json.dumps(both))
    assert main(["evaluate-referring", str(path)]) == 2
    assert "'output' and 'prediction' differ (line 1)" in capsys.readouterr().err
    assert main(["evaluate-referring", str(path), "--output-key", "output", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["boxacc@0.5"] == 1
    with pytest.raises(InputError, match="without a <loc…> token, 'text' is the expression"):
        evaluate_referring([{"text": "the cat"} | TRUTH])
    assert evaluate_referring([{"text": "the cat"} | TRUTH], output_key="text").invalid == 1
    with pytest.warns(UserWarning, match="'suffix', the ground truth"):
        evaluate_referring([{"suffix": BOX, "text": "the cat"} | TRUTH])


def test_rows_without_an_answer_are_listed():
    deep: object = BOX
    for _ in range(3000):
        deep = [deep]
    rows = [{"output": BOX}, {"output": None}, {"output": 7}, {"output": deep}]
    found = evaluate_referring([row | TRUTH for row in rows])
    assert found.total == 1
    assert [line for line, _ in found.problems] == [2, 3, 4]


def test_answers_without_loc_tokens_are_named(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    write([{"output": "cat"} | TRUTH, {"output": "", "size": [9, 9], "bbox": None}], path)
    assert main(["evaluate-referring", str(path)]) == 1
    assert "skip_special_tokens=False" in capsys.readouterr().err
    write([{"output": "", "size": [9, 9], "bbox": None}], path)  # rightly nothing
    assert main(["evaluate-referring", str(path), "--min", "n_acc=1"]) == 0
