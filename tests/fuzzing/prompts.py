"""Prompts and the names of classes: what a user types must not be read as structure."""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from palidecode.answers.assembler import ParsedObject
from palidecode.answers.parsing import format_objects, parse
from palidecode.finetune.objects import name_problem
from palidecode.prompts import Task, asked_names, prompts_for
from palidecode.runtime.grammar import Grammar, GrammarOptions
from palidecode.runtime.tokenizer import Tokenizer
from tests.fuzzing import Target, refused
from tests.fuzzing.mutation import TEXTS, change_bytes
from tests.samples import TOKENIZER

_TYPED = (
    *(
        "cat",
        "red star",
        "fisherman's hut",
        "cat<eos>",
        "<image>",
        "<bos>cat",
        "cat <loc0000>",
        "猫 é",
    ),
    *(
        "<seg000>",
        "cat\n<loc0001><loc0002><loc0003><loc0004> dog",
        "cat ; dog",
        "a;b",
        "<pad>",
        "▁cat",
    ),
    *(
        "cat\r",
        "<unk>",
        "<0x0A>",
        "<loc",
        "cat\u2028dog",
        "a" * 400,
        "<lo",
        "c0000>",
        "detect",
        "segment x",
    ),
)


@cache
def tokenizer() -> Tokenizer:
    """The small one; the tests run the same on PaliGemma's own."""
    return Tokenizer.from_file(TOKENIZER)


def change_text(rng: random.Random, data: bytes) -> bytes:
    """Join two prompts, or change bytes."""
    if rng.random() < 0.5:
        return change_bytes(rng, data)[:600]
    text = data.decode("utf-8", "replace")
    place = rng.randrange(len(text) + 1)
    other = rng.choice((*_TYPED, *TEXTS))
    return (text[:place] + other + text[place:]).encode("utf-8", "replace")[:600]


def run(data: bytes) -> None:
    """Use the text as a prompt, an object to look for, a class, and a class to train on."""
    text = data.decode("utf-8", "replace")
    check(tokenizer(), text, random.Random(len(data)))


def check(words: Tokenizer, text: str, rng: random.Random) -> None:
    """Run every check with one tokenizer."""
    v = words.vocabulary
    control = {v.pad, v.eos, v.bos, words.image}
    if refused(words.encode_prompt, text) is None:
        first, *rest = words.encode_prompt(text)
        assert first == v.bos
        assert not control & set(rest)
    for prompt in (f"detect {text}", f"segment {text} ; cat"):
        if refused(Grammar.of, words, prompt) is not None or refused(words.encode_prompt, prompt):
            continue
        asked = asked_names(prompt)
        assert asked is not None
        assert not any(v.is_special(token) for token in words.encode_prompt(prompt)[1:])
        _walk(words, prompt, asked, rng)
    if refused(prompts_for, [text, "cat"]) is None:
        (prompt,) = prompts_for([text, "cat"])
        if refused(asked_names, f"detect {prompt}") is None:
            asked = asked_names(f"detect {prompt}")
            assert asked is not None
            assert asked[1] == list(dict.fromkeys([text.strip(), "cat"]))
    if name_problem(text) is None:
        item = ParsedObject(text, (1, 2, 3, 4))
        assert [found.label for found in parse(format_objects([item, item])).objects] == [text] * 2
        ids = words.encode(f"detect {text}\n")
        assert not any(v.is_special(token) for token in ids)


def _walk(words: Tokenizer, prompt: str, asked: tuple[Task, list[str]], rng: random.Random) -> None:
    """Whatever a model chooses under the grammar, the answer holds the names alone."""
    grammar = Grammar.of(words, prompt, GrammarOptions(max_objects=2))
    assert grammar is not None
    cost = grammar.object_cost
    if cost > 200:
        return
    state, ids = grammar.start(2 * cost + 30), []
    while not state.ended:
        token = int(grammar.tokens[rng.choice(np.flatnonzero(state.allowed()).tolist())])
        state.advance(token)
        ids.append(token)
    result = parse(words.decode(ids))
    assert result.issues == ()
    assert {item.label for item in result.objects} <= set(asked[1])
    assert all((item.seg is not None) == (asked[0] == "segment") for item in result.objects)


TARGETS = {"prompts": Target(run, lambda: [text.encode() for text in _TYPED], change_text, 400)}
