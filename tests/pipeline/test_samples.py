"""Sampled answers that are united, on both engines."""

from dataclasses import replace

import numpy as np
import pytest

from palidecode.codec import load_codec
from palidecode.detections.voting import vote
from palidecode.errors import InputError
from palidecode.pipeline import AskOptions, PaliDecoder
from tests.runtime.tiny_models import PICTURES, ids_of, random_picture, write_folder

PROMPTS = ["cat ; red star", "key"]
MANY = [*PICTURES, random_picture(3), random_picture(4)]
SAMPLED = {"temperature": 0.7, "seed": 5, "max_new_tokens": 40}


@pytest.fixture(scope="module", params=["torch", "onnx"])
def decoder(request, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("model"), 1)
    decoder = PaliDecoder.from_pretrained(
        folder, "float32", engine=request.param, codec=load_codec("palidecode-demo")
    )
    decoder.codes_id = "palidecode-demo"
    return decoder


def answers(decoder, pictures=MANY, prompts=PROMPTS, batch_size=8, task="detect", **options):
    return decoder.answers(task, pictures, prompts, AskOptions(**SAMPLED | options), batch_size)


def same(found, wanted):
    assert found.labels == wanted.labels
    assert found.to_rle() == wanted.to_rle()
    for name in ("xyxy", "scores", "image_index", "sizes"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-4)


def test_samples_are_drawn_each_for_itself_and_repeatable(decoder):
    every = ids_of(answers(decoder, samples=4))
    assert len(every) == len(MANY) * len(PROMPTS) * 4
    for first in range(0, len(every), 4):
        assert len(set(map(tuple, every[first : first + 4]))) > 1
    assert ids_of(answers(decoder, samples=4)) == every
    assert ids_of(answers(decoder, samples=4, seed=6)) != every
    fewer = ids_of(answers(decoder, samples=2))
    assert fewer == [ids for number, ids in enumerate(every) if number % 4 < 2]
    assert fewer[::2] == ids_of(answers(decoder))


def test_what_else_is_asked_changes_no_sample(decoder):
    every = ids_of(answers(decoder, samples=3))
    assert ids_of(answers(decoder, samples=3, batch_size=2)) == every
    each = len(PROMPTS) * 3
    for number, picture in enumerate(MANY):
        its = every[number * each : (number + 1) * each]
        assert ids_of(answers(decoder, picture, samples=3)) == its
        assert ids_of(answers(decoder, picture, PROMPTS[1], samples=3)) == its[3:]


def test_a_question_is_read_once_for_all_its_samples(decoder, monkeypatch):
    read, start = [], decoder.engine.start
    monkeypatch.setattr(
        decoder.engine, "start", lambda *given: read.append(len(given[1])) or start(*given)
    )
    every = answers(decoder, samples=4)
    assert sum(read) == len(MANY) * len(PROMPTS)
    for one, other in zip(every, answers(decoder, samples=4, batch_size=1), strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_detections_are_the_votes_of_the_samples(decoder, task):
    options = {**SAMPLED, "samples": 3}
    ask = getattr(decoder, task)
    found = ask(MANY, PROMPTS, **options)
    each = len(PROMPTS) * 3
    alone = decoder.read(answers(decoder, task=task, samples=3), clip=False)
    assert len(alone) > len(found) > 0
    sample = alone.image_index % 3
    united = replace(
        alone,
        image_index=alone.image_index // each,
        sizes=alone.sizes[::each],
        names=alone.names[::each],
        image_ids=[],
        issues=[],
    )
    same(found, vote(united, sample, 3))
    assert (found.scores <= 1).all()
    for number, picture in enumerate(MANY):
        same(ask(picture, PROMPTS, **options), found.image(number))


def test_every_tile_and_second_look_is_sampled(decoder):
    told = {}

    def tell(number, token, logprob):
        told.setdefault(number, []).append(token)

    options = {**SAMPLED, "tiles": "2x1", "zoom": True, "samples": 2}
    found = decoder.segment(MANY, PROMPTS, on_token=tell, **options)
    assert len(found) > 0
    for number, picture in enumerate(MANY):
        same(decoder.segment(picture, PROMPTS, batch_size=3, **options), found.image(number))
    looks = len(MANY) * 3 * len(PROMPTS) * 2
    assert sorted(told) == list(range(len(told)))
    assert len(told) > looks
    eos = decoder.tokenizer.vocabulary.eos
    assert all(tokens.count(eos) == 1 for tokens in told.values())


def test_one_greedy_sample_is_the_plain_answer(decoder):
    plain = decoder.detect(MANY, PROMPTS, max_new_tokens=40)
    same(decoder.detect(MANY, PROMPTS, max_new_tokens=40, samples=1), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0, "temperature": 1.0}, "samples must be at least 1, got 0"),
        ({"samples": 3}, "samples are all equal at a temperature of 0"),
    ],
)
def test_samples_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AskOptions(**options)
