import math

import pytest

from palidecode.answers.rows import read_rows
from palidecode.detections import CodecMismatchWarning
from palidecode.runs.answers import AnswerDecoder, by_picture, decode_rows
from tests.samples import CODES, answer, written

CAT = answer("cat")


def test_rows_are_decoded_in_chunks_in_order(tmp_path):
    rows = [{"output": answer(str(n)), "width": 9, "height": 9} for n in range(10)]
    rows[4] = "broken"
    chunks = list(decode_rows(read_rows(written(tmp_path, rows)), AnswerDecoder(), chunk=3))
    labels = [label for _, found, _ in chunks for label in found.labels]
    assert labels == ["0", "1", "2", "3", "5", "6", "7", "8", "9"]
    # A broken row has its place: what is decoded together doesn't depend on it.
    assert [len(answers) for answers, _, _ in chunks] == [3, 2, 3, 1]
    assert [problem.line for _, _, problems in chunks for problem in problems] == [5]


def test_a_file_of_problems_still_tells_them(tmp_path):
    ((answers, found, problems),) = decode_rows(
        read_rows(written(tmp_path, ["x"])), AnswerDecoder()
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
    ((_, found, problems),) = decode_rows(read_rows(written(tmp_path, rows)), AnswerDecoder())
    assert found.scores[:2].tolist() == [0.5, 0.25]
    assert all(map(math.isnan, found.scores[2:]))
    assert [problem.line for problem in problems] == [2, 3, 4]


def test_rows_say_which_codec_their_codes_belong_to(tmp_path):
    size = {"width": 9, "height": 9}
    rows = [{"output": answer("a", codes=CODES), "codec": name, **size} for name in ("x", "x", "y")]
    decoder = AnswerDecoder(codes_id="google-oid")
    chunks = decode_rows(read_rows(written(tmp_path, rows)), decoder, chunk=2)
    assert [found.codes_id for _, found, _ in chunks] == ["x", "y"]
    for mixing in (decoder, AnswerDecoder()):
        with pytest.warns(CodecMismatchWarning, match=r"different mask codecs \(x, y\)"):
            list(decode_rows(read_rows(written(tmp_path, rows)), mixing))
    boxes = [{**row, "output": answer("a")} for row in rows]
    list(decode_rows(read_rows(written(tmp_path, boxes)), decoder))  # no mask, no warning


def test_unlabelled_objects_can_take_the_prompt(tmp_path):
    text = answer("", codes=CODES).strip()
    rows = [{"output": text, "prompt": "segment cow", "width": 9, "height": 9}]
    path = written(tmp_path, rows)
    for option, label in ((True, "cow"), (False, "")):
        ((_, found, _),) = decode_rows(read_rows(path), AnswerDecoder(label_from_prompt=option))
        assert found.labels == [label]


def test_answers_about_one_picture_come_together(tmp_path):
    rows = [
        {"image": name, "output": answer(label), "width": 9, "height": 9}
        for name, label in (("b", "1"), ("a", "2"), ("b", "3; junk"))
    ]
    ((answers, found, _),) = decode_rows(read_rows(written(tmp_path, rows)), AnswerDecoder())
    merged, names = by_picture(answers, found)
    assert names == ["b", "a"]
    assert merged.labels == ["1", "3", "2"]
    assert merged.image_index.tolist() == [0, 0, 1]
    assert {image for image, _ in merged.issues} == {0}
