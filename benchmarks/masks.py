"""Speed of decoding seg codes to 64×64 fields: ``python benchmarks/masks.py``

Every contender has the same weights, takes the same codes as an array and returns fields as an
array; their results are compared before anything is timed.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from measure import (
    Cell,
    Table,
    Target,
    at_least,
    at_most,
    in_turns,
    missing,
    optional,
    report,
)

from palidecode.codec import load_codec
from palidecode.codec.weights import CODEBOOK, SHAPES, CodecWeights, load_weights
from palidecode.errors import WeightsError
from palidecode.vocab import MASK_SIDE, SEG_GRID, SEG_PER_MASK

BATCHES = (1, 64, 256)
SEED = 7
PAUSE = 0.05  # seconds; threads of several libraries keep spinning after their last call
Decoder = Callable[[np.ndarray], np.ndarray]
Arrays = Mapping[str, np.ndarray]

FLAX, EAGER, PLAIN = "big_vision's decoder in flax, jitted", "torch eager f32", "plain onnxruntime"
OPENVINO = {"f32": "OpenVINO f32", "bf16": "OpenVINO bf16"}
ONNX, TORCH, TORCH_BF16 = "**ours**, onnx", "**ours**, torch f32", "**ours**, torch bf16"
# Outside of CI, OpenVINO's telemetry forks a process, which can hang beside jax's threads.
os.environ.setdefault("CI", "true")

BF16 = (OPENVINO["bf16"], TORCH_BF16)


def choose_weights() -> tuple[CodecWeights, str]:
    """Load the shipped weights; if they are missing, make random ones of the same layout."""
    try:
        return load_weights("palidecode-demo"), "the shipped weights (palidecode-demo)"
    except (WeightsError, ModuleNotFoundError):
        return random_weights(), "random weights of the official layout"


def random_weights() -> CodecWeights:
    """Draw weights that keep signals of the order of 1 through all layers."""
    rng = np.random.default_rng(SEED)
    arrays = {}
    for name, shape in SHAPES.items():
        if name.endswith(".bias"):
            arrays[name] = rng.normal(0, 0.02, shape)
        elif name == CODEBOOK:
            arrays[name] = rng.normal(0, 1, shape)
        else:
            # Of a transposed convolution's 4×4 kernel, 4 weights of each input reach a pixel.
            up = shape[2] == 4 and name.startswith("decoder.")
            fan_in = shape[0] * 4 if up else int(np.prod(shape[1:]))
            arrays[name] = rng.normal(0, (2 / fan_in) ** 0.5, shape)
    return CodecWeights({k: v.astype(np.float32) for k, v in arrays.items()}, "random")


def shapes_of_things(count: int) -> np.ndarray:
    """Draw masks (count, 64, 64) in [0, 1] to encode: unions of ellipses and polygons."""
    rng = np.random.default_rng(SEED)
    masks = np.zeros((count, 4 * MASK_SIDE, 4 * MASK_SIDE), np.float32)
    for mask in masks:
        for _ in range(rng.integers(1, 4)):
            centre, axes = rng.integers(60, 196, 2).tolist(), rng.integers(25, 110, 2).tolist()
            angle = int(rng.integers(180))
            cv2.ellipse(mask, centre, axes, angle, 0, 360, 1.0, -1)
        corners = rng.integers(20, 236, (int(rng.integers(3, 7)), 2)).astype(np.int32)
        cv2.fillPoly(mask, [corners], 1.0)
    blocks = masks.reshape(count, MASK_SIDE, 4, MASK_SIDE, 4)
    return np.ascontiguousarray(blocks.mean(axis=(2, 4)))


def flop_per_mask() -> int:
    """Count the decoder's multiplications and additions for one mask."""
    total = 0
    for name, shape in SHAPES.items():
        if not name.startswith("decoder.") or not name.endswith(".weight"):
            continue
        layer = int(name.split(".")[1])
        side = SEG_GRID if layer < 4 else SEG_GRID * 2 ** min((layer - 4) // 2, 4)
        total += 2 * int(np.prod(shape)) * side * side
    return total


def ours(weights: CodecWeights) -> dict[str, Decoder]:
    """Load this library's three decoders."""
    decoders: dict[str, Decoder] = {ONNX: load_codec(weights, "onnx").decode}
    if optional("torch"):
        decoders[TORCH] = load_codec(weights, "torch").decode
        decoders[TORCH_BF16] = load_codec(weights, "torch", precision="bfloat16").decode
    return decoders


def torch_eager(weights: CodecWeights) -> Decoder:
    """Run the unchanged network on the whole batch."""
    import torch

    from palidecode.codec.network import MaskVQVAE

    network = MaskVQVAE().eval()
    network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.arrays.items()})

    def decode(codes: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network.decode(torch.from_numpy(codes)).numpy()

    return decode


def flax_decoder(arrays: Arrays) -> Decoder:
    """Build big_vision's decoder: NHWC, jitted including the codebook's look-up."""
    import jax
    from flax import linen
    from jax import numpy as jnp

    class Decode(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.relu(linen.Conv(128, (1, 1), name="decoder.0")(x))
            for block in ("decoder.2", "decoder.3"):
                y = linen.relu(linen.Conv(128, (3, 3), padding=1, name=f"{block}.net.0")(x))
                y = linen.relu(linen.Conv(128, (3, 3), padding=1, name=f"{block}.net.2")(y))
                x = x + linen.Conv(128, (1, 1), name=f"{block}.net.4")(y)
            for layer, width in ((4, 128), (6, 64), (8, 32), (10, 16)):
                up = linen.ConvTranspose(
                    width, (4, 4), strides=(2, 2), padding=2, name=f"decoder.{layer}",
                    transpose_kernel=True,
                )  # fmt: skip
                x = linen.relu(up(x))
            return linen.Conv(1, (1, 1), name="decoder.12")(x)[..., 0]

    # (out, in, h, w) to (h, w, in, out); of transposed ones (in, out, h, w) to (h, w, out, in).
    names = [name.removesuffix(".bias") for name in SHAPES if name.endswith(".bias")]
    params = {
        name: {
            "kernel": jnp.asarray(arrays[f"{name}.weight"].transpose(2, 3, 1, 0)),
            "bias": jnp.asarray(arrays[f"{name}.bias"]),
        }
        for name in names
        if name.startswith("decoder.")
    }
    codebook, module = jnp.asarray(arrays[CODEBOOK]), Decode()

    @jax.jit
    def fields(params: Any, codebook: Any, codes: Any) -> Any:
        return module.apply({"params": params}, codebook[codes.reshape(-1, SEG_GRID, SEG_GRID)])

    return lambda codes: np.asarray(fields(params, codebook, codes))


def plain_model(arrays: Arrays) -> bytes:
    """Build the whole decoder as an ONNX file, layer by layer, without folding."""
    from onnx import TensorProto, helper, numpy_helper

    used = {k: v for k, v in arrays.items() if k.startswith("decoder.") or k == CODEBOOK}
    nodes: list[Any] = []

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def layer(x: str, name: str, kind: str = "Conv") -> str:
        side = SHAPES[f"{name}.weight"][2]
        options: dict[str, Any] = {"kernel_shape": [side, side], "pads": [(side - 1) // 2] * 4}
        options["strides"] = [2, 2] if side == 4 else [1, 1]
        return add(kind, x, f"{name}.weight", f"{name}.bias", **options)

    x = add("Transpose", add("Gather", CODEBOOK, "codes"), perm=[0, 3, 1, 2])
    x = add("Relu", layer(x, "decoder.0"))
    for block in ("decoder.2", "decoder.3"):
        y = add("Relu", layer(x, f"{block}.net.0"))
        y = add("Relu", layer(y, f"{block}.net.2"))
        x = add("Add", x, layer(y, f"{block}.net.4"))
    for number in (4, 6, 8, 10):
        x = add("Relu", layer(x, f"decoder.{number}", "ConvTranspose"))
    nodes.append(helper.make_node("Identity", [layer(x, "decoder.12")], ["fields"]))
    codes = helper.make_tensor_value_info("codes", TensorProto.INT64, ["n", SEG_GRID, SEG_GRID])
    shape = ["n", 1, MASK_SIDE, MASK_SIDE]
    fields = helper.make_tensor_value_info("fields", TensorProto.FLOAT, shape)
    given = [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in used.items()]
    graph = helper.make_graph(nodes, "decoder", [codes], [fields], given)
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def plain_onnxruntime(model: bytes) -> Decoder:
    """Run the default session on the whole batch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda codes: session.run(None, {"codes": codes.reshape(-1, 4, 4)})[0][:, 0]


def openvino(model: bytes, precision: str) -> Decoder:
    """Compile the model for each batch size, which is fastest in OpenVINO."""
    import openvino

    core = openvino.Core()
    compiled: dict[int, Any] = {}

    def decode(codes: np.ndarray) -> np.ndarray:
        if len(codes) not in compiled:
            network = core.read_model(model)
            network.reshape([len(codes), SEG_GRID, SEG_GRID])
            options = {"INFERENCE_PRECISION_HINT": precision}
            compiled[len(codes)] = core.compile_model(network, "CPU", options)
        grid = codes.reshape(-1, SEG_GRID, SEG_GRID)
        return np.asarray(compiled[len(codes)](grid)[0])[:, 0]

    return decode


def contenders(weights: CodecWeights) -> tuple[dict[str, Decoder], dict[str, str]]:
    """List the available peers, and what to install for the missing ones."""
    here: dict[str, Decoder] = {}
    absent: dict[str, str] = {}
    if optional("jax") and optional("flax"):
        here[FLAX] = flax_decoder(weights.arrays)
    else:
        absent[FLAX] = missing("jax flax")
    if optional("torch"):
        here[EAGER] = torch_eager(weights)
    else:
        absent |= {name: missing("torch") for name in (EAGER, TORCH, TORCH_BF16)}
    if optional("onnx"):
        model = plain_model(weights.arrays)
        here[PLAIN] = plain_onnxruntime(model)
    for precision, name in OPENVINO.items():
        if optional("openvino") and optional("onnx"):
            here[name] = openvino(model, precision)
        else:
            absent[name] = missing("openvino onnx")
    if not optional("onnx"):
        absent[PLAIN] = missing("onnx")
    return here | ours(weights), absent


def check_same(decoders: Mapping[str, Decoder], codes: np.ndarray) -> dict[str, float]:
    """Measure the largest difference to ours; stop if it is more than rounding."""
    expected = decoders[ONNX](codes)
    scale = float(np.abs(expected).max())
    differences = {}
    for name, decode in decoders.items():
        fields = decode(codes)
        assert fields.shape == expected.shape, name
        differences[name] = float(np.abs(fields - expected).max())
        allowed = scale * (0.05 if name in BF16 else 1e-4)
        assert differences[name] <= allowed, f"{name} differs by {differences[name]} of {scale}"
    return differences


def matmul_limits() -> dict[str, float]:
    """Compute masks per second if all operations ran at the rate of a 2048³ matrix product."""
    torch = optional("torch")
    if torch is None:
        return {}
    rates = {}
    for name, kind in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(2048, 2048).to(kind) for _ in range(2))
        times = []
        for _ in range(9):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        rates[name] = 2 * 2048**3 / statistics.median(times) / flop_per_mask()
    return rates


def speed(decoders: Mapping[str, Decoder], codes: np.ndarray) -> dict[int, dict[str, float]]:
    """Measure masks per second of all contenders, by batch."""
    rates = {}
    for batch in BATCHES:
        part = np.ascontiguousarray(codes[:batch])
        calls = {n: lambda d=decode, p=part: d(p) for n, decode in decoders.items()}  # type: ignore[misc]
        seconds = in_turns(calls, rounds=7, least=0.3, pause=PAUSE)
        rates[batch] = {name: batch / taken for name, taken in seconds.items()}
    return rates


def table_of(
    rates: dict[int, dict[str, float]],
    absent: Mapping[str, str],
    limits: Mapping[str, float],
    differences: Mapping[str, float],
) -> Table:
    """Make a row per contender, with its share of the limit at the largest batch."""
    rows: list[list[Cell]] = []
    order = (FLAX, EAGER, PLAIN, *OPENVINO.values(), ONNX, TORCH, TORCH_BF16)
    plain = rates[BATCHES[-1]].get(PLAIN)
    for name in order:
        if name in absent:
            rows.append([name, absent[name], *[None] * (len(BATCHES) + 2)])
            continue
        last = rates[BATCHES[-1]][name]
        limit = limits.get("bf16" if name in BF16 else "f32")
        share = f"{last / limit:.0%}" if limit else None
        row: list[Cell] = [name, *(rates[batch][name] for batch in BATCHES)]
        rows.append([*row, last / plain if plain else None, share, f"{differences[name]:.0e}"])
    for name, limit in limits.items():
        rows.append([f"limit: {name} matrix product", *[limit] * len(BATCHES), None, "100%", None])
    columns = ["decoder", *(f"batch {batch}" for batch in BATCHES)]
    columns += [f"÷ plain ort at {BATCHES[-1]}", f"of the limit at {BATCHES[-1]}", "largest Δ"]
    note = (
        f"{flop_per_mask() / 1e6:.1f} MFLOP per mask; the limit is this machine's rate for a "
        "2048³ matrix product in torch. Δ: largest difference of a field to ours, onnx."
    )
    return Table("Seg codes to fields: masks/s", columns, rows, note)


def targets_of(rates: dict[int, dict[str, float]], changed: float | None) -> list[Target]:
    """Make the targets of both backends."""
    targets = []
    for batch, rate in rates.items():
        if PLAIN in rate:
            what = f"ours, onnx, batch {batch}"
            targets.append(at_least(what, rate[ONNX] / rate[PLAIN], 1, "× plain onnxruntime"))
    for batch in BATCHES[1:]:
        if TORCH_BF16 in rates[batch]:
            what = f"ours, torch bf16, batch {batch}"
            targets.append(at_least(what, rates[batch][TORCH_BF16], 3500, "masks/s"))
    if changed is not None:
        targets.append(at_most("mask pixels that bf16 changes", changed * 100, 0.3, "%"))
    return targets


def bf16_changes(decoders: Mapping[str, Decoder], codes: np.ndarray) -> dict[str, float]:
    """Measure the share of mask pixels that differ from float32."""
    expected = decoders[ONNX](codes) > 0
    named = [name for name in BF16 if name in decoders]
    return {name: float(((decoders[name](codes) > 0) != expected).mean()) for name in named}


def main() -> None:
    """Measure and print."""
    weights, which = choose_weights()
    masks = shapes_of_things(512)
    codes = load_codec(weights, "onnx").encode(masks).astype(np.int64)
    assert codes.shape == (512, SEG_PER_MASK)
    decoders, absent = contenders(weights)
    differences = check_same(decoders, codes[:64])
    limits = matmul_limits()
    rates = speed(decoders, codes)
    changes = bf16_changes(decoders, codes)
    pixels = Table(
        "Mask pixels that bfloat16 changes",
        ("decoder", "share"),
        [[name, f"{share:.3%}"] for name, share in changes.items()],
        f"512 drawn masks, encoded and decoded with {which}.",
    )
    speeds = table_of(rates, absent, limits, differences)
    speeds.note += f" Weights: {which}."
    report("masks", [speeds, pixels], targets_of(rates, changes.get(TORCH_BF16)))


if __name__ == "__main__":
    main()
