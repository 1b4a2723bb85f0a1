import pytest
from PIL import Image

from palidecode import InputError
from palidecode.answers.jsonl import AnswerRow, Problem, read_rows
from tests.samples import answer, written

CAT = answer("cat")


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


@pytest.mark.parametrize(
    "row",
    [
        {"prediction": CAT},
        {"generated_text": CAT},
        {"response": CAT},
        {"answer": CAT},
        {"text": CAT},
        {"suffix": CAT},
        {"suffix": "the truth", "prediction": CAT},
        {"suffix": "the truth", "output": CAT},
        {"text": "detect cat", "output": CAT},
        {"text": CAT, "prediction": CAT},
    ],
)
def test_the_truth_is_never_read_as_the_answer_beside_it(tmp_path, row):
    (found,) = read_rows(written(tmp_path, [row]), size=(64, 48))
    assert found.answer == CAT


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"suffix": CAT, "text": CAT}, "'text' is the ground truth beside it"),
        ({"labels": CAT, "response": CAT}, "'response' is the ground truth beside it"),
        ({"prediction": CAT, "text": "detect cat"}, "'prediction' and 'text' differ"),
    ],
)
def test_rows_whose_answer_is_unclear_are_problems(tmp_path, row, reason):
    (found,) = read_rows(written(tmp_path, [row]), size=(64, 48))
    assert isinstance(found, Problem)
    assert reason in found.reason


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
