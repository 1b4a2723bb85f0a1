"""The mask codec in onnxruntime; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from palidecode.codec.int8 import calibration_codes, int8_weights
from palidecode.codec.protocol import check_codes, check_masks
from palidecode.codec.weights import CODEBOOK, Arrays, CodecWeights
from palidecode.cores import cores
from palidecode.errors import WeightsError
from palidecode.vocab import MASK_SIDE, SEG_GRID, SEG_PER_MASK

if TYPE_CHECKING:
    import onnxruntime

Scalar = TypeVar("Scalar", np.float32, np.uint8)
_Graph = Literal["decoder", "encoder", "int8", "ranges"]

_CHUNK = 32  # the activations of more masks don't fit in the cache


class OnnxCodec:
    """Encodes and decodes with onnxruntime, in chunks of 32; sessions start on first use.

    Parameters
    ----------
    weights : CodecWeights
    threads : int, optional
    int8 : bool
        Decode in 8 bits. Encoding stays in float32, as rounding a latent can change its code.
    """

    def __init__(
        self, weights: CodecWeights, threads: int | None = None, *, int8: bool = False
    ) -> None:
        self.id = weights.id
        self._decoder: Literal["decoder", "int8"] = "int8" if int8 else "decoder"
        # By itself onnxruntime uses all cores of the machine, even if this process may not.
        self._threads = threads or cores()
        self._arrays = weights.arrays
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Decode codes (N, 16) to fields (N, 64, 64) float32; see `MaskCodec.decode`."""
        grid = check_codes(codes).reshape(-1, SEG_GRID, SEG_GRID)
        fields = np.empty((len(grid), MASK_SIDE, MASK_SIDE), np.float32)
        return self._run(self._decoder, "codes", grid, fields)

    def encode(self, masks: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Encode masks (N, 64, 64) in [0, 1] as codes (N, 16) uint8; see `MaskCodec.encode`."""
        checked = check_masks(masks)
        codes = np.empty((len(checked), SEG_PER_MASK), np.uint8)
        return self._run("encoder", "masks", checked, codes)

    def _run(
        self,
        graph: _Graph,
        name: str,
        inputs: npt.NDArray[np.generic],
        out: npt.NDArray[Scalar],
    ) -> npt.NDArray[Scalar]:
        if len(inputs) and graph not in self._sessions:
            self._sessions[graph] = _session(graph, self._arrays, self._threads)
        for start in range(0, len(inputs), _CHUNK):
            part = slice(start, start + _CHUNK)
            out[part] = self._sessions[graph].run(None, {name: inputs[part]})[0]
        return out


def fold_codebook(arrays: Arrays) -> npt.NDArray[np.float32]:
    """Apply the first 1×1 convolution and its ReLU to the 128 rows: a (128, 128) table."""
    kernel = arrays["decoder.0.weight"][:, :, 0, 0].astype(np.float64)
    table = arrays[CODEBOOK].astype(np.float64) @ kernel.T + arrays["decoder.0.bias"]
    return np.maximum(table, 0).astype(np.float32)


def decoder_weights(arrays: Arrays) -> Arrays:
    """Build the weights of the decoder's graph."""
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
    """Rewrite a transposed convolution (kernel 4, stride 2, padding 1) as a 2×2 convolution.

    The result is exact. Output row 2m takes input rows m − 1 and m by taps 3 and 1, row 2m + 1
    takes rows m and m + 1 by taps 2 and 0. With one pixel of padding the odd row comes out at
    index m + 1, where it is the first of its pair, and the image begins one pixel late.

    Returns
    -------
    ndarray of float32, shape (4 · outer, inner, 2, 2), and its bias (4 · outer,)
        The four phases (odd or even row, odd or even column), each with all its channels.
    """
    taps = (slice(2, None, -2), slice(3, None, -2))
    parts = [weight[:, :, rows, columns] for rows in taps for columns in taps]
    stacked = np.concatenate([part.transpose(1, 0, 2, 3) for part in parts])
    return np.ascontiguousarray(stacked), np.tile(bias, 4)


def encoder_weights(arrays: Arrays) -> Arrays:
    """Build the weights of the encoder's graph, without |z|², which changes no order."""
    rows = arrays[CODEBOOK]
    given = {name: array for name, array in arrays.items() if name.startswith("encoder.")}
    return {**given, "rows": np.ascontiguousarray(-2 * rows.T), "row_norms": (rows**2).sum(1)}


def _weights(graph: _Graph, arrays: Arrays, threads: int) -> Mapping[str, npt.NDArray[np.generic]]:
    if graph == "encoder":
        return encoder_weights(arrays)
    given = decoder_weights(arrays)
    if graph == "ranges":
        return {name: array for name, array in given.items() if not name.startswith("decoder.12")}
    if graph == "decoder":
        return given
    ranges = _session("ranges", arrays, threads).run(None, {"codes": calibration_codes()})[0]
    return int8_weights(given, ranges)


def _session(graph: _Graph, arrays: Arrays, threads: int) -> onnxruntime.InferenceSession:
    # onnxruntime reports its use to Microsoft, unless this is set before it is imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # slow to import, and not needed without masks

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Threads that spin between runs take the cores of whatever runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = resources.files("palidecode.codec").joinpath(f"{graph}.onnx").read_bytes()
    try:
        weights = _weights(graph, arrays, threads)
        values = [
            onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
            for array in weights.values()
        ]
        options.add_external_initializers(list(weights), values)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise WeightsError(f"onnxruntime can't start the {graph}: {error}") from error
