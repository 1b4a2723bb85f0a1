"""Fixtures that several test files share."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from palidecode.codec import MaskCodec, load_codec
from palidecode.codec.weights import CODEBOOK, DEMO_ID, SHAPES, CodecWeights
from palidecode.runtime.tokenizer import Tokenizer
from tests.coco.samples import dataset  # noqa: F401  (fixture)
from tests.ray_data.samples import cluster, orphans, place  # noqa: F401  (fixtures)
from tests.samples import TOKENIZER

SHARED = Path(
    os.environ.get("PALIDECODE_SHARED", Path(__file__).parents[2] / "shared" / "data")
).resolve()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real answers, annotations and masks that is too large or not ours to ship."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED} (set PALIDECODE_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def real_tokenizer_file(shared_data, tmp_path_factory) -> Path:
    """PaliGemma's own ``tokenizer.json``."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    packed = (shared_data / "tokenizer" / "paligemma-tokenizer.json.gz").read_bytes()
    path.write_bytes(gzip.decompress(packed))
    return path


@pytest.fixture(scope="session")
def real_tokenizer(real_tokenizer_file) -> Tokenizer:
    """PaliGemma's own."""
    return Tokenizer.from_file(real_tokenizer_file)


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """The bundled model's: other ids than PaliGemma's, and few words."""
    return Tokenizer.from_file(TOKENIZER)


@pytest.fixture(scope="session")
def demo_codec() -> MaskCodec:
    """The shipped codec through onnxruntime."""
    return load_codec(DEMO_ID)


@pytest.fixture(scope="session")
def random_weights() -> CodecWeights:
    """Arrays of the official layout, scaled so that activations neither fade nor blow up."""
    rng = np.random.default_rng(7)
    arrays = {}
    for name, shape in SHAPES.items():
        # A transposed convolution has its inputs first, and a pixel sees 2×2 of its taps.
        transposed = name in {f"decoder.{layer}.weight" for layer in (4, 6, 8, 10)}
        fan_in = 4 * shape[0] if transposed else int(np.prod(shape[1:]))
        scale = np.sqrt(2 / fan_in) if name.endswith(".weight") else 0.1
        scale = 1.0 if name == CODEBOOK else scale
        arrays[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    arrays["decoder.12.weight"] *= 0.2  # fields of the order of 1, with both signs
    arrays["decoder.12.bias"] -= 0.4
    return CodecWeights(arrays, "custom:random")
