"""Nothing that comes from a file steers the terminal."""

import json
import re
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from palidecode.cli import main
from palidecode.cli.terminal import escaped
from tests.samples import answer

EVIL = "\x1b]0;OWNED\x07\x9b31m\u202egnp\nLINE"
SHOWN = r"\u001b]0;OWNED\u0007\u009b31m\u202egnp\nLINE"
STEERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def coco(**annotation):
    """A dataset whose every name is hostile."""
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "area": 1200}
    return {
        "images": [{"id": 1, "file_name": EVIL, "width": 64, "height": 48}],
        "annotations": [{**row, "iscrowd": 0, "score": 0.5} | annotation],
        "categories": [{"id": 1, "name": EVIL}, {"id": 2, "name": f"{EVIL}2"}],
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Files of which every name, inside and outside, is hostile."""
    monkeypatch.chdir(tmp_path)
    missing = {"image": f"{EVIL}.png", "output": answer(EVIL)}
    sized = {"image": "a.png", "output": answer(EVIL), "width": 64, "height": 48}
    text = "\n".join(map(json.dumps, (sized, missing)))
    (tmp_path / "answers.jsonl").write_text(text + "\n")
    (tmp_path / "names.txt").write_text("cat\n")
    (tmp_path / "names.json").write_text(json.dumps(["cat", EVIL, EVIL]))
    (tmp_path / "truth.json").write_text(json.dumps(coco()))
    (tmp_path / "other.json").write_text(json.dumps(coco(category_id=2)))
    (tmp_path / "broken.json").write_text(json.dumps(coco(bbox=EVIL)))
    (tmp_path / "pics").mkdir()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "pics" / "a.png")
    (tmp_path / "pics" / f"{EVIL}.png").write_bytes(b"no picture")
    (tmp_path / EVIL).mkdir()
    (tmp_path / EVIL / "config.json").write_text(json.dumps({"model_type": EVIL}))
    (tmp_path / f"{EVIL}.npz").write_bytes(b"no weights")
    (tmp_path / f"{EVIL}.png").write_bytes((tmp_path / "pics" / "a.png").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "decode answers.jsonl --images pics -o coco.json",
        "decode answers.jsonl --images pics --categories names.txt --unmapped drop -o coco.json",
        "decode answers.jsonl --images pics --categories names.txt --unmapped error -o coco.json",
        "decode answers.jsonl --categories names.json -o coco.json",
        f"decode|--text|{answer(EVIL)}|--size|64x48",
        f"decode|answers.jsonl|--images|pics|-o|{EVIL}",
        f"decode|answers.jsonl|--sise|{EVIL}",
        "draw answers.jsonl --images pics -o drawn",
        "draw truth.json --images pics -o drawn",
        "draw broken.json --images pics -o drawn",
        f"draw|{EVIL}.png|--text|{answer(EVIL)}|-o|drawn",
        "encode truth.json --task detect -o rows.jsonl",
        "encode truth.json --task detect --images pics -o rows.jsonl",
        "encode broken.json --task detect -o rows.jsonl",
        "evaluate truth.json truth.json",
        "evaluate truth.json broken.json",
        f"evaluate|truth.json|truth.json|--categories|{EVIL}|none",
        "compare truth.json other.json --gt truth.json --bootstrap 0",
        "evaluate-referring answers.jsonl --refs truth.json --instances truth.json",
        f"predict|{EVIL}|--model|demo|--task|detect|-o|coco.json",
        f"predict|pics|--model|{EVIL}|--task|detect|-o|coco.json",
        f"predict|pics|--model|demo|--prompt|detect {EVIL}|-o|coco.json",
        "predict pics --model demo --task detect --no-journal -o coco.json",
        f"demo|--image|{EVIL}.png|-o|{EVIL}|--prompt|detect circle",
        f"weights|verify|{EVIL}.npz",
        f"weights|convert|palidecode-demo|{EVIL}",
    ],
)
def test_names_are_printed_escaped(place, capsys, command):
    arguments = command.split("|" if "|" in command else None)
    for extra in ([], ["--json"]):
        with suppress(SystemExit):  # argparse prints what it doesn't know
            main([*arguments, *extra])
        printed = "".join(capsys.readouterr())
        assert printed
        assert not STEERS.search(printed)
        assert not re.search("^LINE", printed, re.MULTILINE)


def test_json_says_the_same_in_escapes(place, capsys):
    assert main(["evaluate", "truth.json", "truth.json", "--json"]) == 0
    printed = capsys.readouterr().out
    assert SHOWN in printed
    assert json.loads(printed)["bbox"]["classes"][0]["category"] == EVIL


@pytest.mark.parametrize(
    "text",
    ["naïve 日本\u3000猫", "👩\u200d👧 na\u200cme", "a\xa0b", "\\u001b stays", "Ω ≥ 2"],
)
def test_what_people_write_stays(text):
    assert escaped(text) == text


def test_escapes_are_those_of_json():
    assert escaped(EVIL) == SHOWN == escaped(SHOWN)
    assert escaped("\U000e0001\udcff\ufeff") == r"\udb40\udc01\udcff\ufeff"
