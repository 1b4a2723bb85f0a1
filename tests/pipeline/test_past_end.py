"""Answers that go on past the end that the model would write, on both engines."""

import numpy as np
import pytest

from palidecode.answers.parsing import parse
from palidecode.answers.scoring import RECIPES, evidence_of
from palidecode.errors import InputError
from palidecode.pipeline import AskOptions, GrammarOptions, PaliDecoder
from tests.runtime.tiny_models import PICTURES, ids_of, random_picture, write_folder

PROMPT = "cat ; red star ; key"
MANY = [*PICTURES, *(random_picture(seed) for seed in range(3, 9))]
LIMIT = 70


@pytest.fixture(scope="module", params=["torch", "onnx"])
def decoder(request, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("model"), 2)
    return PaliDecoder.from_pretrained(folder, "float32", engine=request.param)


def ask(decoder, task="detect", pictures=MANY, batch_size=8, on_token=None, **options):
    asked = AskOptions(**{"max_new_tokens": LIMIT, **options})
    return decoder.answers(task, pictures, PROMPT, asked, batch_size, on_token)


def objects_of(decoder, answer, score="product"):
    """Start, score, and whether the model would have ended the answer, of each object."""
    v, is_separator = decoder.tokenizer.vocabulary, decoder.tokenizer.is_separator
    ids = answer.token_ids
    parsed = parse(ids, vocabulary=v, detokenize=decoder.tokenizer.decode)
    assert not parsed.issues
    starts = [0, *(n for n, token in enumerate(ids) if is_separator(token))]
    evidence = evidence_of(
        parsed.objects, ids, answer.logprobs, answer.end_logprobs, is_separator, v
    )
    for start, item in zip(starts, evidence, strict=True):
        rather_ends = answer.end_logprobs[start] > answer.logprobs[start]
        yield start, RECIPES[score](item), rather_ends


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_threshold_of_zero_writes_all_that_fits(decoder, task):
    rules = GrammarOptions(min_objects=99)
    full = ask(decoder, task, past_end=0.0)
    for one, other in zip(full, ask(decoder, task, grammar=rules), strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        np.testing.assert_allclose(one.end_logprobs, other.end_logprobs, atol=1e-4)
        assert LIMIT - 30 < len(one.token_ids) <= LIMIT
        assert one.finished
    assert ids_of(full) != ids_of(ask(decoder, task))


def test_the_probability_of_an_end_that_is_withheld_counts(decoder):
    sums = []
    for answer in ask(decoder, past_end=0.0):
        for start, score, _ in objects_of(decoder, answer):
            end = np.exp(answer.end_logprobs[start])
            assert 0 < end < 1
            assert score <= 1 - end + 1e-6
            if start:  # an end and a separator are all there is
                sums.append(end + np.exp(answer.logprobs[start]))
    assert len(sums) > 20
    np.testing.assert_allclose(sums, 1, atol=1e-4)


@pytest.mark.parametrize("score", ["product", "label", "mean", "objectness", "box"])
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_an_answer_goes_on_up_to_the_first_unwanted_object_that_scores_less(decoder, task, score):
    eos = decoder.tokenizer.vocabulary.eos
    full, plain = ask(decoder, task, past_end=0.0), ask(decoder, task)
    every = [list(objects_of(decoder, answer, score)) for answer in full]
    unwanted = sorted(value for objects in every for _, value, ends in objects if ends)
    longer, lengths = 0, set()
    for least in np.quantile(unwanted, [0.2, 0.5, 0.9]):
        found = ask(decoder, task, past_end=float(least) * 1.001, score=score)
        for answer, whole, before, objects in zip(found, full, plain, every, strict=True):
            fails = (s for s, value, ends in objects if ends and value < least * 1.001)
            cut = next(fails, len(whole.token_ids) - 1)
            assert answer.token_ids == [*whole.token_ids[:cut], eos]
            wanted = [*whole.logprobs[:cut], whole.end_logprobs[cut]]
            np.testing.assert_allclose(answer.logprobs, wanted, atol=1e-4)
            np.testing.assert_allclose(
                answer.end_logprobs, whole.end_logprobs[: cut + 1], atol=1e-4
            )
            assert answer.token_ids[: len(before.token_ids) - 1] == before.token_ids[:-1]
            longer += len(answer.token_ids) > len(before.token_ids)
            lengths.add(len(answer.token_ids))
    assert longer
    assert len(lengths) > 3


@pytest.mark.parametrize("options", [{}, {"over": "vocabulary"}, {"temperature": 1.0, "seed": 3}])
def test_a_batch_goes_on_as_each_would_alone(decoder, options):
    options |= {"past_end": 0.05, "grammar": GrammarOptions(min_objects=2), "sub_bin": True}
    batch = ask(decoder, **options)
    for size in (1, 4):
        assert ids_of(ask(decoder, batch_size=size, **options)) == ids_of(batch)
    for answer in batch:
        bins = sum(
            0 <= t - decoder.tokenizer.vocabulary.loc_offset < 1024 for t in answer.token_ids
        )
        assert answer.loc_probabilities.shape == (bins, 1024)
        assert len(list(objects_of(decoder, answer))) >= 2
        assert len(answer.token_ids) <= LIMIT


def test_objects_of_a_minimum_are_not_judged(decoder):
    rules = GrammarOptions(min_objects=3, max_objects=5)
    found = ask(decoder, past_end=1.0, grammar=rules)
    counts = [len(list(objects_of(decoder, answer))) for answer in found]
    assert set(counts) >= {3}
    assert max(counts) <= 5
    for answer in found:
        judged = list(objects_of(decoder, answer))[3:]
        assert not any(ends for _, _, ends in judged)


def test_labels_that_the_model_would_not_give_are_judged(decoder):
    """Over the vocabulary a random model would rather write anything but one of the names."""
    full = ask(decoder, past_end=0.0, over="vocabulary")
    found = ask(decoder, past_end=0.01, over="vocabulary", score="label")
    for answer, whole in zip(found, full, strict=True):
        scores = [score for _, score, _ in objects_of(decoder, whole, "label")]
        assert scores[0] < 0.01
        assert answer.token_ids == [decoder.tokenizer.vocabulary.eos]


def test_only_tokens_that_stay_are_told(decoder):
    told = {number: [] for number in range(len(MANY))}
    found = ask(
        decoder,
        past_end=0.3,
        on_token=lambda number, token, logprob: told[number].append((token, logprob)),
    )
    for number, answer in enumerate(found):
        assert told[number] == list(zip(answer.token_ids, answer.logprobs, strict=True))
    assert len({len(answer.token_ids) for answer in found}) > 2


def test_detections_of_answers_that_go_on_have_the_scores_of_their_tokens(decoder):
    found = decoder.detect(MANY, PROMPT, past_end=0.1, max_new_tokens=LIMIT)
    scores = [
        score
        for answer in ask(decoder, past_end=0.1)
        for _, score, _ in objects_of(decoder, answer)
    ]
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert len(found) > len(decoder.detect(MANY, PROMPT, max_new_tokens=LIMIT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"past_end": 1.5}, "past_end must be between 0 and 1, got 1.5"),
        ({"past_end": -0.1}, "past_end must be between 0 and 1, got -0.1"),
        ({"past_end": float("nan")}, "past_end must be between 0 and 1, got nan"),
        ({"past_end": 0.1, "grammar": False}, "past_end is a rule of the grammar"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        AskOptions(**options)
