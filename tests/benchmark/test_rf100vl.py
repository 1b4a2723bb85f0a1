"""`palidecode benchmark rf100vl` on a folder of its layout, with the bundled model."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from palidecode import PaliDecoder, evaluate_coco
from palidecode.benchmark.rf100vl import class_names
from palidecode.cli import main
from palidecode.files import data_folder

SCENES = data_folder("palidecode.demo") / "scenes"
GROUPED = {"id": 0, "name": "things", "supercategory": "none"}


def write_dataset(folder, scenes, *, raw):
    """Write scenes as Roboflow exports them, or (not `raw`) as rf100-vl's download leaves them."""
    test = folder / "test"
    test.mkdir(parents=True)
    truth = json.loads((SCENES / "instances.json").read_text())
    truth["images"] = truth["images"][scenes]
    ids = [image["id"] for image in truth["images"]]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in ids]
    for image in truth["images"]:
        shutil.copy(SCENES / image["file_name"], test)
    first = min(item["id"] for item in truth["categories"])
    for item in truth["categories"]:
        item |= {"id": item["id"] - first + raw, "supercategory": "things"}
    for row in truth["annotations"]:
        row["category_id"] += raw - first
    if raw:
        truth["categories"].insert(0, GROUPED)
    (test / "_annotations.coco.json").write_text(json.dumps(truth))
    return truth


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rf100-vl")
    write_dataset(folder / "apples", slice(0, 3), raw=True)
    write_dataset(folder / "bees", slice(3, 6), raw=False)
    return folder


def benchmark(folder, out, *more):
    return main(["benchmark", "rf100vl", str(folder), "--model", "demo", "-o", str(out), *more])


def results_of(out):
    return json.loads((out / "results.json").read_text())


def test_a_table_of_datasets_has_the_numbers_of_predict_and_evaluate(layout, tmp_path, capsys):
    out = tmp_path / "out"
    assert benchmark(layout, out) == 0
    printed = capsys.readouterr().out
    told = results_of(out)
    assert [row["dataset"] for row in told["datasets"]] == ["apples", "bees"]
    for row in told["datasets"]:
        test, found = layout / row["dataset"] / "test", tmp_path / "found.json"
        truth = json.loads((test / "_annotations.coco.json").read_text())
        names = [item["name"] for item in truth["categories"] if item["id"] or item != GROUPED]
        assert (row["pictures"], row["classes"]) == (3, len(names))
        assert row["objects"] == len(truth["annotations"])
        (tmp_path / "names.txt").write_text("\n".join(names))
        words = ["predict", str(test), "--model", "demo", "--task", "detect", "-o", str(found)]
        assert main([*words, "--classes", str(tmp_path / "names.txt"), "--quiet"]) == 0
        result = evaluate_coco(test / "_annotations.coco.json", found)
        known = {name: value for name, value in result.numbers.items() if not np.isnan(value)}
        assert {k: v for k, v in row["numbers"].items() if v is not None} == known
        line = next(line for line in printed.splitlines() if row["dataset"] in line)
        assert f"{known['AP']:.3f}" in line
    means = told["means"]["all"]
    for name in ("AP", "AP50", "F1", "F1@mean"):
        wanted = np.mean([row["numbers"][name] for row in told["datasets"]])
        assert means[name] == pytest.approx(wanted)
    assert 0.2 < means["AP50"] <= 1
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dataset"] for row in rows] == ["apples", "bees"]
    assert float(rows[0]["AP"]) == told["datasets"][0]["numbers"]["AP"]


def test_a_second_run_goes_on_and_loads_no_model_for_what_is_done(layout, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert benchmark(layout, out, "--datasets", "apples") == 0
    first = results_of(out)["datasets"]
    loaded = []
    load = PaliDecoder.from_options
    monkeypatch.setattr(
        PaliDecoder, "from_options", lambda *given, **more: loaded.append(1) or load(*given, **more)
    )
    assert benchmark(layout, out, "--datasets", "apples") == 0
    assert not loaded
    assert benchmark(layout, out) == 0
    assert len(loaded) == 1  # for bees
    assert results_of(out)["datasets"][0] == first[0]
    assert benchmark(layout, out, "--restart") == 0
    assert len(loaded) == 2  # for both
    assert results_of(out)["datasets"][0] == first[0]


def test_broken_datasets_are_a_line_each_and_the_others_are_evaluated(layout, tmp_path, capsys):
    folder, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(layout / "bees", folder / "bees")
    shutil.copytree(layout / "bees", folder / "lacking")
    name = next((folder / "lacking" / "test").glob("*.jpg")).name
    (folder / "lacking" / "test" / name).unlink()
    (folder / "empty").mkdir()
    (folder / "untested" / "train").mkdir(parents=True)
    texts = {"nothing": "null", "torn": '{"images": [', "bare": '{"images": [], "annotations": []}'}
    truth = json.loads((folder / "bees" / "test" / "_annotations.coco.json").read_text())
    texts["unlabelled"] = json.dumps({**truth, "annotations": []})
    texts["gone"] = json.dumps(truth)
    for broken, text in texts.items():
        (folder / broken / "test").mkdir(parents=True)
        (folder / broken / "test" / "_annotations.coco.json").write_text(text)
    assert benchmark(folder, out) == 1
    printed = capsys.readouterr().out
    told = results_of(out)
    assert [row["dataset"] for row in told["datasets"]] == ["bees", "lacking"]
    assert told["means"]["all"]["datasets"] == 2
    assert sorted(told["broken"]) == sorted([*texts, "empty", "untested"])
    assert "no such picture" in told["broken"]["gone"]
    assert "has no object" in told["broken"]["unlabelled"]
    for broken, reason in told["broken"].items():
        assert "\n" not in reason
        assert f"  {broken}: {reason}" in printed
    lacking = told["datasets"][1]
    assert any(name in note for note in lacking["notes"])
    assert lacking["objects"] == told["datasets"][0]["objects"]  # none of them is left out
    assert lacking["numbers"]["recall"] < told["datasets"][0]["numbers"]["recall"]
    assert benchmark(folder, tmp_path / "none", "--datasets", "empty") == 2
    assert "no dataset could be evaluated; empty:" in capsys.readouterr().err


def test_groups_come_from_folders_or_a_file(layout, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(layout / "apples", folder / "Fruit" / "apples")
    shutil.copytree(layout / "bees", folder / "Fauna" / "bees")
    assert benchmark(folder, tmp_path / "out") == 0
    told = results_of(tmp_path / "out")
    assert [(row["dataset"], row["group"]) for row in told["datasets"]] == [
        ("Fauna/bees", "Fauna"),
        ("Fruit/apples", "Fruit"),
    ]
    assert list(told["means"]) == ["Fauna", "Fruit", "all"]
    assert told["means"]["Fruit"]["AP"] == told["datasets"][1]["numbers"]["AP"]
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({"apples": "Flora", "others": "Misc"}))
    assert benchmark(layout, tmp_path / "out", "--groups", str(groups)) == 0
    told = results_of(tmp_path / "out")
    assert list(told["means"]) == ["Flora", "all"]
    assert "Flora" in capsys.readouterr().out
    groups.write_text("[]")
    assert benchmark(layout, tmp_path / "out", "--groups", str(groups)) == 2
    assert "must be an object of groups" in capsys.readouterr().err


def test_what_is_no_benchmark_is_one_line(layout, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    for folder, more, said in (
        (tmp_path / "absent", [], "no such folder"),
        (tmp_path / "nothing", [], "no dataset in it"),
        (layout, ["--datasets", "wasps"], "no dataset 'wasps'; it has apples, bees"),
        (layout, ["--endpoint", "http://x/v1", "--base", "y"], "can't be combined"),
    ):
        assert benchmark(folder, tmp_path / "out", *more) == 2
        assert said in capsys.readouterr().err
    assert main(["benchmark", "rf100vl", str(layout), "--model", "absent", "-o", "out"]) == 2


def test_a_dataset_alone_and_its_class_names(layout, tmp_path):
    assert benchmark(layout / "bees", tmp_path / "out") == 0
    assert [row["dataset"] for row in results_of(tmp_path / "out")["datasets"]] == ["bees"]
    bees = {"id": 1, "name": "bees", "supercategory": "bees"}
    both = [{"id": 0, "name": "bees", "supercategory": "none"}, bees]
    assert class_names(both, set()) == ["bees"]
    assert class_names([GROUPED, {"id": 1, "name": "cat", "supercategory": "things"}], set()) == [
        "cat"
    ]
    used = [GROUPED, {"id": 1, "name": "cat", "supercategory": "things"}]
    assert class_names(used, {0}) == ["things", "cat"]
