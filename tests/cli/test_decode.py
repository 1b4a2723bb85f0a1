"""`palidecode decode` with what people have: keys, kinds of files, and files that say nothing."""

import gzip
import json

import pytest
from PIL import Image

from palidecode.cli import main
from tests.samples import answer, written

CAT, DOG = answer("cat"), answer("dog")
SIZE = {"width": 64, "height": 48}


def decode(capsys, path, *options):
    code = main(["decode", str(path), "-o", str(path.parent / "coco.json"), *options])
    return code, *capsys.readouterr()


def labels(folder):
    coco = json.loads((folder / "coco.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    return [names[row["category_id"]] for row in coco["annotations"]]


def test_answers_that_differ_are_refused_and_nothing_is_written(capsys, tmp_path):
    path = written(tmp_path, [{"prediction": CAT, "answer": CAT, **SIZE}] * 3)
    assert decode(capsys, path)[0] == 0
    (tmp_path / "coco.json").unlink()
    path = written(tmp_path, [{"prediction": CAT, **SIZE}, {"prediction": CAT, "answer": DOG}])
    code, _, err = decode(capsys, path)
    assert (code, err.count("\n")) == (2, 1)
    assert "'prediction' and 'answer' differ (line 2)" in err
    assert [item.name for item in tmp_path.iterdir()] == ["answers.jsonl"]


def test_the_key_of_the_answers_and_of_the_pictures_can_be_named(capsys, tmp_path):
    rows = [{"photo": "a.png", "prediction": CAT, "answer": DOG, "mine": [CAT], **SIZE}]
    path = written(tmp_path, rows)
    for key, label in (("prediction", "cat"), ("answer", "dog"), ("mine", "cat")):
        assert decode(capsys, path, "--output-key", key, "--image-key", "photo")[0] == 0
        assert labels(tmp_path) == [label]
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png"]


def test_another_key_is_another_answer_for_a_run_that_resumes(capsys, tmp_path):
    path = written(tmp_path, [{"prediction": CAT, "answer": DOG, **SIZE}])
    keep = ("--keep-journal", "--output-key")
    for key, label in (("prediction", "cat"), ("answer", "dog"), ("prediction", "cat")):
        assert decode(capsys, path, *keep, key)[0] == 0
        assert labels(tmp_path) == [label]


def test_a_batch_with_scores_packed(capsys, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    tokens = ["<loc0100>", "<loc0200>", "<loc0700>", "<loc0800>", " cat"]
    content = [
        {"token": token, "logprob": 0.0 if n < 4 else -1.0} for n, token in enumerate(tokens)
    ]
    choice = {"message": {"content": CAT}, "logprobs": {"content": content}}
    row = {"custom_id": "a.png", "response": {"body": {"choices": [choice]}}, "error": None}
    path = tmp_path / "batch.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert decode(capsys, path)[0] == 0  # the picture is beside the file
    coco = json.loads((tmp_path / "coco.json").read_text())
    (image,), (found,) = coco["images"], coco["annotations"]
    assert (image["file_name"], image["width"]) == ("a.png", 64)
    assert found["score"] == pytest.approx(0.367879, abs=1e-5)  # e⁻¹


@pytest.mark.filterwarnings("default")
def test_the_truth_is_read_with_a_warning(capsys, tmp_path):
    code, _, err = decode(capsys, written(tmp_path, [{"suffix": CAT, **SIZE}] * 300))
    assert (code, err.count("reads 'suffix', the ground truth")) == (0, 1)


@pytest.mark.parametrize("texts", [["cat ; dog", " cat"], ["", ""], ["cat, dog<eos>"]])
def test_a_file_without_a_loc_token_names_the_causes(capsys, tmp_path, texts):
    path = written(tmp_path, [{"output": text, **SIZE} for text in texts])
    code, _, err = decode(capsys, path)
    assert code == 1
    assert "not one answer has a <loc…> token" in err
    assert "skip_special_tokens=False" in err
    assert "not by commas" in err
    code, out, _ = decode(capsys, path, "--json")
    assert (code, len(json.loads(out)["notes"])) == (1, 1)


@pytest.mark.parametrize("text", [CAT, CAT[:12], f"{CAT[:9]} cat"])
def test_one_answer_with_a_loc_token_is_enough(capsys, tmp_path, text):
    code, _, err = decode(capsys, written(tmp_path, [{"output": t, **SIZE} for t in ("", text)]))
    assert (code, "not one answer" in err) == (0, False)


def test_rows_of_an_array_are_counted_as_rows(capsys, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"output": CAT, **SIZE}, {"output": CAT}]))
    code, _, err = decode(capsys, path)
    assert code == 1
    assert "row 2: the size of the picture is not known" in err


def test_an_array_of_rows_can_be_drawn(capsys, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    (tmp_path / "rows.json").write_text(json.dumps([{"file_name": "a.png", "response": CAT}]))
    words = ["draw", tmp_path / "rows.json", "--images", tmp_path, "-o", tmp_path / "drawn"]
    assert main(list(map(str, words))) == 0
    assert Image.open(tmp_path / "drawn" / "a.png").getextrema() != ((0, 0), (0, 0), (0, 0))


@pytest.mark.parametrize("command", ["draw", "view"])
def test_a_picture_of_two_sizes_is_not_drawn_with_the_first(capsys, tmp_path, command):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    row = {"image": "a.png", "output": CAT}
    path = written(tmp_path, [{**row, **SIZE}, {**row, "width": 640, "height": 48}])
    code = main([command, str(path), "--images", str(tmp_path), "-o", str(tmp_path / "out")])
    assert code == 1
    assert " 2: 'a.png' is 640×48 here but 64×48 in an earlier row" in capsys.readouterr().err
