"""The mask codec through onnxruntime; torch is not needed."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from palidecode.codec.protocol import check_codes, check_masks
from palidecode.codec.weights import CODEBOOK, Arrays, CodecWeights
from palidecode.cores import cores
from palidecode.errors import WeightsError
from palidecode.vocab import MASK_SIDE, SEG_GRID, SEG_PER_MASK

_CHUNK = 32  # activations of more than this leave the cache


class OnnxCodec:
    """Encode and decode with onnxruntime, in chunks of 32.

    Parameters
    ----------
    weights : CodecWeights
        Either half starts its session when it is first used.
    threads : int, optional
        By default as many as there are cores that this process may use.
    """

    def __init__(self, weights: CodecWeights, threads: int | None = None) -> None:
        self.id = weights.id
        # Left to itself onnxruntime takes all cores there are, whatever this process may use.
        self._threads = threads or cores()
        self._arrays = weights.arrays
        self._decoder: Any = None
        self._encoder: Any = None

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Codes (N, 16) to fields (N, 64, 64) float32; see `MaskCodec.decode`."""
        grid = check_codes(codes).reshape(-1, SEG_GRID, SEG_GRID)
        fields = np.empty((len(grid), MASK_SIDE, MASK_SIDE), np.float32)
        if len(grid) and self._decoder is None:
            self._decoder = _session("decoder", decoder_weights(self._arrays), self._threads)
        for start in range(0, len(grid), _CHUNK):
            part = slice(start, start + _CHUNK)
            fields[part] = self._decoder.run(None, {"codes": grid[part]})[0]
        return fields

    def encode(self, masks: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Masks (N, 64, 64) in [0, 1] to codes (N, 16) uint8; see `MaskCodec.encode`."""
        checked = check_masks(masks)
        codes = np.empty((len(checked), SEG_PER_MASK), np.uint8)
        if len(checked) and self._encoder is None:
            self._encoder = _session("encoder", encoder_weights(self._arrays), self._threads)
        for start in range(0, len(checked), _CHUNK):
            part = slice(start, start + _CHUNK)
            codes[part] = self._encoder.run(None, {"masks": checked[part]})[0]
        return codes


def fold_codebook(arrays: Arrays) -> npt.NDArray[np.float32]:
    """The first 1×1 convolution and its ReLU for each of the 128 rows: a (128, 128) table."""
    kernel = arrays["decoder.0.weight"][:, :, 0, 0].astype(np.float64)
    table = arrays[CODEBOOK].astype(np.float64) @ kernel.T + arrays["decoder.0.bias"]
    return np.maximum(table, 0).astype(np.float32)


def decoder_weights(arrays: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """What the decoder's graph asks for."""
    given = {"table": fold_codebook(arrays)}
    for name, array in arrays.items():
        if name.startswith(("decoder.2.", "decoder.3.")):
            given[name] = array
    for layer in (4, 6, 8, 10):
        weight, bias = phases(arrays[f"decoder.{layer}.weight"], arrays[f"decoder.{layer}.bias"])
        given[f"decoder.{layer}.phases.weight"] = weight
        given[f"decoder.{layer}.phases.bias"] = bias
    last = arrays["decoder.12.weight"][:, :, 0, 0]
    given["decoder.12.phases.weight"] = np.kron(np.eye(4, dtype=np.float32), last)[:, :, None, None]
    given["decoder.12.phases.bias"] = np.repeat(arrays["decoder.12.bias"], 4)
    return given


def phases(
    weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """A transposed convolution (kernel 4, stride 2, padding 1) as a 2×2 convolution, exactly.

    Output row 2m takes input rows m − 1 and m by taps 3 and 1, row 2m + 1 takes rows m and
    m + 1 by taps 2 and 0. Padded by one pixel, the odd row comes out at place m + 1, so it is
    the first of its pair there, and the image begins one pixel late.

    Returns
    -------
    ndarray of float32, shape (4 · outer, inner, 2, 2), and its bias (4 · outer,)
        The four phases (odd or even row, odd or even column), each with all its channels.
    """
    taps = ([2, 0], [3, 1])
    parts = [weight[:, :, rows][:, :, :, columns] for rows in taps for columns in taps]
    stacked = np.concatenate([part.transpose(1, 0, 2, 3) for part in parts])
    return np.ascontiguousarray(stacked), np.tile(bias, 4)


def encoder_weights(arrays: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """What the encoder's graph asks for; |z|² is left out, it changes no order."""
    rows = arrays[CODEBOOK]
    given = {name: array for name, array in arrays.items() if name.startswith("encoder.")}
    return {**given, "rows": np.ascontiguousarray(-2 * rows.T), "row_norms": (rows**2).sum(1)}


def _session(graph: str, weights: dict[str, npt.NDArray[np.float32]], threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    model = resources.files("palidecode.codec").joinpath(f"{graph}.onnx").read_bytes()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base but this
        raise WeightsError(f"onnxruntime can't start the {graph}: {error}") from error
