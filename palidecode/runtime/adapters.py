"""Adapters as PEFT saves them: low-rank changes of a base model's weights, merged on reading.

LoRA (Hu et al. 2021) adds ``s B A`` to a weight, with ``s`` = alpha / r, or alpha / √r for rsLoRA
(Kalajdzievski 2023). DoRA (Liu et al. 2024) then scales each row to a learned length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError, WeightsError
from palidecode.files import read_json
from palidecode.runtime.weights import (
    INDEX,
    OWN_HEAD,
    SINGLE,
    SafetensorsFile,
    Source,
    Stored,
    canonical,
    to_float32,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_EMBEDDING = "language.embed_tokens.weight"
_WRAPPER = re.compile(r"^(base_model\.model\.)+")
# A trainer's own state dict also names the adapter, PEFT's files don't.
_KEY = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(\.default)?(\.weight)?$"
)
_SAVED = re.compile(r"\.modules_to_save(\.default)?\.|\.base_layer\.")
# Ways to start training that leave the base as it is; others (PiSSA, OLoRA, LoftQ, …) change it.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_UNSUPPORTED = {
    "lora_bias": "biases in LoRA's layers",
    "fan_in_fan_out": "weights of the layout (inputs, outputs)",
    "layer_replication": "repeated layers",
    "trainable_token_indices": "single trained tokens",
    "target_parameters": "LoRA of single parameters",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "megatron_config": "Megatron's parallel layers",
}
_MERGE = "merge it with peft (model.merge_and_unload().save_pretrained(folder)) and load the result"


@dataclass
class _Change:
    """A change of one weight: another in its place, then LoRA, then DoRA."""

    saved: str | None = None
    parts: dict[str, str] = field(default_factory=dict)  # lora_A → key in the file
    alpha: float = 1.0
    turned: bool = False  # LoRA of an embedding has its sides exchanged


class AdapterConfig(NamedTuple):
    """The numbers of ``adapter_config.json``; `base` names the base model."""

    base: str | None
    revision: str | None
    alpha: float
    root: bool
    alphas: Mapping[re.Pattern[str], float]
    tied: bool


def is_adapter(folder: Path) -> bool:
    """Return True for a folder that holds an adapter and no weights of its own.

    Raises
    ------
    InputError
        If it has both: which of them the answers would be of isn't known.
    """
    if not (folder / CONFIG).exists():
        return False
    read_json(folder / CONFIG)  # refuses what is no file
    if any((folder / name).exists() for name in (SINGLE, INDEX)):
        raise InputError(
            f"{folder}: an adapter ({CONFIG}) is beside weights of a whole model, which may or may "
            "not hold it already: move one of them to a folder of its own"
        )
    return True


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read ``adapter_config.json``; refuse what isn't supported, by name.

    Raises
    ------
    InputError
        For a config that can't be read, or another method than LoRA.
    """
    path = folder / CONFIG
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: must hold an object")
    if data.get("peft_type") != "LORA":
        raise InputError(
            f"{path}: peft_type {data.get('peft_type')!r}: only LoRA is read; {_MERGE}"
        )
    start = data.get("init_lora_weights")
    if start not in _STARTS:
        raise InputError(
            f"{path}: init_lora_weights {start!r} changes the base's own weights; convert it to "
            "plain LoRA with peft: save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )
    for name, what in _UNSUPPORTED.items():
        if data.get(name):
            raise InputError(f"{path}: {name}: {what} can't be read; {_MERGE}")
    try:
        patterns = (data.get("alpha_pattern") or {}).items()
        # PEFT's rule: a pattern fits the end of a module's name.
        alphas = {re.compile(rf"(.*\.)?({k})$"): float(v) for k, v in patterns}
        alpha = float(data["lora_alpha"])
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise InputError(f"{path}: lora_alpha and alpha_pattern must be numbers") from error
    base, revision = data.get("base_model_name_or_path"), data.get("revision")
    return AdapterConfig(
        base if isinstance(base, str) and base else None,
        revision if isinstance(revision, str) and revision else None,
        alpha,
        bool(data.get("use_rslora")),
        alphas,
        bool(data.get("ensure_weight_tying")),
    )


class AdaptedSource:
    """A base model's tensors, with those that an adapter changes merged in float32; see `Source`.

    Parameters
    ----------
    base : Source
    tied_head : bool
        Of the base.
    folder : Path
        The adapter's.

    Attributes
    ----------
    tied_head : bool
        False if the output head differs from the embedding, of the base or by the adapter.
    changed : frozenset of str
        Names of the tensors that the adapter changes or adds.

    Raises
    ------
    InputError, WeightsError
        For an adapter that can't be read, isn't supported, or belongs to another model.
    """

    def __init__(self, base: Source, tied_head: bool, folder: Path) -> None:
        self.name = f"{base.name} with {folder}"
        self._base, self._folder, self.tied_head = base, folder, tied_head
        self._config = read_adapter_config(folder)
        self._file = _weights_of(folder)
        self._changes: dict[str, _Change] = {}
        self._shapes = dict(base.shapes())
        for key in self._file.shapes():
            self._note(key)
        self._check()
        self._untie()
        self.changed = frozenset(self._changes) | (self._shapes.keys() - base.shapes().keys())

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every name and its shape; see `Source`."""
        return self._shapes

    def read(self, name: str) -> Stored:
        """Read one array; float32 where the adapter changes it. See `Source`."""
        change = self._changes.get(name)
        if change is None:
            return self._of_base(name)
        stored = self._of_base(name) if change.saved is None else self._file.read(change.saved)
        return self._merged(to_float32(stored), change) if change.parts else stored

    def stored_dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype of the base's array of that name; see `Source.read`."""
        return self._of_base(name).dtype

    def _of_base(self, name: str) -> Stored:
        """Read the base's array; the head of a base that is tied is its embedding."""
        tied = name == OWN_HEAD and OWN_HEAD not in self._base.shapes()
        return self._base.read(_EMBEDDING if tied else name)

    def _note(self, key: str) -> None:
        """Note what a tensor of the adapter's file changes."""
        inner = _WRAPPER.sub("", key)
        found = _KEY.match(inner)
        module = _SAVED.sub(".", inner if found is None else f"{found['module']}.")
        name = canonical(module if found is None else f"{module}weight")
        change = self._changes.setdefault(name, _Change())
        if found is None:
            change.saved = key
            return
        change.parts[found["part"].replace("embedding_", "")] = key
        change.turned |= "embedding" in found["part"]
        alphas = self._config.alphas.items()
        own = (alpha for pattern, alpha in alphas if pattern.match(module.rstrip(".")))
        change.alpha = next(own, self._config.alpha)

    def _check(self) -> None:
        """Refuse tensors that have no place in the base, or another shape than it needs."""
        if not self._changes:
            raise WeightsError(f"{self._folder / WEIGHTS}: holds no tensor")
        for name, change in self._changes.items():
            wanted = self._shapes.get(_EMBEDDING if name == OWN_HEAD else name)
            if wanted is None:
                key = change.saved or next(iter(change.parts.values()))
                raise WeightsError(
                    f"{self._folder}: {key} has no place in {self._base.name}: the adapter belongs "
                    "to another model, or to a method that isn't read"
                )
            shapes = {part: self._file.shapes()[key] for part, key in change.parts.items()}
            saved = None if change.saved is None else self._file.shapes()[change.saved]
            if not _fit(shapes, saved, wanted, change.turned):
                told = ", ".join(f"{part} {shape}" for part, shape in shapes.items()) or saved
                raise WeightsError(
                    f"{self._folder}: {told} don't fit {name} {wanted} of {self._base.name}"
                )

    def _untie(self) -> None:
        """Give the head a tensor of its own where the adapter parts it from the embedding."""
        touched = {_EMBEDDING, OWN_HEAD} & self._changes.keys()
        if not self.tied_head or not touched:
            return
        if self._config.tied and _EMBEDDING in touched:
            self._changes.pop(OWN_HEAD, None)  # the same change again
        else:
            self.tied_head = False
            self._shapes[OWN_HEAD] = self._shapes[_EMBEDDING]

    def _merged(self, weight: npt.NDArray[np.float32], change: _Change) -> Stored:
        arrays = {part: to_float32(self._file.read(key)) for part, key in change.parts.items()}
        down, up = arrays["lora_A"], arrays["lora_B"]
        rank = len(down)
        delta = up.reshape(-1, rank) @ down.reshape(rank, -1)
        if change.turned:
            delta = delta.T
        scale = change.alpha / (rank**0.5 if self._config.root else rank)
        # ONNX Runtime takes arrays in C order only, and a turned `delta` is in F order.
        merged = np.add(weight, np.float32(scale) * delta.reshape(weight.shape), order="C")
        length = arrays.get("lora_magnitude_vector")
        if length is not None:
            rows = merged.reshape(len(merged), -1)
            rows *= (length.ravel() / np.linalg.norm(rows, axis=1))[:, None]
        return cast(Stored, merged)


def _weights_of(folder: Path) -> SafetensorsFile:
    if not (folder / WEIGHTS).exists():
        pickled = (folder / "adapter_model.bin").exists()
        reason = (
            "adapter_model.bin is pickled and can run code when it is loaded; save it again with "
            "safe_serialization=True"
            if pickled
            else "download it, or train to the end"
        )
        raise WeightsError(f"{folder}: no {WEIGHTS}: {reason}")
    return SafetensorsFile(folder / WEIGHTS)


def _fit(
    shapes: Mapping[str, tuple[int, ...]],
    saved: tuple[int, ...] | None,
    wanted: tuple[int, ...],
    turned: bool,
) -> bool:
    """Tell if the parts of a change fit a weight of shape `wanted`."""
    if saved is not None and saved != wanted:
        return False
    if not shapes:
        return saved is not None
    if not {"lora_A", "lora_B"} <= shapes.keys():
        return False
    down, up = shapes["lora_A"], shapes["lora_B"]
    outputs, inputs = wanted[0], int(np.prod(wanted[1:], dtype=np.int64))
    if turned:
        outputs, inputs = inputs, outputs
    length = shapes.get("lora_magnitude_vector")
    if length is not None and (turned or len(wanted) != 2):
        return False
    return (
        down[:1] > (0,)
        and int(np.prod(down[1:], dtype=np.int64)) == inputs
        and up[:2] == (outputs, down[0])
        and int(np.prod(up, dtype=np.int64)) == outputs * down[0]
        and (length is None or int(np.prod(length, dtype=np.int64)) == wanted[0])
    )
