"""Steps of fixed shapes against eager ones; graphs against both where there is a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from palidecode.runtime.generate import GenerateOptions, generate
from palidecode.runtime.grammar import Grammar
from palidecode.runtime.static_steps import StaticSteps
from palidecode.runtime.torch_engine import TorchEngine
from tests.runtime.tiny_models import random_model

PROMPTS = ("detect cat ; red star", "segment dog", "describe", "detect cat", "a longer question")
NEW = 30
CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def tiny(request, small_tokenizer):
    model = random_model(request.param, spread=0.1)  # rounding must not choose tokens
    pixels = np.random.default_rng(2).standard_normal((5, 3, 28, 28)).astype(np.float32)
    return SimpleNamespace(
        model=model,
        eager=TorchEngine(model),
        static=TorchEngine(model, static=True),
        features=TorchEngine(model).encode_image(pixels),
        prompts=[small_tokenizer.encode_prompt(prompt) for prompt in PROMPTS],
        grammars=[Grammar.of(small_tokenizer, prompt) for prompt in PROMPTS],
        vocabulary=small_tokenizer.vocabulary,
    )


def answers_of(tiny, engine, rows=range(5), limit=NEW):
    rows = list(rows)
    return generate(
        engine,
        [tiny.features[row].to(engine.model.vision.position.device) for row in rows],
        [tiny.prompts[row] for row in rows],
        tiny.vocabulary,
        [tiny.grammars[row] for row in rows],
        GenerateOptions(limit, over="allowed"),
    )


def same(found, wanted):
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-4)


def started(tiny, engine, rows, length=60):
    """A batch that is prefilled."""
    prompts = [tiny.prompts[row] for row in rows]
    batch = engine.start([tiny.features[row] for row in rows], prompts, length, None)
    batch.prefill()
    return batch


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [[0], [3, 1], [0, 1, 2, 3, 4]], ids=len)
def test_answers_equal_those_of_eager_steps(tiny, rows):
    wanted = answers_of(tiny, tiny.eager, rows)
    assert len(rows) == 1 or len({len(answer.token_ids) for answer in wanted}) > 1  # rows end
    same(answers_of(tiny, tiny.static, rows), wanted)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_steps_of_several_tokens(tiny, count):
    tokens = np.random.default_rng(3).integers(3, 1500, (3, 2, count))
    batches = [started(tiny, engine, [0, 4], 100) for engine in (tiny.eager, tiny.static)]
    for step in tokens:
        eager, static = (batch.step(step) for batch in batches)
        assert static.shape == (2, count, 2600)
        close(static, eager)


def test_batches_in_turns_do_not_mix(tiny):
    tokens = np.random.default_rng(4).integers(3, 1500, (6, 4, 1))
    eager = [started(tiny, tiny.eager, rows) for rows in ([0, 1], [2, 3])]
    static = [started(tiny, tiny.static, rows) for rows in ([0, 1], [2, 3])]
    for step in tokens:
        for part, one, other in zip((slice(0, 2), slice(2, 4)), eager, static, strict=True):
            close(other.step(step[part]), one.step(step[part]))


def test_rows_leave_and_others_join_between_steps(tiny):
    tokens = np.random.default_rng(5).integers(3, 1500, (8, 9, 1))
    batches = []
    for engine in (tiny.eager, tiny.static):
        batch = started(tiny, engine, [0, 1, 2])
        logits = [batch.step(tokens[0, :3])]
        batch.keep_rows(np.array([0, 2]))
        logits.append(batch.step(tokens[1, :2]))
        other = started(tiny, engine, [3, 4])
        batch.join(other, 40)
        logits.append(batch.step(tokens[2, :4]))
        for _ in range(3):  # more rows than the block has held
            batch.join(started(tiny, engine, [1]), 40)
        logits.append(batch.step(tokens[3, :7]))
        batches.append(np.concatenate(logits))
    close(batches[1], batches[0])


def test_more_tokens_than_the_cache_holds_are_refused(tiny):
    length = 4 + len(tiny.prompts[0]) + 2
    batch = started(tiny, tiny.static, [0], length)
    batch.step(np.array([[5, 6]]))
    with pytest.raises(ValueError, match=f"the cache holds {length} tokens, {length + 1} are"):
        batch.step(np.array([[7]]))


@pytest.mark.skipif(CUDA, reason="with a GPU the capture doesn't fail")
def test_a_capture_that_fails_is_told_once_and_changes_no_answer(tiny):
    engine = TorchEngine(tiny.model)
    engine._steps = StaticSteps(tiny.model, capture=True)
    with pytest.warns(RuntimeWarning, match="CUDA graphs can't be used") as told:
        same(answers_of(tiny, engine), answers_of(tiny, tiny.eager))
    assert len(told) == 1


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_graphs_give_the_answers_of_eager_steps(tiny):
    model = random_model(2 if tiny.model.config.text.post_norms else 1, spread=0.1).cuda()
    graphs = TorchEngine(model)
    for rows in ([0], range(5), [3, 1], range(5)):
        wanted = answers_of(tiny, tiny.eager, rows)
        same(answers_of(tiny, TorchEngine(model, static=False), rows), wanted)
        same(answers_of(tiny, graphs, rows), wanted)
