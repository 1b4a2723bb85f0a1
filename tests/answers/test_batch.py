import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palidecode import InputError, ParseError, parse, parse_batch
from tests.answers.test_parsing import BOX, WORDS, detokenize, ids_of, texts
from tests.samples import CODES

clean_ids = st.lists(
    st.one_of(
        st.tuples(st.just("box"), st.sampled_from([10, 11, 13])),
        st.tuples(st.just("box"), st.just("mask"), st.just(10)),
        st.tuples(st.just("box"), st.just(10), st.just(12)),
        st.tuples(st.sampled_from(["eos", "pad", "bos", "mask", 12, 14, 15, 16, 17])),
    ),
    max_size=5,
).map(lambda parts: ids_of(*[token for part in parts for token in part]))
wild_ids = st.lists(
    st.sampled_from([0, 1, 2, -1, *WORDS, *range(256_000, 256_006), *range(257_024, 257_042)]),
    max_size=30,
)


def expected(answers, **options):
    """One `parse` after the other."""
    rows = [(n, item) for n, a in enumerate(answers) for item in parse(a, **options).objects]
    issues = [(n, issue) for n, a in enumerate(answers) for issue in parse(a, **options).issues]
    return [(n, item) for n, item in rows if item.loc is not None], issues


def check(answers, **options):
    batch = parse_batch(answers, **options)
    rows, issues = expected(answers, **options)
    assert batch.labels == [item.label for _, item in rows]
    assert batch.answer_index.tolist() == [n for n, _ in rows]
    assert batch.loc.tolist() == [list(item.loc) for _, item in rows]
    assert batch.has_mask.tolist() == [item.seg is not None for _, item in rows]
    assert batch.codes.tolist() == [list(item.seg or (0,) * 16) for _, item in rows]
    assert batch.issues == issues
    assert (batch.loc.dtype, batch.codes.dtype) == (np.int16, np.uint8)
    assert batch.loc.shape[1:] == (4,)
    assert batch.codes.shape[1:] == (16,)


@settings(deadline=None, max_examples=300)
@given(st.lists(texts, max_size=5))
def test_texts(answers):
    check(answers)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(clean_ids, wild_ids), max_size=5))
def test_ids(answers):
    check(answers, detokenize=detokenize)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(clean_ids, wild_ids, texts), max_size=5))
def test_texts_and_ids_together(answers):
    check(answers, detokenize=detokenize)


@settings(deadline=None, max_examples=50)
@given(st.lists(clean_ids, max_size=4))
def test_ids_without_a_detokenizer(answers):
    check(answers)


def test_a_padded_array():
    rows = [ids_of("box", "mask", 10, "eos"), ids_of("box", 11, "eos")]
    width = max(map(len, rows))
    padded = np.array([row + [0] * (width - len(row)) for row in rows])
    batch = parse_batch(padded, detokenize=detokenize)
    assert batch.labels == ["cat", "dog"]
    assert batch.codes[0].tolist() == list(CODES)
    check(list(padded), detokenize=detokenize)


def test_each_distinct_label_is_detokenized_once():
    asked = []

    def counting(run):
        asked.append(tuple(run))
        return detokenize(run)

    answers = [ids_of("box", 10, 12, 256_005, *ids_of("box")[1:], 10, "eos")] * 50
    assert len(parse_batch(answers, detokenize=counting).labels) == 100
    assert sorted(asked) == [(10,), (10, 12)]


def test_nothing():
    assert parse_batch([]).labels == []
    assert parse_batch(["", []], detokenize=detokenize).loc.shape == (0, 4)


def test_errors_name_the_answer():
    with pytest.raises(ParseError, match="answer 1: stray_text"):
        parse_batch([f"{BOX} cat", "junk"], strict=True)
    with pytest.raises(InputError, match="answer 1"):
        parse_batch([f"{BOX} cat", 7])
    with pytest.raises(InputError, match="answer 1"):
        parse_batch([f"{BOX} cat", [1.5]], detokenize=detokenize)
    with pytest.raises(InputError, match=r"use \[text\]"):
        parse_batch(BOX)


def test_strict_ids_raise_too():
    with pytest.raises(ParseError, match="answer 1"):
        parse_batch(
            [ids_of("box", 10), ids_of("box", "box", 10)], strict=True, detokenize=detokenize
        )
