"""Folders with ONNX graphs: written by `write_export`, read without torch and without ``onnx``.

Such a folder is like any other, with a subfolder ``onnx``: the graphs, ``weights.safetensors``
with the arrays that they name, and ``export.json`` (precision, hashes, what it was made from).
Without ``weights.safetensors`` the arrays are made of the folder's own weights on loading.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError, WeightsError
from palidecode.files import read_json
from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.onnx_weights import BITS, Array, Precision, onnx_weights
from palidecode.runtime.weights import Source, parts
from palidecode.version import __version__

FOLDER, MANIFEST, WEIGHTS = "onnx", "export.json", "weights.safetensors"
GRAPHS = ("vision", "decoder", "head")
GRAPHS_VERSION = 2
"""Version of the graphs' inputs and outputs: an export of another one can't be run."""
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}
_PAGE = 4096
_ENTRY = 200  # bytes of an array's entry in the header, at most
_LARGEST_HEADER = 1 << 26


@dataclass(frozen=True)
class Export:
    """An exported model on disk.

    Attributes
    ----------
    precision : {"float32", "int8", "int4"}
    graphs : dict of str to bytes
    weights : dict of str to ndarray, optional
        The arrays that the graphs name, mapped; None if they are made when the model is loaded.
    """

    precision: Precision
    graphs: dict[str, bytes]
    weights: dict[str, Array] | None


def read_export(folder: Path) -> Export | None:
    """Read the graphs of a folder and map their weights; None for a folder without any.

    Raises
    ------
    InputError, WeightsError
        If a file is missing or damaged.
    """
    inner = folder / FOLDER
    if not (inner / MANIFEST).exists():
        return None
    data = read_json(inner / MANIFEST)
    precision = data.get("precision") if isinstance(data, dict) else None
    if not isinstance(precision, str) or precision not in BITS:
        raise InputError(f"{inner / MANIFEST}: precision must be one of {', '.join(BITS)}")
    if data.get("graphs") != GRAPHS_VERSION:
        raise InputError(
            f"{inner}: was exported by another version of palidecode; export the model again"
        )
    try:
        graphs = {name: (inner / f"{name}.onnx").read_bytes() for name in GRAPHS}
    except OSError as error:
        raise WeightsError(f"{error.filename}: {error.strerror}; export the model again") from error
    path = inner / WEIGHTS
    return Export(precision, graphs, map_arrays(path) if path.exists() else None)


def write_export(
    folder: Path,
    source: Source,
    config: PaliGemmaConfig,
    precision: Precision,
    made_from: str,
    graphs: Mapping[str, bytes],
) -> None:
    """Write the subfolder ``onnx`` of an exported model, one array at a time.

    Raises
    ------
    WeightsError
        If the source doesn't fit the config.
    """
    inner = folder / FOLDER
    inner.mkdir(parents=True)
    for name, graph in graphs.items():
        (inner / f"{name}.onnx").write_bytes(graph)
    _write_arrays(inner / WEIGHTS, onnx_weights(source, config, precision), 3 * len(parts(config)))
    files = [f"{name}.onnx" for name in graphs] + [WEIGHTS]
    manifest = {
        "precision": precision,
        "graphs": GRAPHS_VERSION,
        "made_from": made_from,
        "palidecode": __version__,
        "sha256": {name: _sha256(inner / name) for name in files},
    }
    (inner / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _write_arrays(path: Path, arrays: Iterable[tuple[str, Array]], count: int) -> None:
    """Write a safetensors file of at most `count` arrays while they are made.

    The header comes first in the file and is known last, so space for it is left free. Zero
    points, whose sizes may be odd, follow the others, which stay aligned.
    """
    room = -(-(8 + count * _ENTRY) // _PAGE) * _PAGE
    entries: dict[str, object] = {}
    with path.open("wb") as file:
        file.seek(room)
        odd: list[tuple[str, Array]] = []
        for name, array in arrays:
            if name.endswith(".zeros"):
                odd.append((name, array))
            else:
                entries[name] = _write_array(file, array, room)
        for name, array in odd:
            entries[name] = _write_array(file, array, room)
        header = json.dumps(entries, separators=(",", ":")).encode()
        if len(header) > room - 8:
            raise AssertionError(f"the header takes {len(header)} bytes of {room - 8}")
        file.seek(0)
        file.write((room - 8).to_bytes(8, "little") + header.ljust(room - 8))
        os.fsync(file.fileno())


def _write_array(file: BinaryIO, array: Array, room: int) -> dict[str, object]:
    """Write an array; return its entry in the header."""
    start = file.tell() - room
    file.write(np.ascontiguousarray(array).data)
    kind = {dtype: name for name, dtype in _DTYPES.items()}[array.dtype]
    return {"dtype": kind, "shape": array.shape, "data_offsets": [start, file.tell() - room]}


def map_arrays(path: Path) -> dict[str, Array]:
    """Map the arrays of a safetensors file, without reading them.

    Raises
    ------
    WeightsError
        If the file is cut short or damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError("its header is too long")
            entries = json.loads(file.read(length))
        mapped = np.memmap(path, np.uint8, "r", 8 + length)
        return {name: _array(mapped, entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path}: cut short or damaged ({error}); export the model again"
        ) from error


def _array(mapped: npt.NDArray[np.uint8], entry: Mapping[str, Any]) -> Array:
    start, end = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if not 0 <= start <= end <= len(mapped) or end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array lies outside of it")
    return mapped[start:end].view(np.ndarray).view(dtype).reshape(shape)
