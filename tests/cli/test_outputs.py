"""No output destroys an input, a device or a pipe."""

import json
import os
import stat
import threading

import numpy as np
import pytest
from PIL import Image

from palidecode.cli import main
from palidecode.files import replacing
from tests.samples import answer


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with answers, categories, a dataset and pictures."""
    monkeypatch.chdir(tmp_path)
    row = {"image": "a.png", "output": answer("cat"), "width": 64, "height": 48}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "names.txt").write_text("cat\n")
    dataset = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(dataset))
    (tmp_path / "pics").mkdir()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "pics" / "a.png")
    (tmp_path / "link.jsonl").symlink_to("answers.jsonl")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "decode answers.jsonl -o answers.jsonl",
        "decode answers.jsonl -o link.jsonl",
        "decode link.jsonl -o ./answers.jsonl",
        "decode answers.jsonl --categories coco.json -o coco.json",
        "decode answers.jsonl --images pics -o pics/a.png",
        "encode coco.json -o coco.json",
        "encode coco.json -o train.jsonl --val coco.json",
        "predict pics --model demo --prompt detect --classes names.txt -o names.txt",
        "predict pics --model demo --task detect -o pics/a.png",
        "evaluate-referring answers.jsonl --samples answers.jsonl",
        "weights convert coco.json coco.json",
    ],
)
def test_an_output_that_is_an_input_is_refused(place, capsys, command):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert main(command.split()) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert "is an input and would be overwritten; name another" in error
    assert len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_an_output_beside_the_pictures_is_replaced(place):
    command = "decode answers.jsonl --images pics -o pics/coco.json"
    assert main(command.split()) == main(command.split()) == 0
    assert json.loads((place / "pics" / "coco.json").read_text())["annotations"]


def test_a_device_stays_a_device(place):
    for name in ("/dev/null", "null"):
        if name == "null":
            (place / "null").symlink_to("/dev/null")
        assert main(["encode", "coco.json", "-o", name]) == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_is_followed(place):
    (place / "real").mkdir()
    (place / "real" / "rows.jsonl").write_text("old")
    (place / "rows.jsonl").symlink_to("real/rows.jsonl")
    assert main(["encode", "coco.json", "-o", "rows.jsonl"]) == 0
    assert (place / "rows.jsonl").is_symlink()
    assert json.loads((place / "real" / "rows.jsonl").read_text())["image"] == "a.png"
    assert [path.name for path in (place / "real").iterdir()] == ["rows.jsonl"]


def test_a_pipe_is_written_through(place):
    os.mkfifo(place / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((place / "pipe").read_text()))
    reader.start()
    assert main(["encode", "coco.json", "-o", "pipe"]) == 0
    reader.join(20)
    assert json.loads(read[0])["image"] == "a.png"
    assert stat.S_ISFIFO(os.stat(place / "pipe").st_mode)


def test_a_hyphen_is_standard_output(place, capsys):
    with replacing("-") as file:
        file.write("text\n")
    assert capsys.readouterr().out == "text\n"
    assert not (place / "-").exists()


def test_a_folder_is_refused(place, capsys):
    assert main(["encode", "coco.json", "-o", "pics"]) == 2
    assert "pics: is a folder; name a file to write" in capsys.readouterr().err
