"""`palidecode predict` with several prompts, on one of the bundled scenes."""

import json

from palidecode.cli import main
from tests.samples import DEMO

SCENE = DEMO / "scenes" / "scene_000000.jpg"


def predict(path, *prompts):
    words = ["predict", SCENE, "--model", "demo", "--dtype", "float32", "--no-journal", "-o", path]
    for prompt in prompts:
        words += ["--prompt", prompt]
    assert main(list(map(str, words))) == 0
    coco = json.loads(path.read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    rows = [
        (names[row["category_id"]], *map(round, row["bbox"]), round(row["score"], 3))
        for row in coco["annotations"]
    ]
    return coco, sorted(rows)


def test_several_prompts_are_all_asked_of_every_picture(capsys, tmp_path):
    truth = json.loads((DEMO / "scenes" / "instances.json").read_text())
    numbers = {row["file_name"]: row["id"] for row in truth["images"]}
    there = {r["category_id"] for r in truth["annotations"] if r["image_id"] == numbers[SCENE.name]}
    one, other = [row["name"] for row in truth["categories"] if row["id"] in there][:2]
    both, rows = predict(tmp_path / "both.json", f"detect {one}", f"detect {other}")
    assert both["info"]["prompts"] == [f"detect {one}", f"detect {other}"]
    assert both["info"]["asked"] == [one, other]
    assert len(both["images"]) == 1
    _, first = predict(tmp_path / "first.json", f"detect {one}")
    _, second = predict(tmp_path / "second.json", f"detect {other}")
    assert {name for name, *_ in rows} == {one, other}
    assert rows == sorted([*first, *second])


def test_prompts_of_two_tasks_are_refused_in_one_line(capsys, tmp_path):
    words = ["predict", str(SCENE), "--model", "demo", "-o", str(tmp_path / "x.json")]
    assert main([*words, "--prompt", "detect star", "--prompt", "segment circle"]) == 2
    err = capsys.readouterr().err
    assert "one prompt asks to detect, another to segment" in err
    assert err.count("\n") == 1


def test_a_device_that_does_not_exist_is_refused_before_the_model_is_loaded(capsys, tmp_path):
    words = ["predict", str(SCENE), "--model", "demo", "-o", str(tmp_path / "x.json")]
    assert main([*words, "--task", "detect", "--device", "foo"]) == 2
    err = capsys.readouterr().err
    assert err == "palidecode: --device must be cpu, cuda, cuda:1, mps …, got 'foo'\n"


def test_fill_detects_up_to_the_limit(capsys, tmp_path):
    out = tmp_path / "full.json"
    words = ["predict", SCENE, "--model", "demo", "--dtype", "float32", "-o", out, "--no-journal"]
    words += ["--task", "detect", "--max-objects", "6", "--score", "label"]
    found = []
    for more in ([], ["--fill"]):
        assert main(list(map(str, [*words, *more]))) == 0
        found.append(json.loads(out.read_text())["annotations"])
    plain, full = found
    assert len(plain) < len(full) == 6
    # The boxes that it also detects by itself come first, and are surer than the others.
    assert [row["bbox"] for row in full[: len(plain)]] == [row["bbox"] for row in plain]
    known, forced = (
        [row["score"] for row in part] for part in (full[: len(plain)], full[len(plain) :])
    )
    assert min(known) > max(forced)


def test_fill_is_a_rule_of_the_grammar(capsys, tmp_path):
    words = ["predict", str(SCENE), "--model", "demo", "-o", str(tmp_path / "x.json"), "--fill"]
    assert main([*words, "--task", "detect", "--no-grammar"]) == 2
    assert "leave --no-grammar out" in capsys.readouterr().err
