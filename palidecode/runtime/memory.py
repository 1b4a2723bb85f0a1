"""Estimate a model's memory and compare it with what is free."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from palidecode.errors import InputError
from palidecode.runtime.config import PaliGemmaConfig

if TYPE_CHECKING:
    import torch

_OVERHEAD = 1.15  # weights plus what loading and activations need


def weight_bytes(config: PaliGemmaConfig, item: int, quantize: str | None = None) -> int:
    """Bytes of a torch model's weights; those that aren't in int8 take `item` bytes each."""
    if quantize is None:
        return item * config.parameters()
    embedding = config.text.vocabulary * config.text.width
    return embedding * item + config.parameters()  # the head is an int8 copy of the embedding


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None if unknown."""
    if device.type == "cuda":
        import torch  # memory of the CPU needs none

        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes() if device.type == "cpu" else None


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that was in use on a GPU, or by this process; 0 if unknown."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """Free main memory, within the container's limit; None if unknown."""
    free = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
        # The container's limit, if it has one.
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(map(str.split, (group / "memory.stat").read_text("ascii").splitlines()))
        if limit.isdigit():
            # Cached files count as used, but the kernel frees them when memory is needed.
            cached = int(stat["active_file"]) + int(stat["inactive_file"])
            free.append(int(limit) - used + cached)
    except (OSError, ValueError, KeyError):
        pass  # not Linux, or no limit
    return min(free, default=None)


def check_memory(
    config: PaliGemmaConfig, dtype: torch.dtype, device: torch.device, quantize: str | None
) -> None:
    """Refuse a model that won't fit in memory, before anything is allocated."""
    kind = str(dtype).removeprefix("torch.") + (f" with {quantize}" if quantize else "")
    need = weight_bytes(config, dtype.itemsize, quantize)
    way_out = "choose a smaller model, bfloat16, or quantize='int8' or 'int4'"
    refuse_if_larger(need, kind, free_bytes(device), str(device), way_out)


def refuse_if_larger(weights: int, kind: str, free: int | None, device: str, way_out: str) -> None:
    """Refuse a model whose weights, and what loading needs beside them, exceed the free bytes."""
    need = int(weights * _OVERHEAD)
    if free is not None and need > free:
        raise InputError(
            f"this model needs {need / 1e9:.1f} GB in {kind}, {free / 1e9:.1f} GB are free on "
            f"{device}: {way_out}"
        )
