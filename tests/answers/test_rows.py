from math import exp, isnan, log

import pytest
from PIL import Image

from palidecode import InputError
from palidecode.answers.row_files import Problem
from palidecode.answers.rows import AnswerRow, read_rows
from tests.samples import answer, written

CAT, DOG = answer("cat"), answer("dog")


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


def batch(content, **choice):
    """A row of a batch API."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": content}, **choice}]
    return {"status_code": 200, "request_id": "r", "body": {"id": "x", "choices": choices}}


@pytest.mark.parametrize(
    "row",
    [
        {"output": CAT},
        {"text": CAT},
        {"generated_text": CAT},
        {"response": CAT},
        {"prediction": CAT},
        {"answer": CAT},
        {"outputs": [CAT]},
        {"outputs": [{"index": 0, "text": CAT, "token_ids": [5], "logprobs": None}]},
        {"response": batch(CAT), "error": None, "id": "batch_1"},
        {"choices": [{"message": {"content": [{"type": "text", "text": CAT}]}}]},
        {"choices": [{"text": CAT, "finish_reason": "stop"}]},
        {"suffix": "the truth", "prediction": CAT},
        {"suffix": "the truth", "output": CAT},
        {"suffix": "the truth", "text": "the truth", "output": CAT},
        {"prediction": CAT, "answer": f" {CAT}\n"},
        {"output": CAT, "text": None, "token_ids": [5]},
    ],
)
def test_answers_are_found_under_the_keys_that_people_have(tmp_path, row):
    (found,) = read_rows(written(tmp_path, [row]), size=(64, 48))
    assert (found.answer, found.name) == (CAT, "line-1")


def test_ids_of_an_output_are_an_answer(tmp_path):
    (row,) = read_rows(written(tmp_path, [{"outputs": [{"token_ids": [5, 6]}]}]), size=(64, 48))
    assert row.answer == [5, 6]


def test_the_truth_is_read_where_there_is_nothing_else_and_that_is_said(tmp_path):
    rows = [{"suffix": CAT}, {"suffix": ""}]
    with pytest.warns(UserWarning, match=r"answers\.jsonl: no answers; reads 'suffix'") as caught:
        found = list(read_rows(written(tmp_path, rows), size=(64, 48)))
    assert ([row.answer for row in found], len(caught)) == ([CAT, ""], 1)
    # A row that failed has no answer; the truth is none either.
    rows = [{"suffix": CAT, "prediction": DOG}, {"suffix": CAT, "prediction": None}]
    first, second = read_rows(written(tmp_path, rows), size=(64, 48))
    assert (first.answer, second.reason) == (DOG, "needs an answer: 'prediction'")
    (only,) = read_rows(written(tmp_path, rows[1:]), size=(64, 48))
    assert isinstance(only, Problem)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            [{"output": CAT}, {"output": CAT, "text": "detect cat"}],
            r"'output' and 'text' differ \(line 2\); .* --output-key output or --output-key text",
        ),
        ([{"prediction": CAT, "answer": DOG}], "'prediction' and 'answer' differ"),
        ([{"suffix": CAT, "text": CAT}], "'text' is the ground truth, equal to the 'suffix'"),
        ([{"labels": CAT, "response": CAT}] * 2, "'response' is the ground truth"),
        ([{"image": "a", "caption": CAT}], r"no row has an answer .* but 'image', 'caption'; name"),
    ],
)
def test_a_file_whose_answers_are_unclear_is_refused_until_a_key_is_named(tmp_path, rows, reason):
    path = written(tmp_path, rows)
    with pytest.raises(InputError, match=reason):
        list(read_rows(path, size=(64, 48)))
    key = list(rows[-1])[-1]
    *_, row = read_rows(path, size=(64, 48), output_key=key)
    assert row.answer == rows[-1][key]


def test_an_answer_that_is_sometimes_right_is_no_truth(tmp_path):
    rows = [{"suffix": CAT, "response": CAT}, {"suffix": CAT, "response": DOG}]
    found = list(read_rows(written(tmp_path, rows), size=(64, 48)))
    assert [row.answer for row in found] == [CAT, DOG]


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.png"},
        {"file_name": "a.png"},
        {"image_path": "a.png"},
        {"images": ["a.png"]},
        {"images": [{"path": "a.png"}]},
        {"custom_id": "a.png"},
        {"image": "a.png", "custom_id": "request-1"},
    ],
)
def test_pictures_are_found_under_the_keys_that_people_have(tmp_path, row):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (found,) = read_rows(written(tmp_path, [{"output": CAT, **row}]), tmp_path)
    assert (found.name, found.size) == ("a.png", (30, 20))


def test_the_key_of_the_pictures_can_be_named(tmp_path):
    path = written(tmp_path, [{"image": "b.png", "photo": "a.png", "output": CAT}])
    (row,) = read_rows(path, size=(3, 2), image_key="photo")
    assert row.name == "a.png"


def test_boxes_are_measured_in_the_picture_that_is_named(tmp_path):
    for name, size in (("a.png", (64, 48)), ("b.png", (20, 30))):
        Image.new("RGB", size).save(tmp_path / name)
    pair = {"images": ["a.png", "b.png"], "output": CAT}
    rows = [pair, {**pair, "box_image": 0}, {"images": ["b.png"], "output": CAT}]
    path = written(tmp_path, rows)
    none, first, single = read_rows(path, tmp_path)
    assert none.reason == (
        "names 2 pictures: box_image (--box-image N, from 0) says whose size the boxes have"
    )
    assert (first.name, first.size) == ("a.png", (64, 48))
    assert (single.name, single.size) == ("b.png", (20, 30))
    second, own, _ = read_rows(path, tmp_path, box_image=1)  # a row's own goes first
    assert (second.name, second.size, own.name) == ("b.png", (20, 30), "a.png")
    third, *_ = read_rows(path, tmp_path, box_image=2)
    assert third.reason == "box_image is 2, and the row names 2 pictures: count from 0"
    with pytest.raises(InputError, match="box_image must be 0 or above, got -1"):
        list(read_rows(path, tmp_path, box_image=-1))


def test_a_path_that_exists_is_used_as_it_is(tmp_path, monkeypatch):
    """From the folder of the file, then from the working directory."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Image.new("RGB", (30, 20)).save(tmp_path / "rows" / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "work" / "a.png")
    Image.new("RGB", (7, 5)).save(tmp_path / "work" / "b.png")
    names = ["a.png", "b.png", str(tmp_path / "work" / "a.png"), "nowhere.png"]
    path = written(tmp_path / "rows", [{"image": name, "output": CAT} for name in names])
    *found, last = read_rows(path)
    assert [(row.name, row.size) for row in found] == [
        *[("a.png", (30, 20)), ("b.png", (7, 5))],
        (names[2], (9, 9)),
    ]
    assert "size of the picture is not known" in last.reason


TOKENS = ["<loc0100>", "<loc0200>", "<loc0700>", "<loc0800>", " ca", "t"]


def logprobs(tokens, best=None):
    """Log probabilities of an API: −0.01, −0.02 … of the tokens; `best` by token number."""
    content = [
        {"token": token, "logprob": -0.01 * number, "top_logprobs": (best or {}).get(number, [])}
        for number, token in enumerate(tokens, 1)
    ]
    return {"content": content}


def test_log_probabilities_of_a_chat_completion_become_scores(tmp_path):
    """As `product`: label × the geometric mean of the box to the power of 0.1 × not the end."""
    tokens = [*TOKENS, " ;", *(" " + TOKENS[0], *TOKENS[1:4]), " dog", "<eos>"]
    text = f"{CAT} ; {DOG}"
    end = [{"token": "<eos>", "logprob": log(0.25)}, {"token": " ;", "logprob": log(0.75)}]
    cat = exp(-0.05 - 0.06) * exp(-0.01 - 0.02 - 0.03 - 0.04) ** (0.1 / 4)
    dog = exp(-0.12) * exp(-0.08 - 0.09 - 0.10 - 0.11) ** (0.1 / 4)
    rows = [
        {"response": batch(text, logprobs=logprobs(tokens))},
        {"response": batch(text, logprobs=logprobs(tokens, {7: end}))},
        {"response": batch(text, logprobs=logprobs(tokens)), "scores": [0.5, 0.25]},
    ]
    plain, with_end, given = read_rows(written(tmp_path, rows), size=(64, 48))
    assert plain.scores == pytest.approx([cat, dog])
    assert with_end.scores == pytest.approx([cat, dog * 0.75])
    assert given.scores == [0.5, 0.25]


@pytest.mark.parametrize(
    "tokens",
    [
        TOKENS[:-1],
        [*TOKENS[:-1], "r"],
        [*CAT],  # loc tokens in pieces
        [],
        "no list",
        {"0": "no list"},
        [5, 6],
    ],
)
def test_log_probabilities_of_other_tokens_are_no_scores(tmp_path, tokens):
    plain = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    row = {"response": batch(CAT, logprobs=logprobs(tokens) if plain else {"content": tokens})}
    (found,) = read_rows(written(tmp_path, [row]), size=(64, 48))
    assert len(found.scores) == 1
    assert isnan(found.scores[0])


def test_tokens_may_be_parts_of_characters(tmp_path):
    text = CAT.replace("cat", "Bär")
    row = {"response": batch(text, logprobs=logprobs([*TOKENS[:4], "▁B", "?", "?", "r"]))}
    content = row["response"]["body"]["choices"][0]["logprobs"]["content"]
    content[5]["bytes"], content[6]["bytes"] = [0xC3], [0xA4]
    (found,) = read_rows(written(tmp_path, [row]), size=(64, 48))
    assert found.scores == pytest.approx([exp(-0.05 - 0.06 - 0.07 - 0.08) * exp(-0.1) ** 0.025])


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
    "two pictures": {"output": CAT, "images": ["a.png", "b.png"], "width": 2, "height": 2},
    "third of two": {"output": CAT, "images": ["a.png", "b.png"], "box_image": 2, "size": [2, 2]},
    "no list of pictures": {"output": CAT, "images": [], "width": 2, "height": 2},
    "two answers": {"outputs": [CAT, CAT], "width": 2, "height": 2},
    "failed": {"response": None, "error": {"message": "busy"}, "width": 2, "height": 2},
    "refused": {"response": {"status_code": 400, "body": {"error": {"message": "no"}}}},
    "deep answer": '{"width": 2, "height": 2, "outputs": ' + "[" * 500 + "]" * 500 + "}",
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
    monkeypatch.setattr("palidecode.answers.row_files._LONGEST_LINE", 200)
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
