"""Speed of decoding seg codes to 64×64 fields: ``python benchmarks/masks.py``

Every contender has the same weights, takes the same codes as an array and returns fields as an
array; their results are compared before anything is timed. Each has a process of its own, as the
threads of some libraries spin after a call and slow down whatever runs next; they run in turns.
On a busy machine the CPU time says more: ``taskset -c 0 python benchmarks/masks.py``
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import (
    Cell,
    Table,
    Target,
    at_least,
    at_most,
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
PAUSE = 0.25  # seconds; threads of several libraries keep spinning after their last call
ROUNDS, LEAST = 9, 0.2  # seconds of a round
Decoder = Callable[[np.ndarray], np.ndarray]
Arrays = Mapping[str, np.ndarray]
Rates = dict[int, dict[str, float]]
"""Masks per second, by batch and contender."""

FLAX, EAGER, PLAIN = "big_vision's decoder in flax, jitted", "torch eager f32", "plain onnxruntime"
OPENVINO = {"f32": "OpenVINO f32", "bf16": "OpenVINO bf16"}
ONNX, INT8 = "**ours**, onnx f32", "**ours**, onnx int8, the default"
TORCH, TORCH_BF16 = "**ours**, torch f32", "**ours**, torch bf16"
# Outside of CI, OpenVINO's telemetry forks a process, which can hang beside jax's threads.
os.environ.setdefault("CI", "true")

BF16 = (OPENVINO["bf16"], TORCH_BF16)
ROUGH = (*BF16, INT8)
NEEDS = {
    FLAX: ("jax", "flax"),
    EAGER: ("torch",),
    PLAIN: ("onnx",),
    OPENVINO["f32"]: ("openvino", "onnx"),
    OPENVINO["bf16"]: ("openvino", "onnx"),
    ONNX: (),
    INT8: (),
    TORCH: ("torch",),
    TORCH_BF16: ("torch",),
}
"""The contenders in the order of the table, and the packages that they need."""


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


def build(name: str, weights: CodecWeights) -> Decoder:
    """Load one contender."""
    if name == FLAX:
        return flax_decoder(weights.arrays)
    if name == EAGER:
        return torch_eager(weights)
    if name == PLAIN:
        return plain_onnxruntime(plain_model(weights.arrays))
    for precision, title in OPENVINO.items():
        if name == title:
            return openvino(plain_model(weights.arrays), precision)
    if name in (ONNX, INT8):
        return load_codec(weights, "onnx", precision="int8" if name == INT8 else "float32").decode
    return load_codec(
        weights, "torch", precision="bfloat16" if name == TORCH_BF16 else "float32"
    ).decode


def serve(name: str, folder: Path) -> None:
    """Run one contender: every line on stdin is a batch and a number of calls to time."""
    decode, codes = build(name, choose_weights()[0]), np.load(folder / "codes.npy")
    for line in sys.stdin:
        batch, calls = map(int, line.split())
        part = np.ascontiguousarray(codes[:batch])
        start, began = time.perf_counter(), time.process_time()
        for _ in range(calls):
            fields = decode(part)
        taken = time.perf_counter() - start, time.process_time() - began
        if batch == len(codes):
            np.save(folder / "fields.npy", fields)
        print(*taken, flush=True)


class Contender:
    """A process of `serve`."""

    def __init__(self, name: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--contender", name, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._folder = folder

    def seconds(self, batch: int, calls: int) -> tuple[float, float]:
        """Measure some calls: the time they took, and the CPU time of the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{batch} {calls}\n")
        self._process.stdin.flush()
        taken, cpu = map(float, self._process.stdout.readline().split())
        return taken, cpu

    def fields(self, count: int) -> np.ndarray:
        """Decode all codes."""
        self.seconds(count, 1)
        return np.asarray(np.load(self._folder / "fields.npy"))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def compared(
    contenders: Mapping[str, Contender], count: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure each contender's largest difference to our float32, and its share of other pixels.

    Stops if it is more than rounding.
    """
    expected = contenders[ONNX].fields(count)
    scale = float(np.abs(expected).max())
    differences, shares = {}, {}
    for name, contender in contenders.items():
        fields = contender.fields(count)
        assert fields.shape == expected.shape, name
        differences[name] = float(np.abs(fields - expected).max())
        shares[name] = float(((fields > 0) != (expected > 0)).mean())
        rough = name in ROUGH
        assert rough or differences[name] <= scale * 1e-4, f"{name}: {differences[name]}"
        assert shares[name] <= 0.003, f"{name}: {shares[name]}"
    return differences, shares


def matmul_limits() -> tuple[dict[str, float], dict[str, float]]:
    """Compute masks per second if all operations ran at the rate of a 2048³ matrix product.

    Per second of time, and of CPU time.
    """
    torch = optional("torch")
    if torch is None:
        return {}, {}
    rates, cpu_rates = {}, {}
    for name, kind in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(2048, 2048).to(kind) for _ in range(2))
        times = []
        for _ in range(9):
            start, began = time.perf_counter(), time.process_time()
            a @ b
            times.append((time.perf_counter() - start, time.process_time() - began))
        masks = 2 * 2048**3 / flop_per_mask() / np.median(times, axis=0)
        rates[name], cpu_rates[name] = masks.tolist()
    return rates, cpu_rates


def speed(contenders: Mapping[str, Contender]) -> tuple[Rates, Rates]:
    """Measure masks per second, and per second of CPU time: medians of rounds, in turns."""
    rates, cpu_rates = {}, {}
    for batch in BATCHES:
        calls = {n: max(1, round(LEAST / c.seconds(batch, 1)[0])) for n, c in contenders.items()}
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, contender in contenders.items():
                time.sleep(PAUSE)
                rounds[name].append(contender.seconds(batch, calls[name]))
        medians = {
            name: batch * calls[name] / np.median(taken, axis=0) for name, taken in rounds.items()
        }
        rates[batch] = {name: float(median[0]) for name, median in medians.items()}
        cpu_rates[batch] = {name: float(median[1]) for name, median in medians.items()}
    return rates, cpu_rates


def table_of(
    title: str,
    rates: Rates,
    absent: Mapping[str, str],
    limits: Mapping[str, float],
    differences: Mapping[str, float],
) -> Table:
    """Make a row per contender, with its share of the limit at the largest batch."""
    rows: list[list[Cell]] = []
    plain = rates[BATCHES[-1]].get(PLAIN)
    for name in NEEDS:
        if name in absent:
            rows.append([name, absent[name], *[None] * (len(BATCHES) + 2)])
            continue
        last = rates[BATCHES[-1]][name]
        limit = None if name == INT8 else limits.get("bf16" if name in BF16 else "f32")
        share = f"{last / limit:.0%}" if limit else None
        row: list[Cell] = [name, *(rates[batch][name] for batch in BATCHES)]
        rows.append([*row, last / plain if plain else None, share, f"{differences[name]:.0e}"])
    for name, limit in limits.items():
        rows.append([f"limit: {name} matrix product", *[limit] * len(BATCHES), None, "100%", None])
    columns = ["decoder", *(f"batch {batch}" for batch in BATCHES)]
    columns += [f"÷ plain ort at {BATCHES[-1]}", f"of the limit at {BATCHES[-1]}", "largest Δ"]
    note = (
        f"{flop_per_mask() / 1e6:.1f} MFLOP per mask; the limit is this machine's rate for a "
        "2048³ matrix product in torch. Δ: largest difference of a field to ours, onnx f32."
    )
    return Table(title, columns, rows, note)


def targets_of(rates: Rates, shares: Mapping[str, float]) -> list[Target]:
    """Make the targets of both backends."""
    targets = []
    for batch, rate in rates.items():
        if PLAIN in rate:
            what = f"ours, onnx f32, batch {batch}"
            targets.append(at_least(what, rate[ONNX] / rate[PLAIN], 1, "× plain onnxruntime"))
    for batch in BATCHES[1:]:
        targets.append(at_least(f"ours, int8, batch {batch}", rates[batch][INT8], 3000, "masks/s"))
        if TORCH_BF16 in rates[batch]:
            what = f"ours, torch bf16, batch {batch}"
            targets.append(at_least(what, rates[batch][TORCH_BF16], 3500, "masks/s"))
    targets.append(at_most("mask pixels that int8 changes", shares[INT8] * 100, 0.1, "%"))
    if TORCH_BF16 in shares:
        changed = shares[TORCH_BF16] * 100
        targets.append(at_most("mask pixels that bf16 changes", changed, 0.3, "%"))
    return targets


def measure(folder: Path) -> None:
    """Measure and print."""
    weights, which = choose_weights()
    codes = load_codec(weights, "onnx").encode(shapes_of_things(512)).astype(np.int64)
    assert codes.shape == (512, SEG_PER_MASK)
    np.save(folder / "codes.npy", codes)
    lacking = {
        name: missing(" ".join(needed))
        for name, needed in NEEDS.items()
        if not all(map(optional, needed))
    }
    limits, cpu_limits = matmul_limits()
    contenders = {name: Contender(name, folder) for name in NEEDS if name not in lacking}
    differences, shares = compared(contenders, len(codes))
    rates, cpu_rates = speed(contenders)
    for contender in contenders.values():
        contender.close()
    pixels = Table(
        "Mask pixels that lower precision changes",
        ("decoder", "share"),
        [[name, f"{shares[name]:.3%}"] for name in ROUGH if name in shares],
        f"512 drawn masks, encoded and decoded with {which}.",
    )
    title = "Seg codes to fields: masks/s"
    speeds = table_of(title, rates, lacking, limits, differences)
    cpu = table_of(f"{title} of CPU time", cpu_rates, lacking, cpu_limits, differences)
    cpu.note += f" Weights: {which}. Each contender has a process of its own."
    speeds.note = ""
    report("masks", [speeds, cpu, pixels], targets_of(rates, shares))


def main() -> None:
    """Measure, or be one of the contenders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--contender", choices=NEEDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        serve(options.contender, options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder))


if __name__ == "__main__":
    main()
