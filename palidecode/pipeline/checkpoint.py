"""Checkpoints: a folder, a file or a hub name to a loaded model and all that belongs to it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args
from uuid import uuid4

from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID, cache_dir, find_weights
from palidecode.errors import InputError, WeightsError, warn
from palidecode.files import data_folder, read_json
from palidecode.pipeline.text_length import text_length
from palidecode.runtime.adapters import is_adapter, read_adapter_config
from palidecode.runtime.config import PaliGemmaConfig, config_to_hf
from palidecode.runtime.engine import Engine
from palidecode.runtime.exported import GRAPHS_VERSION, read_export, write_export
from palidecode.runtime.image import PROCESSORS, ImageConfig, Resample
from palidecode.runtime.onnx_weights import Precision
from palidecode.runtime.opening import Checkpoint, open_checkpoint
from palidecode.runtime.options import Quantize
from palidecode.runtime.tokenizer import FILE as TOKENIZER
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.version import __version__

EngineName: TypeAlias = Literal["auto", "torch", "onnx"]

DEMO_MODEL = "demo"
"""Name of the model in this package: tiny, trained from scratch on drawn scenes."""
_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla", "vulkan", "meta")
DTYPES = ("bfloat16", "float32", "float16")
NOTES = "palidecode.json"
"""File beside a model that differs from Google's: ``{"codes": "palidecode-demo", "classes":
[…]}``, the mask codec its seg tokens belong to, and the classes it knows."""
_HUB_FILES = ["*.json", "*.safetensors", "onnx/*"]
KEPT_FILES = (*PROCESSORS, TOKENIZER, NOTES)


@dataclass(frozen=True)
class ModelOptions:
    """The model to load and its settings, see `PaliDecoder.from_pretrained`; plain values only.

    `codec` names weights of the mask codec, a file or an id.
    """

    model: str
    dtype: str | None = None
    device: str | None = None
    quantize: Quantize | None = None
    tokenizer: str | None = None
    codec: str | None = None
    resample: Resample | None = None
    final_softcap: float | Literal["config"] | None = "config"
    revision: str | None = None
    engine: EngineName = "auto"
    base: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.device is not None and self.device.partition(":")[0] not in _DEVICES:
            raise InputError(f"device must be cpu, cuda, cuda:1, mps …, got {self.device!r}")
        if self.quantize not in (None, *get_args(Quantize)):
            raise InputError(f"quantize must be None, 'int8' or 'int4', got {self.quantize!r}")
        if self.engine not in get_args(EngineName):
            known = ", ".join(get_args(EngineName))
            raise InputError(f"engine must be one of {known}, got {self.engine!r}")
        if self.engine == "onnx":
            self.check_onnx()
        if self.resample not in (None, *get_args(Resample)):
            known = ", ".join(get_args(Resample))
            raise InputError(f"resample must be one of {known}, got {self.resample!r}")
        cap = self.final_softcap
        if cap is not None and cap != "config" and not 0 < cap < math.inf:
            raise InputError(f"final_softcap must be above 0, or None, got {cap}")

    @property
    def uses_gpu(self) -> bool:
        """Return True unless the model is to stay off a GPU."""
        return self.device != "cpu"

    @property
    def batch_size(self) -> int:
        """Pictures that are asked about together."""
        return 8

    def describe(self) -> ModelNotes:
        """Describe the checkpoint without loading it; refuse what is none."""
        return describe(self.model, self.revision, self.base)

    def pinned(self) -> ModelOptions:
        """Return the options with the revision that a hub model has now."""
        revision = self.describe().revision
        return self if revision is None else replace(self, revision=revision)

    def with_engine(self, *, accelerator: bool | None = None) -> ModelOptions:
        """Return the options with the engine that ``"auto"`` stands for.

        `accelerator` says if the model may run on one; by default this machine is asked.
        """
        checkpoint = find(self.model, self.revision, self.base).open()
        return replace(self, engine=_engine_for(self, checkpoint, accelerator))

    def files(self, *, masks: bool) -> dict[str, Path]:
        """Return the files that answers depend on, and the mask codec's for `masks`."""
        files = find(self.model, self.revision, self.base).files()
        if self.tokenizer is not None:
            files["tokenizer.json"] = Path(self.tokenizer)
        if masks:
            codes_id = self.describe().codes_id
            named = None if codes_id == GOOGLE_ID else codes_id
            files["mask codec"] = find_weights(self.codec or named)
        return files

    def settings(self) -> dict[str, Any]:
        """Return the options that decide a number; hashes of files say more than their names."""
        names = ("model", "device", "tokenizer", "codec", "revision", "base")
        return {name: value for name, value in asdict(self).items() if name not in names}

    def check_onnx(self) -> None:
        """Refuse a dtype or device that ONNX Runtime's engine lacks."""
        if self.dtype not in (None, "float32"):
            raise InputError(
                f"engine='onnx' computes in float32, not in {self.dtype}: leave dtype out, or use "
                "engine='torch'"
            )
        if self.device not in (None, "cpu"):
            raise InputError(
                f"engine='onnx' runs on the CPU, not on {self.device}: leave device out, or use "
                "engine='torch'"
            )


class ModelNotes(NamedTuple):
    """Facts about a checkpoint that are known before it is loaded; see `PaliDecoder`."""

    source: str
    codes_id: str
    classes: tuple[str, ...]
    revision: str | None


class LoadedModel(NamedTuple):
    """The parts of a `PaliDecoder`."""

    engine: Engine
    tokenizer: Tokenizer
    image_config: ImageConfig
    codec: MaskCodec | None
    codes_id: str
    classes: tuple[str, ...]
    source: str
    text_length: int | None


def describe(
    folder_or_id: str | os.PathLike[str], revision: str | None = None, base: str | None = None
) -> ModelNotes:
    """Describe a checkpoint without loading it; refuse what is none."""
    place = find(folder_or_id, revision, base)
    place.open()
    codes_id, classes = read_notes(place.file(NOTES))
    return ModelNotes(place.name, codes_id, tuple(classes), place.revision)


def load(
    options: ModelOptions, codec: MaskCodec | None = None, *, threads: int | None = None
) -> LoadedModel:
    """Load a checkpoint and all that belongs to it; `codec` replaces that of the options."""
    if codec is None and options.codec is not None:
        codec = load_codec(options.codec, threads=threads)
    place = find(options.model, options.revision, options.base)
    checkpoint = place.open()
    config, image_config = checkpoint.config, checkpoint.image_config
    tokenizer = Tokenizer.from_file(tokenizer_path(place, options.tokenizer), config.eos)
    if options.final_softcap != "config":
        config = replace(config, text=replace(config.text, final_softcap=options.final_softcap))
    if options.resample is not None:
        image_config = replace(image_config, resample=options.resample)
    # A big_vision file doesn't tell which token is the picture's.
    image_token = config.image_token if place.path.is_dir() else tokenizer.image
    _check_ids(tokenizer, config, image_token, place.name)
    codes_id, classes = read_notes(place.file(NOTES))
    if codec is None and codes_id != GOOGLE_ID:
        codec = load_codec(codes_id, threads=threads)
    checkpoint = checkpoint._replace(config=config)
    engine = _load_engine(options, checkpoint, place, threads)
    about = (codes_id, tuple(classes), place.name, place.text_length())
    return LoadedModel(engine, tokenizer, image_config, codec, *about)


def _load_engine(
    options: ModelOptions, checkpoint: Checkpoint, place: Place, threads: int | None
) -> Engine:
    """Load the model with the engine of the options, or the one that suits the checkpoint."""
    if _engine_for(options, checkpoint) == "onnx":
        options.check_onnx()
        from palidecode.runtime.onnx_loading import load_onnx  # loads onnxruntime

        return load_onnx(_quantized(checkpoint, place, options.quantize), threads)
    if checkpoint.source is None:
        raise InputError(
            f"{place.path}: an exported folder without its own weights runs with engine='onnx' only"
        )
    try:
        from palidecode.runtime import torch_loading  # torch is optional
    except ImportError as error:
        raise InputError(
            f"engine='torch' needs {error.name}: pip install 'palidecode[runtime]'"
        ) from error
    device = torch_loading.find_device(options.device)
    dtype = options.dtype or DTYPES[0]
    return torch_loading.load_model(
        checkpoint.source, checkpoint.config, dtype, device, options.quantize, threads
    )


def _engine_for(
    options: ModelOptions, checkpoint: Checkpoint, accelerator: bool | None = None
) -> Literal["torch", "onnx"]:
    """Choose onnx for exported folders, on a CPU for int8 and int4, and without torch."""
    if options.engine != "auto":
        return options.engine
    if options.dtype not in (None, "float32") or options.device not in (None, "cpu"):
        return "torch"
    if find_spec("torch") is None or checkpoint.export is not None:
        return "onnx"
    if options.quantize is None:
        return "torch"
    there = _has_accelerator() if accelerator is None else accelerator
    return "onnx" if options.device == "cpu" or not there else "torch"


def _has_accelerator() -> bool:
    from palidecode.runtime import torch_loading

    return torch_loading.find_device(None).type != "cpu"


def _quantized(checkpoint: Checkpoint, place: Place, quantize: Quantize | None) -> Checkpoint:
    """Quantise a checkpoint into the cache once, or find it there."""
    export = checkpoint.export
    if quantize is None or (export is not None and export.precision == quantize):
        return checkpoint
    if checkpoint.source is None:
        exported = export and export.precision
        raise InputError(f"{place.path}: is exported in {exported}, not {quantize}")
    stem = (place.adapter or place.path).stem
    folder = cache_dir() / f"exports-{GRAPHS_VERSION}" / f"{stem}-{quantize}-{_key(place)}"
    if not folder.exists():
        warn(f"quantising {place.name} to {quantize}, once, into {folder}")
        try:
            write_exported(checkpoint, place, folder, quantize)
        except InputError:
            if not folder.exists():  # it does where another process was faster
                raise
    return checkpoint._replace(export=read_export(folder))


def write_exported(
    checkpoint: Checkpoint,
    place: Place,
    folder: Path,
    precision: Precision,
    tokenizer: Path | None = None,
) -> None:
    """Write an exported folder: config, tokenizer, image settings, notes, graphs and weights.

    Raises
    ------
    InputError
        If the folder exists, or ``onnx`` isn't installed.
    WeightsError
        If the checkpoint has no weights of its own, or damaged ones.
    """
    if checkpoint.source is None:
        raise WeightsError(
            f"{place.path}: is an export itself; export the model that it was made from"
        )
    from palidecode.runtime.onnx_loading import graphs_of  # loads onnxruntime

    graphs = graphs_of(checkpoint, precision)
    with new_folder(folder, place, checkpoint.config) as part:
        if tokenizer is not None:
            shutil.copyfile(tokenizer, part / TOKENIZER)
        write_export(part, checkpoint.source, checkpoint.config, precision, place.name, graphs)


@contextmanager
def new_folder(folder: Path, place: Place, config: PaliGemmaConfig) -> Iterator[Path]:
    """Yield a folder that becomes `folder` when the block ends, and is deleted if it breaks off.

    It holds the config, and a checkpoint's tokenizer, image settings and notes.

    Raises
    ------
    InputError
        If `folder` can't be written, or another process wrote it meanwhile.
    """
    part = folder.with_name(f".{folder.name}.{uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        text = json.dumps(config_to_hf(config), indent=1)
        (part / "config.json").write_text(text + "\n", encoding="utf-8")
        for name in KEPT_FILES:
            if place.file(name).exists():
                shutil.copyfile(place.file(name), part / name)
        yield part
        part.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _key(place: Place) -> str:
    """Key of a checkpoint's files, by their names, sizes and times."""
    files = sorted(place.path.iterdir()) if place.path.is_dir() else [place.path]
    files += [] if place.adapter is None else sorted(place.adapter.iterdir())
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return hashlib.blake2b(repr((facts, __version__)).encode(), digest_size=8).hexdigest()


class Place(NamedTuple):
    """The files of a checkpoint.

    Attributes
    ----------
    path : Path
        Folder or file of the whole model.
    name : str
        For people: the path, or the hub name with its revision.
    adapter : Path, optional
        Folder of an adapter that is merged into it.
    revision : str, optional
        The commit of a hub model, of the adapter if there is one.
    """

    path: Path
    name: str
    adapter: Path | None = None
    revision: str | None = None

    def open(self) -> Checkpoint:
        """Open the checkpoint; see `open_checkpoint`."""
        return open_checkpoint(self.path, self.adapter)

    def file(self, name: str) -> Path:
        """Return a file's path: the adapter's, where it has one of that name.

        The two files of the preprocessing are one: those of base and adapter don't mix.
        """
        folder = self.path if self.path.is_dir() else self.path.parent
        names = PROCESSORS if name in PROCESSORS else (name,)
        if self.adapter is not None and any((self.adapter / each).exists() for each in names):
            return self.adapter / name
        return folder / name

    def text_length(self) -> int | None:
        """Return the text length that the model was trained with; see `text_length`."""
        return text_length(self.path, self.file(NOTES), self.file("tokenizer_config.json"))

    def files(self) -> dict[str, Path]:
        """Return the files that the answers depend on, by name."""
        if self.path.is_dir():
            found = [
                *self.path.glob("*.json"),
                *self.path.glob("*.safetensors"),
                self.path / "onnx" / "export.json",  # has the hashes of the others there
            ]
        else:
            found = [self.path, *(self.path.parent / name for name in (TOKENIZER, NOTES))]
        files = {file.name: file for file in sorted(found) if file.exists()}
        if self.adapter is not None:
            changed = [*self.adapter.glob("*.json"), *self.adapter.glob("*.safetensors")]
            files |= {f"adapter/{file.name}": file for file in sorted(changed)}
        return files


def find(
    folder_or_id: str | os.PathLike[str], revision: str | None = None, base: str | None = None
) -> Place:
    """Find a checkpoint's files; an adapter's base is `base`, or the one that its config names.

    Raises
    ------
    InputError
        For a path or name without a model, and for an adapter without its base.
    """
    path, name = locate(folder_or_id, revision)
    commit = name.rpartition("@")[2] if name != os.fspath(folder_or_id) else None
    if not (path.is_dir() and is_adapter(path)):
        if base is not None:
            raise InputError(f"{name}: is a whole model, not an adapter: leave base out (--base)")
        return Place(path, name, revision=commit)
    config = read_adapter_config(path)
    wanted = base or config.base
    if wanted is None:
        raise InputError(f"{path}: names no base model; name it: base=, --base")
    try:
        whole, base_name = locate(wanted, None if base else config.revision)
    except InputError as error:
        raise InputError(f"{path}: its base model: {error}; another one: base=, --base") from error
    if whole.is_dir() and is_adapter(whole):
        raise InputError(f"{path}: its base {whole} is an adapter itself; merge that one first")
    return Place(whole, f"{name} on {base_name}", path, commit)


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
    from huggingface_hub import errors, snapshot_download  # slow to import

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(
            f"{name}: no such folder, and it can't be downloaded ({reason}). Google's models "
            "need their licence accepted on the model's page and `hf auth login`"
        ) from error
    # The last part of a snapshot's path is the commit.
    return path, f"{name}@{path.name}"


def tokenizer_path(place: Place, given: str | None) -> Path:
    """Return the tokenizer of a checkpoint: the given one, or the one beside the weights."""
    if given is not None:
        return Path(given)
    path = place.file(TOKENIZER)
    if not path.exists():
        raise InputError(
            f"{path.parent}: no {TOKENIZER}; it comes with every PaliGemma on the hub: put it "
            "there or give tokenizer="
        )
    return path


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


def read_notes(file: Path) -> tuple[str, list[str]]:
    """Read the mask codec of a model's codes, by default Google's, and its classes."""
    if not file.exists():
        return GOOGLE_ID, []
    data = read_json(file)
    codes = data.get("codes", GOOGLE_ID) if isinstance(data, dict) else None
    classes = data.get("classes", []) if isinstance(data, dict) else None
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not isinstance(codes, str) or not named:
        raise InputError(f"{file}: 'codes' must name a mask codec, 'classes' be a list of names")
    return codes, classes or []
