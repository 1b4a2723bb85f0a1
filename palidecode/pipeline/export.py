"""Export a checkpoint to a folder that runs without torch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal, NamedTuple

from palidecode.errors import InputError
from palidecode.pipeline.checkpoint import find, tokenizer_path, write_exported
from palidecode.runtime.onnx_weights import Precision
from palidecode.runtime.tokenizer import Tokenizer

PRECISIONS: dict[str, Precision] = {"none": "float32", "int8": "int8", "int4": "int4"}


class Exported(NamedTuple):
    """An exported folder: its precision, its size in bytes, and the seconds that it took."""

    folder: Path
    precision: str
    bytes: int
    seconds: float


def export(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    quantize: Literal["none", "int8", "int4"] = "none",
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    base: str | None = None,
) -> Exported:
    """Write a model as ONNX graphs and their weights, with all that belongs to it.

    The folder loads like any other, with ``PaliDecoder.from_pretrained`` and ``--model``, on a CPU
    and without torch. Weights are read from mapped files and written one at a time.

    Parameters
    ----------
    model : str or path
        See `PaliDecoder.from_pretrained`.
    folder : str or path
        A new folder.
    quantize : {"none", "int8", "int4"}
        "none" is float32. int8: blocks of 128 weights share a scale, of 64 in matrices of fewer
        than 1,024 columns. int4: the decoder's layers in 4 bits, vision tower, embedding and
        head in 8.
    tokenizer : str or path, optional
        A ``tokenizer.json``; by default the checkpoint's own.
    revision : str, optional
        Branch, tag or commit of a hub model.
    base : str, optional
        Base model of an adapter; by default the one that its config names.

    Raises
    ------
    InputError
        If the folder exists or can't be written, or ``onnx`` isn't installed.
    WeightsError
        For weights that are missing, damaged or of other shapes.
    """
    if quantize not in PRECISIONS:
        raise InputError(f"quantize must be one of {', '.join(PRECISIONS)}, got {quantize!r}")
    target, start = Path(folder), time.perf_counter()
    if target.exists():
        raise InputError(f"{target} exists; name a new folder")
    place, precision = find(model, revision, base), PRECISIONS[quantize]
    checkpoint = place.open()
    words = tokenizer_path(place, None if tokenizer is None else os.fspath(tokenizer))
    Tokenizer.from_file(words, checkpoint.config.eos)  # refuses one that can't be used
    write_exported(checkpoint, place, target, precision, words)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return Exported(target, precision, size, time.perf_counter() - start)
