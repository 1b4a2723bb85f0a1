"""Load a checkpoint into the ONNX engine: an exported one, or any other in float32."""

from __future__ import annotations

from palidecode.errors import InputError
from palidecode.runtime.exported import Export
from palidecode.runtime.memory import available_bytes, refuse_if_larger
from palidecode.runtime.onnx_engine import OnnxEngine
from palidecode.runtime.onnx_weights import Precision, onnx_weights
from palidecode.runtime.opening import Checkpoint


def load_onnx(checkpoint: Checkpoint, threads: int | None = None) -> OnnxEngine:
    """Load a checkpoint: in the precision of its export, otherwise in float32.

    Raises
    ------
    InputError
        If memory is too small, or a checkpoint without graphs meets no ``onnx`` to build them.
    WeightsError
        If the weights don't fit the config.
    """
    config, export = checkpoint.config, checkpoint.export or Export("float32", {}, None)
    graphs = export.graphs or graphs_of(checkpoint, "float32")
    weights = export.weights
    if weights is None:
        way_out = "use quantize='int8' or 'int4', or torch in bfloat16"
        refuse_if_larger(4 * config.parameters(), "float32", available_bytes(), "cpu", way_out)
        assert checkpoint.source is not None
        weights = dict(onnx_weights(checkpoint.source, config, export.precision))
    return OnnxEngine(config, export.precision, graphs, weights, threads)


def graphs_of(checkpoint: Checkpoint, precision: Precision) -> dict[str, bytes]:
    """Build the graphs of a checkpoint.

    Raises
    ------
    InputError
        If ``onnx`` isn't installed.
    """
    try:
        from palidecode.runtime.onnx_graphs import build_graphs  # onnx is optional
    except ImportError as error:
        raise InputError(
            f"building a model's ONNX graphs needs {error.name}: pip install 'palidecode[export]'"
        ) from error
    return build_graphs(checkpoint.config, precision)
