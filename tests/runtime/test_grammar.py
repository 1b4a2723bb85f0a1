"""The tokens that the grammar allows: exactly those that lead to an answer within the limit."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from palidecode import IssueKind, parse
from palidecode.errors import InputError
from palidecode.runtime import grammar as module
from palidecode.runtime.grammar import Grammar, GrammarOptions
from palidecode.runtime.tokenizer import LabelTokens, Tokenizer
from tests.references import is_answer
from tests.samples import TOKENIZER


@pytest.fixture(scope="module", params=[pytest.param("real", marks=pytest.mark.slow), "small"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")


# --- Prompts ----------------------------------------------------------------------------------


def test_prompts_without_a_grammar_have_none(small_tokenizer):
    assert Grammar.of(small_tokenizer, "answer en what is this") is None
    assert Grammar.of(small_tokenizer, "detect cat").names == ["cat"]


def test_a_label_that_the_tokenizer_would_write_differently_is_refused(tokenizer):
    # ▁ is how the tokenizer spells a space.
    with pytest.raises(InputError, match="label 'red▁star' has characters that this tokenizer"):
        Grammar.of(tokenizer, "detect cat ; red▁star")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "any"}, "labels must be 'prompt', 'free' or 'none', got 'any'"),
        ({"max_objects": 0}, "max_objects must be at least 1, got 0"),
        ({"max_label_tokens": 0}, "max_label_tokens must be at least 1, got 0"),
        ({"min_objects": -1}, "min_objects must be 0 or more, got -1"),
        (
            {"min_objects": 3, "max_objects": 2},
            "min_objects must not be above max_objects, got 3 and 2",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        GrammarOptions(**options)


# --- Walks ------------------------------------------------------------------------------------

PREFIXES = ["cat", "cat fish", "cat fish bone", "dog"]
MANY = [f"thing {number}" for number in range(150)]


def uniform(rng, ids, allowed):
    return rng.choice(allowed)


def one_box(place):
    """Always the same bins: the lowest, or the last that leave room."""
    return lambda rng, ids, allowed: allowed[place]


def again(rng, ids, allowed):
    """Repeat the token of one object ago where it is allowed."""
    for back in range(5, 40):
        if len(ids) >= back and ids[-back] in allowed and rng.random() < 0.5:
            return ids[-back]
    return rng.choice(allowed)


WALKS = {"uniform": uniform, "lowest": one_box(0), "last": one_box(-1), "again": again}


def walk(grammar, limit, choose, rng, ending):
    """Ids of one answer; ``<eos>`` is taken with probability `ending` where it is allowed."""
    state, ids, eos = grammar.start(limit), [], grammar.vocabulary.eos
    forced = []
    while not state.ended:
        assert len(ids) < limit, "the limit is exceeded"
        mask = state.allowed()
        assert mask.shape == grammar.tokens.shape
        allowed = grammar.tokens[mask]
        assert len(allowed), f"stuck after {ids}"
        forced = forced or state.forced()
        if forced:
            assert allowed.tolist() == [forced.pop(0)]
        others = allowed[allowed != eos]
        ends = len(others) < len(allowed) and (not len(others) or rng.random() < ending)
        token = eos if ends else int(choose(rng, ids, others))
        ids.append(token)
        state.advance(token)
    assert not state.allowed().any()
    return ids


def check(tokenizer, ids, names, masks, options):
    assert ids[-1] == tokenizer.vocabulary.eos
    text = tokenizer.decode(ids)
    most, repeats = options.max_objects, options.repeats
    assert is_answer(text, names, masks, repeats=repeats, most=most), text
    by_text = parse(text + "<eos>")
    by_ids = parse(ids, vocabulary=tokenizer.vocabulary, detokenize=tokenizer.decode)
    for found in (by_text, by_ids):
        odd = {issue.kind for issue in found.issues}
        assert odd <= ({IssueKind.DUPLICATE} if repeats else set()), text
        assert len(found.objects) == text.count("<loc") / 4
        for item in found.objects:
            y1, x1, y2, x2 = item.loc
            assert y2 > y1
            assert x2 > x1
            assert (item.seg is not None) == masks
            assert item.label if names is None else item.label in names
    assert [item[:3] for item in by_text.objects] == [item[:3] for item in by_ids.objects]
    return by_ids.objects


CASES = {
    "prefixes": (PREFIXES, GrammarOptions()),
    "one label": (["cat"], GrammarOptions()),
    "many": (MANY, GrammarOptions(max_objects=3)),
    "repeats": (PREFIXES, GrammarOptions(repeats=True)),
    "one object": (PREFIXES, GrammarOptions(max_objects=1)),
    "none": (None, GrammarOptions("none")),
    "none repeats": (None, GrammarOptions("none", repeats=True, max_objects=4)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_every_walk_is_an_answer(tokenizer, task, case):
    names, options = CASES[case]
    grammar = Grammar.of(tokenizer, f"{task} {' ; '.join(names or ['this'])}", options)
    rng = np.random.default_rng(0)
    counts = set()
    for choose in WALKS.values():
        for turn in range(90):
            limit = int(rng.integers(1, 61)) if turn % 3 else 150
            ids = walk(grammar, limit, choose, rng, ending=(0, 0.2, 0.5)[turn % 3])
            names_here = [""] if names is None else names
            counts.add(len(check(tokenizer, ids, names_here, task == "segment", options)))
    assert {0, 1} <= counts
    assert max(counts) == options.max_objects or max(counts) > 3


def test_what_has_no_choice_is_forced(tokenizer):
    def after(text, **options):
        state = Grammar.of(tokenizer, "detect red star", GrammarOptions(**options)).start(50)
        for token in tokenizer.encode(text):
            state.advance(token)
        return state.forced()

    box, eos = "<loc0001><loc0002><loc0003><loc0004>", tokenizer.vocabulary.eos
    between = tokenizer.encode(f"{box} red star ; {box}")[4:-4]
    label, separator = between[:2], between[2:]
    assert after("") == after(box[:-9]) == after(f"{box} red star") == []
    assert after(box) == label
    assert after(f"{box} red star ;") == separator[1:]
    assert after(box, max_objects=1) == [*label, eos]


@pytest.mark.parametrize("task", ["detect", "segment"])
@pytest.mark.parametrize("most", [1, 2, 16])
def test_every_walk_with_free_labels_is_an_answer(tokenizer, task, most):
    options = GrammarOptions("free", max_label_tokens=most)
    grammar = Grammar.of(tokenizer, f"{task} something", options)
    rng = np.random.default_rng(most)
    for choose in WALKS.values():
        for turn in range(6):
            limit = int(rng.integers(1, 61)) if turn % 3 else 120
            ids = walk(grammar, limit, choose, rng, ending=(0, 0.1, 0.5)[turn % 3])
            check(tokenizer, ids, None, task == "segment", options)


def test_free_labels_may_be_spelled_out(tokenizer):
    grammar = Grammar.of(tokenizer, "detect x", GrammarOptions("free"))
    for label in ("cat", "red star", "zyzzyvas", "cat, left"):
        ids = tokenizer.encode(f"<loc0001><loc0002><loc0003><loc0004> {label}")
        state = grammar.start(40)
        for token in [*ids, tokenizer.vocabulary.eos]:
            assert token in grammar.tokens[state.allowed()], label
            state.advance(token)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_every_limit_is_kept(tokenizer, task):
    grammar = Grammar.of(tokenizer, f"{task} {' ; '.join(PREFIXES)}")
    rng = np.random.default_rng(2)
    for limit in range(1, 61):
        for choose in (uniform, again):
            ids = walk(grammar, limit, choose, rng, ending=0)
            objects = check(tokenizer, ids, PREFIXES, task == "segment", GrammarOptions())
            assert bool(objects) == (limit >= grammar.object_cost)


def test_a_box_comes_once_for_each_label_and_never_more(tokenizer):
    grammar = Grammar.of(tokenizer, "detect " + " ; ".join(PREFIXES))
    v, rng = tokenizer.vocabulary, np.random.default_rng(3)
    wanted = [v.loc_offset + bin_ for bin_ in (1022, 1022, 1023, 1023)]

    def stubborn(rng, ids, allowed):
        same = [token for token in wanted if token in allowed]
        return same[0] if same else rng.choice(allowed)

    ids = walk(grammar, 120, stubborn, rng, ending=0)
    objects = check(tokenizer, ids, PREFIXES, False, GrammarOptions())
    here = [item.label for item in objects if item.loc == (1022, 1022, 1023, 1023)]
    assert sorted(here) == PREFIXES
    assert len(objects) > len(PREFIXES)


def test_the_last_bin_is_no_corner_to_begin_with(tokenizer):
    state = Grammar.of(tokenizer, "detect cat").start(100)
    first = tokenizer.vocabulary.loc_offset
    grammar = state.grammar
    assert set(grammar.tokens[state.allowed()]) == {
        tokenizer.vocabulary.eos,
        *range(first, first + 1023),
    }
    for bin_, following in [(1022, range(1023)), (5, [1023]), (1023, range(6, 1024))]:
        state.advance(first + bin_)
        assert [t - first for t in grammar.tokens[state.allowed()]] == list(following)


# --- Every answer there is, of a small alphabet -------------------------------------------------


@pytest.fixture
def small_world(monkeypatch):
    """Three bins, two codes and masks of one code: all answers can be written down."""
    for name, value in {"LOC_COUNT": 3, "SEG_COUNT": 2, "SEG_PER_MASK": 1}.items():
        monkeypatch.setattr(module, name, value)
    tokenizer = Tokenizer.from_file(TOKENIZER)
    (cat, fish), s = tokenizer.encode(" cat fish"), tokenizer.encode("s")
    space = tokenizer.label_tokens.space
    tokenizer.__dict__["label_tokens"] = LabelTokens(
        *map(np.array, ([cat], s, sorted([cat, fish, *s, space]))), space=space
    )
    return tokenizer


def free_labels(tokenizer, most):
    """Ids of every free label of the small world."""
    words = tokenizer.label_tokens
    begins = [(token,) for token in words.first]
    begins += [(words.space, token) for token in words.inner]
    for begin in begins:
        for more in range(most - len(begin) + 1):
            for rest in itertools.product(words.later, repeat=more):
                yield tuple(map(int, begin + rest))


def every_answer(tokenizer, names, masks, options, limit):
    """Ids of every answer, ``<eos>`` included, that fits in the limit.

    An object is begun only where the longest label would fit: else the end of the answer
    would decide what it is called.
    """
    v = tokenizer.vocabulary
    if names is None:
        labels = dict.fromkeys(free_labels(tokenizer, options.max_label_tokens), "")
        longest = 1  # a free label can be short
    else:
        labels = {tuple(tokenizer.encode(f" {name}" if name else "")): name for name in names}
        longest = max(map(len, labels))
    sides = list(itertools.combinations(range(3), 2))
    boxes = [(y1, x1, y2, x2) for (y1, y2), (x1, x2) in itertools.product(sides, sides)]
    codes = [(), (0,), (1,)][1 if masks else 0 : 3 if masks else 1]
    separator = tuple(tokenizer.encode("a ; <loc0000>")[1:-1])
    found, going = {(v.eos,)}, [((), ())]
    while going:
        done, seen = going.pop()
        if options.max_objects is not None and len(seen) == options.max_objects:
            continue
        begin = done + separator if seen else ()
        if len(begin) + 4 + masks + longest + 1 > limit:
            continue
        for box, code, (label, name) in itertools.product(boxes, codes, labels.items()):
            if (box, name) in seen and not options.repeats:
                continue
            ids = begin + tuple(v.loc_offset + b for b in box)
            ids += tuple(v.seg_offset + c for c in code) + label
            if len(ids) < limit:
                found.add((*ids, v.eos))
                going.append((ids, (*seen, (box, name))))
    begun = {ids[:end] for ids in found for end in range(len(ids))}
    locs = range(v.loc_offset, v.loc_offset + 3)

    def ends_early(ids):
        objects = sum(token in locs for token in ids) // 4
        longer = (*ids[:-1], *separator) in begun if objects else len(found) > 1
        return objects < options.min_objects and longer

    return {ids for ids in found if not ends_early(ids)}


SMALL = {
    "prefixes": (["cat", "cat fish"], False, GrammarOptions(), (1, 5, 6, 7, 8, 13, 14, 15, 16)),
    "one name": (["cat"], False, GrammarOptions(), (5, 6, 7, 13, 14, 15, 20, 21)),
    "repeats": (["cat", "fish"], False, GrammarOptions(repeats=True), (14, 15)),
    "at most two": (["cat"], False, GrammarOptions(max_objects=2), (14, 30)),
    "masks": (["cat", "cat fish"], True, GrammarOptions(), (6, 7, 8, 9, 15, 16)),
    "no label": ([""], False, GrammarOptions("none"), (4, 5, 6, 11, 12, 17)),
    "free": (None, False, GrammarOptions("free", max_label_tokens=2), (5, 6, 7, 8, 9, 12, 13)),
    "at least one": (["cat", "cat fish"], False, GrammarOptions(min_objects=1), (1, 5, 6, 13, 14)),
    "at least nine": (["cat", "cat fish"], False, GrammarOptions(min_objects=9), (7, 15, 16)),
    "two": (["cat", "fish"], False, GrammarOptions(max_objects=2, min_objects=2), (7, 14, 30)),
    "nine, free": (None, False, GrammarOptions("free", max_label_tokens=2, min_objects=9), (7, 13)),
    "long free": (None, False, GrammarOptions("free", max_label_tokens=4), (7, 8, 9, 11)),
}


@pytest.mark.parametrize("case", SMALL)
def test_exactly_what_can_still_become_an_answer_is_allowed(small_world, case):
    names, masks, options, limits = SMALL[case]
    task = "segment" if masks else "detect"
    prompt = f"{task} {' ; '.join(names) if names and names != [''] else 'this'}"
    grammar = Grammar.of(small_world, prompt, options)
    sizes = []
    for limit in limits:
        answers = every_answer(small_world, names, masks, options, limit)
        following = {}
        for ids in answers:
            for place, token in enumerate(ids):
                following.setdefault(ids[:place], set()).add(token)
        for begun, tokens in following.items():
            state = grammar.start(limit)
            for token in begun:
                state.advance(token)
            assert set(grammar.tokens[state.allowed()].tolist()) == tokens, (begun, limit)
        sizes.append(len(answers))
    assert max(sizes) > 80


@pytest.mark.parametrize("case", ["prefixes", "at most two", "masks", "no label", "free", "two"])
def test_past_the_end_an_answer_ends_only_where_nothing_fits(small_world, case):
    """It has all tokens that it has otherwise, but an end that is withheld."""
    names, masks, options, limits = SMALL[case]
    task = "segment" if masks else "detect"
    prompt = f"{task} {' ; '.join(names) if names and names != [''] else 'this'}"
    plain = replace(options, min_objects=0)
    grammar, eos = Grammar.of(small_world, prompt, plain), small_world.vocabulary.eos
    separator, withheld = small_world.encode("a ; <loc0000>")[1], 0
    nine = replace(plain, min_objects=plain.max_objects or 9)
    for limit in limits:
        answers = every_answer(small_world, names, masks, plain, limit)
        full = every_answer(small_world, names, masks, nine, limit)
        for ids in sorted(answers)[::7]:
            state, other = grammar.start(limit), grammar.start(limit, past_end=True)
            for place, token in enumerate(ids):
                allowed = set(grammar.tokens[state.allowed()].tolist())
                left = set(grammar.tokens[other.allowed()].tolist())
                onward = set(other.going_on())
                assert not state.going_on()
                assert allowed - left == ({eos} if onward else set())
                assert onward <= left
                withheld += len(onward) > 0
                whole = place > 0 and (*ids[:place], eos) in answers
                assert state.ends_object(token) == (whole and token in (eos, separator))
                state.advance(token)
                if token != eos:
                    other.advance(token)
            assert (ids in full) == (not onward)
    assert withheld > 20


def test_the_reference_knows_right_from_wrong():
    box, mask = "<loc0001><loc0002><loc0003><loc0004>", "<seg001>" * 16
    good = f"{box} cat ; {box} cat fish"
    assert is_answer(good, ["cat", "cat fish"], False)
    assert is_answer("", ["cat"], True)
    assert is_answer(box, [""], False)
    assert not is_answer(good, ["cat"], False)
    assert not is_answer(good, ["cat", "cat fish"], False, most=1)
    assert not is_answer(f"{box} cat ; {box} cat", ["cat"], False)
    assert is_answer(f"{box} cat ; {box} cat", ["cat"], False, repeats=True)
    assert not is_answer(f"{box} cat ; ", ["cat"], False)
    assert not is_answer(f"{box} cat", ["cat"], True)
    assert not is_answer(f"{box}{mask} cat", ["cat"], False)
    assert not is_answer(re.sub("0003", "0001", good), None, False)
