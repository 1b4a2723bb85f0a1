"""`--format` of decode and predict: what `convert` would make of their COCO file."""

import json

import pytest

from palidecode.cli import main
from tests.samples import DEMO

BOX = "<loc0100><loc0200><loc0700><loc0800>"
CODES = (116, 89, 76, 78, 2, 89, 2, 1, 22, 107, 1, 99, 90, 97, 36, 34)  # a balloon
MASK = "".join(f"<seg{code:03}>" for code in CODES)
FORMATS = ["yolo", "yolo-seg", "voc", "cvat", "labelstudio", "createml", "csv", "parquet"]
DECODE = "decode answers.jsonl --weights palidecode-demo"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = {"width": 64, "height": 48}
    rows = [
        {"image": "a.jpg", "output": f"{BOX}{MASK} cat ; {BOX} dog", "scores": [0.9, 0.5]},
        {"image": "in/b.jpg", "output": f"{BOX} dog", "scores": [0.25]},
    ]
    text = "".join(json.dumps(row | size) + "\n" for row in rows)
    (tmp_path / "answers.jsonl").write_text(text)
    return tmp_path


def run(command):
    return main(command.split())


def content(path):
    """Return all bytes of a file or folder, by name."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("kind", FORMATS)
def test_decode_writes_what_convert_makes_of_its_coco(place, capsys, kind):
    assert run(f"{DECODE} -o coco.json") == 0
    assert run(f"convert coco.json --to {kind} -o one.out") == 0
    capsys.readouterr()
    assert run(f"{DECODE} --format {kind} -o two.out --json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["output"], done["images"], done["objects"]) == ("two.out", 2, 3)
    assert content(place / "two.out") == content(place / "one.out")
    names = {path.name.removesuffix(".config.xml") for path in place.iterdir()}
    assert names == {"answers.jsonl", "coco.json", "one.out", "two.out"}


def test_predict_writes_yolo_with_outlines_and_the_recipe_of_scores(place, capsys):
    picture = DEMO / "scenes" / "scene_000006.jpg"
    ask = f"predict {picture} --model demo --task segment"
    assert run(f"{ask} --format yolo-seg -o set") == 0
    lines = (place / "set/labels/scene_000006.txt").read_text().splitlines()
    assert "yolo-seg has no scores" in capsys.readouterr().err
    assert run(f"{ask} --score label -o coco.json") == 0
    coco = json.loads((place / "coco.json").read_text())
    assert coco["info"]["score"] == "label"
    assert len(lines) == len(coco["annotations"]) > 1
    assert all(isinstance(row["segmentation"], list) for row in coco["annotations"])
    assert max(len(line.split()) for line in lines) > 20


def test_a_table_goes_to_the_standard_output(place, capsys):
    assert run(f"{DECODE} --format csv -o -") == 0
    out, err = capsys.readouterr()
    assert [line.split(",")[4] for line in out.splitlines()] == ["label", "cat", "dog", "dog"]
    assert "3 objects of 2 pictures" in err
    assert run(f"{DECODE} --format yolo -o -") == 2


def test_what_cannot_be_converted_is_kept_as_coco(place, capsys):
    (place / "set/labels").mkdir(parents=True)
    (place / "set/labels/mine.txt").write_text("0 0 0 1 1\n")
    assert run(f"{DECODE} --format yolo -o set") == 2
    error = capsys.readouterr().err
    assert "mine.txt: is there already" in error
    assert "palidecode convert set.coco.json --to yolo -o set" in error
    assert len(json.loads((place / "set.coco.json").read_text())["annotations"]) == 3
    assert run(f"{DECODE} --format yolo -o set") == 2
    assert "set.coco.json: is there already" in capsys.readouterr().err
    assert (place / "set/labels/mine.txt").read_text() == "0 0 0 1 1\n"


def test_answers_about_one_picture_share_a_file_and_text_has_no_picture(place, capsys):
    rows = [
        {"image": "a.jpg", "output": f"{BOX} cow", "width": 64, "height": 48},
        {"output": f"{BOX} cat", "width": 64, "height": 48},
    ]
    with (place / "answers.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert run(f"{DECODE} --format yolo -o set") == 0
    assert capsys.readouterr().out.startswith("5 objects of 3 pictures in set")
    assert len((place / "set/labels/a.txt").read_text().splitlines()) == 3
    assert run(f"decode --text {BOX} --size 64x48 --format yolo -o set") == 2
    assert "--text has no picture's name" in capsys.readouterr().err


def test_a_kept_journal_resumes_to_another_format(place, capsys):
    assert run(f"{DECODE} --format csv -o out --keep-journal") == 0
    assert run(f"{DECODE} --format parquet -o out --keep-journal") == 0
    assert "resuming: 2 rows already finished (out.coco.json.shards)" in capsys.readouterr().err
