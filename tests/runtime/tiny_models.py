"""Whole models that are small and random, for tests: both generations, on disk or in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from palidecode.runtime.config import PaliGemmaConfig, TextConfig, VisionConfig, config_to_hf
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.torch_weights import state_to_hf
from palidecode.runtime.weights import SINGLE
from tests.samples import TOKENIZER

_VISION = VisionConfig(width=32, layers=2, heads=4, mlp=48, image_size=28)
_TEXT = {
    "width": 128,
    "layers": 3,
    "mlp": 256,
    "heads": 4,
    "head_size": 32,
    "vocabulary": 2600,  # rows: the tokenizer has 1,537 ids, a grammar less than half of these
    "query_scale": 32.0,
}
CONFIGS = {
    1: PaliGemmaConfig(_VISION, TextConfig(**_TEXT, kv_heads=1), image_token=1536),
    2: PaliGemmaConfig(
        _VISION,
        TextConfig(
            **_TEXT,
            kv_heads=2,
            attention_softcap=50.0,
            final_softcap=30.0,
            sliding_window=7,  # shorter than picture and prompt
            post_norms=True,
        ),
        image_token=1536,
    ),
}
"""PaliGemma 1 and 2 for the demo model's tokenizer."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: with products this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(version: int, seed: int = 1, spread: float = 0.2) -> PaliGemma:
    """A random float32 model whose answers differ between pictures and between words.

    The `spread` of the layers' weights is such that small differences grow from layer to
    layer; with a smaller one they don't.
    """
    model = PaliGemma(CONFIGS[version]).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Layers outweigh the embedding: else the tied head repeats the last token.
            scale = 0.05 if "embed" in name else spread
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if name.startswith("vision") and "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
        # Logits of the order of 3: neither sure of one token nor all alike.
        model.language.norm.weight.add_(5.0)
    return model


def write_folder(folder: Path, version: int = 1, spread: float = 0.2) -> Path:
    """A random model as transformers would save it, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(version, spread=spread)
    save_file(state_to_hf(model), folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(config_to_hf(model.config)))
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    return folder


def random_picture(seed, size=(70, 50)):
    levels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(levels)


PICTURES = [random_picture(0), random_picture(1, (40, 90)), random_picture(2, (28, 28))]


def line(caught):
    said = str(caught.value)
    assert "\n" not in said
    return said


def ids_of(found):
    return [answer.token_ids for answer in found]


def same_answers(found, wanted):
    assert ids_of(found) == ids_of(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.text, one.size, one.prompt) == (other.text, other.size, other.prompt)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())
