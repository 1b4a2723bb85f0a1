"""Weights of the mask decoder in 8 bits.

Activations are unsigned 8 bit integers and weights signed ones, so a product of pairs must fit
16 bits: processors without VNNI instructions saturate there. Weights are scaled so that it fits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palidecode.codec.weights import Arrays

BLOCKS, UPSAMPLING = ("decoder.2", "decoder.3"), (4, 6, 8, 10)
NAMES = (
    *(f"{block}{part}" for block in BLOCKS for part in (".net.0", ".net.2", "")),
    *(f"decoder.{layer}" for layer in UPSAMPLING),
)
"""The activations in the order of ``ranges.onnx``."""
CALIBRATION = 32  # random grids of codes
# Real masks reach further in the residual blocks than random codes do.
_ROOM = {name: 1.5 if ".net." in name else 1.25 for name in NAMES[:6]}
_PAIR = 128  # 255 × 128 < 2¹⁵

Int8Weights = dict[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float64]


def calibration_codes() -> npt.NDArray[np.int64]:
    """Return codes (N, 4, 4) whose activations give the ranges: all 128 codes, shuffled."""
    # Random codes have the ranges of drawn masks, and need no encoder.
    rng = np.random.Generator(np.random.PCG64(0))
    return rng.permuted(np.arange(CALIBRATION * 16) % 128).reshape(-1, 4, 4)


def int8_weights(given: Arrays, ranges: npt.NDArray[np.float32]) -> Int8Weights:
    """Build the weights of the graph in 8 bits.

    Parameters
    ----------
    given : mapping of str to ndarray
        The weights of the graph in float32: `onnx.decoder_weights`.
    ranges : ndarray of float32, shape (20,)
        Least and greatest value of each of `NAMES`.
    """
    table = given["table"]
    scales: dict[str, tuple[float, int]] = {"table": _activation(0.0, float(table.max()))}
    for name, (low, high) in zip(NAMES, ranges.reshape(-1, 2).tolist(), strict=True):
        room = _ROOM.get(name, 1.0)
        scales[name] = _activation(low * room, high * room)
    made: Int8Weights = {"table": table, "zero": np.zeros((), np.int8)}
    made["table.int8"] = np.clip(np.rint(table / scales["table"][0]), 0, 255).astype(np.uint8)
    for name, (scale, zero) in scales.items():
        made[f"{name}.scale"] = np.asarray(scale, np.float32)
        made[f"{name}.zero"] = np.asarray(zero, np.uint8)
    before = "table"
    for block in BLOCKS:
        for layer in (f"{block}.net.0", f"{block}.net.2"):
            kernel, bias = given[f"{layer}.weight"], given[f"{layer}.bias"]
            made |= _convolution(layer, kernel, bias, scales[before][0])
            before = layer
        last = f"{block}.net.4"
        made |= _product(last, given[f"{last}.weight"], scales[before][0])
        made[f"{last}.bias"] = given[f"{last}.bias"]
        before = block
    for number in UPSAMPLING:
        layer = f"decoder.{number}"
        kernel, bias = given[f"{layer}.phases.weight"], given[f"{layer}.phases.bias"]
        made |= _convolution(layer, kernel, bias, scales[before][0])
        before = layer
    made |= _product("decoder.12", given["decoder.12.phases.weight"], scales[before][0])
    return made | {"decoder.12.bias": given["decoder.12.phases.bias"][:1]}


def _activation(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point; the last bits of `low` and `high` don't matter, machines differ."""
    low = min(low, 0.0)
    mantissa, exponent = np.frexp(max(high - low, 1e-6) / 255)
    scale = float(np.ldexp(np.ceil(mantissa * 256) / 256, exponent))
    return scale, int(np.rint(-low / scale))


def _rounded(kernel: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Round a kernel (outer, inner, …) to 8 bits; return it and the step of each output."""
    pairs = np.moveaxis(kernel, 1, -1).reshape(len(kernel), -1, 2)
    sums = np.maximum(np.maximum(pairs, 0).sum(-1), np.maximum(-pairs, 0).sum(-1)).max(1)
    # Rounding both weights of a pair adds at most one step.
    steps = np.maximum(sums / (_PAIR - 1), abs(pairs).max((1, 2)) / 127)
    steps = np.where(steps > 0, steps, 1.0)
    shape = (-1, *[1] * (kernel.ndim - 1))
    return np.rint(kernel / steps.reshape(shape)).astype(np.int8), steps


def _convolution(
    layer: str, kernel: npt.NDArray[np.float32], bias: npt.NDArray[np.float32], scale: float
) -> Int8Weights:
    whole, steps = _rounded(kernel.astype(np.float64))
    offsets = np.clip(np.rint(bias / (steps * scale)), -(2**31), 2**31 - 1)
    return {
        f"{layer}.weight.int8": whole,
        f"{layer}.weight.scale": steps.astype(np.float32),
        f"{layer}.bias.int32": offsets.astype(np.int32),
    }


def _product(layer: str, kernel: npt.NDArray[np.float32], scale: float) -> Int8Weights:
    """Weights (outer, inner, 1, 1) of a convolution that is a matrix product."""
    whole, steps = _rounded(kernel.astype(np.float64))
    return {
        f"{layer}.weight.int8": np.ascontiguousarray(whole[:, :, 0, 0].T),
        f"{layer}.scale": (steps * scale).astype(np.float32),
    }
