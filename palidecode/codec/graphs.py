"""Write the two ONNX graphs that onnxruntime runs: ``python -m palidecode.codec.graphs``.

The graphs hold no weights; those are added when a session starts, so that two small files
serve all weights. Only this module needs ``onnx``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from palidecode.codec.weights import SHAPES
from palidecode.vocab import MASK_SIDE, SEG_COUNT, SEG_GRID, SEG_PER_MASK

TABLE = "table"  # the codebook after the first 1×1 convolution and its ReLU
ROWS, ROW_NORMS = "rows", "row_norms"  # −2 × codebook transposed; squared norms
_OPSET, _IR = 17, 8


class _Graph:
    """Nodes in order, and the names of their weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, tuple[int, ...]] = {}
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        out = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        self.weights[name] = shape
        return name

    def constant(self, name: str, kind: int, values: list[float] | list[int]) -> str:
        if any(known.name == name for known in self.constants):
            return name
        shape = [len(values)] if kind == TensorProto.INT64 else []
        self.constants.append(helper.make_tensor(name, kind, shape, values))
        return name

    def convolution(self, x: str, layer: str) -> str:
        shape = SHAPES[f"{layer}.weight"]
        side = shape[2]
        stride = 2 if side == 4 else 1
        inputs = [
            self.weight(f"{layer}.{part}", SHAPES[f"{layer}.{part}"]) for part in ("weight", "bias")
        ]
        return self.add(
            "Conv",
            [x, *inputs],
            kernel_shape=[side, side],
            strides=[stride, stride],
            pads=[(side - 1) // 2] * 4,
        )

    def upsample(self, x: str, layer: str) -> str:
        """Add a transposed convolution and its ReLU, as a 2×2 convolution to four phases.

        onnxruntime's Conv is faster than its ConvTranspose. `onnx.phases` makes the weights.
        """
        inner, outer = SHAPES[f"{layer}.weight"][:2]
        inputs = [
            self.weight(f"{layer}.phases.weight", (4 * outer, inner, 2, 2)),
            self.weight(f"{layer}.phases.bias", (4 * outer,)),
        ]
        x = self.add("Conv", [x, *inputs], kernel_shape=[2, 2], pads=[1, 1, 1, 1])
        return self.add("Relu", [x])

    def interleave(self, x: str) -> str:
        """Merge four phases to an image of twice the size, without the pixel of padding."""
        x = self.add("DepthToSpace", [x], blocksize=2)
        names = ("crop_start", "crop_end", "crop_axes")
        bounds = [
            self.constant(name, TensorProto.INT64, values)
            for name, values in zip(names, ([1, 1], [-1, -1], [2, 3]), strict=True)
        ]
        return self.add("Slice", [x, *bounds])

    def residual(self, x: str, block: str) -> str:
        y = self.add("Relu", [self.convolution(x, f"{block}.net.0")])
        y = self.add("Relu", [self.convolution(y, f"{block}.net.2")])
        return self.add("Add", [x, self.convolution(y, f"{block}.net.4")])

    def model(
        self, inputs: onnx.ValueInfoProto, outputs: onnx.ValueInfoProto, last: str
    ) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [last], [outputs.name], name="out"))
        graph = helper.make_graph(self.nodes, "mask_codec", [inputs], [outputs], self.constants)
        for name, shape in self.weights.items():
            tensor = onnx.TensorProto(
                name=name, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
            )
            tensor.dims.extend(shape)
            location = tensor.external_data.add()
            location.key, location.value = "location", "given_at_run_time"
            graph.initializer.append(tensor)
        opset = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(
            graph, opset_imports=opset, ir_version=_IR, producer_name="palidecode"
        )


def decoder_graph() -> onnx.ModelProto:
    """Build the graph from codes (n, 4, 4) int64 to fields (n, 64, 64)."""
    graph = _Graph()
    x = graph.add("Gather", [graph.weight(TABLE, (SEG_COUNT, 128)), "codes"], axis=0)
    x = graph.add("Transpose", [x], perm=[0, 3, 1, 2])
    x = graph.residual(graph.residual(x, "decoder.2"), "decoder.3")
    for layer in (4, 6, 8):
        x = graph.interleave(graph.upsample(x, f"decoder.{layer}"))
    # The last 1×1 convolution runs on each phase, before they become one image.
    x = graph.upsample(x, "decoder.10")
    inputs = [graph.weight("decoder.12.phases.weight", (4, 64, 1, 1))]
    inputs.append(graph.weight("decoder.12.phases.bias", (4,)))
    x = graph.interleave(graph.add("Conv", [x, *inputs], kernel_shape=[1, 1]))
    shape = graph.constant("field_shape", TensorProto.INT64, [-1, MASK_SIDE, MASK_SIDE])
    return graph.model(
        helper.make_tensor_value_info("codes", TensorProto.INT64, ["n", SEG_GRID, SEG_GRID]),
        helper.make_tensor_value_info("fields", TensorProto.FLOAT, ["n", MASK_SIDE, MASK_SIDE]),
        graph.add("Reshape", [x, shape]),
    )


def encoder_graph() -> onnx.ModelProto:
    """Build the graph from masks (n, 64, 64) in [0, 1] to codes (n, 16) int64."""
    graph = _Graph()
    shape = graph.constant("mask_shape", TensorProto.INT64, [-1, 1, MASK_SIDE, MASK_SIDE])
    x = graph.add("Reshape", ["masks", shape])
    x = graph.add("Sub", [x, graph.constant("half", TensorProto.FLOAT, [0.5])])
    x = graph.add("Mul", [x, graph.constant("two", TensorProto.FLOAT, [2.0])])
    for layer in (0, 2, 4, 6):
        x = graph.add("Relu", [graph.convolution(x, f"encoder.{layer}")])
    x = graph.residual(graph.residual(x, "encoder.8"), "encoder.9")
    x = graph.add("Transpose", [graph.convolution(x, "encoder.10")], perm=[0, 2, 3, 1])
    x = graph.add("MatMul", [x, graph.weight(ROWS, (512, SEG_COUNT))])
    x = graph.add("Add", [x, graph.weight(ROW_NORMS, (SEG_COUNT,))])
    x = graph.add("ArgMin", [x], axis=-1, keepdims=0)
    flat = graph.constant("code_shape", TensorProto.INT64, [-1, SEG_PER_MASK])
    return graph.model(
        helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["n", MASK_SIDE, MASK_SIDE]),
        helper.make_tensor_value_info("codes", TensorProto.INT64, ["n", SEG_PER_MASK]),
        graph.add("Reshape", [x, flat]),
    )


def main() -> None:
    """Write ``decoder.onnx`` and ``encoder.onnx`` beside this file."""
    folder = Path(__file__).parent
    for name, model in (("decoder", decoder_graph()), ("encoder", encoder_graph())):
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
