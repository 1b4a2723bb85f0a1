"""Open a checkpoint, a folder or a file, without reading its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from palidecode.errors import InputError
from palidecode.files import read_json
from palidecode.runtime.big_vision import BigVisionNpz
from palidecode.runtime.config import PaliGemmaConfig, read_config, read_ends
from palidecode.runtime.exported import Export, read_export
from palidecode.runtime.image import ImageConfig, read_image_config
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


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder of transformers or of ``export``, or a big_vision ``.npz``."""
    if path.is_dir():
        _refuse_adapter(path)
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


def _refuse_adapter(folder: Path) -> None:
    """Refuse an adapter, alone or beside base weights: without it the answers are the base's."""
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    data = read_json(path)
    base = data.get("base_model_name_or_path") if isinstance(data, dict) else None
    way_out = (
        "merge it into its base and load the result (peft: PeftModel.from_pretrained(base, "
        "folder).merge_and_unload().save_pretrained(merged))"
    )
    if (folder / "config.json").exists():
        raise InputError(
            f"{folder}: an adapter (adapter_config.json) is beside base weights, which would be "
            f"loaded without it: {way_out}, or move the adapter's files elsewhere"
        )
    raise InputError(f"{folder}: is an adapter of {base or 'an unnamed base model'}: {way_out}")
