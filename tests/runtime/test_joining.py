"""Answers that join a batch in progress against the same answers alone, in both engines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palidecode.runtime.generate import GenerateOptions, Generation, Request, generate
from palidecode.runtime.grammar import Grammar
from palidecode.runtime.onnx_engine import OnnxEngine
from palidecode.runtime.onnx_graphs import build_graphs
from palidecode.runtime.onnx_weights import onnx_weights
from palidecode.runtime.torch_engine import TorchEngine
from palidecode.runtime.weights import SafetensorsFolder
from tests.runtime.tiny_models import one_thread, random_model, write_folder

PROMPTS = ("detect cat ; red star", "segment dog", "describe", "detect cat", "a longer question")
OPTIONS = (
    GenerateOptions(60, over="allowed", loc_probabilities=True),
    GenerateOptions(40, top_logprobs=3),
    GenerateOptions(9, temperature=0.8, seed=3),
)
PICTURES = 3
SPREAD = 0.1  # with the others' 0.2, errors of rounding grow from layer to layer


def engine_of(name, version, folder):
    model = random_model(version, spread=SPREAD)
    if name == "torch":
        return TorchEngine(model)
    arrays = dict(onnx_weights(SafetensorsFolder(folder), model.config, "float32"))
    return OnnxEngine(model.config, "float32", build_graphs(model.config, "float32"), arrays, 1)


@pytest.fixture(scope="module", params=["torch-1", "torch-2", "onnx-1", "onnx-2"])
def asked(request, small_tokenizer, tmp_path_factory):
    """An engine, requests of every kind, and the answer of each alone."""
    name, version = request.param.split("-")
    folder = write_folder(tmp_path_factory.mktemp("model"), int(version), SPREAD)
    engine = engine_of(name, int(version), folder)
    pixels = np.random.default_rng(2).standard_normal((PICTURES, 3, 28, 28)).astype(np.float32)
    pictures = engine.encode_image(pixels)
    requests = [
        Request(
            # The last picture is two: more image tokens than the others.
            engine.join(pictures[:2]) if n % 4 == 3 else pictures[n % PICTURES],
            small_tokenizer.encode_prompt(prompt),
            Grammar.of(small_tokenizer, prompt) if options.over == "allowed" else None,
            options,
            number=n,
        )
        for n, (prompt, options) in enumerate((p, o) for o in OPTIONS for p in PROMPTS)
    ]
    vocabulary = small_tokenizer.vocabulary
    with one_thread():
        alone = [
            generate(
                engine,
                [r.features],
                [r.prompt],
                vocabulary,
                [r.grammar],
                r.options,
                None,
                [r.number],
            )[0]
            for r in requests
        ]
    assert len({len(answer.token_ids) for answer in alone}) > 3
    return engine, vocabulary, requests, alone


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_answers_do_not_depend_on_who_shares_the_batch(asked, data):
    engine, vocabulary, requests, alone = asked
    order = data.draw(st.permutations(range(len(requests))))
    steps = [data.draw(st.integers(0, 12)) for _ in order]
    together = data.draw(st.integers(1, 4))
    dropped = data.draw(st.sets(st.sampled_from(order), max_size=4))
    generation = Generation(engine, vocabulary)
    found = {}
    with one_thread():
        while order or generation.answers:
            new, order = order[:together], order[together:]
            found |= zip(new, generation.add([requests[n] for n in new]), strict=True)
            for _ in range(steps.pop() if order else 1):
                generation.step()
            generation.drop([found[n] for n in dropped & found.keys()])
    for n, answer in found.items():
        if n in dropped:
            assert alone[n].token_ids[: len(answer.token_ids)] == answer.token_ids
        else:
            same(answer, alone[n])


def same(answer, wanted):
    assert (answer.token_ids, answer.finished) == (wanted.token_ids, wanted.finished)
    for one, other in (
        (answer.logprobs, wanted.logprobs),
        (answer.end_logprobs, wanted.end_logprobs),
        (answer.distributions(), wanted.distributions()),
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


def test_rows_that_join_take_the_places_of_those_that_left(asked):
    """In ONNX Runtime, whose arrays then stay as they are; torch's rows move."""
    engine, vocabulary, requests, alone = asked
    chosen = [n for n, r in enumerate(requests) if n % 4 != 3 and r.options is not OPTIONS[2]]
    rng = np.random.default_rng(5)
    order = rng.choice(chosen, 40).tolist()  # of as many image tokens each
    generation = Generation(engine, vocabulary)
    found = list(zip(order[:16], generation.add([requests[n] for n in order[:16]]), strict=True))
    kept = 0
    with one_thread():
        for n in order[16:]:
            places = len(generation._batch._cache.lengths) if engine.name[:4] == "onnx" else 0
            gone = len(generation.answers) - 15
            generation.drop(generation.answers[: max(0, gone)])
            found.append((n, generation.add([requests[n]])[0]))
            if places and gone > 0:
                kept += len(generation._batch._cache.lengths) == places
            generation.step()
        while generation.answers:
            generation.step()
    assert kept > 3 or engine.name[:5] == "torch"
    for n, answer in found:
        if len(answer.token_ids) == len(alone[n].token_ids):
            same(answer, alone[n])
        else:  # dropped
            assert alone[n].token_ids[: len(answer.token_ids)] == answer.token_ids


def test_padding_does_not_grow_with_joins(asked):
    """A batch that is never empty uses no more columns than its longest row."""
    engine, vocabulary, requests, _ = asked
    request = Request(
        *[getattr(requests[7], name) for name in ("features", "prompt", "grammar")],
        GenerateOptions(12),
    )
    generation = Generation(engine, vocabulary)
    with one_thread():
        for _ in range(40):
            generation.add([request])
            for _ in range(6):
                generation.step()
    cache = generation._batch._cache
    longest = len(request.features) + len(request.prompt)
    if engine.name.startswith("onnx"):  # prefixes are padded to 32
        assert cache.known.shape[1] <= longest + 31 + 12 + 6
    else:
        assert cache.used <= longest + 12 + 6
