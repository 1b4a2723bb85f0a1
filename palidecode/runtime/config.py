"""Shapes and constants of every PaliGemma, and the reader of its ``config.json``.

Sizes: the checkpoints' own configs, SigLIP So400m/14 and the reports on Gemma and Gemma 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from palidecode.errors import InputError
from palidecode.files import read_json

Numbers: TypeAlias = Mapping[str, float]
"""A part of a config; whatever isn't a number in it is refused when it is converted."""

MODEL_TYPE = "paligemma"
TEXT_TYPES = ("gemma", "gemma2")
_ROPE_BASE = 10_000.0
# Gemma's configs say "gelu" where they mean its approximation by tanh; SigLIP's don't.
_VISION_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_new")
_TEXT_ACTIVATIONS = (*_VISION_ACTIVATIONS, "gelu")
# Limits on a config: names of layers are made before the weights are read.
_MOST_LAYERS, _LARGEST = 1000, 1 << 24


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP's vision tower; the defaults are So400m/14 at 224 pixels."""

    width: int = 1152
    layers: int = 27
    heads: int = 16
    mlp: int = 4304
    image_size: int = 224  # pixels, both sides
    patch: int = 14  # pixels, both sides
    eps: float = 1e-6

    @property
    def tokens(self) -> int:
        """Image tokens: patches of one picture."""
        return (self.image_size // self.patch) ** 2

    def parameters(self) -> int:
        """Number of the tower's parameters."""
        layer = 4 * self.width * (self.width + 1) + 2 * self.width * self.mlp
        layer += self.mlp + 5 * self.width
        ends = self.width * (3 * self.patch**2 + 1 + self.tokens + 2)
        return ends + self.layers * layer


@dataclass(frozen=True)
class TextConfig:
    """Gemma's decoder; the defaults are Gemma 2B's, which PaliGemma 1 uses."""

    width: int = 2048
    layers: int = 18
    mlp: int = 16_384
    heads: int = 8
    kv_heads: int = 1
    head_size: int = 256
    vocabulary: int = 257_216  # rows of the embedding: 257,152 tokens and padding
    eps: float = 1e-6
    rope_base: float = _ROPE_BASE
    query_scale: float = 256.0  # attention logits are divided by its square root
    attention_softcap: float | None = None
    final_softcap: float | None = None
    sliding_window: int | None = None  # tokens, on layers 0, 2, 4 …
    post_norms: bool = False  # norms after attention and MLP, as in Gemma 2
    tied_head: bool = True  # the output head is the embedding

    def window_of(self, layer: int) -> int | None:
        """Sliding window of one layer: layers 0, 2, 4 … have it."""
        return self.sliding_window if layer % 2 == 0 else None

    def parameters(self) -> int:
        """Number of the decoder's parameters, the embedding included."""
        layer = self.width * self.head_size * 2 * (self.heads + self.kv_heads)
        layer += 3 * self.width * self.mlp + self.width * (4 if self.post_norms else 2)
        rows = self.vocabulary * (1 if self.tied_head else 2)
        return rows * self.width + self.layers * layer + self.width


@dataclass(frozen=True)
class PaliGemmaConfig:
    """A whole model: vision tower, projector, decoder, and the ids of control tokens."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    image_token: int = 257_152
    pad: int = 0
    eos: tuple[int, ...] = (1,)  # each ends an answer
    bos: int = 2

    def parameters(self) -> int:
        """Number of the model's parameters."""
        projector = self.text.width * (self.vision.width + 1)
        return self.vision.parameters() + projector + self.text.parameters()


_GEMMA2 = TextConfig(
    attention_softcap=50.0, final_softcap=30.0, sliding_window=4096, post_norms=True
)
_TEXTS = {
    "paligemma-3b": TextConfig(),
    "paligemma2-3b": replace(_GEMMA2, width=2304, layers=26, mlp=9216, kv_heads=4),
    "paligemma2-10b": replace(_GEMMA2, width=3584, layers=42, mlp=14_336, heads=16, kv_heads=8),
    "paligemma2-28b": replace(
        _GEMMA2,
        width=4608,
        layers=46,
        mlp=36_864,
        heads=32,
        kv_heads=16,
        head_size=128,
        query_scale=144.0,
    ),
}
PRESETS = {
    f"{name}-{size}": PaliGemmaConfig(VisionConfig(image_size=size), text)
    for name, text in _TEXTS.items()
    for size in (224, 448, 896)
}
"""The published sizes: ``paligemma-3b-224`` … ``paligemma2-28b-896``."""


def read_config(path: Path) -> PaliGemmaConfig:
    """Read a Hugging Face ``config.json``."""
    if not path.exists():
        raise InputError(
            f"{path.parent}: no config.json; give a folder as transformers' save_pretrained "
            "writes it"
        )
    return config_from_hf(read_json(path), str(path))


def config_from_hf(data: object, name: str = "config.json") -> PaliGemmaConfig:
    """Convert a Hugging Face config (a dict); missing values are transformers' defaults."""
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(data, dict) or kind != MODEL_TYPE:
        raise InputError(f"{name}: model_type is {kind!r}, not {MODEL_TYPE!r}: not a PaliGemma")
    outer: Numbers = data
    vision, text = data.get("vision_config") or {}, data.get("text_config") or {}
    if not (isinstance(vision, dict) and isinstance(text, dict)):
        raise InputError(f"{name}: vision_config and text_config must be objects")
    text_type = text.get("model_type", "gemma")
    if text_type not in TEXT_TYPES:
        raise InputError(f"{name}: text model {text_type!r} is not {' or '.join(TEXT_TYPES)}")
    _refuse_quantised(data, name)
    for part, known in ((vision, _VISION_ACTIVATIONS), (text, _TEXT_ACTIVATIONS)):
        activation = part.get("hidden_activation") or part.get("hidden_act") or known[0]
        if activation not in known:
            raise InputError(f"{name}: the activation {activation!r} is not {' or '.join(known)}")
    try:
        config = PaliGemmaConfig(
            _vision_from_hf(vision),
            _text_from_hf(text, text_type, outer),
            image_token=int(outer.get("image_token_index", outer.get("image_token_id", 256_000))),
            pad=_control_id("pad_token_id", 0, outer, text),
            eos=_ends(outer, text),
            bos=_control_id("bos_token_id", 2, outer, text),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: a value can't be used: {error}") from error
    _check(config, name)
    return config


def _vision_from_hf(data: Numbers) -> VisionConfig:
    return VisionConfig(
        width=int(data.get("hidden_size", 1152)),
        layers=int(data.get("num_hidden_layers", 27)),
        heads=int(data.get("num_attention_heads", 16)),
        mlp=int(data.get("intermediate_size", 4304)),
        image_size=int(data.get("image_size", 224)),
        patch=int(data.get("patch_size", 14)),
        eps=float(data.get("layer_norm_eps", 1e-6)),
    )


def _text_from_hf(data: Numbers, text_type: str, outer: Numbers) -> TextConfig:
    second = text_type == "gemma2"
    head_size = int(data.get("head_dim", 256))
    # PaliGemma's defaults for missing values (its configs name only a few).
    defaults = (2304, 26, 9216, 4) if second else (2048, 18, 16_384, 1)
    rope: object = data.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise TypeError("rope_parameters must be an object")
    window = data.get("sliding_window", 4096) if second else None
    if not _computed(data.get("layer_types"), window is not None):
        raise ValueError(
            "layer_types must be full attention, for Gemma 2 in turn with sliding_attention"
        )
    scaling: object = data.get("rope_scaling") or rope
    kind: object = scaling
    if isinstance(scaling, Mapping):
        kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in (None, "default"):
        raise ValueError(f"rope scaling {kind!r}, which isn't supported")
    theta = data.get("rope_theta")
    if theta is None:
        theta = rope.get("rope_theta")
    return TextConfig(
        width=int(data.get("hidden_size", defaults[0])),
        layers=int(data.get("num_hidden_layers", defaults[1])),
        mlp=int(data.get("intermediate_size", defaults[2])),
        heads=int(data.get("num_attention_heads", 8)),
        kv_heads=int(data.get("num_key_value_heads", defaults[3])),
        head_size=head_size,
        vocabulary=int(data.get("vocab_size", outer.get("vocab_size", 257_216))),
        eps=float(data.get("rms_norm_eps", 1e-6)),
        rope_base=_ROPE_BASE if theta is None else float(theta),
        query_scale=float(data.get("query_pre_attn_scalar", 256) if second else head_size),
        attention_softcap=_maybe(data.get("attn_logit_softcapping", 50.0)) if second else None,
        final_softcap=_maybe(data.get("final_logit_softcapping", 30.0)) if second else None,
        sliding_window=None if window is None else int(window),
        post_norms=second,
    )


def _computed(layer_types: object, windowed: bool) -> bool:
    """Check that layers alternate between a window and full attention, or have no window."""
    if layer_types is None:
        return True
    names = ("sliding_attention" if windowed else "full_attention", "full_attention")
    return isinstance(layer_types, list) and all(
        kind == names[layer % 2] for layer, kind in enumerate(layer_types)
    )


def _refuse_quantised(data: Mapping[str, object], name: str) -> None:
    """Refuse weights that another library has quantised, by its name."""
    quantised = data.get("quantization_config") or data.get("quantization")
    if not quantised:
        return
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    by = method or ("MLX" if "quantization" in data else "an unknown library")
    raise InputError(
        f"{name}: the weights are quantised by {by}, which can't be read; load the checkpoint it "
        "was made from, with quantize='int8' or 'int4' (--quantize) to save memory"
    )


def _maybe(value: float | None) -> float | None:
    return None if value is None else float(value)


def _control_id(name: str, default: int, *parts: Numbers) -> int:
    """Id of a control token in the first part of the config that has it."""
    return next((int(part[name]) for part in parts if part.get(name) is not None), default)


def _ends(*parts: Mapping[str, object]) -> tuple[int, ...]:
    """Ids that end an answer: one or several in a config."""
    for part in parts:
        given = part.get("eos_token_id")
        if given is not None:
            ids = given if isinstance(given, list) else [given]
            if not ids or not all(type(number) is int and number >= 0 for number in ids):
                raise ValueError(f"eos_token_id must be an id or a list of ids, got {given!r}")
            return tuple(ids)
    return (1,)


def read_ends(folder: Path) -> tuple[int, ...]:
    """Read the ids that end an answer in ``generation_config.json``; () without the file."""
    path = folder / "generation_config.json"
    if not path.exists():
        return ()
    data = read_json(path)
    try:
        return _ends(data) if isinstance(data, dict) and "eos_token_id" in data else ()
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _check(config: PaliGemmaConfig, name: str) -> None:
    v, t = config.vision, config.text
    vision = (v.width, v.layers, v.heads, v.mlp, v.image_size, v.patch)
    text = (t.width, t.layers, t.mlp, t.heads, t.kv_heads, t.head_size, t.vocabulary)
    if min(vision + text) < 1:
        raise InputError(f"{name}: every size must be at least 1")
    if max(v.layers, t.layers) > _MOST_LAYERS or max(vision + text) > _LARGEST:
        raise InputError(
            f"{name}: sizes of up to {max(vision + text)}, more than any model has and any "
            "machine holds: choose a smaller model"
        )
    numbers = (v.eps, t.eps, t.rope_base, t.query_scale)
    if not all(0 < number < math.inf for number in numbers):
        raise InputError(f"{name}: rms_norm_eps, rope_theta and the like must be above 0")
    for cap in (t.attention_softcap, t.final_softcap, t.sliding_window):
        if cap is not None and not 0 < cap < math.inf:
            raise InputError(f"{name}: soft caps and the window must be above 0, or null")
    if v.width % v.heads:
        raise InputError(f"{name}: vision width {v.width} is not a multiple of {v.heads} heads")
    if t.heads % t.kv_heads or t.head_size % 2:
        raise InputError(
            f"{name}: {t.heads} query heads on {t.kv_heads} key/value heads of size "
            f"{t.head_size}: heads must be a multiple of key/value heads, their size even"
        )
    if v.image_size < v.patch:
        raise InputError(
            f"{name}: images of {v.image_size} pixels are smaller than a patch of {v.patch}"
        )


def config_to_hf(config: PaliGemmaConfig) -> dict[str, object]:
    """Convert to the dict that transformers and `read_config` read."""
    v, t = config.vision, config.text
    text: dict[str, object] = {
        "model_type": "gemma2" if t.post_norms else "gemma",
        "hidden_size": t.width,
        "num_hidden_layers": t.layers,
        "intermediate_size": t.mlp,
        "num_attention_heads": t.heads,
        "num_key_value_heads": t.kv_heads,
        "head_dim": t.head_size,
        "vocab_size": t.vocabulary,
        "rms_norm_eps": t.eps,
        "rope_theta": t.rope_base,
        "hidden_activation": "gelu_pytorch_tanh",
        "num_image_tokens": v.tokens,
        "tie_word_embeddings": t.tied_head,
    }
    if t.post_norms:
        scale = t.query_scale  # transformers refuses a float
        text |= {
            "query_pre_attn_scalar": int(scale) if scale.is_integer() else scale,
            "attn_logit_softcapping": t.attention_softcap,
            "final_logit_softcapping": t.final_softcap,
            "sliding_window": t.sliding_window,
        }
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "image_token_index": config.image_token,
        "pad_token_id": config.pad,
        "eos_token_id": config.eos[0] if len(config.eos) == 1 else list(config.eos),
        "bos_token_id": config.bos,
        "projection_dim": t.width,
        "hidden_size": t.width,
        "text_config": text,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": v.width,
            "num_hidden_layers": v.layers,
            "num_attention_heads": v.heads,
            "intermediate_size": v.mlp,
            "image_size": v.image_size,
            "patch_size": v.patch,
            "layer_norm_eps": v.eps,
            "projection_dim": t.width,
            "vision_use_head": False,
        },
    }
