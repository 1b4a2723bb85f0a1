"""The grammar that is written for llguidance, and llguidance itself: both accept the same."""

import llguidance
import numpy as np
import pytest

from palidecode.errors import InputError
from palidecode.pipeline.lark import lark_grammar
from palidecode.runtime.grammar import Grammar, GrammarOptions
from palidecode.vocab import LOC_COUNT, SEG_COUNT
from tests.samples import TOKENIZER

FAR = 10_000  # tokens: the limit isn't part of the grammar
NAMES = ["cat", "cat fish", "cat fish bone", "dog", 'a "quoted" \\ word']
CASES = {
    "prompt": GrammarOptions(repeats=True),
    "one object": GrammarOptions(repeats=True, max_objects=1),
    "three objects": GrammarOptions(repeats=True, max_objects=3),
    "at least one": GrammarOptions(repeats=True, min_objects=1),
    "two or three": GrammarOptions(repeats=True, min_objects=2, max_objects=3),
    "no label": GrammarOptions("none", repeats=True),
    "free": GrammarOptions("free", repeats=True),
    "short free": GrammarOptions("free", repeats=True, max_label_tokens=1),
    "two free": GrammarOptions("free", repeats=True, max_label_tokens=2, max_objects=2),
}


@pytest.fixture(scope="module", params=[pytest.param("real", marks=pytest.mark.slow), "small"])
def tokens(request):
    """A tokenizer, its file, and llguidance's reading of it."""
    ours = request.getfixturevalue(f"{request.param}_tokenizer")
    path = request.getfixturevalue("real_tokenizer_file") if request.param == "real" else TOKENIZER
    text = path.read_text(encoding="utf-8")
    theirs = llguidance.LLTokenizer(text, eos_token=ours.vocabulary.eos, slices=[])
    return ours, path, theirs


def matcher_of(theirs, lark):
    found = llguidance.LLMatcher(theirs, lark, log_level=0)
    assert not found.is_error(), found.get_error()[:200]
    return found


def mask_of(matcher):
    """Ids that llguidance allows next, ascending."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    return np.flatnonzero(np.unpackbits(bits, bitorder="little"))


def choose(rng, ids, turn):
    """Any token, or in some walks the first or the last: boxes at the edges."""
    return int((ids[0], ids[-1], rng.choice(ids))[min(2, turn % 4)])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_both_allow_the_same_tokens_at_every_step(tokens, task, case):
    """The same sets at every step of walks mean the same language."""
    ours, path, theirs = tokens
    prompt, options = f"{task} {' ; '.join(NAMES)}", CASES[case]
    grammar = Grammar.of(ours, prompt, options)
    lark = lark_grammar(prompt, options, tokenizer=path)
    rng, eos, steps = np.random.default_rng(0), ours.vocabulary.eos, 0
    compiled = matcher_of(theirs, lark)
    for turn in range(8 if ours.last_id > 100_000 else 24):
        state, matcher = grammar.start(FAR), compiled.deep_copy()
        for _ in range(90):
            allowed = grammar.tokens[state.allowed()]
            assert np.array_equal(mask_of(matcher), allowed)
            others = allowed[allowed != eos]
            ends = len(others) < len(allowed) and (not len(others) or rng.random() < 0.3)
            token = eos if ends else choose(rng, others, turn)
            assert matcher.consume_token(token)
            state.advance(token)
            steps += 1
            if token == eos:
                assert matcher.is_stopped()
                break
    assert steps > 8


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment"])
@pytest.mark.parametrize("labels", ["prompt", "none"])
def test_without_a_tokenizer_labels_are_text(real_tokenizer, real_tokenizer_file, task, labels):
    """Our answers are accepted, and what is accepted reads as one of ours."""
    text = real_tokenizer_file.read_text(encoding="utf-8")
    theirs = llguidance.LLTokenizer(text, eos_token=1, slices=[])
    options = GrammarOptions(labels, repeats=True, max_objects=3)
    prompt = f"{task} {' ; '.join(NAMES)}"
    lark = lark_grammar(prompt, options)
    grammar, rng = Grammar.of(real_tokenizer, prompt, options), np.random.default_rng(2)
    compiled = matcher_of(theirs, lark)
    for turn in range(12):
        state, ids = grammar.start(FAR), []
        while not state.ended:
            ids.append(choose(rng, grammar.tokens[state.allowed()], turn + 2))
            state.advance(ids[-1])
        assert compiled.deep_copy().validate_tokens(ids) == len(ids)
        matcher, ids = compiled.deep_copy(), []
        while not matcher.is_stopped():
            ids.append(choose(rng, mask_of(matcher), turn + 2))
            assert matcher.consume_token(ids[-1])
        state = grammar.start(FAR)
        for token in [*real_tokenizer.encode(real_tokenizer.decode(ids)), 1]:
            assert state.allowed()[grammar.indices([token])[0]]
            state.advance(token)


def test_any_corners_takes_four_loc_tokens(small_tokenizer):
    theirs = llguidance.LLTokenizer(TOKENIZER.read_text(), eos_token=1, slices=[])
    lark = lark_grammar("segment cat", tokenizer=TOKENIZER, any_corners=True)
    assert len(lark.splitlines()) == 5
    matcher, v = matcher_of(theirs, lark), small_tokenizer.vocabulary
    for number in range(4):
        every = np.arange(v.loc_offset, v.loc_offset + LOC_COUNT)
        assert mask_of(matcher)[number == 0 :].tolist() == every.tolist()
        assert matcher.consume_token(v.loc_offset + 1000 - number)
    for number in range(16):
        assert mask_of(matcher).tolist() == [*range(v.seg_offset, v.seg_offset + SEG_COUNT)]
        assert matcher.consume_token(v.seg_offset + number)
    assert matcher.consume_tokens([*small_tokenizer.encode("<loc0000> cat")[1:], v.eos])


def test_the_ids_are_paligemmas_without_a_tokenizer():
    lark = lark_grammar("detect cat", any_corners=True)
    assert "<[256000-257023]>{4}" in lark
    assert '" cat ; "' in lark


def test_what_has_no_grammar_is_refused():
    with pytest.raises(InputError, match="'caption en' has no grammar"):
        lark_grammar("caption en")
    with pytest.raises(InputError, match="free labels depend on the tokenizer"):
        lark_grammar("detect cat", GrammarOptions("free"))
    with pytest.raises(InputError, match="no such file; put the checkpoint's tokenizer there"):
        lark_grammar("detect cat", tokenizer="nowhere.json")
