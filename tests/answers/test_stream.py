import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palidecode import InputError, StreamParser, parse
from tests.answers.test_parsing import BOX, MASK, WORDS, detokenize, texts
from tests.samples import answer


def fed(pieces, **options):
    stream = StreamParser(**options)
    objects = [item for piece in pieces for item in stream.feed(piece)]
    return (*objects, *stream.close()), stream.issues


def cut(whole, places):
    edges = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(edges)]


@settings(deadline=None, max_examples=300)
@given(texts, st.lists(st.integers(0, 500), max_size=8))
def test_text_cut_anywhere_gives_the_same(text, places):
    assert fed(cut(text, places)) == parse(text)


@settings(deadline=None, max_examples=100)
@given(texts)
def test_text_letter_by_letter_gives_the_same(text):
    assert fed(text) == parse(text)


tokens = st.lists(
    st.sampled_from([0, 1, 2, -1, *WORDS, *range(256_000, 256_006), *range(257_024, 257_042)]),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(tokens, st.lists(st.integers(0, 60), max_size=6))
def test_ids_cut_anywhere_give_the_same(ids, places):
    whole = parse(ids, detokenize=detokenize)
    assert fed(cut(ids, places), detokenize=detokenize) == whole
    arrays = [np.array(piece, np.int64) for piece in cut(ids, places)]
    assert fed(arrays, detokenize=detokenize) == whole


def test_an_object_comes_out_as_soon_as_it_is_whole():
    stream = StreamParser()
    assert stream.feed(f"{BOX}{MASK} ca") == []
    assert [item.label for item in stream.feed("t ;")] == ["cat"]
    assert stream.feed(f" {BOX} dog") == []
    assert [item.label for item in stream.feed("<eos>")] == ["dog"]
    assert stream.close() == []


def test_ids_come_out_at_the_next_object():
    stream = StreamParser(detokenize=detokenize)
    ids = [256_001, 256_002, 256_300, 256_400, 10, 12]
    assert [item.label for token in ids for item in stream.feed([token])] == []
    assert [item.label for item in stream.feed([256_001])] == ["cat"]


def test_misuse_is_said():
    stream = StreamParser()
    stream.feed("a")
    with pytest.raises(InputError, match="mixed"):
        stream.feed([1])
    stream.close()
    assert stream.close() == []
    with pytest.raises(InputError, match="closed"):
        stream.feed("a")
    with pytest.raises(InputError, match="answer"):
        StreamParser().feed(5)
    assert StreamParser().close() == []
    assert StreamParser().issues == ()


def test_a_refused_piece_leaves_the_stream_as_it_was():
    stream = StreamParser()
    with pytest.raises(InputError, match="answer"):
        stream.feed(None)
    assert [item.label for item in stream.feed(f"{BOX} cat ;")] == ["cat"]


@pytest.mark.parametrize("piece", ["<loc0000>", "<", ";", "<loc", " ", "<seg000> ", "a;"])
@pytest.mark.slow
def test_a_hostile_answer_in_pieces(piece):
    """Quadratic time would take minutes here."""
    text = piece * (300_000 // len(piece))
    assert fed(cut(text, range(0, len(text), 50))) == parse(text)


def test_a_long_answer_letter_by_letter():
    text = (answer("cat") + " ; ") * 1500
    objects, issues = fed(text)
    assert len(objects) == 1500
    assert {issue.kind.value for issue in issues} == {"duplicate", "extra_separator"}
