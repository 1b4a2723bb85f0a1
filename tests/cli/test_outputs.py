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


@pytest.mark.parametrize(
    "command",
    [
        "decode answers.jsonl -o out.csv",
        "decode answers.jsonl -o out.parquet",
        "decode --text x --size 8x8 -o out.json.gz",
        "predict pics --model demo --task detect -o out.XML",
        "encode coco.json -o out.txt",
        "encode coco.json -o train.jsonl --val val.tsv",
        "evaluate-referring answers.jsonl --samples out.csv",
        "evaluate coco.json coco.json -o report.html",
        "draw answers.jsonl --images pics -o drawn.pdf",
        "demo --answers -o demo.json",
        "view coco.json --images pics -o page.html",
    ],
)
def test_an_ending_of_a_format_that_is_not_written_is_refused(place, capsys, command):
    before = sorted(place.rglob("*"))
    assert main(command.split()) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert "isn't written here; use " in error
    assert len(error.splitlines()) == 1
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", ["out.json", "out.jsonl", "out", "OUT.JSON", "run.v2", "a.b/out"])
@pytest.mark.parametrize("command", ["decode answers.jsonl", "encode coco.json"])
def test_json_and_no_ending_are_always_taken(place, command, name):
    assert main([*command.split(), "-o", name]) == 0
    first = (place / name).read_text().splitlines()[0]
    assert first.startswith('{"annotations"' if command.startswith("decode") else '{"image"')


def test_a_folder_may_have_a_dot_in_its_name(place, capsys):
    (place / "drawn.zip").mkdir()
    for name in ("drawn.v2", "drawn.zip"):
        assert main(["draw", "coco.json", "--images", "pics", "-o", name]) == 0
        assert (place / name / "a.png").is_file()


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize(
    ("command", "key", "told"),
    [
        ("decode answers.jsonl -o -", "annotations", '"-"'),
        (
            "decode --size 64x48 --text <loc0000><loc0000><loc0512><loc0512>cat -o -",
            "images",
            "coco",
        ),
        ("encode coco.json -o -", "prefix", '"-"'),
        ("evaluate-referring referring.jsonl --samples -", "box_iou", '"miou"'),
    ],
)
def test_data_on_the_standard_output_is_alone_there(place, capsys, command, key, told, more):
    row = {"output": "<loc0000><loc0000><loc0512><loc0512>", "size": [64, 48]}
    (place / "referring.jsonl").write_text(json.dumps(row | {"bbox": [0, 0, 32, 24]}))
    assert main([*command.split(), *more]) == 0
    printed, error = capsys.readouterr()
    assert key in json.loads(printed)
    assert (told in error) if more else error
    assert not (place / "-").exists()


def test_a_folder_is_not_written_to_the_standard_output(place, capsys):
    assert main(["evaluate", "coco.json", "coco.json", "-o", "-"]) == 2
    assert "this command writes a folder" in capsys.readouterr().err
