import hashlib
import os
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import torch

from palidecode.codec import load_codec, onnx
from palidecode.codec.graphs import GRAPHS, main
from palidecode.codec.int8 import NAMES, int8_weights
from palidecode.codec.weights import CodecWeights, save_safetensors
from palidecode.errors import InputError, WeightsError
from tests.references import decoded_field, encoded_mask

BACKENDS = ("onnx", "torch")


@pytest.fixture(scope="module")
def codecs(random_weights):
    return {
        backend: load_codec(random_weights, backend, precision="float32") for backend in BACKENDS
    }


def random_codes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 128, (count, 16))


def random_masks(count, seed=0):
    """Hard, soft and coarse masks in turn."""
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 64, 64)).astype(np.float32)
    masks[1::3] = np.rint(masks[1::3])
    masks[2::3] = np.repeat(np.repeat(masks[2::3, ::8, ::8], 8, 1), 8, 2) > 0.5
    return masks


@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_equals_the_slow_reference(codecs, random_weights, backend):
    codes = random_codes(4)
    expected = np.stack([decoded_field(row, random_weights.arrays) for row in codes])
    assert (expected > 0).any()
    assert (expected < 0).any()
    assert abs(codecs[backend].decode(codes) - expected).max() < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_encode_equals_the_slow_reference(codecs, random_weights, backend):
    masks = random_masks(6)
    expected = [encoded_mask(mask, random_weights.arrays) for mask in masks]
    assert codecs[backend].encode(masks).tolist() == expected
    assert len(np.unique(expected)) > 5


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 65])
def test_backends_agree_at_the_borders_of_their_chunks(codecs, count):
    codes, masks = random_codes(count, count), random_masks(count, count)
    a, b = (codecs[backend].decode(codes) for backend in BACKENDS)
    assert a.shape == b.shape == (count, 64, 64)
    assert a.dtype == b.dtype == np.float32
    assert abs(a - b).max(initial=0) < 1e-4
    a, b = (codecs[backend].encode(masks) for backend in BACKENDS)
    assert a.shape == (count, 16)
    assert a.dtype == b.dtype == np.uint8
    assert (a == b).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chunk_does_not_depend_on_its_neighbours(codecs, backend):
    codes = random_codes(65)
    together = codecs[backend].decode(codes)
    assert abs(codecs[backend].decode(codes[64:]) - together[64:]).max() < 1e-5


def test_bfloat16_changes_few_pixels(codecs, random_weights):
    rough = load_codec(random_weights, precision="bfloat16")
    exact, codes, masks = codecs["torch"], random_codes(32), random_masks(5)
    fields = rough.decode(codes)
    assert fields.dtype == np.float32
    assert 0 < ((fields > 0) != (exact.decode(codes) > 0)).mean() < 0.03
    assert (rough.encode(masks) == exact.encode(masks)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros(16, int), r"shape \(16,\)"),
        (np.zeros((2, 15), int), r"shape \(2, 15\)"),
        (np.zeros((5, 0), int), r"shape \(5, 0\)"),
        (np.zeros((1, 16)), "float64"),
        (np.full((1, 16), 128), "128 … 128"),
        (np.full((1, 16), -1), "-1 … -1"),
        ([[0] * 16, [0] * 15], "integers of shape"),
        ("codes", "integers of shape"),
    ],
)
def test_decode_refuses_what_are_not_codes(codecs, backend, codes, message):
    with pytest.raises(InputError, match=message):
        codecs[backend].decode(codes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((64, 64)), r"got \(64, 64\)"),
        (np.zeros((1, 32, 32)), r"got \(1, 32, 32\)"),
        (np.zeros((4, 0)), r"got \(4, 0\)"),
        (np.full((1, 64, 64), 255, np.uint8), "by 255"),
        (np.full((1, 64, 64), -0.1), r"\[0, 1\]"),
        (np.full((1, 64, 64), np.nan), r"\[0, 1\]"),
        ([[1], [1, 2]], "numbers of shape"),
        ("masks", "numbers of shape"),
    ],
)
def test_encode_refuses_what_are_not_masks(codecs, backend, masks, message):
    with pytest.raises(InputError, match=message):
        codecs[backend].encode(masks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_bools_and_nothing_are_taken(codecs, backend):
    codec = codecs[backend]
    assert (codec.decode([[5] * 16]) == codec.decode(np.full((1, 16), 5, np.uint8))).all()
    masks = np.tri(64, dtype=bool)[None]
    assert (codec.encode(masks) == codec.encode(masks.astype(float))).all()
    assert codec.decode([]).shape == (0, 64, 64)
    assert codec.encode([]).shape == (0, 16)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_carried_graphs_are_those_the_code_writes(name):
    model = GRAPHS[name]()
    carried = resources.files("palidecode.codec").joinpath(f"{name}.onnx").read_bytes()
    assert carried == model.SerializeToString(deterministic=True), (
        "run: python -m palidecode.codec.graphs"
    )


def test_the_graphs_command_writes_all(tmp_path, monkeypatch):
    monkeypatch.setattr("palidecode.codec.graphs.__file__", str(tmp_path / "graphs.py"))
    main()
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.onnx" for name in GRAPHS}


def test_decoding_with_onnxruntime_imports_no_torch(random_weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_safetensors(random_weights.arrays, path)
    code = (
        "import sys; from palidecode.codec import load_codec; codec = load_codec(sys.argv[1]);"
        "assert codec.decode([[0] * 16]).shape == (1, 64, 64); codec.encode([]);"
        "print(*({'torch', 'onnx', 'ray', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_load_codec_chooses_the_backend(random_weights):
    kinds = {
        options: type(load_codec(random_weights, **dict(options))).__name__
        for options in (
            (),
            (("backend", "onnx"),),
            (("backend", "torch"),),
            (("device", "cpu"),),
            (("precision", "bfloat16"),),
        )
    }
    assert list(kinds.values()) == ["OnnxCodec", "OnnxCodec", *["TorchCodec"] * 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "jax"}, "'auto', 'onnx' or 'torch', got 'jax'"),
        ({"backend": "onnx", "device": "cpu"}, "need backend='torch'"),
        ({"backend": "onnx", "precision": "bfloat16"}, "need backend='torch'"),
        ({"precision": "int4"}, "'int8', 'bfloat16', got 'int4'"),
        ({"backend": "torch", "precision": "int8"}, "needs backend='onnx'"),
        ({"device": "cpu", "precision": "int8"}, "needs backend='onnx'"),
        ({"device": "toaster"}, "'toaster' can't be used"),
    ],
)
def test_load_codec_refuses_options_that_do_not_fit(random_weights, options, message):
    with pytest.raises(InputError, match=message) as caught:
        load_codec(random_weights, **options)
    assert "\n" not in str(caught.value)


def test_without_torch_the_error_says_what_to_install(random_weights, monkeypatch):
    monkeypatch.delitem(sys.modules, "palidecode.codec.pytorch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'palidecode\[runtime\]'"):
        load_codec(random_weights, "torch")


def test_weights_that_do_not_fit_the_graph_are_a_weights_error(random_weights):
    arrays = dict(random_weights.arrays)
    arrays["decoder.12.bias"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError, match="can't start the decoder"):
        load_codec(CodecWeights(arrays, "custom:bad"), precision="float32").decode([[0] * 16])


def test_folding_the_codebook_is_exact(random_weights):
    arrays = random_weights.arrays
    row = arrays["_vq_vae._embedding"][9].astype(float)
    kernel, bias = arrays["decoder.0.weight"][:, :, 0, 0], arrays["decoder.0.bias"]
    assert onnx.fold_codebook(arrays)[9] == pytest.approx(
        np.maximum(kernel @ row + bias, 0), abs=1e-5
    )


def test_the_network_trains_through_its_codes(random_weights):
    from palidecode.codec.network import MaskVQVAE

    network = MaskVQVAE()
    network.load_state_dict({k: torch.from_numpy(v) for k, v in random_weights.arrays.items()})
    masks = torch.from_numpy(random_masks(2))
    out = network(masks)
    assert (out.fields[:, 0] - network.decode(out.codes)).abs().max() < 1e-4
    assert (out.codes == network.encode(masks)).all()
    out.fields.square().mean().backward()
    assert network.encoder[0].weight.grad.abs().sum() > 0
    assert network.codebook.shape == (128, 512)


ON_ONE_CORE = """
import os, sys
from pathlib import Path

import onnxruntime

from palidecode.codec import load_codec

os.sched_setaffinity(0, {int(sys.argv[1])})
before = len(list(Path("/proc/self/task").iterdir()))
codec = load_codec("palidecode-demo", "onnx")
codec.decode([[5] * 16])
print(len(list(Path("/proc/self/task").iterdir())) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux about its threads")
def test_no_threads_for_cores_that_are_not_for_this_process():
    core = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, core], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0"]


def test_threads_of_torch_are_those_that_were_asked_for():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            load_codec("palidecode-demo", "torch", threads=threads)
            assert torch.get_num_threads() == threads
        load_codec("palidecode-demo", "torch")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_no_thread_is_too_few(backend):
    with pytest.raises(InputError, match="threads must be at least 1, got 0"):
        load_codec("palidecode-demo", backend, threads=0)


def test_onnxruntime_reports_nothing(tmp_path):
    """Its telemetry writes an id of the device into the user's cache before it sends anything."""
    code = "import palidecode, os; palidecode.load_codec('palidecode-demo').decode([[1] * 16]); "
    code += "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    kept = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "ORT_RUNNING_UNIT_TESTS")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "HOME": str(tmp_path)},
    )
    assert done.stdout == "1\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def bundled():
    return {name: load_codec("palidecode-demo", precision=name) for name in ("float32", "int8")}


def test_int8_is_the_default_of_onnxruntime(bundled):
    codes = random_codes(3)
    fields = load_codec("palidecode-demo").decode(codes)
    assert (fields == bundled["int8"].decode(codes)).all()
    assert (fields != bundled["float32"].decode(codes)).any()


@pytest.mark.parametrize("count", [1, 5, 33])
def test_int8_fields_do_not_depend_on_the_batch(bundled, count):
    codes = random_codes(33)
    together = bundled["int8"].decode(codes)
    assert together.dtype == np.float32
    assert (bundled["int8"].decode(codes[-count:]) == together[-count:]).all()


def test_int8_changes_few_pixels(bundled, random_weights):
    masks = np.stack([drawn(n) for n in range(64)])
    codes = bundled["float32"].encode(masks)
    assert (bundled["int8"].encode(masks) == codes).all()
    exact, rough = (bundled[name].decode(codes) > 0 for name in ("float32", "int8"))
    assert exact.any(axis=(1, 2)).all()
    assert (exact == rough).mean() > 0.998
    codes = random_codes(8)
    exact, rough = (
        load_codec(random_weights, precision=name).decode(codes) for name in ("float32", "int8")
    )
    assert abs(exact - rough).mean() < 0.05 * abs(exact).mean()


def drawn(number):
    """One ellipse, in each its own place and shape."""
    rng = np.random.default_rng(number)
    x, y = rng.uniform(20, 44, 2)
    a, b = rng.uniform(8, 20, 2)
    rows, columns = np.mgrid[:64, :64]
    return (((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1).astype(np.float32)


def test_pairs_of_int8_products_fit_16_bits(random_weights):
    """Processors without VNNI add two products in 16 bits, and would saturate."""
    given = onnx.decoder_weights(random_weights.arrays)
    made = int8_weights(given, np.tile(np.float32([-3, 9]), len(NAMES)))
    kernels = [array for array in made.values() if array.dtype == np.int8 and array.ndim]
    assert len(kernels) == 11
    for kernel in kernels:
        inner = kernel.T if kernel.ndim == 2 else np.moveaxis(kernel, 1, -1)
        pairs = inner.reshape(-1, 2).astype(int)
        worst = np.maximum(np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1)).max()
        assert worst > 100
        assert 255 * worst < 2**15


def test_int8_fields_are_the_same_on_every_machine(bundled):
    fields = bundled["int8"].decode(random_codes(24, 5))
    assert hashlib.sha256(fields.tobytes()).hexdigest()[:16] == "6452de81430a98ff"
