"""`palidecode convert`: what it skips, refuses and never writes over."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from palidecode.cli import main
from tests.formats.samples import dataset, write_samples

FORMATS = ["yolo", "yolo-seg", "voc", "cvat", "labelstudio", "createml", "csv", "parquet"]

# The samples have a class with a colon.
pytestmark = pytest.mark.filterwarnings("default:not in labelmap.txt:UserWarning")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_samples(tmp_path)
    return tmp_path


def convert(*words):
    return main(["convert", *words])


def write(path, content):
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["out", "out.json", "out.v2", "new/out.zip"])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_output_is_taken_as_given(place, capsys, kind, name):
    for _ in range(2):
        assert convert("coco.json", "--to", kind, "-o", name, "--json") == 0
        done = json.loads(capsys.readouterr().out)
        assert (done["objects"], done["pictures"], done["skipped"]) == (3, 3, {})
    assert (place / name).is_dir() == (kind in ("yolo", "yolo-seg", "voc"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_dataset_without_objects_is_converted(place, kind):
    write(place / "empty.json", dataset() | {"annotations": []})
    assert convert("empty.json", "--to", kind, "-o", "out") == 0


def test_all_but_parquet_need_the_core_install_alone(place):
    extras = ["pandas", "pyarrow", "torch", "jinja2", "matplotlib", "ray", "transformers"]
    code = f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
    code += "from palidecode.cli import main\n"
    code += f"for kind in {FORMATS}:\n"
    code += "    print(main(f'convert coco.json -q --to {kind} -o {kind}'.split()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if len(line) == 1] == [*("0" * 7), "2"]
    assert "pip install pyarrow" in done.stderr


def test_crowds_are_a_note_and_other_losses_exit_1(place, capsys):
    content = dataset()
    content["annotations"][0]["iscrowd"] = 1
    write(place / "crowd.json", content)
    assert convert("crowd.json", "--to", "yolo", "-o", "out") == 0
    assert "skipped: crowds: 1" in capsys.readouterr().err
    assert convert("crowd.json", "--to", "voc", "-o", "voc") == 0
    assert (place / "voc/Annotations/a.xml").read_text().count("<difficult>1<") == 1
    content["annotations"][1]["bbox"] = [90, 5, 10, 10]
    content["annotations"][2]["category_id"] = 77
    write(place / "odd.json", content)
    assert convert("odd.json", "--to", "yolo", "-o", "out") == 1
    error = capsys.readouterr().err
    assert "boxes without an area in the picture: 1" in error
    assert "1 annotation of unknown categories ('77' 1)" in error


def test_label_files_of_others_are_never_written_over(place, capsys):
    (place / "mine/labels").mkdir(parents=True)
    (place / "mine/labels/z.txt").write_text("0 0 0 1 1\n")
    assert convert("coco.json", "--to", "yolo", "-o", "mine") == 2
    assert "z.txt: is there already" in capsys.readouterr().err
    assert [path.name for path in (place / "mine").rglob("*")] == ["labels", "z.txt"]
    assert convert("coco.json", "--to", "yolo", "-o", "out") == 0
    assert convert("coco.json", "--to", "yolo-seg", "-o", "out") == 2


def test_a_folder_with_pictures_is_taken(place):
    assert convert("coco.json", "--to", "yolo", "-o", ".") == 0
    assert convert(".", "--from", "yolo", "-o", "back.json") == 0
    assert len(json.loads((place / "back.json").read_text())["annotations"]) == 3


def test_files_of_an_earlier_conversion_are_listed(place, capsys):
    assert convert("coco.json", "--to", "yolo", "-o", "out") == 0
    content = dataset()
    del content["images"][2]
    write(place / "less.json", content)
    assert convert("less.json", "--to", "yolo", "-o", "out") == 1
    assert "labels/c.txt" in capsys.readouterr().err
    assert (place / "out/labels/c.txt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("coco.json -o out", "coco to coco is no conversion"),
        ("coco.json --to yolo -o -", "yolo is a folder"),
        ("coco.json --to voc -o coco.json", "coco.json: is an input and would be overwritten"),
        ("coco.json --to csv -o images", "images: is a folder; name a file to write"),
        ("out --from yolo -o back.json", "out/data.yaml: can't be read"),
        (". --from voc -o voc.xml", "voc.xml: is an input and would be overwritten"),
        ("bad --from yolo --images images -o back.json", "'names' must list the classes"),
        ("images --from voc -o back.json", "images: no XML files"),
        ("coco.json --from cvat -o back.json", "coco.json: can't be read as XML"),
        ("twice.json --to yolo -o out", "'a.png' and 'a.jpg' would share one label file"),
        ("away.json --to yolo -o out", "leads out of the folder"),
    ],
)
def test_what_cant_be_done_is_one_line(place, capsys, words, said):
    for name, file in (("twice.json", "a.jpg"), ("away.json", "../../b.png")):
        content = dataset()
        content["images"][1]["file_name"] = file
        write(place / name, content)
    (place / "bad").mkdir()
    (place / "bad/data.yaml").write_text("names: {0: a, 900000000: b}")
    (place / "voc.xml").write_text("<annotation/>")
    before = sorted(place.rglob("*"))
    assert convert(*words.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert sorted(place.rglob("*")) == before


def test_scores_that_a_format_lacks_are_a_note(place, capsys):
    assert convert("coco.json", "--to", "cvat", "-o", "out") == 0
    assert "cvat has no scores" in capsys.readouterr().err
    assert convert("coco.json", "--to", "csv", "-o", "-") == 0
    assert capsys.readouterr().out.startswith("image,image_id,width,height,label,score,x1")


def test_the_commands_of_the_page_run(place):
    (place / "images").rename("pictures")
    page = Path(__file__).parents[2] / "docs" / "formats.md"
    lines = re.findall(r"^palidecode (convert .*)$", page.read_text(), re.M)
    assert len(lines) > 10
    for line in lines:
        assert main(shlex.split(line, comments=True)) == 0, line
