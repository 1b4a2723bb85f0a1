"""Weights in blocks of 8 or 4 bits, as ONNX Runtime's ``MatMulNBits`` reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palidecode.runtime.weights import Stored, to_float32

_BLOCK, _NARROW_BLOCK, _NARROW = 128, 64, 1024
_ROWS = 8192  # rows that are quantised together
_SMALLEST = 1e-12


def block_size(width: int) -> int:
    """Return the number of a row's weights that share a scale: 128, or 64 in narrow matrices.

    Small models have narrow matrices, and lose more by large blocks than wide ones.
    """
    return _NARROW_BLOCK if width < _NARROW else _BLOCK


@dataclass(frozen=True)
class Quantized:
    """A weight (N, K) in blocks, see `block_size`: ``scale · (level − zero)``.

    Attributes
    ----------
    bits : {8, 4}
    levels : ndarray of uint8, shape (N, blocks, block · bits / 8)
        Two levels of 4 bits are one byte, the first in its lower half.
    scales : ndarray of float32, shape (N, blocks)
    zeros : ndarray of uint8, shape (N, ⌈blocks · bits / 8⌉), or None
        Zero points, packed as the levels; None where all are the middle, 2^(bits − 1).
    """

    bits: int
    levels: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.uint8] | None

    def rows(self, index: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.float32]:
        """Dequantise rows of the weight, (R, width)."""
        levels = _unpack(self.levels[index], self.bits).astype(np.float32)
        zeros: npt.NDArray[np.float32] | float = 2.0 ** (self.bits - 1)
        if self.zeros is not None:
            blocks = self.scales.shape[1]
            zeros = _unpack(self.zeros[index], self.bits)[:, :blocks, None].astype(np.float32)
        values = (levels - zeros) * self.scales[index][:, :, None]
        return np.ascontiguousarray(values.reshape(len(index), -1)[:, :width])


def quantize(parts: list[Stored], bits: int) -> Quantized:
    """Quantise stored arrays (…, K), joined along their rows, a few thousand rows at a time.

    8 bits: symmetric, the largest weight of a block is ±127. 4 bits: from the smallest to the
    largest weight of a block, 0 included.
    """
    flat = [part.reshape(len(part), -1) for part in parts]
    count, width = sum(map(len, flat)), flat[0].shape[1]
    block = block_size(width)
    blocks = -(-width // block)
    levels = np.empty((count, blocks, block * bits // 8), np.uint8)
    scales = np.empty((count, blocks), np.float32)
    zeros = None if bits == 8 else np.empty((count, -(-blocks // 2)), np.uint8)
    start = 0
    for part in flat:
        for first in range(0, len(part), _ROWS):
            rows = to_float32(part[first : first + _ROWS])
            out = slice(start, start + len(rows))
            padded = np.zeros((len(rows), blocks * block), np.float32)
            padded[:, :width] = rows
            grouped = padded.reshape(len(rows), blocks, block)
            if zeros is None:
                levels[out], scales[out] = _symmetric(grouped)
            else:
                levels[out], scales[out], zeros[out] = _from_low_to_high(grouped)
            start += len(rows)
    return Quantized(bits, levels, scales, zeros)


def _symmetric(
    grouped: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    scales = np.maximum(np.abs(grouped).max(2) / 127, _SMALLEST)
    return np.rint(grouped / scales[:, :, None] + 128).astype(np.uint8), scales


def _from_low_to_high(
    grouped: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    low, high = np.minimum(grouped.min(2), 0), np.maximum(grouped.max(2), 0)
    scales = np.maximum((high - low) / 15, _SMALLEST)
    zeros = np.rint(-low / scales).clip(0, 15)
    levels = np.rint(grouped / scales[:, :, None] + zeros[:, :, None]).clip(0, 15)
    return _pack(levels), scales, _pack(zeros)


def _pack(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Pack 4-bit values along the last axis, padded to an even number."""
    levels = values.astype(np.uint8)
    if levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=-1)
    packed: npt.NDArray[np.uint8] = levels[..., ::2] | (levels[..., 1::2] << np.uint8(4))
    return packed


def _unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Undo `_pack`; values of 8 bits stay as they are."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
