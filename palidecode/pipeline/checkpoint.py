"""Checkpoints: a folder, a file or a hub name to a loaded model and all that belongs to it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID
from palidecode.errors import InputError
from palidecode.files import data_folder, read_json
from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.engine import Engine
from palidecode.runtime.image import ImageConfig, Resample
from palidecode.runtime.opening import open_checkpoint
from palidecode.runtime.tokenizer import FILE as TOKENIZER
from palidecode.runtime.tokenizer import Tokenizer

DEMO_MODEL = "demo"
"""Name of the model in this package: tiny, trained from scratch on drawn scenes."""
DTYPES = ("bfloat16", "float32", "float16")
NOTES = "palidecode.json"
"""File beside a model that differs from Google's: ``{"codes": "palidecode-demo", "classes":
[…]}``, the mask codec its seg tokens belong to, and the classes it knows."""
_HUB_FILES = ["*.json", "*.safetensors"]


@dataclass(frozen=True)
class ModelOptions:
    """The model to load and its settings, see `PaliDecoder.from_pretrained`; plain values only.

    `codec` names weights of the mask codec, a file or an id.
    """

    model: str
    dtype: str = "bfloat16"
    device: str | None = None
    quantize: Literal["int8", "int4"] | None = None
    tokenizer: str | None = None
    codec: str | None = None
    resample: Resample | None = None
    final_softcap: float | Literal["config"] | None = "config"
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.resample not in (None, *get_args(Resample)):
            known = ", ".join(get_args(Resample))
            raise InputError(f"resample must be one of {known}, got {self.resample!r}")
        cap = self.final_softcap
        if cap is not None and cap != "config" and not 0 < cap < math.inf:
            raise InputError(f"final_softcap must be above 0, or None, got {cap}")


class ModelNotes(NamedTuple):
    """Facts about a checkpoint that are known before it is loaded; see `PaliDecoder`."""

    source: str
    codes_id: str
    classes: tuple[str, ...]


class LoadedModel(NamedTuple):
    """The parts of a `PaliDecoder`."""

    engine: Engine
    tokenizer: Tokenizer
    image_config: ImageConfig
    codec: MaskCodec | None
    codes_id: str
    classes: tuple[str, ...]
    source: str


def describe(folder_or_id: str | os.PathLike[str], revision: str | None = None) -> ModelNotes:
    """Describe a checkpoint without loading it; refuse what is none."""
    path, name = locate(folder_or_id, revision)
    open_checkpoint(path)
    codes_id, classes = _notes(path)
    return ModelNotes(name, codes_id, tuple(classes))


def load(
    options: ModelOptions, codec: MaskCodec | None = None, *, threads: int | None = None
) -> LoadedModel:
    """Load a checkpoint and all that belongs to it; `codec` replaces that of the options."""
    try:
        import tokenizers  # noqa: F401

        from palidecode.runtime import loading  # loads torch
    except ImportError as error:
        raise InputError(
            f"running a model needs {error.name}: pip install 'palidecode[runtime]'"
        ) from error
    device = loading.find_device(options.device)
    if codec is None and options.codec is not None:
        codec = load_codec(options.codec, threads=threads)
    path, name = locate(options.model, options.revision)
    source, config, image_config = open_checkpoint(path)
    tokenizer = Tokenizer.from_file(_tokenizer_path(path, options.tokenizer), config.eos)
    if options.final_softcap != "config":
        config = replace(config, text=replace(config.text, final_softcap=options.final_softcap))
    if options.resample is not None:
        image_config = replace(image_config, resample=options.resample)
    # A big_vision file doesn't tell which token is the picture's.
    image_token = config.image_token if path.is_dir() else tokenizer.image
    _check_ids(tokenizer, config, image_token, name)
    codes_id, classes = _notes(path)
    if codec is None and codes_id != GOOGLE_ID:
        codec = load_codec(codes_id, threads=threads)
    engine = loading.load_model(source, config, options.dtype, device, options.quantize)
    return LoadedModel(engine, tokenizer, image_config, codec, codes_id, tuple(classes), name)


def locate(folder_or_id: str | os.PathLike[str], revision: str | None = None) -> tuple[Path, str]:
    """Return a checkpoint's path, and its name with the revision that was taken.

    ``demo`` is the model of this package; a folder of that name is ``./demo``.
    """
    text = os.fspath(folder_or_id)
    if text == DEMO_MODEL:
        return data_folder("palidecode.demo") / "model", text
    path = Path(text)
    if path.exists():
        return path, text
    # A hub name has one slash and no other path syntax.
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(f"{text}: no such folder or file")
    return _download(text, revision)


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise InputError(
            f"{name}: no such folder, and downloading needs: pip install 'palidecode[runtime]'"
        ) from error
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(
            f"{name}: no such folder, and it can't be downloaded ({reason}). Google's models "
            "need their licence accepted on the model's page and `hf auth login`"
        ) from error
    # The last part of a snapshot's path is the commit.
    return path, f"{name}@{path.name}"


def _tokenizer_path(path: Path, given: str | None) -> Path:
    if given is not None:
        return Path(given)
    folder = path if path.is_dir() else path.parent
    if not (folder / TOKENIZER).exists():
        raise InputError(
            f"{folder}: no {TOKENIZER}; it comes with every PaliGemma on the hub: put it there "
            "or give tokenizer="
        )
    return folder / TOKENIZER


def _check_ids(tokenizer: Tokenizer, config: PaliGemmaConfig, image: int | None, name: str) -> None:
    last = tokenizer.last_id
    if last >= config.text.vocabulary:
        raise InputError(
            f"{name}: the tokenizer has ids up to {last}, the model {config.text.vocabulary} "
            "rows: they don't belong together"
        )
    if tokenizer.image not in (None, image):
        raise InputError(
            f"{name}: <image> is {tokenizer.image} to the tokenizer and {image} to the model: "
            "they don't belong together"
        )


def _notes(path: Path) -> tuple[str, list[str]]:
    """Read the mask codec of a model's codes, by default Google's, and its classes."""
    file = (path if path.is_dir() else path.parent) / NOTES
    if not file.exists():
        return GOOGLE_ID, []
    data = read_json(file)
    codes = data.get("codes", GOOGLE_ID) if isinstance(data, dict) else None
    classes = data.get("classes", []) if isinstance(data, dict) else None
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not isinstance(codes, str) or not named:
        raise InputError(f"{file}: 'codes' must name a mask codec, 'classes' be a list of names")
    return codes, classes or []
