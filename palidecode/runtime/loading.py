"""Load a model from a folder or a file onto a device; importing it loads torch."""

from __future__ import annotations

from pathlib import Path

import torch

from palidecode.errors import InputError
from palidecode.runtime.big_vision import BigVisionNpz
from palidecode.runtime.config import PaliGemmaConfig, read_config
from palidecode.runtime.image import ImageConfig, read_image_config
from palidecode.runtime.linear import Quantize, finisher
from palidecode.runtime.memory import check_memory
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.weights import SafetensorsFolder, Source, load_weights


def open_checkpoint(path: Path) -> tuple[Source, PaliGemmaConfig, ImageConfig]:
    """Open a transformers folder or a big_vision ``.npz`` without reading its tensors.

    Raises
    ------
    InputError, WeightsError
        If it is neither, or damaged.
    """
    if path.is_dir():
        config = read_config(path / "config.json")
        return SafetensorsFolder(path), config, read_image_config(path, config)
    if path.suffix != ".npz":
        raise InputError(f"{path}: give a folder with config.json, or a big_vision .npz")
    source = BigVisionNpz(path)
    return source, source.config, ImageConfig(source.config.vision.image_size)


def load_model(
    source: Source,
    config: PaliGemmaConfig,
    dtype: str,
    device: torch.device,
    quantize: Quantize | None,
) -> PaliGemma:
    """Load a checkpoint's tensors; `dtype` is the name of a torch dtype.

    Raises
    ------
    InputError, WeightsError
        If memory is too small, `quantize` doesn't fit the device, or tensors are missing.
    """
    kind: torch.dtype = getattr(torch, dtype)
    finish = finisher(kind, device, quantize)
    check_memory(config, kind, device, quantize)
    return load_weights(source, config, kind, device, finish)


def find_device(name: str | None) -> torch.device:
    """Return a torch device that works; by default the first available of cuda, mps and cpu.

    Raises
    ------
    InputError
        If it is unknown or not available.
    """
    if name is None:
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: cpu, cuda, cuda:1, mps …") from error
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # The first line has the reason; the others are for developers of torch.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"device {name!r} is not available ({reason}); use 'cpu'") from error
    return device
