"""Write the ONNX graphs that onnxruntime runs: ``python -m palidecode.codec.graphs``.

The graphs hold no weights; those are added when a session starts, so that a few small files
serve all weights. Only this module needs ``onnx``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from palidecode.codec.int8 import BLOCKS, UPSAMPLING
from palidecode.codec.weights import SHAPES
from palidecode.vocab import MASK_SIDE, SEG_COUNT, SEG_GRID, SEG_PER_MASK

TABLE = "table"  # the codebook after the first 1×1 convolution and its ReLU
ROWS, ROW_NORMS = "rows", "row_norms"  # −2 × codebook transposed; squared norms

_OPSET, _IR = 17, 8
_MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators
_FLOAT, _INT8, _UINT8 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8


class _Graph:
    """Nodes in order, and the names of their weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        out = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def weight(self, name: str, shape: tuple[int, ...], kind: int = _FLOAT) -> str:
        self.weights[name] = kind, shape
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
        for name, (kind, shape) in self.weights.items():
            tensor = onnx.TensorProto(name=name, data_type=kind, data_location=TensorProto.EXTERNAL)
            tensor.dims.extend(shape)
            location = tensor.external_data.add()
            location.key, location.value = "location", "given_at_run_time"
            graph.initializer.append(tensor)
        opset = [helper.make_opsetid("", _OPSET)]
        opset += [helper.make_opsetid(name, 1) for name in {n.domain for n in self.nodes} - {""}]
        return helper.make_model(
            graph, opset_imports=opset, ir_version=_IR, producer_name="palidecode"
        )


def decoder_graph() -> onnx.ModelProto:
    """Build the graph from codes (n, 4, 4) int64 to fields (n, 64, 64)."""
    graph = _Graph()
    x = _float_decoder(graph)[-1]
    # The last 1×1 convolution runs on each phase, before they become one image.
    inputs = [graph.weight("decoder.12.phases.weight", (4, 64, 1, 1))]
    inputs.append(graph.weight("decoder.12.phases.bias", (4,)))
    x = graph.interleave(graph.add("Conv", [x, *inputs], kernel_shape=[1, 1]))
    return _fields(graph, x)


def ranges_graph() -> onnx.ModelProto:
    """Build the graph from codes (n, 4, 4) to the least and greatest value of each activation.

    The activations are those that `int8_graph` quantises after the table, in its order.
    """
    graph = _Graph()
    found = [
        graph.add(kind, [x], keepdims=0)
        for x in _float_decoder(graph)
        for kind in ("ReduceMin", "ReduceMax")
    ]
    one = graph.constant("one", TensorProto.INT64, [1])
    last = graph.add("Concat", [graph.add("Reshape", [x, one]) for x in found], axis=0)
    return graph.model(
        _codes(), helper.make_tensor_value_info("ranges", _FLOAT, [len(found)]), last
    )


def _float_decoder(graph: _Graph) -> list[str]:
    """Add the decoder up to its last upsampling; return the activations that can be quantised."""
    x = graph.add("Gather", [graph.weight(TABLE, (SEG_COUNT, 128)), "codes"], axis=0)
    x = graph.add("Transpose", [x], perm=[0, 3, 1, 2])
    found = []
    for block in BLOCKS:
        y = graph.add("Relu", [graph.convolution(x, f"{block}.net.0")])
        found += [y, graph.add("Relu", [graph.convolution(y, f"{block}.net.2")])]
        x = graph.add("Add", [x, graph.convolution(found[-1], f"{block}.net.4")])
        found.append(x)
    for layer in UPSAMPLING:
        found.append(graph.upsample(x, f"decoder.{layer}"))
        x = graph.interleave(found[-1]) if layer != UPSAMPLING[-1] else x
    return found


def _codes() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("codes", TensorProto.INT64, ["n", SEG_GRID, SEG_GRID])


def _fields(graph: _Graph, x: str) -> onnx.ModelProto:
    shape = graph.constant("field_shape", TensorProto.INT64, [-1, MASK_SIDE, MASK_SIDE])
    outputs = helper.make_tensor_value_info("fields", _FLOAT, ["n", MASK_SIDE, MASK_SIDE])
    return graph.model(_codes(), outputs, graph.add("Reshape", [x, shape]))


class _Int8Graph(_Graph):
    """Nodes over unsigned 8 bit activations with the channels last; see `int8.int8_weights`.

    All sums are of integers, so that results depend neither on the machine nor on the batch.
    """

    def scale(self, x: str) -> list[str]:
        """Return the scale and the zero point of an activation."""
        return [self.weight(f"{x}.scale", ()), self.weight(f"{x}.zero", (), _UINT8)]

    def convolve(self, x: str, before: str, layer: str, shape: tuple[int, ...]) -> str:
        """Add a convolution; leaving out what is below 0 makes it a ReLU, too."""
        inputs = [x, *self.scale(before)]
        inputs.append(self.weight(f"{layer}.weight.int8", shape, _INT8))
        inputs.append(self.weight(f"{layer}.weight.scale", shape[:1]))
        inputs.append(self.weight("zero", (), _INT8))
        inputs += self.scale(layer)
        inputs.append(self.weight(f"{layer}.bias.int32", shape[:1], TensorProto.INT32))
        side = shape[2]
        return self.add(
            "QLinearConv",
            inputs,
            domain=_MICROSOFT,
            channels_last=1,
            kernel_shape=[side, side],
            pads=[1] * 4,
        )

    def product(self, x: str, layer: str, shape: tuple[int, int]) -> str:
        """Add a 1×1 convolution of a ReLU's output, with float32 results and no bias."""
        weight = self.weight(f"{layer}.weight.int8", shape, _INT8)
        x = self.add("MatMulInteger", [x, weight])
        x = self.add("Cast", [x], to=_FLOAT)
        return self.add("Mul", [x, self.weight(f"{layer}.scale", shape[1:])])

    def interleaved(self, x: str, side: int, channels: int) -> str:
        """Merge four phases of `side` to an image of twice the size, without its padding."""
        for name, values in (
            (f"split_{side}", [-1, side, side, 2, 2, channels]),
            (f"merge_{side}_{channels}", [-1, 2 * side, 2 * side, channels]),
        ):
            self.constant(name, TensorProto.INT64, values)
        x = self.add("Reshape", [x, f"split_{side}"])
        x = self.add("Transpose", [x], perm=[0, 1, 3, 2, 4, 5])
        x = self.add("Reshape", [x, f"merge_{side}_{channels}"])
        names = ("crop_start", "crop_end", "crop_axes")
        bounds = [
            self.constant(name, TensorProto.INT64, values)
            for name, values in zip(names, ([1, 1], [-1, -1], [1, 2]), strict=True)
        ]
        return self.add("Slice", [x, *bounds])


def int8_graph() -> onnx.ModelProto:
    """Build the graph from codes (n, 4, 4) int64 to fields (n, 64, 64), in 8 bits.

    What the residual blocks add up stays in float32.
    """
    graph = _Int8Graph()
    total = graph.add("Gather", [graph.weight(TABLE, (SEG_COUNT, 128)), "codes"], axis=0)
    table = graph.weight(f"{TABLE}.int8", (SEG_COUNT, 128), _UINT8)
    x, before = graph.add("Gather", [table, "codes"], axis=0), TABLE
    for block in BLOCKS:
        for layer in (f"{block}.net.0", f"{block}.net.2"):
            x, before = graph.convolve(x, before, layer, SHAPES[f"{layer}.weight"]), layer
        last = f"{block}.net.4"
        y = graph.product(x, last, (128, 128))
        y = graph.add("Add", [y, graph.weight(f"{last}.bias", (128,))])
        total = graph.add("Add", [total, y])
        x, before = graph.add("QuantizeLinear", [total, *graph.scale(block)]), block
    side = SEG_GRID
    for number in UPSAMPLING:
        layer = f"decoder.{number}"
        inner, outer = SHAPES[f"{layer}.weight"][:2]
        x, before = graph.convolve(x, before, layer, (4 * outer, inner, 2, 2)), layer
        if number != UPSAMPLING[-1]:
            x = graph.interleaved(x, side + 1, outer)
        side *= 2
    x = graph.product(x, "decoder.12", (64, 4))
    x = graph.add("Add", [x, graph.weight("decoder.12.bias", (1,))])
    return _fields(graph, graph.interleaved(x, side // 2 + 1, 1))


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


GRAPHS = {
    "decoder": decoder_graph,
    "encoder": encoder_graph,
    "int8": int8_graph,
    "ranges": ranges_graph,
}


def main() -> None:
    """Write the graphs beside this file."""
    folder = Path(__file__).parent
    for name, build in GRAPHS.items():
        (folder / f"{name}.onnx").write_bytes(build().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
