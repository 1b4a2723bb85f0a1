"""Answers of random models against the same model read without a cache, token by token."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from palidecode import parse
from palidecode.errors import InputError
from palidecode.runtime.generate import POSITIONS, GenerateOptions, cache_length, generate
from palidecode.runtime.grammar import Grammar, GrammarOptions
from palidecode.runtime.torch_engine import TorchEngine
from tests.runtime.tiny_models import random_model

PROMPTS = ("detect cat ; red star", "segment dog", "describe", "detect cat")
EVERY = range(len(PROMPTS))
NEW = 20


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def tiny(request, small_tokenizer):
    model = random_model(request.param)
    pixels = torch.randn(len(PROMPTS), 3, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = model.encode_image(pixels)
    return SimpleNamespace(
        model=model,
        engine=TorchEngine(model),
        tokenizer=small_tokenizer,
        vocabulary=small_tokenizer.vocabulary,
        pixels=pixels,
        features=features,
        prompts=[small_tokenizer.encode_prompt(prompt) for prompt in PROMPTS],
        grammars=[Grammar.of(small_tokenizer, prompt) for prompt in PROMPTS],
    )


def answers_of(tiny, rows=EVERY, grammar=False, vocabulary=None, **options):
    rows = list(rows)
    call, numbers = options.pop("on_token", None), options.pop("numbers", None)
    return generate(
        tiny.engine,
        tiny.features[rows],
        [tiny.prompts[row] for row in rows],
        vocabulary or tiny.vocabulary,
        [tiny.grammars[row] if grammar else None for row in rows],
        GenerateOptions(**{"max_new_tokens": NEW, **options}),
        call,
        numbers,
    )


def logits_without_cache(tiny, row, answer):
    """Log probabilities of an answer by one forward pass, (tokens, vocabulary)."""
    prompt = tiny.prompts[row]
    ids = torch.tensor([prompt + answer])
    lengths = torch.tensor([len(prompt)]), torch.tensor([ids.shape[1]])
    with torch.no_grad():
        logits = tiny.model(tiny.pixels[row : row + 1], ids, *lengths)[0]
    return logits[len(prompt) - 1 :].double()


def greedy(tiny, row, eos):
    """Plain greedy decoding: everything is read again for every token."""
    answer = []
    while len(answer) < NEW and eos not in answer:
        answer.append(int(logits_without_cache(tiny, row, answer)[-1].argmax()))
    return answer


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


# --- Tokens -----------------------------------------------------------------------------------


def test_without_the_grammar_it_is_plain_greedy_decoding(tiny):
    wanted = [greedy(tiny, row, tiny.vocabulary.eos) for row in range(len(PROMPTS))]
    # An answer that says one thing over and over, or the same of every picture, proves little.
    assert min(len(set(answer)) for answer in wanted) >= 3
    assert len(set(map(tuple, wanted))) == len(PROMPTS)
    assert [answer.token_ids for answer in answers_of(tiny)] == wanted


def an_early_token(tiny):
    """A token that ends some greedy answers early, at different places, and others never."""
    every = [answer.token_ids for answer in answers_of(tiny)]
    for token in [t for answer in every for t in answer]:
        places = [ids.index(token) if token in ids else NEW for ids in every]
        if len(set(places)) > 1 and 0 < min(places) < NEW - 1:
            return token
    raise AssertionError("no token sets the answers apart")


def test_answers_end_at_eos_each_in_its_time(tiny):
    vocabulary = replace(tiny.vocabulary, eos=an_early_token(tiny))
    found = answers_of(tiny, vocabulary=vocabulary)
    for row, answer in enumerate(found):
        assert answer.token_ids == greedy(tiny, row, vocabulary.eos)
        assert answer.finished == (answer.token_ids[-1] == vocabulary.eos)
        assert vocabulary.eos not in answer.token_ids[:-1]
    assert len({len(answer.token_ids) for answer in found}) > 1


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_answers_end_at_the_limit(tiny, limit):
    wanted = [answer.token_ids[:limit] for answer in answers_of(tiny)]
    found = answers_of(tiny, max_new_tokens=limit)
    assert [answer.token_ids for answer in found] == wanted
    assert not any(answer.finished for answer in found)


@pytest.mark.parametrize("over", ["vocabulary", "allowed"])
@pytest.mark.parametrize("grammar", [False, True])
def test_a_batch_answers_as_each_would_alone(tiny, grammar, over):
    vocabulary = tiny.vocabulary if grammar else replace(tiny.vocabulary, eos=an_early_token(tiny))
    options = {"grammar": grammar, "over": over, "vocabulary": vocabulary, "max_new_tokens": 40}
    batch = answers_of(tiny, loc_probabilities=True, **options)
    for row, answer in enumerate(batch):
        (alone,) = answers_of(tiny, [row], loc_probabilities=True, **options)
        assert alone.token_ids == answer.token_ids
        assert alone.finished == answer.finished
        close(alone.logprobs, answer.logprobs)
        close(alone.end_logprobs, answer.end_logprobs)
        close(alone.distributions(), answer.distributions())


@pytest.mark.parametrize("grammar", [False, True])
def test_tokens_are_told_in_order_as_they_come(tiny, grammar):
    told = []
    vocabulary = tiny.vocabulary if grammar else replace(tiny.vocabulary, eos=an_early_token(tiny))
    options = {"vocabulary": vocabulary, "grammar": grammar, "max_new_tokens": 40}
    found = answers_of(tiny, on_token=lambda *call: told.append(call), **options)
    steps = range(40)
    assert told == [
        (row, answer.token_ids[step], answer.logprobs[step])
        for step in steps
        for row, answer in enumerate(found)
        if step < len(answer.token_ids)
    ]


# --- Probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("grammar", [False, True])
def test_logprobs_are_those_of_reading_all_at_once(tiny, grammar):
    eos = tiny.vocabulary.eos
    for row, answer in enumerate(answers_of(tiny, grammar=grammar, max_new_tokens=30)):
        full = logits_without_cache(tiny, row, answer.token_ids)[:-1].log_softmax(1)
        close(answer.logprobs, full[range(len(full)), answer.token_ids])
        close(answer.end_logprobs, full[:, eos])
        assert len(answer.logprobs) == len(answer.token_ids) > 4


def renormalised(tiny, row, grammar, ids, limit):
    """Log-probabilities over what the grammar allows, step by step, (tokens, vocabulary)."""
    state, logits = grammar.start(limit), logits_without_cache(tiny, row, ids)[:-1]
    for place, token in enumerate(ids):
        allowed = torch.full_like(logits[place], -torch.inf)
        tokens = grammar.tokens[state.allowed()]
        allowed[tokens] = logits[place, tokens]
        logits[place] = allowed.log_softmax(0)
        state.advance(token)
    return logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("labels", ["prompt", "free"])
@pytest.mark.parametrize("most", [None, 1])
def test_over_allowed_is_renormalised_over_what_the_grammar_allows(tiny, labels, temperature, most):
    rows, limit, options = [0, 1, 3], 45, GrammarOptions(labels, max_objects=most)
    grammars = [Grammar.of(tiny.tokenizer, PROMPTS[row], options) for row in rows]
    found = generate(
        tiny.engine,
        tiny.features[rows],
        [tiny.prompts[row] for row in rows],
        tiny.vocabulary,
        grammars,
        GenerateOptions(limit, temperature, over="allowed"),
    )
    for row, grammar, answer in zip(rows, grammars, found, strict=True):
        wanted = renormalised(tiny, row, grammar, answer.token_ids, limit)
        close(answer.logprobs, wanted[range(len(wanted)), answer.token_ids])
        close(answer.end_logprobs, wanted[:, tiny.vocabulary.eos])
        if temperature == 0:
            assert answer.token_ids == wanted.argmax(1).tolist()


def test_over_allowed_makes_the_same_answers_and_never_less_sure_ones(tiny):
    whole = answers_of(tiny, grammar=True, max_new_tokens=40)
    allowed = answers_of(tiny, grammar=True, max_new_tokens=40, over="allowed")
    for one, other in zip(whole, allowed, strict=True):
        assert one.token_ids == other.token_ids
        assert (np.array(other.logprobs) >= np.array(one.logprobs) - 1e-5).all()
    # The prompt without a grammar is over the whole vocabulary either way.
    close(whole[2].logprobs, allowed[2].logprobs)


@pytest.mark.parametrize(
    ("rows", "over", "restricted"),
    [
        ([0, 1], "allowed", True),
        ([0, 1], "vocabulary", False),
        ([0, 2], "allowed", False),  # the second has no grammar
    ],
)
def test_the_head_has_only_rows_that_can_be_allowed(tiny, monkeypatch, rows, over, restricted):
    seen, logits = [], tiny.model.language.logits
    monkeypatch.setattr(
        tiny.model.language, "logits", lambda *given: seen.append(given[1]) or logits(*given)
    )
    answers_of(tiny, rows, True, over=over, max_new_tokens=12)
    known = set(tiny.grammars[0].tokens) | set(tiny.grammars[1].tokens)
    counts = {None if given is None else len(given) for given in seen}
    assert counts == ({len(known)} if restricted else {None})


@pytest.mark.parametrize("over", ["vocabulary", "allowed"])
def test_loc_probabilities_are_the_distributions_the_bins_were_taken_from(tiny, over):
    v, limit = tiny.vocabulary, 40
    found = answers_of(tiny, [0, 1], True, over=over, loc_probabilities=True, max_new_tokens=limit)
    for row, answer in enumerate(found):
        bins = np.array(answer.token_ids) - v.loc_offset
        is_loc = (bins >= 0) & (bins < 1024)
        probabilities = answer.distributions()
        assert probabilities.shape == (is_loc.sum(), 1024)
        assert is_loc.sum() >= 4
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
        assert (probabilities.argmax(1) == bins[is_loc]).all()
        wanted = renormalised(tiny, row, tiny.grammars[row], answer.token_ids, limit)
        among_bins = wanted[:, v.loc_offset : v.loc_offset + 1024][is_loc].softmax(1)
        close(probabilities, among_bins)
        y1, y2 = bins[is_loc][0], probabilities[2]
        assert not y2[: y1 + 1].any()


def test_loc_probabilities_of_an_answer_without_loc_tokens_are_none_at_all(tiny):
    (answer,) = answers_of(tiny, [0], True, max_new_tokens=1, loc_probabilities=True)
    assert answer.token_ids == [tiny.vocabulary.eos]
    assert answer.distributions().shape == (0, 1024)


# --- The grammar ------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["prompt", "free", "none"])
def test_answers_with_the_grammar_parse_without_an_issue(tiny, labels):
    options = GrammarOptions(labels)
    rows = [0, 1, 3]
    grammars = [Grammar.of(tiny.tokenizer, PROMPTS[row], options) for row in rows]
    names = {0: {"cat", "red star"}, 1: {"dog"}, 3: {"cat"}}
    counts = Counter()
    for seed in range(12):
        limit = 10 + 6 * seed
        found = generate(
            tiny.engine,
            tiny.features[rows],
            [tiny.prompts[row] for row in rows],
            tiny.vocabulary,
            grammars,
            GenerateOptions(limit, 1.5, 0.9, seed, over=("vocabulary", "allowed")[seed % 2]),
        )
        for row, answer in zip(rows, found, strict=True):
            assert answer.finished
            assert len(answer.token_ids) <= limit
            parsed = parse(
                answer.token_ids,
                vocabulary=tiny.vocabulary,
                detokenize=tiny.tokenizer.decode,
            )
            assert parsed.issues == ()
            counts[len(parsed.objects)] += 1
            for item in parsed.objects:
                assert (item.seg is not None) == (row == 1)
                if labels == "prompt":
                    assert item.label in names[row]
                else:
                    assert bool(item.label) == (labels == "free")
    assert len(counts) > 2


class Counted:
    """An engine that counts its forwards."""

    def __init__(self, engine):
        self.engine, self.config, self.forwards = engine, engine.config, 0

    def start(self, *given):
        batch = self.engine.start(*given)
        prefill, step = batch.prefill, batch.step
        batch.prefill = lambda: self.count(prefill())
        batch.step = lambda tokens: self.count(step(tokens))
        return batch

    def count(self, logits):
        self.forwards += 1
        return logits


def forwards(tiny, options, most=None):
    """An answer to the prompt of one class, and how many forwards it took."""
    engine = Counted(tiny.engine)
    grammar = Grammar.of(tiny.tokenizer, PROMPTS[3], GrammarOptions(max_objects=most))
    features, prompts = tiny.features[3:], tiny.prompts[3:]
    (answer,) = generate(engine, features, prompts, tiny.vocabulary, [grammar], options)
    return answer.token_ids, engine.forwards


@pytest.mark.parametrize("over", ["vocabulary", "allowed"])
def test_tokens_without_a_choice_need_no_forward_of_their_own(tiny, over):
    most = 0
    for seed in range(12):
        ids, count = forwards(tiny, GenerateOptions(100, 100.0, seed=seed, over=over))
        if len(ids) > 1:
            # An object has four bins, a label and two tokens of a separator, or <eos>.
            objects = (len(ids) + 1) // 7
            assert count == 5 * objects
            most = max(most, objects)
            assert objects < 3 or len(ids) >= 1.3 * count
    assert most >= 3


def test_an_answer_whose_end_is_forced_needs_no_forward_for_it(tiny):
    for over, wanted in (("allowed", 4), ("vocabulary", 5)):
        ids, count = forwards(tiny, GenerateOptions(100, 3.0, over=over), 1)
        assert (len(ids), count) == (6, wanted)


# --- Drawing ----------------------------------------------------------------------------------


def draws(tiny, count, **options):
    """The first tokens of that many answers to one prompt."""
    found = generate(
        tiny.engine,
        tiny.features[:1].expand(count, -1, -1),
        [tiny.prompts[0]] * count,
        tiny.vocabulary,
        [None] * count,
        GenerateOptions(max_new_tokens=1, **options),
    )
    return [answer.token_ids[0] for answer in found], [answer.logprobs[0] for answer in found]


def deviation(tokens, probabilities):
    """χ² and its degrees of freedom; tokens expected fewer than five times are put together."""
    expected = probabilities * len(tokens)
    seen = np.bincount(tokens, minlength=len(expected))
    order = np.argsort(-expected)
    often = int((expected >= 5).sum())
    groups = np.minimum(np.argsort(order), often)  # the rare ones are one group
    expected, seen = (np.bincount(groups, n) for n in (expected, seen))
    if expected[-1] == 0:
        assert seen[-1] == 0
        expected, seen = expected[:-1], seen[:-1]
    assert len(expected) > 10
    return float(((seen - expected) ** 2 / expected).sum()), len(expected) - 1


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_draws_follow_the_softmax(tiny, temperature):
    logits = logits_without_cache(tiny, 0, [])[0]
    tokens, logprobs = draws(tiny, 1200, temperature=temperature, seed=5)
    wanted = (logits / temperature).softmax(0).numpy()
    chi2, freedom = deviation(tokens, wanted)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)
    # The test would see a wrong temperature.
    other, freedom = deviation(tokens, (logits / (temperature * 1.3)).softmax(0).numpy())
    assert other > freedom + 4 * np.sqrt(2 * freedom)
    # What is written down is the probability itself, without the temperature.
    close(logprobs, logits.log_softmax(0)[tokens])


def test_top_p_draws_from_the_likeliest_that_make_up_the_share(tiny):
    weights = logits_without_cache(tiny, 0, [])[0].softmax(0).numpy()
    kept, share = [], 0.0
    for token in np.argsort(-weights):
        if share >= 0.8:
            break
        kept.append(token)
        share += weights[token]
    tokens, _ = draws(tiny, 1200, temperature=1.0, top_p=0.8)
    assert set(tokens) <= set(kept)
    inside = np.zeros_like(weights)
    inside[kept] = weights[kept] / share
    chi2, freedom = deviation(tokens, inside)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)
    assert set(draws(tiny, 50, temperature=1.0, top_p=1e-9)[0]) == {int(weights.argmax())}


def test_drawing_is_seeded_and_every_answer_draws_for_itself(tiny):
    options = {"grammar": True, "temperature": 1.0, "max_new_tokens": 12}
    first = [answer.token_ids for answer in answers_of(tiny, seed=1, **options)]
    assert [answer.token_ids for answer in answers_of(tiny, seed=1, **options)] == first
    assert [answer.token_ids for answer in answers_of(tiny, seed=2, **options)] != first
    for row, ids in enumerate(first):
        (alone,) = answers_of(tiny, [row], seed=1, numbers=[row], **options)
        assert alone.token_ids == ids
    same = [answer.token_ids for answer in answers_of(tiny, [3, 3, 3], seed=1, **options)]
    assert len(set(map(tuple, same))) == 3


def test_a_low_temperature_is_nearly_greedy(tiny):
    wanted = [answer.token_ids for answer in answers_of(tiny, grammar=True)]
    assert [a.token_ids for a in answers_of(tiny, grammar=True, temperature=1e-4)] == wanted


# --- What can't be done -------------------------------------------------------------------------


def test_a_prompt_too_long_for_the_model_is_refused(tiny):
    images = tiny.model.config.vision.tokens
    assert cache_length(images, POSITIONS - images - 9, 10) == POSITIONS
    with pytest.raises(InputError) as caught:
        generate(
            tiny.engine,
            tiny.features[:2],
            [tiny.prompts[0], tiny.prompts[0] * 2000],
            tiny.vocabulary,
            [None, None],
            GenerateOptions(),
        )
    said = str(caught.value)
    length = 2000 * len(tiny.prompts[0])
    assert said == (
        f"image ({images} tokens), prompt ({length}) and answer (256) exceed the model's 8192: "
        "shorten the prompt or lower max_new_tokens"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must be 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"over": "all"}, "over must be 'vocabulary' or 'allowed', got 'all'"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        GenerateOptions(**options)


def test_other_ends_of_the_config_end_answers_too(tiny):
    (free,) = answers_of(tiny, [0], grammar=False)
    assert len(free.token_ids) > 2
    end = free.token_ids[2]
    model = tiny.model
    config = model.config
    try:
        model.config = replace(config, eos=(*config.eos, end))
        (answer,) = answers_of(tiny, [0], grammar=False)
    finally:
        model.config = config
    assert answer.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
    assert answer.finished


@pytest.mark.parametrize("grammar", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_computes_nan_is_an_error(tiny, grammar, value):
    weight = tiny.model.language.layers[0].mlp.down.weight
    before = weight[0, 0].item()
    try:
        weight.data[0, 0] = value
        with pytest.raises(InputError, match=r"computes NaN .* try dtype='bfloat16'"):
            answers_of(tiny, grammar=grammar)
    finally:
        weight.data[0, 0] = before
