"""The weights that the ONNX graphs name, made of a checkpoint's arrays one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.quantizing import Quantized, quantize
from palidecode.runtime.weights import Part, Source, check_names, parts, read_part

Precision: TypeAlias = Literal["float32", "int8", "int4"]
Array: TypeAlias = npt.NDArray[Any]

BITS: dict[Precision, int | None] = {"float32": None, "int8": 8, "int4": 4}
EMBEDDING, HEAD = "language.embed", "language.head"
_TABLES = {"language.embed.weight": EMBEDDING, "language.own_head": HEAD}


def onnx_weights(
    source: Source,
    config: PaliGemmaConfig,
    precision: Precision,
    only: frozenset[str] | None = None,
) -> Iterator[tuple[str, Array]]:
    """Make the arrays that the graphs name, in order, or those that tensors of `only` are in.

    A quantised weight is three arrays, see `Quantized`. The embedding is a table (vocabulary,
    width), or quantised to 8 bits; the head has a table of its own only if it isn't tied.

    Raises
    ------
    WeightsError
        If the source doesn't fit the config.
    """
    wanted = parts(config)
    check_names(source, wanted)
    bits = BITS[precision]
    for name, part in wanted.items():
        if only is not None and not only.intersection(part.names):
            continue
        path, _, parameter = name.rpartition(".")
        if name in _TABLES:
            yield from _stored(source, part, _TABLES[name], 8 if bits else None)
        elif parameter == "weight" and len(part.shape) == 2:
            coarse = path.startswith("language")
            finer = 8 if bits == 4 and not coarse else bits
            yield from _stored(source, part, path, finer, turned=True)
        else:
            # Gemma's norms multiply by 1 + weight.
            gemma = path.startswith("language") and len(part.shape) == 1
            array = read_part(source, part)
            yield name, array + 1 if gemma else array


def _stored(
    source: Source, part: Part, path: str, bits: int | None, *, turned: bool = False
) -> Iterator[tuple[str, Array]]:
    if bits is None:
        array = read_part(source, part)
        yield f"{path}.weight", np.ascontiguousarray(array.T) if turned else array
        return
    yield from named(quantize([source.read(name) for name in part.names], bits), path)


def named(weight: Quantized, path: str) -> Iterator[tuple[str, Array]]:
    """Name the arrays of a quantised weight."""
    yield f"{path}.levels", weight.levels
    yield f"{path}.scales", weight.scales
    if weight.zeros is not None:
        yield f"{path}.zeros", weight.zeros
