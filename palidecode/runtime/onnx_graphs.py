"""Build the ONNX graphs of a PaliGemma from its config; only this module needs ``onnx``.

Three graphs: ``vision`` (pixels to image tokens), ``decoder`` (embeddings and the cache to hidden
states and the answers' longer cache) and ``head`` (hidden states to the logits of the whole
vocabulary). They hold no weights: those are given when a session starts, under our parameters'
names.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from palidecode.runtime.config import PaliGemmaConfig, TextConfig, VisionConfig
from palidecode.runtime.onnx_cache import PAST, PREFIX
from palidecode.runtime.onnx_weights import BITS, Precision
from palidecode.runtime.quantizing import block_size

_OPSET, _IR = 17, 8
_MICROSOFT = "com.microsoft"
_INT8_ACTIVATIONS = 4  # accuracy level of MatMulNBits: a scale for each row's blocks
_FLOAT, _INT64, _UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
_Attribute = int | float | str | Sequence[int]


class _Graph:
    """Nodes in order, and the weights they name."""

    def __init__(self, precision: Precision) -> None:
        self._bits = BITS[precision]
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._constants: dict[tuple[int, ...], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def add(
        self, kind: str, inputs: Sequence[str], domain: str = "", **attributes: _Attribute
    ) -> str:
        return self.split(kind, inputs, 1, domain, **attributes)[0]

    def split(
        self,
        kind: str,
        inputs: Sequence[str],
        count: int,
        domain: str = "",
        **attributes: _Attribute,
    ) -> list[str]:
        """Add a node with several outputs."""
        name = f"{kind}_{len(self._nodes)}"
        outputs = [f"{name}.{number}" for number in range(count)]
        node = helper.make_node(kind, inputs, outputs, name, domain=domain)
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
        self._nodes.append(node)
        return outputs

    def ints(self, *values: int) -> str:
        """Name a constant vector."""
        if values not in self._constants:
            name = self._constants[values] = f"ints_{'_'.join(map(str, values))}"
            self._initializers.append(helper.make_tensor(name, _INT64, [len(values)], values))
        return self._constants[values]

    def number(self, value: float) -> str:
        """Name a constant number."""
        name = f"number_{value}"
        if name not in {tensor.name for tensor in self._initializers}:
            self._initializers.append(helper.make_tensor(name, _FLOAT, [], [value]))
        return name

    def weight(self, name: str, shape: Sequence[int], kind: int = _FLOAT) -> str:
        tensor = TensorProto(name=name, data_type=kind, data_location=TensorProto.EXTERNAL)
        tensor.dims.extend(shape)
        location = tensor.external_data.add()
        location.key, location.value = "location", "given_at_run_time"
        self._weights.append(tensor)
        return name

    def linear(self, x: str, name: str, inner: int, outer: int, bias: bool = False) -> str:
        """Multiply by a weight (outer, inner), in the graph's precision."""
        if self._bits is None:
            x = self.add("MatMul", [x, self.weight(f"{name}.weight", (inner, outer))])
        else:
            x = self.quantized(x, name, inner, outer, self._bits)
        return self.add("Add", [x, self.weight(f"{name}.bias", (outer,))]) if bias else x

    def quantized(self, x: str, name: str, inner: int, outer: int, bits: int) -> str:
        block = block_size(inner)
        blocks = -(-inner // block)
        inputs = [
            x,
            self.weight(f"{name}.levels", (outer, blocks, block * bits // 8), _UINT8),
            self.weight(f"{name}.scales", (outer, blocks)),
        ]
        if bits < 8:
            inputs.append(self.weight(f"{name}.zeros", (outer, -(-blocks // 2)), _UINT8))
        return self.add(
            "MatMulNBits",
            inputs,
            _MICROSOFT,
            K=inner,
            N=outer,
            bits=bits,
            block_size=block,
            accuracy_level=_INT8_ACTIVATIONS,
        )

    def softcap(self, x: str, cap: float | None) -> str:
        if cap is None:
            return x
        x = self.add("Tanh", [self.add("Div", [x, self.number(cap)])])
        return self.add("Mul", [x, self.number(cap)])

    def declare(
        self, into: list[onnx.ValueInfoProto], name: str, shape: Sequence[int | str], kind: int
    ) -> str:
        into.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def result(self, x: str, name: str, shape: Sequence[int | str]) -> str:
        """Name an output of the graph; a node that only renamed it would copy it."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for place, other in enumerate(names):
                    if other == x:
                        names[place] = name
        return self.declare(self.outputs, name, shape, _FLOAT)

    def model(self) -> bytes:
        graph = helper.make_graph(
            self._nodes, "paligemma", self.inputs, self.outputs, self._initializers
        )
        graph.initializer.extend(self._weights)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR, producer_name="palidecode"
        )
        serialized: bytes = model.SerializeToString(deterministic=True)
        return serialized


def build_graphs(config: PaliGemmaConfig, precision: Precision) -> dict[str, bytes]:
    """Build the graphs, by name."""
    # In 4 bits the vision tower and the head keep 8: they are a fifth of the weights.
    finer: Precision = "int8" if precision == "int4" else precision
    return {
        "vision": _vision(config, finer),
        "decoder": _decoder(config.text, precision),
        "head": _head(config.text, finer),
    }


def _vision(config: PaliGemmaConfig, precision: Precision) -> bytes:
    """Pixels (B, 3, S, S) to image tokens (B, tokens, text width)."""
    v, graph = config.vision, _Graph(precision)
    pixels = (-1, 3, v.image_size, v.image_size)
    x = graph.declare(graph.inputs, "pixels", ("B", *pixels[1:]), _FLOAT)
    x = graph.linear(_patches(graph, x, v), "vision.patch", 3 * v.patch**2, v.width, bias=True)
    x = graph.add("Add", [x, graph.weight("vision.position", (v.tokens, v.width))])
    for layer in range(v.layers):
        x = _vision_layer(graph, x, v, f"vision.layers.{layer}")
    x = _layer_norm(graph, x, "vision.norm", v)
    x = graph.linear(x, "projector", v.width, config.text.width, bias=True)
    graph.result(x, "features", ("B", v.tokens, config.text.width))
    return graph.model()


def _patches(graph: _Graph, x: str, v: VisionConfig) -> str:
    """Unfold pixels to (B, tokens, 3 · patch²): patches row by row, channels first."""
    grid = v.image_size // v.patch
    if grid * v.patch < v.image_size:
        ends = graph.ints(grid * v.patch, grid * v.patch)
        x = graph.add("Slice", [x, graph.ints(0, 0), ends, graph.ints(2, 3)])
    x = graph.add("Reshape", [x, graph.ints(-1, 3, grid, v.patch, grid, v.patch)])
    x = graph.add("Transpose", [x], perm=[0, 2, 4, 1, 3, 5])
    return graph.add("Reshape", [x, graph.ints(-1, v.tokens, 3 * v.patch**2)])


def _vision_layer(graph: _Graph, x: str, v: VisionConfig, name: str) -> str:
    y = _layer_norm(graph, x, f"{name}.norm1", v)
    y = graph.linear(y, f"{name}.attention.qkv", v.width, 3 * v.width, bias=True)
    qkv = graph.split("Split", [y], 3, axis=-1)
    y = graph.add("MultiHeadAttention", qkv, _MICROSOFT, num_heads=v.heads)
    y = graph.linear(y, f"{name}.attention.out", v.width, v.width, bias=True)
    x = graph.add("Add", [x, y])
    y = _layer_norm(graph, x, f"{name}.norm2", v)
    y = graph.linear(y, f"{name}.fc1", v.width, v.mlp, bias=True)
    y = graph.add("FastGelu", [y], _MICROSOFT)
    return graph.add("Add", [x, graph.linear(y, f"{name}.fc2", v.mlp, v.width, bias=True)])


def _layer_norm(graph: _Graph, x: str, name: str, v: VisionConfig) -> str:
    inputs = [x, *(graph.weight(f"{name}.{part}", (v.width,)) for part in ("weight", "bias"))]
    return graph.add("LayerNormalization", inputs, axis=-1, epsilon=v.eps)


def _decoder(t: TextConfig, precision: Precision) -> bytes:
    """Embeddings (B, T, width) and the cache to hidden states at `pick`, (B, L, width).

    The cache has P tokens of the prefixes, in arrays that stay, and A of the answers, which are
    returned with the T new ones. ``cos`` and ``sin`` (B, 1, T, head size / 2) rotate queries and
    keys; ``mask`` and ``sliding`` (B, 1, T, P + A + T) are added to the attention's logits.
    """
    graph = _Graph(precision)
    x = graph.declare(graph.inputs, "embeddings", ("B", "T", t.width), _FLOAT)
    for name in ("cos", "sin"):
        graph.declare(graph.inputs, name, ("B", 1, "T", t.head_size // 2), _FLOAT)
    masks = ["mask", "sliding"] if t.sliding_window is not None else ["mask"]
    for name in masks:
        graph.declare(graph.inputs, name, ("B", 1, "T", "S"), _FLOAT)
    graph.declare(graph.inputs, "pick", ("B", "L", 1), _INT64)
    for layer in range(t.layers):
        name = f"language.layers.{layer}"
        mask = "mask" if t.window_of(layer) is None else "sliding"
        y = _rms_norm(graph, x, f"{name}.attention_norm", t)
        y = _attention(graph, y, layer, mask, t)
        if layer == t.layers - 1:  # nobody reads the other tokens after the last attention
            x, y = (graph.add("GatherND", [z, "pick"], batch_dims=1) for z in (x, y))
        y = graph.linear(y, f"{name}.attention.out", t.heads * t.head_size, t.width)
        if t.post_norms:
            y = _rms_norm(graph, y, f"{name}.attention_post", t)
        x = graph.add("Add", [x, y])
        y = _mlp(graph, _rms_norm(graph, x, f"{name}.mlp_norm", t), f"{name}.mlp", t)
        if t.post_norms:
            y = _rms_norm(graph, y, f"{name}.mlp_post", t)
        x = graph.add("Add", [x, y])
    graph.result(_rms_norm(graph, x, "language.norm", t), "hidden", ("B", "L", t.width))
    return graph.model()


def _attention(graph: _Graph, x: str, layer: int, mask: str, t: TextConfig) -> str:
    """Attention of one layer, before its output product: (B, T, heads · head size)."""
    heads, kv, size = t.heads, t.kv_heads, t.head_size
    name = f"language.layers.{layer}.attention.qkv"
    x = graph.linear(x, name, t.width, (heads + 2 * kv) * size)
    sizes = graph.ints(heads * size, kv * size, kv * size)
    q, k, v = graph.split("Split", [x, sizes], 3, axis=-1)
    q, k, v = (_by_head(graph, y, n, size) for y, n in ((q, heads), (k, kv), (v, kv)))
    q, k = _rotate(graph, q), _rotate(graph, k)
    keys = _cached(graph, k, f"keys.{layer}", t)
    values = _cached(graph, v, f"values.{layer}", t)
    # Queries that share a key head are stacked, so that each key head needs one product.
    q = graph.add("Reshape", [q, graph.ints(0, kv, -1, size)])
    scale = float(t.query_scale**-0.5)
    parts = [graph.add("FusedMatMul", [q, one], _MICROSOFT, alpha=scale, transB=1) for one in keys]
    logits = graph.add("Concat", parts, axis=-1)
    apart = graph.add("Concat", [graph.ints(0, heads, -1), _last_size(graph, logits)], axis=0)
    logits = graph.softcap(graph.add("Reshape", [logits, apart]), t.attention_softcap)
    weights = graph.add("Softmax", [graph.add("Add", [logits, mask])], axis=-1)
    together = graph.add("Concat", [graph.ints(0, kv, -1), _last_size(graph, weights)], axis=0)
    weights = graph.add("Reshape", [weights, together])
    sizes = graph.add("Concat", [graph.add("Shape", [one], start=2, end=3) for one in keys], axis=0)
    parts = graph.split("Split", [weights, sizes], 2, axis=-1)
    y = graph.add("Sum", [graph.add("MatMul", pair) for pair in zip(parts, values, strict=True)])
    y = graph.add("Reshape", [y, graph.ints(0, heads, -1, size)])
    y = graph.add("Transpose", [y], perm=[0, 2, 1, 3])
    return graph.add("Reshape", [y, graph.ints(0, 0, heads * size)])


def _last_size(graph: _Graph, x: str) -> str:
    return graph.add("Shape", [x], start=-1)


def _by_head(graph: _Graph, x: str, heads: int, size: int) -> str:
    x = graph.add("Reshape", [x, graph.ints(0, 0, heads, size)])
    return graph.add("Transpose", [x], perm=[0, 2, 1, 3])


def _rotate(graph: _Graph, x: str) -> str:
    """Rotate the two halves of each head by ``cos`` and ``sin``."""
    a, b = graph.split("Split", [x], 2, axis=-1)
    parts = [
        graph.add(kind, [graph.add("Mul", [one, "cos"]), graph.add("Mul", [other, "sin"])])
        for kind, one, other in (("Sub", a, b), ("Add", b, a))
    ]
    return graph.add("Concat", parts, axis=-1)


def _cached(graph: _Graph, x: str, name: str, t: TextConfig) -> tuple[str, str]:
    """Append new keys or values to those of the answer; return the prefix's, which stay, and them.

    Only the answer's are copied, in every step.
    """
    shape = ("B", t.kv_heads, "P", t.head_size)
    prefix = graph.declare(graph.inputs, f"{PREFIX}.{name}", shape, _FLOAT)
    shape = ("B", t.kv_heads, "A", t.head_size)
    past = graph.declare(graph.inputs, f"{PAST}.{name}", shape, _FLOAT)
    x = graph.add("Concat", [past, x], axis=2)
    return prefix, graph.result(x, name, ("B", t.kv_heads, "A + T", t.head_size))


def _mlp(graph: _Graph, x: str, name: str, t: TextConfig) -> str:
    gate, up = graph.split(
        "Split", [graph.linear(x, f"{name}.gate_up", t.width, 2 * t.mlp)], 2, axis=-1
    )
    x = graph.add("Mul", [graph.add("FastGelu", [gate], _MICROSOFT), up])
    return graph.linear(x, f"{name}.down", t.mlp, t.width)


def _rms_norm(graph: _Graph, x: str, name: str, t: TextConfig) -> str:
    inputs = [x, graph.weight(f"{name}.weight", (t.width,))]
    return graph.add("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=t.eps)


def _head(t: TextConfig, precision: Precision) -> bytes:
    """Hidden states (M, width) to logits (M, vocabulary), without the final soft cap."""
    graph = _Graph(precision)
    x = graph.declare(graph.inputs, "hidden", ("M", t.width), _FLOAT)
    if BITS[precision] is None:
        table = graph.weight("language.head.weight", (t.vocabulary, t.width))
        x = graph.add("Gemm", [x, table], transB=1)
    else:
        x = graph.quantized(x, "language.head", t.width, t.vocabulary, 8)
    graph.result(x, "logits", ("M", t.vocabulary))
    return graph.model()
