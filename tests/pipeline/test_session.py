"""A session of the tiny model against the same questions asked one by one."""

import numpy as np
import pytest

from palidecode.errors import InputError
from palidecode.files import data_folder
from palidecode.pipeline import AskOptions, PaliDecoder
from palidecode.pipeline.session import Question
from palidecode.prompts import write_prompt


@pytest.fixture(scope="module")
def decoder():
    return PaliDecoder.from_pretrained("demo", engine="onnx")


@pytest.fixture(scope="module")
def questions(decoder):
    options = AskOptions(sub_bin=True)
    scenes = sorted((data_folder("palidecode.demo") / "scenes").glob("*.jpg"))[:6]
    prompts = [write_prompt("segment", decoder.classes), write_prompt("detect", decoder.classes)]
    return [
        (path, Question([decoder.shrink(path)], prompts[n % 2], True, options.generating))
        for n, path in enumerate(scenes)
    ]


def test_questions_join_at_any_step(decoder, questions):
    session, found = decoder.session(), []
    waiting = [question for _, question in questions]
    while waiting or session.writing:
        if waiting:
            found += session.add([waiting.pop(0)])
        for _ in range(3):
            session.step()
    for (path, question), writing in zip(questions, found, strict=True):
        task = question.prompt.split()[0]
        wanted = getattr(decoder, task)(path, question.prompt, sub_bin=True)
        made = decoder.read([session.answer(writing)], sub_bin=True)
        assert made.labels == wanted.labels
        np.testing.assert_allclose(made.xyxy, wanted.xyxy, atol=1e-2)
        np.testing.assert_allclose(made.scores, wanted.scores, atol=1e-4)
        np.testing.assert_array_equal(made.codes, wanted.codes)
    assert sum(len(decoder.read([session.answer(writing)])) for writing in found) > 6


def test_the_beginning_of_an_answer_can_be_read(decoder, questions):
    session = decoder.session()
    (writing,) = session.add([questions[0][1]])
    while session.writing:
        session.step()
    whole = session.answer(writing)
    first = session.answer(writing, 4)
    assert first.token_ids == whole.token_ids[:4]
    assert len(first.logprobs) == len(first.end_logprobs) == 4
    assert whole.text.startswith(first.text)
    for count, locs in ((1, 1), (4, 4), (10, 4)):
        begun = session.answer(writing, count).loc_probabilities
        np.testing.assert_array_equal(begun, whole.loc_probabilities[:locs])
    assert decoder.read([first], sub_bin=True).xyxy.shape == (1, 4)


def test_dropped_answers_are_left_as_they_are(decoder, questions):
    session = decoder.session()
    first, second = session.add([question for _, question in questions[:2]])
    session.step()
    session.drop([first])
    count = first.count
    while session.writing:
        session.step()
    assert (first.count, second.tokens.finished) == (count, True)


def test_what_cannot_be_asked_is_refused(decoder, questions):
    _, question = questions[0]
    long = Question(question.pictures, "x " * 9000, False, question.options)
    with pytest.raises(InputError, match="exceed the model's"):
        decoder.session().check(long)
