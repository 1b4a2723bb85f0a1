"""Convert seg codes to 64×64 mask fields, and back.

`load_codec` returns a `MaskCodec`, which runs in onnxruntime by default, or in torch.
"""

from __future__ import annotations

import os
from typing import Literal, TypeAlias, get_args

from palidecode.codec.onnx import OnnxCodec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import CodecWeights, load_weights
from palidecode.errors import InputError

__all__ = ["MaskCodec", "Precision", "load_codec"]

Precision: TypeAlias = Literal["auto", "float32", "int8", "bfloat16"]


def load_codec(
    weights: str | os.PathLike[str] | CodecWeights | None = None,
    backend: Literal["auto", "onnx", "torch"] = "auto",
    *,
    device: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
) -> MaskCodec:
    """Load a mask codec.

    Parameters
    ----------
    weights : str, path or CodecWeights, optional
        A ``.npz`` or ``.safetensors`` file of the official layout, ``"google-oid"``,
        ``"palidecode-demo"``, or weights in memory. By default the file that
        ``PALIDECODE_WEIGHTS`` names, else Google's weights if they were fetched, else the ones
        in this package.
    backend : {"auto", "onnx", "torch"}
        ``"auto"`` is torch if `device` or ``precision="bfloat16"`` is given, else onnxruntime.
    device : str, optional
        A torch device, ``"cpu"`` by default.
    precision : {"auto", "float32", "int8", "bfloat16"}
        Of decoding; masks are always encoded in float32. ``"int8"`` (onnxruntime only) changes
        about one mask pixel in a thousand, and its fields depend neither on the batch nor on
        the processor. ``"bfloat16"`` needs torch. ``"auto"`` is ``"int8"`` in onnxruntime,
        ``"float32"`` in torch.
    threads : int, optional
        Of decoding and encoding, by default one for each core available to this process. In
        torch they are a setting of the whole process, which stays as it is by default.

    Returns
    -------
    MaskCodec
        With ``.decode(codes (N, 16)) -> (N, 64, 64) float32``,
        ``.encode(masks (N, 64, 64) in [0, 1]) -> (N, 16) uint8`` and ``.id``.

    Raises
    ------
    WeightsError
        If the weights can't be found or used.
    InputError
        For an unknown backend or precision, an option that the backend lacks, less than one
        thread, or if torch isn't installed.

    Examples
    --------
    >>> codec = load_codec("palidecode-demo")
    >>> codec.decode([[0] * 16]).shape
    (1, 64, 64)
    """
    if backend not in ("auto", "onnx", "torch"):
        raise InputError(f"backend must be 'auto', 'onnx' or 'torch', got {backend!r}")
    if precision not in get_args(Precision):
        known = ", ".join(map(repr, get_args(Precision)))
        raise InputError(f"precision must be one of {known}, got {precision!r}")
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    wants_torch = precision == "bfloat16" or device is not None
    if backend == "onnx" and wants_torch:
        raise InputError("device and precision='bfloat16' need backend='torch'")
    if precision == "int8" and (backend == "torch" or wants_torch):
        raise InputError("precision='int8' needs backend='onnx', without a device")
    loaded = weights if isinstance(weights, CodecWeights) else load_weights(weights)
    if backend == "torch" or wants_torch:
        try:
            from palidecode.codec.pytorch import TorchCodec  # torch is optional
        except ImportError as error:
            raise InputError(
                "backend='torch' needs torch; run: pip install 'palidecode[runtime]'"
            ) from error
        try:
            return TorchCodec(loaded, device or "cpu", threads, bfloat16=precision == "bfloat16")
        except (RuntimeError, AssertionError) as error:  # how torch reports an unknown device
            reason = str(error).partition("\n")[0]
            raise InputError(f"device {device!r} can't be used: {reason}") from error
    return OnnxCodec(loaded, threads, int8=precision != "float32")
