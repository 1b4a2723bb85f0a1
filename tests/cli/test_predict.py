"""`palidecode predict` with several prompts, on one of the bundled scenes."""

import json

import numpy as np
import pytest

from palidecode.cli import main
from palidecode.pipeline import PaliDecoder
from tests.runtime.tiny_models import PICTURES, write_folder
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


def test_past_the_end_all_that_fits_is_detected(capsys, tmp_path):
    out = tmp_path / "full.json"
    words = ["predict", SCENE, "--model", "demo", "--dtype", "float32", "-o", out, "--no-journal"]
    words += ["--task", "detect", "--max-objects", "6", "--score", "label"]
    found = []
    for more in ([], ["--past-end", "0"]):
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
    assert main([*map(str, words), "--min-objects", "6"]) == 0
    again = json.loads(out.read_text())["annotations"]
    # Tokens without a choice are read together here, which rounds otherwise.
    assert [row.pop("score") for row in again] == pytest.approx(
        [row.pop("score") for row in full], rel=1e-4
    )
    assert again == full


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--past-end", "0.1", "--no-grammar"], "leave --no-grammar out"),
        (["--min-objects", "2", "--no-grammar"], "leave --no-grammar out"),
        (["--past-end", "2"], "--past-end must be between 0 and 1, got 2.0"),
        (["--min-objects", "-1"], "--min-objects must be 0 or more, got -1"),
        (["--min-objects", "3", "--max-objects", "2"], "--min-objects must not be above"),
        (["--classes-per-prompt", "0"], "--classes-per-prompt must be at least 1, got 0"),
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (["--samples", "3"], "--samples are all equal at a temperature of 0"),
        (["--temperature", "-1"], "--temperature must be 0 or more, got -1.0"),
        (["--seed", "-1"], "--seed must be 0 or more, got -1"),
        (
            ["--past-end", "0.1", "--endpoint", "http://127.0.0.1:9/v1"],
            "--past-end can't be combined with --endpoint",
        ),
        (
            ["--min-objects", "2", "--endpoint", "http://127.0.0.1:9/v1"],
            "--min-objects can't be combined with --endpoint",
        ),
    ],
)
def test_finding_more_is_refused_where_it_makes_no_sense(capsys, tmp_path, more, message):
    words = ["predict", str(SCENE), "--model", "demo", "-o", str(tmp_path / "x.json")]
    assert main([*words, "--task", "detect", *more]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_run_with_options_that_find_more_is_resumed_as_one_run(capsys, tmp_path):
    scenes, out = SCENE.parent, tmp_path / "x.json"
    words = ["--model", "demo", "--task", "detect", "-o", str(out), "--keep-journal"]
    words += ["--classes-per-prompt", "9", "--past-end", "0.05", "--batch-size", "2"]
    words += ["--samples", "2", "--temperature", "0.5"]
    three = [str(path) for path in sorted(scenes.glob("*.jpg"))[:3]]
    assert main(["predict", *three, *words]) == 0
    whole = out.read_bytes()
    out.unlink()
    assert main(["predict", *three[:2], *words, "--restart"]) == 0
    assert main(["predict", *three, *words]) == 0
    assert out.read_bytes() == whole
    assert "resum" in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model"))


def pairs(folder):
    """Rows about one picture, two and three; the second has none, the last can't be read."""
    for number, picture in enumerate(PICTURES):
        picture.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:500])
    rows = [
        {"image": "0.png"},
        {"images": ["1.png", "2.png"], "box_image": 1},
        {"images": ["2.png", "0.png", "1.png"], "box_image": 2},
        {"images": ["2.png", "broken.png"], "box_image": 1},
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def words_of(source, model, output):
    words = ["predict", source, "--model", model, "--prompt", "detect cat ; dog", "-o", output]
    words += ["--dtype", "float32", "--device", "cpu", "--max-new-tokens", "40", "--batch-size"]
    return [*map(str, words), "2"]


def test_rows_of_several_pictures(model, tmp_path, capsys):
    output = tmp_path / "coco.json"
    words = words_of(pairs(tmp_path), model, output)
    assert main(words) == 1  # the last row
    assert "broken.png" in capsys.readouterr().err
    coco = json.loads(output.read_text())
    sizes = {row["file_name"]: (row["width"], row["height"]) for row in coco["images"]}
    assert sizes == {f"{number}.png": PICTURES[number].size for number in (0, 2, 1)}
    decoder = PaliDecoder.from_pretrained(model, "float32", "cpu")
    for name, group, boxed in (("2.png", [1, 2], 1), ("1.png", [2, 0, 1], 2)):
        several = [PICTURES[number] for number in group]
        wanted = decoder.detect([several], "cat ; dog", max_new_tokens=40, box_image=boxed)
        (number,) = [row["id"] for row in coco["images"] if row["file_name"] == name]
        found = [row["bbox"] for row in coco["annotations"] if row["image_id"] == number]
        corners = np.array(wanted.xyxy)
        corners[:, 2:] -= corners[:, :2]
        np.testing.assert_allclose(found, corners, atol=0.01)
    # Another row for the first picture is worked on anew, and only that batch.
    assert main([*words, "--keep-journal"]) == 1
    whole = output.read_bytes()
    rows = (tmp_path / "rows.jsonl").read_text().replace('["1.png", "2.png"]', '["0.png", "2.png"]')
    (tmp_path / "rows.jsonl").write_text(rows)
    capsys.readouterr()
    assert main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["resumed"] == 2
    assert output.read_bytes() != whole


def test_rows_of_several_pictures_need_one_for_the_boxes(model, tmp_path, capsys):
    path = pairs(tmp_path)
    path.write_text('{"images": ["0.png", "1.png"]}')
    words = words_of(path, model, tmp_path / "coco.json")
    assert main(words) == 2
    assert "names 2 pictures: box_image (--box-image N, from 0)" in capsys.readouterr().err
    assert main([*words, "--box-image", "1"]) == 0
    (image,) = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert image["file_name"] == "1.png"


def test_more_pictures_than_the_model_can_read_are_one_bad_row(model, tmp_path, capsys):
    path = pairs(tmp_path)
    many = {"images": ["0.png"] * 2050, "box_image": 0}
    path.write_text(f"{json.dumps({'image': '1.png'})}\n{json.dumps(many)}")
    assert main(words_of(path, model, tmp_path / "coco.json")) == 1
    assert "image (8200 tokens)" in capsys.readouterr().err


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_prompt_longer_than_the_trained_text_warns_once(tmp_path, capsys):
    model = write_folder(tmp_path / "paligemma-3b-pt-224")
    for number in range(3):
        PICTURES[number].save(tmp_path / f"{number}.png")
    words = words_of(tmp_path / "*.png", model, tmp_path / "coco.json")
    words[words.index("detect cat ; dog")] = f"detect {' ; '.join(['cat'] * 70)}"
    assert main(words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "tokens" in line]
    assert len(said) == 1
    assert "are more than the 128 that the model was trained with" in said[0]
