"""Scores against values worked out by hand."""

from math import exp, log

import numpy as np
import pytest

from palidecode import parse
from palidecode.answers.scoring import (
    DEFAULT_SCORE,
    RECIPES,
    Evidence,
    check_score,
    evidence_of,
)
from palidecode.errors import InputError

BOX = "<loc0001><loc0002><loc0003><loc0004>"
MASK = "<seg007>" * 16


def evidence(tokenizer, text, logprobs, end_logprobs):
    """Evidence of an answer; its tokens' log probabilities are given or −0.01, −0.02 …"""
    ids = [*tokenizer.encode(text), tokenizer.vocabulary.eos]
    if logprobs is None:
        logprobs = [-0.01 * (place + 1) for place in range(len(ids))]
    if end_logprobs is None:
        end_logprobs = [-1.0 - place for place in range(len(ids))]
    assert len(logprobs) == len(end_logprobs) == len(ids)
    v = tokenizer.vocabulary
    objects = parse(ids, vocabulary=v, detokenize=tokenizer.decode).objects
    return evidence_of(objects, ids, logprobs, end_logprobs, tokenizer.is_separator, v)


def places(*numbers):
    return pytest.approx([-0.01 * (number + 1) for number in numbers])


# --- What belongs to an object ------------------------------------------------------------------


def test_the_tokens_of_two_objects(small_tokenizer):
    # 0–3 loc, 4 ▁red, 5 ▁star, 6 ▁;, 7 ▁, 8–11 loc, 12 ▁cat, 13 <eos>
    first, second = evidence(small_tokenizer, f"{BOX} red star ; {BOX} cat", None, None)
    assert first.loc == places(0, 1, 2, 3)
    assert first.label == places(4, 5)
    assert first.rest == second.rest == []
    assert second.loc == places(8, 9, 10, 11)
    assert second.label == places(12)
    # Where the answer could have ended: before the first token, and in the separator's place.
    assert first.end == -1.0
    assert second.end == -1.0 - 6


def test_the_tokens_of_masks(small_tokenizer):
    first, second = evidence(small_tokenizer, f"{BOX}{MASK} cat ; {BOX}{MASK}", None, None)
    assert first.rest == places(*range(4, 20))
    assert first.label == places(20)
    assert second.loc == places(23, 24, 25, 26)
    assert second.rest == places(*range(27, 43))
    assert second.label == []
    assert second.end == -1.0 - 21


@pytest.mark.parametrize(
    ("text", "loc", "label", "end"),
    [
        (f"{BOX}<loc0009> cat", (0, 1, 2, 3), (5,), 0),  # one too many
        ("<loc0001> <loc0002><loc0003><loc0004> cat", (0, 2, 3, 4), (1, 5), 0),
        (f"<loc0001> cat ; {BOX} dog", (4, 5, 6, 7), (8,), 2),  # the first has no box
        (f"{MASK} cat ; {BOX} dog", (19, 20, 21, 22), (23,), 17),
        (f"{BOX} cat ; ", (0, 1, 2, 3), (4,), 0),
        (BOX, (0, 1, 2, 3), (), 0),
    ],
)
def test_odd_answers_have_evidence_for_each_box(small_tokenizer, text, loc, label, end):
    (found,) = evidence(small_tokenizer, text, None, None)
    assert found.loc == places(*loc)
    assert found.label == places(*label)
    assert found.end == -1.0 - end


def test_an_answer_without_objects_has_no_evidence(small_tokenizer):
    assert evidence(small_tokenizer, "", None, None) == []
    assert evidence(small_tokenizer, "red star", None, None) == []


# --- Recipes ----------------------------------------------------------------------------------

EVIDENCE = Evidence(
    loc=[log(0.5), log(0.8), log(0.25), log(0.1)],
    label=[log(0.9), log(0.5)],
    rest=[log(0.2), log(0.4)],
    end=log(0.3),
)
MEAN_LOC = (0.5 * 0.8 * 0.25 * 0.1) ** (1 / 4)
SCORES = {
    "label": 0.9 * 0.5,
    "box": 0.5 * 0.8 * 0.25 * 0.1,
    "objectness": 0.7,
    "mean": (0.01 * 0.08 * 0.45) ** (1 / 8),
    "product": 0.7 * 0.45 * MEAN_LOC**0.1,
}


@pytest.mark.parametrize("name", SCORES)
def test_recipes(name):
    assert RECIPES[name](EVIDENCE) == pytest.approx(SCORES[name], rel=1e-12)


def test_every_recipe_is_worked_out_above():
    assert set(SCORES) == set(RECIPES)
    assert DEFAULT_SCORE in RECIPES


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_probabilities_and_no_label_is_a_sure_one(name):
    sure = Evidence(loc=[0.0] * 4, label=[], rest=[], end=-np.inf)
    assert RECIPES[name](sure) == 1.0
    # Rounding may make a logprob of ending that is above 0.
    ending = Evidence(loc=[-1.0] * 4, label=[-1.0], rest=[], end=1e-7)
    assert 0.0 <= RECIPES[name](ending) <= 1.0


def test_objectness_of_first_and_later_objects(small_tokenizer):
    text = f"{BOX} cat ; {BOX} dog ; {BOX} red star"
    # P(end) before the first, and in each separator's place.
    ends = {0: 0.4, 5: 0.1, 12: 0.75}
    count = len(small_tokenizer.encode(text)) + 1
    end = [log(ends.get(place, 0.99)) for place in range(count)]
    found = evidence(small_tokenizer, text, [-0.1] * count, end)
    scores = [RECIPES["objectness"](item) for item in found]
    assert scores == pytest.approx([0.6, 0.9, 0.25])
    # A loc token's mean, and one or two label tokens.
    products = [RECIPES["product"](item) for item in found]
    assert products == pytest.approx([0.6 * exp(-0.11), 0.9 * exp(-0.11), 0.25 * exp(-0.21)])


def test_a_recipe_that_is_none_is_refused():
    assert check_score("mean") == "mean"
    with pytest.raises(InputError, match="score must be one of label, box, objectness"):
        check_score("best")
