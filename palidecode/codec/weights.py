"""Find, read, check, identify and convert codec weights.

Layout, names, size and hash of ``vae-oid.npz`` are those of the file that big_vision and
the Hugging Face demo load. It is only downloaded by `palidecode.codec.fetch`, on request.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from palidecode.errors import WeightsError
from palidecode.files import data_folder, regular
from palidecode.vocab import SEG_COUNT

Arrays = Mapping[str, npt.NDArray[np.float32]]

GOOGLE_ID = "google-oid"
DEMO_ID = "palidecode-demo"
GOOGLE_FILE = "vae-oid.npz"
GOOGLE_URL = "https://storage.googleapis.com/big_vision/paligemma/vae-oid.npz"
GOOGLE_BYTES = 8_479_556
GOOGLE_SHA256 = "5586010257b8536dddefab65e7755077f21d5672d5674dacf911f73ae95a4447"
CODEBOOK = "_vq_vae._embedding"
SUFFIXES = (".npz", ".safetensors")

_ENVIRONMENT = "PALIDECODE_WEIGHTS"
_MAX_BYTES = 1 << 28  # unpacked; the official arrays take 8 MB, in float64 twice that
_CODE_WIDTH = 512


def _shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in use, kernels in PyTorch's layout."""
    kernels: dict[str, tuple[int, ...]] = {
        f"encoder.{layer}": (outer, inner, 4, 4)
        for layer, inner, outer in ((0, 1, 16), (2, 16, 32), (4, 32, 64), (6, 64, 128))
    }
    for block in ("encoder.8", "encoder.9", "decoder.2", "decoder.3"):
        for layer, side in ((0, 3), (2, 3), (4, 1)):
            kernels[f"{block}.net.{layer}"] = (128, 128, side, side)
    kernels["encoder.10"] = (_CODE_WIDTH, 128, 1, 1)
    kernels["decoder.0"] = (128, _CODE_WIDTH, 1, 1)
    shapes: dict[str, tuple[int, ...]] = {CODEBOOK: (SEG_COUNT, _CODE_WIDTH)}
    for name, shape in kernels.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    # Transposed convolutions have their input channels first.
    for layer, inner, outer in ((4, 128, 128), (6, 128, 64), (8, 64, 32), (10, 32, 16)):
        shapes |= {
            f"decoder.{layer}.weight": (inner, outer, 4, 4),
            f"decoder.{layer}.bias": (outer,),
        }
    shapes |= {"decoder.12.weight": (1, 16, 1, 1), "decoder.12.bias": (1,)}
    return shapes


SHAPES = _shapes()
_MOVING_AVERAGES = {(SEG_COUNT, _CODE_WIDTH), (SEG_COUNT,)}  # shapes of two unused buffers


@dataclass(frozen=True)
class CodecWeights:
    """Weights in memory.

    Attributes
    ----------
    arrays : mapping of str to ndarray of float32
        Exactly the names and shapes of `SHAPES`.
    id : str
        ``google-oid``, ``palidecode-demo``, or ``custom:`` and eight hex digits.
    ignored : tuple of str
        Names of unused arrays in the file.
    """

    arrays: Arrays
    id: str
    ignored: tuple[str, ...] = ()


def cache_dir() -> Path:
    """Folder of fetched weights: ``PALIDECODE_CACHE``, or one in the user's cache.

    Raises
    ------
    WeightsError
        If the user has no home directory, and no variable names another.
    """
    if named := os.environ.get("PALIDECODE_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "palidecode"
    except RuntimeError as error:
        raise WeightsError(
            "no home directory for fetched weights; name one: PALIDECODE_CACHE=DIR"
        ) from error


def _fetched() -> Path | None:
    """Return the file of Google's weights, if it was fetched and may be read."""
    try:
        path = cache_dir() / GOOGLE_FILE
    except WeightsError:
        return None
    return path if os.access(path, os.R_OK) else None


def shipped_path() -> Path:
    """File of the weights in this package (``palidecode-demo``)."""
    return data_folder("vqvae_weights") / f"{DEMO_ID}.safetensors"


def find_weights(weights: str | os.PathLike[str] | None = None) -> Path:
    """Choose the weights file: a path, ``"google-oid"`` or ``"palidecode-demo"``.

    None is the file that ``PALIDECODE_WEIGHTS`` names, else Google's if it was fetched, else the
    one in this package.
    """
    if weights is None:
        weights = os.environ.get(_ENVIRONMENT) or None
    if weights is None:
        return _fetched() or shipped_path()
    if str(weights) == DEMO_ID:
        return shipped_path()
    if str(weights) == GOOGLE_ID:
        fetched = _fetched()
        if fetched is None:
            raise WeightsError("Google's weights are missing; run: palidecode weights fetch")
        return fetched
    path = Path(weights)
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weights file; give a .npz or .safetensors file, "
            f"{GOOGLE_ID!r} or {DEMO_ID!r}"
        )
    return path


def load_weights(weights: str | os.PathLike[str] | None = None) -> CodecWeights:
    """Read and check a weights file, see `find_weights`; ``.npz`` is read without pickle."""
    path = find_weights(weights)
    checked, ignored = check_arrays(_read(path), str(path))
    return CodecWeights(checked, _identify(path, checked), ignored)


def check_arrays(
    arrays: Mapping[str, npt.NDArray[np.generic]], where: str
) -> tuple[dict[str, npt.NDArray[np.float32]], tuple[str, ...]]:
    """Check arrays; return those in use in float32, and the names of the two unused buffers."""
    missing = sorted(SHAPES.keys() - arrays.keys())
    if missing:
        raise WeightsError(
            f"{where}: missing arrays: {len(missing)} of {len(SHAPES)}, first "
            f"{missing[0]!r}; this is not a mask codec of PaliGemma"
        )
    extra = sorted(arrays.keys() - SHAPES.keys())
    unknown = [name for name in extra if arrays[name].shape not in _MOVING_AVERAGES]
    if unknown or len(extra) > len(_MOVING_AVERAGES):
        raise WeightsError(f"{where}: unknown arrays: {', '.join(unknown or extra)}")
    checked = {}
    for name, shape in SHAPES.items():
        array = arrays[name]
        if array.shape != shape:
            raise WeightsError(f"{where}: {name} has shape {array.shape}, not {shape}")
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):  # float64 may overflow to infinity
                checked[name] = np.ascontiguousarray(array, np.float32)
        if array.dtype.kind != "f" or not np.isfinite(checked[name]).all():
            raise WeightsError(f"{where}: {name} ({array.dtype}) must hold finite floats")
    return checked, tuple(extra)


def _read(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: weights must be a .npz or .safetensors file")
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except Exception as error:  # damaged archives raise a dozen kinds, even MemoryError
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path}: can't be read as {path.suffix} weights: {reason}") from error


def _read_npz(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    with zipfile.ZipFile(regular(path)) as archive:
        members = archive.infolist()
        other = [m.filename for m in members if not m.filename.endswith(".npy")]
        if other:
            raise ValueError(f"{other[0]!r} is not an array")
        if sum(member.file_size for member in members) > _MAX_BYTES:
            raise ValueError("it unpacks to more than any mask codec")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_safetensors(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    try:
        with safe_open(regular(path), "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _identify(path: Path, arrays: Arrays) -> str:
    """Identify weights by what they hold; what a file says of itself isn't believed."""
    if path.stat().st_size == GOOGLE_BYTES and sha256_of(path) == GOOGLE_SHA256:
        return GOOGLE_ID
    digest = content_hash(arrays)
    if digest == manifest()["content_sha256"]:
        return DEMO_ID
    return GOOGLE_ID if _was_verified(digest) else f"custom:{digest[:8]}"


def remember(arrays: Arrays) -> None:
    """Remember that weights decode as Google's do; from now on their id is ``google-oid``.

    Warns if the cache can't be written.
    """
    try:
        path = _verified(content_hash(arrays))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except (OSError, WeightsError) as error:
        warnings.warn(f"the cache can't be written, so this is forgotten: {error}", stacklevel=2)


def _was_verified(digest: str) -> bool:
    try:
        return os.path.isfile(_verified(digest))
    except WeightsError:  # no home directory
        return False


def _verified(digest: str) -> Path:
    return cache_dir() / "verified" / digest


def content_hash(arrays: Arrays) -> str:
    """SHA-256 of the values in float32, independent of the file's format."""
    digest = hashlib.sha256()
    for name in sorted(SHAPES):
        digest.update(np.ascontiguousarray(arrays[name], "<f4").tobytes())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with regular(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> CodecWeights:
    """Rewrite weights as ``.npz`` or ``.safetensors`` in float32.

    Their id stays; on another machine Google's stays after ``palidecode weights verify``.
    """
    weights, path = load_weights(source), Path(target)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path}: the target must end in .npz or .safetensors")
    part = path.with_name(path.name + f".part{path.suffix}")
    try:
        if path.suffix == ".npz":
            np.savez(part, **weights.arrays)  # type: ignore[arg-type]
        else:
            save_safetensors(weights.arrays, part)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WeightsError(f"{path}: can't be written: {error}") from error
    if weights.id == GOOGLE_ID:
        remember(weights.arrays)
    return weights


def save_safetensors(arrays: Arrays, path: Path, dtype: npt.DTypeLike = np.float32) -> None:
    """Write arrays, in `dtype`."""
    stored = {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}
    try:
        save_file(stored, path)
    except SafetensorError as error:  # any error of the file system
        raise OSError(str(error)) from error


def manifest() -> dict[str, object]:
    """Read ``vqvae_weights/manifest.json``: training and quality of the shipped weights."""
    text = (shipped_path().parent / "manifest.json").read_text(encoding="utf-8")
    loaded: dict[str, object] = json.loads(text)
    return loaded
