"""Open a checkpoint, a folder or a file, without reading its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from palidecode.errors import InputError
from palidecode.runtime.adapters import AdaptedSource
from palidecode.runtime.big_vision import BigVisionNpz
from palidecode.runtime.config import PaliGemmaConfig, read_config, read_ends
from palidecode.runtime.exported import Export, read_export
from palidecode.runtime.image import PROCESSORS, ImageConfig, read_image_config
from palidecode.runtime.onnx_weights import HEAD
from palidecode.runtime.weights import SafetensorsFolder, Source


class Checkpoint(NamedTuple):
    """A checkpoint on disk, whose tensors aren't read yet.

    Attributes
    ----------
    source : Source, optional
        None for an exported folder that has only the graphs' weights.
    config : PaliGemmaConfig
    image_config : ImageConfig
    export : Export, optional
        The graphs of an exported folder.
    """

    source: Source | None
    config: PaliGemmaConfig
    image_config: ImageConfig
    export: Export | None = None


def open_checkpoint(path: Path, adapter: Path | None = None) -> Checkpoint:
    """Open a folder of transformers or of ``export``, or a big_vision ``.npz``.

    `adapter` is the folder of an adapter that is merged into it.
    """
    checkpoint = _open_base(path)
    return checkpoint if adapter is None else adapted(checkpoint, path, adapter)


def adapted(base: Checkpoint, path: Path, adapter: Path) -> Checkpoint:
    """Merge an adapter into a checkpoint, tensor by tensor when they are read.

    Pictures are prepared as for the adapter, where its folder says how.
    """
    if base.source is None:
        raise InputError(
            f"{path}: is an export without the model's own weights, so {adapter} can't be merged "
            "into it: name the model that it was made from"
        )
    source = AdaptedSource(base.source, base.config.text.tied_head, adapter)
    text = replace(base.config.text, tied_head=source.tied_head)
    config, image_config = replace(base.config, text=text), base.image_config
    if any((adapter / name).exists() for name in PROCESSORS):
        image_config = read_image_config(adapter, config)
    return base._replace(source=source, config=config, image_config=image_config)


def _open_base(path: Path) -> Checkpoint:
    if path.is_dir():
        config = read_config(path / "config.json")
        export = read_export(path)
        source = None
        if export is None or export.weights is None:
            source = SafetensorsFolder(path)
            tied = source.tied_head
        else:
            tied = not any(name.startswith(f"{HEAD}.") for name in export.weights)
        config = replace(
            config,
            text=replace(config.text, tied_head=tied),
            eos=tuple(dict.fromkeys((*config.eos, *read_ends(path)))),
        )
        return Checkpoint(source, config, read_image_config(path, config), export)
    if path.suffix != ".npz":
        raise InputError(f"{path}: give a folder with config.json, or a big_vision .npz")
    arrays = BigVisionNpz(path)
    return Checkpoint(arrays, arrays.config, ImageConfig(arrays.config.vision.image_size))
