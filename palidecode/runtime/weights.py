"""Weights on disk as numpy arrays: the protocol of a `Source`, and Hugging Face folders.

Every format is a `Source` (`big_vision` has the one of ``.npz`` files): one spelling of names
(`vision.…`, `projector.…`, `language.…`, then transformers' names), shapes without reading,
arrays one at a time. Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from palidecode.errors import WeightsError
from palidecode.files import regular
from palidecode.runtime.config import PaliGemmaConfig, TextConfig, VisionConfig

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_PREFIXES = {
    # Both spellings of transformers, the newer first.
    "model.language_model.": "language.",
    "language_model.model.": "language.",
    "model.vision_tower.vision_model.": "vision.",
    "vision_tower.vision_model.": "vision.",
    "model.vision_tower.": "vision.",
    "vision_tower.": "vision.",
    "model.multi_modal_projector.linear.": "projector.",
    "multi_modal_projector.linear.": "projector.",
}
OLDER_PREFIXES = {
    short: prefix
    for prefix, short in _PREFIXES.items()
    if not prefix.startswith("model.") and prefix != "vision_tower."
}
"""Prefixes of the older spelling, by ours."""
OLDER_HEAD = "language_model.lm_head.weight"
_HEADS = ("lm_head.weight", OLDER_HEAD)
OWN_HEAD = "language.head.weight"
_IGNORED = (".position_ids", ".rotary_emb.inv_freq")  # buffers of older transformers
_POOLING = "vision.head."  # SigLIP's pooling head, which PaliGemma doesn't use
_WRAPPERS = {
    "_orig_mod.": "of a compiled model: save model._orig_mod instead",
    "module.": "of a model wrapped for several GPUs: save model.module instead",
    "base_model.model.": "of a model with adapters: merge them before saving "
    "(peft: model.merge_and_unload().save_pretrained(folder))",
}
_QUANTISED = {
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".scales": "MLX",
}
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_SHOWN = 5
_LONGEST_NAME = 200


Stored: TypeAlias = npt.NDArray[np.floating[Any] | np.uint16]
"""An array of floats; uint16 holds the bits of bfloat16."""


class Source(Protocol):
    """Named tensors on disk."""

    name: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every name and its shape, without reading the numbers."""
        ...

    def read(self, name: str) -> Stored:
        """Read one array, in its stored dtype; bfloat16 as the uint16 of its bits."""
        ...


class SafetensorsFolder:
    """A Hugging Face folder: one memory-mapped file, or shards.

    Attributes
    ----------
    tied_head : bool
        False if the output head differs from the embedding.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._files: dict[str, tuple[Path, str]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.tied_head = True
        heads: list[tuple[Path, str]] = []
        for path in _shards(folder):
            with _opened(path) as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    if key in _HEADS:
                        heads.append((path, key))
                        continue
                    _refuse_layout(key, self.name)
                    name = canonical(key)
                    if key.endswith(_IGNORED) or name.startswith(_POOLING):
                        continue
                    if name in self._files:
                        raise WeightsError(f"{self.name}: {key} appears twice")
                    self._files[name] = (path, key)
                    self._shapes[name] = tuple(file.get_slice(key).get_shape())
        patch = self._shapes.get("vision.embeddings.patch_embedding.weight", ())
        if len(patch) == 4 and patch[3] == 3 != patch[1]:
            raise WeightsError(
                f"{self.name}: the patch embedding has its channels last, as MLX stores it; load "
                "the checkpoint that it was converted from"
            )
        for path, key in heads:
            self._add_head(path, key)

    def _add_head(self, path: Path, key: str) -> None:
        """Keep an output head that isn't the embedding."""
        embedding = "language.embed_tokens.weight"
        head = _read(path, key)
        if embedding in self._files and np.array_equal(head, self.read(embedding)):
            return
        self.tied_head = False
        self._files[OWN_HEAD], self._shapes[OWN_HEAD] = (path, key), tuple(head.shape)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every name and its shape; see `Source`."""
        return self._shapes

    def read(self, name: str) -> Stored:
        """Read one array as a view of the mapped file; see `Source`."""
        return _read(*self._files[name])


@contextmanager
def _opened(path: Path) -> Iterator[Any]:  # safe_open is untyped
    # A file is opened for each tensor: one that stays open keeps every page that was read
    # in memory.
    try:
        with safe_open(regular(path), framework="np") as file:
            yield file
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing: download it again") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} can't be read: cut short or damaged ({error}); download it again"
        ) from error


def _read(path: Path, key: str) -> Stored:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[key]
    if entry["dtype"] not in _DTYPES:
        raise WeightsError(f"{path}: {key} holds {entry['dtype']}, not float32 or bfloat16")
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    if 0 in shape:
        return np.zeros(shape, dtype)
    start = 8 + length + int(entry["data_offsets"][0])
    # Copy-on-write: torch wants arrays that it may write to.
    mapped = np.memmap(path, dtype, "c", start, shape)
    array: Stored = np.require(mapped, requirements=("A",)).view(np.ndarray)
    return array


class SafetensorsFile:
    """The tensors of one file, under the file's own names; see `Source`."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path
        with _opened(path) as file:
            keys = file.keys()
            self._shapes = {key: tuple(file.get_slice(key).get_shape()) for key in keys}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every name and its shape; see `Source`."""
        return self._shapes

    def read(self, name: str) -> Stored:
        """Read one array as a view of the mapped file; see `Source`."""
        return _read(self._path, name)


def _refuse_layout(key: str, name: str) -> None:
    """Refuse tensors of a wrapped or quantised model, by what wrapped or quantised it."""
    for prefix, way_out in _WRAPPERS.items():
        if key.startswith(prefix):
            raise WeightsError(f"{name}: names begin with {prefix!r}: weights {way_out}")
    for ending, library in _QUANTISED.items():
        if key.endswith(ending):
            raise WeightsError(
                f"{name}: {key}: the weights are quantised by {library}, which can't be read; load "
                "the checkpoint they were made from, with quantize='int8' or 'int4' (--quantize)"
            )


def canonical(key: str) -> str:
    """Return our spelling of transformers' name of a tensor."""
    if key in _HEADS:
        return OWN_HEAD
    for prefix, short in _PREFIXES.items():
        if key.startswith(prefix):
            return short + key.removeprefix(prefix)
    return key


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        if (folder / SINGLE).exists():
            return [folder / SINGLE]
        if list(folder.glob("*.bin")):
            raise WeightsError(
                f"{folder} holds pickled .bin weights, which can run code when they are loaded; "
                "save the model again with safe_serialization=True"
            )
        raise WeightsError(f"{folder}: has neither {SINGLE} nor {INDEX}")
    try:
        names = set(json.loads(regular(index).read_text(encoding="utf-8"))["weight_map"].values())
        # A shard is a file of this folder: paths that leave it are refused.
        if not all(isinstance(name, str) and _is_file_name(name) for name in names):
            raise ValueError("a shard's name is not a file name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: not an index of shards ({error})") from error
    missing = sorted(name for name in names if not (folder / name).exists())
    if missing:
        raise WeightsError(
            f"{folder}: missing shards: {len(missing)} of {len(names)}: "
            f"{', '.join(missing[:_SHOWN])}; download them"
        )
    return [folder / name for name in sorted(names)]


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and len(name) <= _LONGEST_NAME


@dataclass(frozen=True)
class Part:
    """Tensors of a source that are joined along axis 0 to one of our parameters."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]  # of our parameter


class _Parts:
    """Collects parts: our parameters' names, and their tensors in a source."""

    def __init__(self) -> None:
        self.made: dict[str, Part] = {}

    def add(
        self, ours: str, *sources: tuple[str, tuple[int, ...]], shape: tuple[int, ...] = ()
    ) -> None:
        names, shapes = zip(*sources, strict=True)
        joined = (sum(s[0] for s in shapes), *shapes[0][1:])
        self.made[ours] = Part(names, shapes, shape or joined)

    def linear(self, ours: str, inputs: int, *sources: tuple[str, int], bias: bool = True) -> None:
        self.add(f"{ours}.weight", *((f"{name}.weight", (out, inputs)) for name, out in sources))
        if bias:
            self.add(f"{ours}.bias", *((f"{name}.bias", (out,)) for name, out in sources))

    def norm(self, ours: str, theirs: str, width: int, bias: bool) -> None:
        self.add(f"{ours}.weight", (f"{theirs}.weight", (width,)))
        if bias:
            self.add(f"{ours}.bias", (f"{theirs}.bias", (width,)))


def parts(config: PaliGemmaConfig) -> dict[str, Part]:
    """Map our parameters' names to their tensors in a source."""
    made, text = _Parts(), config.text
    _add_vision(made, config.vision)
    made.linear("projector", config.vision.width, ("projector", text.width))
    _add_language(made, text)
    return made.made


def _add_vision(made: _Parts, v: VisionConfig) -> None:
    patch = (v.width, 3, v.patch, v.patch)
    made.add(
        "vision.patch.weight",
        ("vision.embeddings.patch_embedding.weight", patch),
        shape=(v.width, 3 * v.patch**2),
    )
    made.add("vision.patch.bias", ("vision.embeddings.patch_embedding.bias", (v.width,)))
    position = ("vision.embeddings.position_embedding.weight", (v.tokens, v.width))
    made.add("vision.position", position)
    for layer in range(v.layers):
        ours, theirs = f"vision.layers.{layer}", f"vision.encoder.layers.{layer}"
        made.norm(f"{ours}.norm1", f"{theirs}.layer_norm1", v.width, True)
        made.norm(f"{ours}.norm2", f"{theirs}.layer_norm2", v.width, True)
        qkv = ((f"{theirs}.self_attn.{name}_proj", v.width) for name in "qkv")
        made.linear(f"{ours}.attention.qkv", v.width, *qkv)
        made.linear(f"{ours}.attention.out", v.width, (f"{theirs}.self_attn.out_proj", v.width))
        made.linear(f"{ours}.fc1", v.width, (f"{theirs}.mlp.fc1", v.mlp))
        made.linear(f"{ours}.fc2", v.mlp, (f"{theirs}.mlp.fc2", v.width))
    made.norm("vision.norm", "vision.post_layernorm", v.width, True)


def _add_language(made: _Parts, t: TextConfig) -> None:
    made.add("language.embed.weight", ("language.embed_tokens.weight", (t.vocabulary, t.width)))
    for layer in range(t.layers):
        ours = theirs = f"language.layers.{layer}"
        q, kv = t.heads * t.head_size, t.kv_heads * t.head_size
        attn = f"{theirs}.self_attn"
        qkv_rows = ((f"{attn}.q_proj", q), (f"{attn}.k_proj", kv), (f"{attn}.v_proj", kv))
        made.linear(f"{ours}.attention.qkv", t.width, *qkv_rows, bias=False)
        made.linear(f"{ours}.attention.out", q, (f"{attn}.o_proj", t.width), bias=False)
        gate_up = ((f"{theirs}.mlp.gate_proj", t.mlp), (f"{theirs}.mlp.up_proj", t.mlp))
        made.linear(f"{ours}.mlp.gate_up", t.width, *gate_up, bias=False)
        made.linear(f"{ours}.mlp.down", t.mlp, (f"{theirs}.mlp.down_proj", t.width), bias=False)
        for mine, name in _norms(t.post_norms).items():
            made.norm(f"{ours}.{mine}", f"{theirs}.{name}", t.width, False)
    made.norm("language.norm", "language.norm", t.width, False)
    if not t.tied_head:
        made.add("language.own_head", (OWN_HEAD, (t.vocabulary, t.width)))


def _norms(post: bool) -> dict[str, str]:
    """Map our norms to transformers'; Gemma 2 reuses one of Gemma's names for another norm."""
    if not post:
        return {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    return {
        "attention_norm": "input_layernorm",
        "attention_post": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post": "post_feedforward_layernorm",
    }


def check_names(source: Source, wanted: Mapping[str, Part]) -> None:
    """Check that a source has exactly the wanted tensors and shapes, or raise `WeightsError`."""
    have = source.shapes()
    need = {
        name: shape
        for part in wanted.values()
        for name, shape in zip(part.names, part.shapes, strict=True)
    }
    wrong = [
        f"{name} is {have[name]}, the config says {shape}"
        for name, shape in need.items()
        if name in have and have[name] != shape
    ]
    missing = sorted(need.keys() - have.keys())
    extra = sorted(have.keys() - need.keys())
    problems = [
        f"{len(names)} {what} ({'; '.join(names[:_SHOWN])}{' …' if len(names) > _SHOWN else ''})"
        for what, names in (("missing", missing), ("unexpected", extra), ("mis-shaped", wrong))
        if names
    ]
    if problems:
        raise WeightsError(f"{source.name}: weights don't fit the config: {', '.join(problems)}")


def read_part(source: Source, part: Part) -> npt.NDArray[np.float32]:
    """Read one of our parameters in float32."""
    arrays = [to_float32(source.read(name)) for name in part.names]
    joined: npt.NDArray[np.float32] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return joined.reshape(part.shape)


def write_weights(path: Path, source: Source, dtype_of: Callable[[str], np.dtype[Any]]) -> int:
    """Write a source as one safetensors file under transformers' names; return its size in bytes.

    Arrays are read and written one at a time, each in the dtype that `dtype_of` gives for its
    name: float32, float16, or uint16 for bfloat16.
    """
    kinds = {np.dtype(dtype): kind for kind, dtype in _DTYPES.items()}
    entries: dict[str, object] = {}
    end = 0
    for name, shape in source.shapes().items():
        dtype = dtype_of(name)
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entry = {"dtype": kinds[dtype], "shape": shape, "data_offsets": [start, end]}
        entries[older(name)] = entry
    header = json.dumps(entries, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in source.shapes():
            file.write(_stored_as(source.read(name), dtype_of(name)).tobytes())
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def older(name: str) -> str:
    """Return transformers' name of a tensor, in the older spelling."""
    tower, _, rest = name.partition(".")
    return OLDER_HEAD if name == OWN_HEAD else OLDER_PREFIXES[f"{tower}."] + rest


def _stored_as(array: Stored, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert an array to the dtype of a file; to bfloat16 by rounding half to even."""
    if array.dtype == dtype:
        return array
    exact = to_float32(array)
    if dtype != np.uint16:
        return exact.astype(dtype)
    bits = exact.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float32(array: Stored) -> npt.NDArray[np.float32]:
    """Convert a stored array to float32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, np.float32)
