import json
import math

import pytest
from PIL import Image

from palidecode import InputError
from palidecode.answers.jsonl import AnswerRow, Problem, read_rows
from palidecode.prompts import asked_for
from palidecode.runs.answers import DecodeOptions, by_picture, decode_rows
from tests.samples import CODES, answer

CAT = answer("cat")


def written(tmp_path, rows):
    path = tmp_path / "answers.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "size",
    [{"width": 64, "height": 48}, {"size": [64, 48]}, {"image_size_wh": [64, 48]}, {}],
)
def test_sizes_come_from_the_row_or_the_default(tmp_path, size):
    (row,) = read_rows(written(tmp_path, [{"output": CAT, **size}]), size=(64, 48))
    assert row == AnswerRow(1, "line-1", (64, 48), CAT)


def test_sizes_come_from_the_picture(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    path = written(tmp_path, [{"image": "a.png", "output": CAT, "prompt": "detect cat"}])
    (row,) = read_rows(path, tmp_path, size=(1, 1))
    assert (row.size, row.name, row.prompt) == ((30, 20), "a.png", "detect cat")


BAD = {
    "not json": "{oops",
    "bare text": '"cat"',
    "no answer": {"width": 2, "height": 2},
    "no text": {"width": 2, "height": 2, "output": 5},
    "no ids": {"width": 2, "height": 2, "token_ids": ["a"]},
    "huge ids": {"width": 2, "height": 2, "token_ids": [1 << 80]},
    "no size": {"output": CAT},
    "half a size": {"output": CAT, "width": 5},
    "zero": {"output": CAT, "width": 0, "height": 5},
    "negative": {"output": CAT, "width": -3, "height": 5},
    "absurd": {"output": CAT, "width": 10**9, "height": 5},
    "float": {"output": CAT, "width": 2.5, "height": 5},
    "climbs": {"output": CAT, "image": "../secret.png", "width": 2, "height": 2},
    "missing": {"output": CAT, "image": "nowhere.png"},
    "no name": {"output": CAT, "image": 7},
    "scores": {"output": CAT, "width": 2, "height": 2, "scores": 0.5},
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_a_problem_with_its_line(tmp_path, name):
    good = {"output": CAT, "width": 8, "height": 8}
    rows = list(read_rows(written(tmp_path, [good, "", BAD[name], good]), tmp_path))
    assert [row.line for row in rows] == [1, 3, 4]
    assert [isinstance(row, Problem) for row in rows] == [False, True, False]
    assert "\n" not in rows[1].reason


def test_a_line_too_long_to_be_a_row_is_one_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("palidecode.answers.jsonl._LONGEST_LINE", 200)
    good = {"output": CAT, "width": 8, "height": 8}
    rows = [good, {**good, "note": "x" * 700}, {**good, "note": "y" * 400}, good]
    found = list(read_rows(written(tmp_path, rows)))
    assert [(row.line, isinstance(row, Problem)) for row in found] == [
        (1, False),
        (2, True),
        (3, True),
        (4, False),
    ]


def test_rows_that_disagree_on_a_picture_are_a_problem(tmp_path):
    rows = [{"image": "a", "width": 4, "height": 4, "output": CAT}] * 2
    rows.append({**rows[0], "width": 5})
    *_, last = read_rows(written(tmp_path, rows))
    assert "earlier row" in last.reason


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        list(read_rows(tmp_path / "nowhere"))


def test_rows_are_decoded_in_chunks_in_order(tmp_path):
    rows = [{"output": answer(str(n)), "width": 9, "height": 9} for n in range(10)]
    rows[4] = "broken"
    chunks = list(decode_rows(read_rows(written(tmp_path, rows)), DecodeOptions(), chunk=3))
    labels = [label for _, found, _ in chunks for label in found.labels]
    assert labels == ["0", "1", "2", "3", "5", "6", "7", "8", "9"]
    # A broken row has its place: what is decoded together doesn't depend on it.
    assert [len(answers) for answers, _, _ in chunks] == [3, 2, 3, 1]
    assert [problem.line for _, _, problems in chunks for problem in problems] == [5]


def test_a_file_of_problems_still_tells_them(tmp_path):
    ((answers, found, problems),) = decode_rows(
        read_rows(written(tmp_path, ["x"])), DecodeOptions()
    )
    assert (answers, len(found), len(problems)) == ([], 0, 1)


def test_scores_that_fit_are_used_and_others_are_problems(tmp_path):
    size = {"width": 9, "height": 9}
    rows = [
        {"output": f"{CAT} ; {answer('dog')}", "scores": [0.5, 0.25], **size},
        {"output": CAT, "scores": [0.5, 0.25], **size},
        f'{{"output": "{CAT}", "scores": [NaN], "width": 9, "height": 9}}',
        {"output": CAT, "scores": ["high"], **size},
    ]
    ((_, found, problems),) = decode_rows(read_rows(written(tmp_path, rows)), DecodeOptions())
    assert found.scores[:2].tolist() == [0.5, 0.25]
    assert all(map(math.isnan, found.scores[2:]))
    assert [problem.line for problem in problems] == [2, 3, 4]


@pytest.mark.parametrize(
    ("prompt", "label"),
    [
        ("segment cow\\n", "cow\\n"),
        ("segment cow\n", "cow"),
        ("detect a ; b", ""),
        ("the cat", "the cat"),
    ],
)
def test_what_a_prompt_asks_for(prompt, label):
    assert asked_for(prompt) == label


def test_rows_say_which_codec_their_codes_belong_to(tmp_path):
    size = {"width": 9, "height": 9}
    rows = [{"output": answer("a", codes=CODES), "codec": name, **size} for name in ("x", "x", "y")]
    options = DecodeOptions(codes_id="google-oid")
    chunks = decode_rows(read_rows(written(tmp_path, rows)), options, chunk=2)
    assert [found.codes_id for _, found, _ in chunks] == ["x", "y"]
    ((_, mixed, _),) = decode_rows(read_rows(written(tmp_path, rows)), options)
    assert mixed.codes_id == "google-oid"


def test_unlabelled_objects_can_take_the_prompt(tmp_path):
    text = answer("", codes=CODES).strip()
    rows = [{"output": text, "prompt": "segment cow", "width": 9, "height": 9}]
    path = written(tmp_path, rows)
    for option, label in ((True, "cow"), (False, "")):
        ((_, found, _),) = decode_rows(read_rows(path), DecodeOptions(label_from_prompt=option))
        assert found.labels == [label]


def test_answers_about_one_picture_come_together(tmp_path):
    rows = [
        {"image": name, "output": answer(label), "width": 9, "height": 9}
        for name, label in (("b", "1"), ("a", "2"), ("b", "3; junk"))
    ]
    ((answers, found, _),) = decode_rows(read_rows(written(tmp_path, rows)), DecodeOptions())
    merged, names = by_picture(answers, found)
    assert names == ["b", "a"]
    assert merged.labels == ["1", "3", "2"]
    assert merged.image_index.tolist() == [0, 0, 1]
    assert {image for image, _ in merged.issues} == {0}
