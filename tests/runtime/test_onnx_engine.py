"""The engine in ONNX Runtime against the one in torch, and against dequantised weights."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from palidecode.runtime.generate import generate
from palidecode.runtime.grammar import Grammar
from palidecode.runtime.onnx_engine import OnnxEngine, dropping_pages
from palidecode.runtime.onnx_graphs import build_graphs
from palidecode.runtime.onnx_weights import onnx_weights
from palidecode.runtime.options import GenerateOptions
from palidecode.runtime.quantizing import Quantized, quantize
from palidecode.runtime.torch_engine import TorchEngine
from palidecode.runtime.weights import SafetensorsFolder
from tests.runtime.tiny_models import random_model, write_folder

PROMPTS = ("detect cat ; red star", "segment dog", "describe", "detect cat")
LENGTH = 200
SPREAD = 0.1  # with the others' 0.2, errors of eight bits grow from layer to layer


@pytest.fixture(scope="module", params=[1, 2], ids=["gemma", "gemma2"])
def tiny(request, small_tokenizer, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("model"), request.param, SPREAD)
    model = random_model(request.param, spread=SPREAD)
    pixels = np.random.default_rng(2).standard_normal((len(PROMPTS), 3, 28, 28))
    return SimpleNamespace(
        torch=TorchEngine(model),
        onnx=engine_of(SafetensorsFolder(folder), model.config, "float32"),
        source=SafetensorsFolder(folder),
        config=model.config,
        tokenizer=small_tokenizer,
        pixels=pixels.astype(np.float32),
        prompts=[small_tokenizer.encode_prompt(prompt) for prompt in PROMPTS],
        grammars=[Grammar.of(small_tokenizer, prompt) for prompt in PROMPTS],
    )


def engine_of(source, config, precision):
    weights = dict(onnx_weights(source, config, precision))
    return OnnxEngine(config, precision, build_graphs(config, precision), weights, threads=1)


def off_by(found, wanted):
    """Largest difference, as a part of the largest number."""
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def logits_of(engine, tiny, head, steps=12, ended=None):
    """Logits of the prefill and of random tokens; after half of them, rows `ended` leave."""
    batch = engine.start(engine.encode_image(tiny.pixels), tiny.prompts, LENGTH, head)
    every = [batch.prefill()]
    tokens = np.random.default_rng(3).integers(3, 1500, (steps, len(PROMPTS)))
    rows = np.arange(len(PROMPTS))
    for step in range(steps):
        if ended is not None and step == steps // 2:
            keep = np.setdiff1d(rows, ended)
            batch.keep_rows(keep)
            rows = keep
        every.append(batch.step(tokens[step, rows, None])[:, 0])
    return every


@pytest.mark.parametrize("head", [None, np.array([1, 50, 100, 2599])], ids=["all", "rows"])
@pytest.mark.parametrize("ended", [None, [0, 2]], ids=["all rows", "some end"])
def test_logits_are_those_of_torch(tiny, head, ended):
    wanted = logits_of(tiny.torch, tiny, head, ended=ended)
    for found, step in zip(logits_of(tiny.onnx, tiny, head, ended=ended), wanted, strict=True):
        assert found.shape == step.shape
        assert off_by(found, step) < 1e-5


def test_image_tokens_are_those_of_torch(tiny):
    wanted = np.stack([tokens.numpy() for tokens in tiny.torch.encode_image(tiny.pixels)])
    assert off_by(np.stack(tiny.onnx.encode_image(tiny.pixels)), wanted) < 1e-5


def answers_of(engine, tiny, rows, grammar):
    features = engine.encode_image(tiny.pixels)
    return generate(
        engine,
        [features[row] for row in rows],
        [tiny.prompts[row] for row in rows],
        tiny.tokenizer.vocabulary,
        [tiny.grammars[row] if grammar else None for row in rows],
        GenerateOptions(max_new_tokens=40, over="allowed", loc_probabilities=True),
    )


@pytest.mark.parametrize("grammar", [False, True])
def test_answers_are_those_of_torch_alone_and_in_a_batch(tiny, grammar):
    rows = list(range(len(PROMPTS)))
    wanted = answers_of(tiny.torch, tiny, rows, grammar)
    batch = answers_of(tiny.onnx, tiny, rows, grammar)
    alone = [answers_of(tiny.onnx, tiny, [row], grammar)[0] for row in rows]
    for answer, single, torchs in zip(batch, alone, wanted, strict=True):
        assert answer.token_ids == torchs.token_ids == single.token_ids
        for other in (torchs, single):
            np.testing.assert_allclose(answer.logprobs, other.logprobs, atol=1e-4)
            np.testing.assert_allclose(
                answer.distributions(), other.distributions(), rtol=0, atol=1e-4
            )


# --- Eight and four bits ----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [128, 200, 384, 1100])
def test_levels_are_within_half_a_step(bits, width):
    rng = np.random.default_rng(width)
    weight = rng.standard_normal((9, width)).astype(np.float32) * rng.uniform(0.1, 3, (9, 1))
    weight = weight.astype(np.float32)
    weight[4] = 0
    weight[5] = np.abs(weight[5])  # one sign
    found = quantize([weight[:4], weight[4:]], bits)
    rows = found.rows(np.arange(9), width)
    size = 128 if width > 1000 else 64
    assert found.scales.shape == (9, -(-width // size))
    limit = {8: 0.5, 4: 1.0}[bits]  # a zero point is rounded, too
    for block in range(found.scales.shape[1]):
        columns = slice(size * block, size * block + size)
        off = np.abs(rows - weight)[:, columns]
        assert (off <= limit * found.scales[:, block, None] + 1e-6).all()
    assert not rows[4].any()
    np.testing.assert_array_equal(found.rows(np.array([7, 2]), width), rows[[7, 2]])


def dequantised(tiny, precision):
    """An engine in float32 with the weights that the quantised one stands for."""
    weights = dict(onnx_weights(tiny.source, tiny.config, precision))
    plain = dict(onnx_weights(tiny.source, tiny.config, "float32"))
    for name, array in plain.items():
        path = name.removesuffix(".weight")
        if f"{path}.levels" in weights:
            zeros = weights.get(f"{path}.zeros")
            quantized = Quantized(
                8 if zeros is None else 4,
                weights[f"{path}.levels"],
                weights[f"{path}.scales"],
                zeros,
            )
            turned = path != "language.embed"
            outer, inner = array.shape[::-1] if turned else array.shape
            rows = quantized.rows(np.arange(outer), inner)
            plain[name] = np.ascontiguousarray(rows.T) if turned else rows
    graphs = build_graphs(tiny.config, "float32")
    return OnnxEngine(tiny.config, "float32", graphs, plain, threads=1)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_logits_are_those_of_the_dequantised_weights(tiny, precision):
    """Up to the inputs of each product, which are rounded to eight bits."""
    quantised = engine_of(tiny.source, tiny.config, precision)
    wanted = logits_of(dequantised(tiny, precision), tiny, None, 4)
    for found, step in zip(logits_of(quantised, tiny, None, 4), wanted, strict=True):
        assert off_by(found, step) < 0.1
        assert np.corrcoef(found.ravel(), step.ravel())[0, 1] > 0.998


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_no_scale_of_activations_spans_the_rows_of_a_batch(tiny, precision):
    quantised = engine_of(tiny.source, tiny.config, precision)
    features = quantised.encode_image(tiny.pixels)
    first, second = tiny.prompts[0], tiny.prompts[3]
    batch = quantised.start([features[0]] * 2, [first, second], LENGTH, None)
    louder = [features[0], 20 * features[0]]
    other = quantised.start(louder, [first, second[:1] + second[:0:-1]], LENGTH, None)
    alone = quantised.start([features[0]], [first], LENGTH, None)
    read = batch.prefill()[:1]
    assert (read == other.prefill()[:1]).all()  # whatever the second row holds
    # Other shapes round otherwise, and a level of an activation may be the next one.
    assert off_by(read, alone.prefill()) < 0.03
    for token in (5, 77, 901):
        step = batch.step(np.array([[token], [1000 - token]]))[:1]
        assert (step == other.step(np.array([[token], [token + 1]]))[:1]).all()
        assert off_by(step, alone.step(np.array([[token]]))) < 0.03


SMAPS = Path("/proc/self/smaps")


def resident(path):
    """Bytes of a mapped file that are in this process."""
    region = SMAPS.read_text().partition(f"{path}\n")[2]
    return 1024 * int(region.partition("Rss:")[2].split()[0])


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux tells which pages are in memory")
def test_pages_of_mapped_weights_leave_memory_until_a_session_has_started(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (1 << 16))
    array = np.memmap(path, np.uint8, "r").view(np.ndarray)
    total = int(array.sum(dtype=np.int64))
    assert resident(path) == array.nbytes
    with dropping_pages([array, np.zeros(4)]):
        until = time.monotonic() + 20
        while resident(path) and time.monotonic() < until:
            time.sleep(0.01)
        assert resident(path) == 0
        assert int(array.sum(dtype=np.int64)) == total
    assert resident(path) == 0
