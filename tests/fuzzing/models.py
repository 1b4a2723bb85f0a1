"""Files of models: weights of both kinds, their configs, tokenizers."""

from __future__ import annotations

import io
import json
import random
import warnings
from functools import cache

import numpy as np
import torch
from safetensors.numpy import save

from palidecode.codec.weights import SHAPES, load_weights
from palidecode.pipeline.checkpoint import NOTES, read_notes
from palidecode.runtime.big_vision import BigVisionNpz
from palidecode.runtime.config import (
    PaliGemmaConfig,
    TextConfig,
    VisionConfig,
    config_to_hf,
    read_config,
)
from palidecode.runtime.grammar import Grammar
from palidecode.runtime.image import read_image_config
from palidecode.runtime.memory import check_memory
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.runtime.torch_weights import load_weights as load_model
from palidecode.runtime.torch_weights import state_to_hf
from palidecode.runtime.weights import INDEX, SafetensorsFolder, parts
from tests.fuzzing import Target, folder, refused, written
from tests.fuzzing.guard import watched
from tests.fuzzing.mutation import (
    as_json,
    change_json,
    change_npz,
    change_safetensors,
    changed_value,
)
from tests.runtime.test_big_vision import exported
from tests.samples import TOKENIZER

_CPU, _FLOAT = torch.device("cpu"), torch.float32
_SMALL = PaliGemmaConfig(
    VisionConfig(width=8, layers=1, heads=2, mlp=8, image_size=14, patch=7),
    TextConfig(width=8, layers=1, mlp=8, heads=2, kv_heads=1, head_size=4, vocabulary=9),
)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _few() -> dict[str, np.ndarray]:
    names = sorted(SHAPES, key=lambda name: np.prod(SHAPES[name]))[:6]
    return {name: np.zeros(SHAPES[name], np.float32) for name in names}


def run_codec(data: bytes) -> None:
    """A mask codec, in either format."""
    kind = "npz" if data[:2] == b"PK" else "safetensors"
    path = written(f"codec.{kind}", data)
    with watched(folder()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert refused(load_weights, path) is not None  # none of these is whole


@cache
def _model() -> PaliGemma:
    torch.manual_seed(1)
    model = PaliGemma(_SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def run_big_vision(data: bytes) -> None:
    """A checkpoint of big_vision."""
    path = written("model.npz", data)
    with watched(folder()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if refused(BigVisionNpz, path) is None:
            source = BigVisionNpz(path)
            if refused(check_memory, source.config, _FLOAT, _CPU, None) is None:
                refused(load_model, source, source.config, _FLOAT, _CPU)


def run_folder(data: bytes) -> None:
    """A folder as transformers saves it."""
    written("model.safetensors", data)
    with watched(folder()):
        if refused(SafetensorsFolder, folder()) is None:
            refused(load_model, SafetensorsFolder(folder()), _SMALL, _FLOAT, _CPU)


def _configs() -> list[bytes]:
    preprocessor = {
        "size": {"height": 14, "width": 14},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
    }
    preprocessor |= {"image_std": [0.5, 0.5, 0.5], "do_resize": True, "rescale_factor": 1 / 255}
    index = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    notes = {"codes": "palidecode-demo", "classes": ["cat", "dog"]}
    config = config_to_hf(_SMALL)
    second = json.loads(json.dumps(config))
    second["text_config"] |= {"model_type": "gemma2", "sliding_window": 4, "layer_types": None}
    files = {"preprocessor_config.json": preprocessor, INDEX: index, "palidecode.json": notes}
    return [json.dumps({"config.json": made, **files}).encode() for made in (config, second)]


def run_config(data: bytes) -> None:
    """The JSON files of a model's folder, each in its place."""
    place = folder() / "configs"
    place.mkdir(exist_ok=True)
    try:
        files = json.loads(data)
        texts = {name: json.dumps(files[name]) for name in json.loads(_configs()[0])}
    except (ValueError, KeyError, TypeError, RecursionError):
        texts = {"config.json": data.decode("latin-1")}
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    refused(SafetensorsFolder, place)
    refused(read_notes, place / NOTES)
    if refused(read_config, place / "config.json") is None:
        config = read_config(place / "config.json")
        refused(read_image_config, place, config)
        if refused(check_memory, config, _FLOAT, _CPU, None) is None:
            parts(config)


@cache
def _tokenizers() -> list[bytes]:
    return [TOKENIZER.read_bytes()]


def change_tokenizer(rng: random.Random, data: bytes) -> bytes:
    """Seldom the words, of which there are many; more often how text is taken apart."""
    try:
        file = json.loads(data)
        parts = [name for name in file if name not in ("model", "added_tokens")]
    except (ValueError, TypeError, RecursionError):
        return change_json(rng, data)
    how = rng.random()
    if how < 0.2 or not isinstance(file, dict):
        return change_json(rng, data)
    if how < 0.4:
        file["pre_tokenizer"] = rng.choice(_SPLITS)
    elif how < 0.5 and isinstance(file.get("added_tokens"), list):
        file["added_tokens"] = changed_value(rng, file["added_tokens"][-140:])
    elif how < 0.6 and isinstance(file.get("model"), dict):
        words = file["model"].pop("vocab", None)
        file["model"] = changed_value(rng, file["model"])
        if isinstance(file["model"], dict):
            file["model"].setdefault("vocab", words)
    elif parts:
        name = rng.choice(parts)
        file[name] = changed_value(rng, [file[name]])[0:1] or None
        file[name] = file[name][0] if file[name] else None
    return as_json(file)


_SPLITS = (
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True},
    {"type": "Digits", "individual_digits": True},
    {"type": "Sequence", "pretokenizers": []},
)


def run_tokenizer(data: bytes) -> None:
    """A ``tokenizer.json``: refused, or fit for prompts and answers."""
    path = written("tokenizer.json", data)
    with watched(folder()):
        if refused(Tokenizer.from_file, path) is not None:
            return
        tokenizer = Tokenizer.from_file(path)
        assert tokenizer.last_id >= 0
        if refused(tokenizer.encode_prompt, "detect cat ; red star") is None:
            ids = tokenizer.encode_prompt("detect cat ; red star")
            tokenizer.decode(ids)
        if refused(Grammar.of, tokenizer, "segment red star ; cat") is None:
            Grammar.of(tokenizer, "segment red star ; cat").start(60).allowed()
        assert tokenizer.label_tokens.later.size >= 0


TARGETS = {
    "codec": Target(
        run_codec,
        lambda: [_npz(_few()), save(_few())],
        lambda rng, data: (change_npz if data[:2] == b"PK" else change_safetensors)(rng, data),
        500,
    ),
    "big_vision": Target(
        run_big_vision,
        lambda: [_npz({f"params/{key}": value for key, value in exported(_model()).items()})],
        change_npz,
        250,
    ),
    "folder": Target(
        run_folder,
        lambda: [save({k: v.numpy() for k, v in state_to_hf(_model()).items()})],
        change_safetensors,
        400,
    ),
    "config": Target(run_config, _configs, change_json, 700),
    "tokenizer": Target(run_tokenizer, _tokenizers, change_tokenizer, 60),
}
