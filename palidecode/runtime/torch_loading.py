"""Load a checkpoint's tensors onto a device; importing it loads torch."""

from __future__ import annotations

import torch

from palidecode.errors import InputError
from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.linear import finisher
from palidecode.runtime.memory import check_memory
from palidecode.runtime.options import Quantize
from palidecode.runtime.torch_engine import TorchEngine
from palidecode.runtime.torch_weights import load_weights
from palidecode.runtime.weights import Source


def load_model(
    source: Source,
    config: PaliGemmaConfig,
    dtype: str,
    device: torch.device,
    quantize: Quantize | None,
    threads: int | None = None,
) -> TorchEngine:
    """Load a checkpoint's tensors; `dtype` is the name of a torch dtype."""
    if threads is not None:
        torch.set_num_threads(threads)
    kind: torch.dtype = getattr(torch, dtype)
    finish = finisher(kind, device, quantize)
    check_memory(config, kind, device, quantize)
    return TorchEngine(load_weights(source, config, kind, device, finish), quantize)


def find_device(name: str | None) -> torch.device:
    """Return a torch device that works; by default the first available of cuda, mps and cpu."""
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
