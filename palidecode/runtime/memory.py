"""How much memory a model needs, and whether it is there."""

from __future__ import annotations

from pathlib import Path

import torch

from palidecode.errors import InputError
from palidecode.runtime.config import PaliGemmaConfig

_SPARE = 1.15  # of the weights: what loading and activations take beside them
_GROUP_BYTES = 4 / 128  # of int4: a scale and an offset of two bytes for 128 weights


def weight_bytes(config: PaliGemmaConfig, item: int, quantize: str | None = None) -> int:
    """Bytes of a model's weights, at `item` bytes per number where not quantised."""
    embedding = config.text.vocabulary * config.text.width
    each = {None: float(item), "int8": 1.0, "int4": 0.5 + _GROUP_BYTES}[quantize]
    head = embedding if quantize else 0  # int8, beside the embedding
    return int(embedding * item + head + (config.parameters() - embedding) * each)


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where it can't be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        # A container's own limit, where it has one.
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(map(str.split, (group / "memory.stat").read_text("ascii").splitlines()))
        if limit.isdigit():
            # Files that were read stay in memory and count as used until it is needed.
            files = int(stat["active_file"]) + int(stat["inactive_file"])
            found.append(int(limit) - used + files)
    except (OSError, ValueError, KeyError):
        pass  # no Linux, or no limit: what was found so far counts
    return min(found, default=None)


def check_memory(
    config: PaliGemmaConfig, dtype: torch.dtype, device: torch.device, quantize: str | None
) -> None:
    """Refuse a model that won't fit, before anything is allocated.

    Raises
    ------
    InputError
        With what is needed and what is free.
    """
    need = int(weight_bytes(config, dtype.itemsize, quantize) * _SPARE)
    free = free_bytes(device)
    if free is not None and need > free:
        raise InputError(
            f"this model needs {need / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')}"
            f"{f' with {quantize}' if quantize else ''}, {free / 1e9:.1f} GB are free on "
            f"{device}: choose a smaller model, bfloat16, or quantize='int8' or 'int4'"
        )
