"""big_vision's ``.npz`` checkpoints as a `Source`, under transformers' names.

``np.savez`` stores arrays uncompressed, so each read maps one from the archive: of a stacked
array only the wanted layer is read, and its memory is released after the copy.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from palidecode.errors import WeightsError
from palidecode.files import regular
from palidecode.runtime.config import PRESETS, PaliGemmaConfig, TextConfig, VisionConfig
from palidecode.wording import many

Array = npt.NDArray[Any]
Turn = Callable[[Array], Array]

_PREFIX = "params/"
_SHOWN = 5
# Weights hardly compress: refuse archives above this size that unpack to over 20 times theirs.
_SMALL, _MOST_PACKED = 1 << 26, 20
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and its extras
_READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# numpy has no bfloat16: it arrives as two bytes without a type, or as integers.
_DTYPES = [np.dtype(name) for name in ("float32", "float16", "V2", "uint16")]
_BLOCK = "img/Transformer/encoderblock"
_VISION_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"


class Shaped(Protocol):
    """An array, or a description of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        ...


@dataclass(frozen=True)
class _Stored:
    """An array in an archive, read when it is opened."""

    path: Path
    offset: int  # bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    data: Array | None = None  # of a compressed array, which can't be mapped

    def open(self) -> Array:
        """Map the array copy-on-write: changes stay in memory."""
        if self.data is not None:
            return self.data
        return np.memmap(self.path, self.dtype, "c", self.offset, self.shape, self.order)


@dataclass(frozen=True)
class _Piece:
    """One tensor of ours: its key, the change of layout, its index into the leading axes."""

    key: str
    turn: Turn
    index: tuple[int, ...]


class BigVisionNpz:
    """A PaliGemma checkpoint of big_vision.

    Attributes
    ----------
    name : str
        The file.
    ignored : tuple of str
        Keys outside ``params/``: the optimiser and step of a training state.
    config : PaliGemmaConfig
        From `config_of`.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        stored = _members(path)
        inner = {key for key in stored if key.startswith(_PREFIX)}
        self.ignored = tuple(sorted(stored.keys() - inner)) if inner else ()
        self._arrays = {key.removeprefix(_PREFIX): stored[key] for key in inner or stored}
        self.config = config_of(self._arrays, self.name)
        self._pieces = _pieces(self.config)
        needed = {piece.key for piece in self._pieces.values()}
        self._refuse("missing", needed - self._arrays.keys())
        # Ignoring an unknown array could change outputs.
        self._refuse("unexpected", self._arrays.keys() - needed)
        self._check_stacks()

    def _refuse(self, what: str, names: set[str]) -> None:
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
            raise WeightsError(f"{self.name}: {many(len(names), f'{what} array')}: {shown}")

    def _check_stacks(self) -> None:
        """Check that each stack has exactly the config's number of layers."""
        indices: dict[str, set[tuple[int, ...]]] = {}
        for piece in self._pieces.values():
            indices.setdefault(piece.key, set()).add(piece.index)
        for key, taken in indices.items():
            wanted = tuple(max(axis) + 1 for axis in zip(*taken, strict=True))
            shape = self._arrays[key].shape
            if shape[: len(wanted)] != wanted:
                raise WeightsError(
                    f"{self.name}: {key} is {shape}, expected {wanted} as its first sizes"
                )

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return every name and the shape of its array; see `Source`."""
        shapes = {}
        for name, piece in self._pieces.items():
            shape = self._arrays[piece.key].shape
            # An array of this shape that takes no memory.
            hollow = np.broadcast_to(np.float32(0), shape[len(piece.index) :])
            try:
                shapes[name] = piece.turn(hollow).shape
            except (ValueError, IndexError):
                raise WeightsError(
                    f"{self.name}: {piece.key} is {shape}, which can't become {name}"
                ) from None
        return shapes

    def read(self, name: str) -> Array:
        """Read one array; bfloat16 is recognised under any of its names. See `Source`."""
        piece = self._pieces[name]
        try:
            turned = piece.turn(self._arrays[piece.key].open()[piece.index])
        except (ValueError, IndexError) as error:
            raise WeightsError(f"{self.name}: {piece.key}: {error}") from error
        # Members of an archive start at any byte, but torch needs aligned arrays.
        array = np.require(turned, requirements=("C", "A"))
        return array.view(np.uint16) if array.dtype.kind in "Vu" else array


def config_of(arrays: Mapping[str, Shaped], name: str = "npz") -> PaliGemmaConfig:
    """Infer the config from the shapes of the arrays.

    Shapes don't say soft caps, sliding window and the scale of attention logits (1/√256, or
    1/√144 in the 28B model): those are of the published model with the same decoder. A decoder
    of another size has Gemma's constants or, with norms after attention, Gemma 2's, and a
    scale from its head size. big_vision's embedding has 257,152 rows: 64 fewer than Hugging
    Face's, and none for ``<image>``.

    Parameters
    ----------
    arrays : mapping of str to array-like with a ``shape``
        Keys without ``params/``.
    name : str
        For messages.
    """

    def shape(key: str, rank: int) -> tuple[int, ...]:
        if key not in arrays:
            raise WeightsError(f"{name}: no {key}: not a PaliGemma checkpoint of big_vision")
        sizes = arrays[key].shape
        if len(sizes) != rank or 0 in sizes:
            raise WeightsError(f"{name}: {key} is {sizes}, expected {rank} axes and none empty")
        return sizes

    patch, _, _, width = shape("img/embedding/kernel", 4)
    side = round(shape("img/pos_embedding", 3)[1] ** 0.5)
    layers, _, mlp = shape(f"{_BLOCK}/MlpBlock_0/Dense_0/kernel", 3)
    heads = shape(f"{_VISION_ATTENTION}/query/kernel", 4)[2]
    vision = VisionConfig(
        width=width, layers=layers, heads=heads, mlp=mlp, image_size=side * patch, patch=patch
    )
    vocabulary, embedding = shape("llm/embedder/input_embedding", 2)
    depth, queries, _, head_size = shape("llm/layers/attn/q_einsum/w", 4)
    text = TextConfig(
        width=embedding,
        layers=depth,
        mlp=shape("llm/layers/mlp/linear", 3)[1],
        heads=queries,
        kv_heads=shape("llm/layers/attn/kv_einsum/w", 5)[2],
        head_size=head_size,
        vocabulary=vocabulary,
        query_scale=float(head_size),
        post_norms="llm/layers/post_attention_norm/scale" in arrays,
    )
    if queries % text.kv_heads or head_size % 2:
        raise WeightsError(
            f"{name}: {queries} query heads on {text.kv_heads} key/value heads of size {head_size}"
        )
    return PaliGemmaConfig(vision, _constants(text))


def _constants(text: TextConfig) -> TextConfig:
    """Add the constants that shapes don't say.

    big_vision's own PaliGemma 2 computes without a cap on the final logits, although Hugging
    Face's config of it has one; see `PaliDecoder.from_pretrained`.
    """
    like = [preset.text for preset in PRESETS.values() if preset.text.post_norms == text.post_norms]
    capped = replace(
        text,
        attention_softcap=like[0].attention_softcap,
        sliding_window=like[0].sliding_window,
    )
    for known in like:
        same = replace(capped, query_scale=known.query_scale)
        if replace(known, vocabulary=0, final_softcap=None) == replace(same, vocabulary=0):
            return same
    return capped


def _pieces(config: PaliGemmaConfig) -> dict[str, _Piece]:
    """Map transformers' names (as `Source` spells them) to big_vision's arrays."""
    pieces: dict[str, _Piece] = {}

    def add(name: str, key: str, turn: Turn = _same, *index: int) -> None:
        pieces[name] = _Piece(key, turn, index)

    def both(
        name: str, key: str, turn: Turn, *index: int, weight: str = "kernel", bias: Turn = _same
    ) -> None:
        add(f"{name}.weight", f"{key}/{weight}", turn, *index)
        add(f"{name}.bias", f"{key}/bias", bias, *index)

    both("vision.embeddings.patch_embedding", "img/embedding", _patch)
    add("vision.embeddings.position_embedding.weight", "img/pos_embedding", _same, 0)
    for layer in range(config.vision.layers):
        theirs = f"vision.encoder.layers.{layer}"
        for number in (0, 1):
            norm, key = f"{theirs}.layer_norm{number + 1}", f"{_BLOCK}/LayerNorm_{number}"
            both(norm, key, _same, layer, weight="scale")
            fc, key = f"{theirs}.mlp.fc{number + 1}", f"{_BLOCK}/MlpBlock_0/Dense_{number}"
            both(fc, key, np.transpose, layer)
        for ours, word in (("q", "query"), ("k", "key"), ("v", "value")):
            name, key = f"{theirs}.self_attn.{ours}_proj", f"{_VISION_ATTENTION}/{word}"
            both(name, key, _last_heads, layer, bias=_flat)
        both(f"{theirs}.self_attn.out_proj", f"{_VISION_ATTENTION}/out", _heads_out, layer)
    both("vision.post_layernorm", "img/Transformer/encoder_norm", _same, weight="scale")
    both("projector", "img/head", np.transpose)
    add("language.embed_tokens.weight", "llm/embedder/input_embedding")
    for layer in range(config.text.layers):
        theirs, attn, mlp = f"language.layers.{layer}", "llm/layers/attn", "llm/layers/mlp"
        own = f"{theirs}.self_attn"
        add(f"{own}.q_proj.weight", f"{attn}/q_einsum/w", _first_heads, layer)
        for half, ours in enumerate("kv"):
            add(f"{own}.{ours}_proj.weight", f"{attn}/kv_einsum/w", _first_heads, layer, half)
        add(f"{own}.o_proj.weight", f"{attn}/attn_vec_einsum/w", _heads_out, layer)
        for half, ours in enumerate(("gate", "up")):
            name, key = f"{theirs}.mlp.{ours}_proj.weight", f"{mlp}/gating_einsum"
            add(name, key, np.transpose, layer, half)
        add(f"{theirs}.mlp.down_proj.weight", f"{mlp}/linear", np.transpose, layer)
        for name, word in _norms(config.text.post_norms).items():
            add(f"{theirs}.{name}.weight", f"llm/layers/{word}/scale", _same, layer)
    add("language.norm.weight", "llm/final_norm/scale")
    return pieces


def _norms(post: bool) -> dict[str, str]:
    if not post:
        return {"input_layernorm": "pre_attention_norm", "post_attention_layernorm": "pre_ffw_norm"}
    return {
        "input_layernorm": "pre_attention_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "pre_ffw_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }


def _same(array: Array) -> Array:
    return array


def _flat(array: Array) -> Array:
    return array.reshape(-1)


def _patch(kernel: Array) -> Array:
    return kernel.transpose(3, 2, 0, 1)  # (height, width, 3, out) → (out, 3, height, width)


def _last_heads(kernel: Array) -> Array:
    return kernel.reshape(len(kernel), -1).T  # (in, heads, size) → (heads · size, in)


def _first_heads(kernel: Array) -> Array:
    return kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1])  # (heads, in, size) → …


def _heads_out(kernel: Array) -> Array:
    return kernel.reshape(-1, kernel.shape[-1]).T  # (heads, size, out) → (out, heads · size)


def _members(path: Path) -> dict[str, _Stored]:
    """List the archive's arrays; nothing is unpickled."""
    try:
        with zipfile.ZipFile(regular(path)) as archive, path.open("rb") as file:
            _check_packed(archive)
            return {
                member.filename.removesuffix(".npy"): _stored(path, archive, member, file)
                for member in archive.infolist()
            }
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise WeightsError(
            f"{path}: cut short, damaged or not a .npz ({error}); download it again"
        ) from error
    except Exception as error:  # damaged array headers raise a dozen kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path}: can't be read as a .npz ({reason})") from error


def _stored(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: IO[bytes]
) -> _Stored:
    if member.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as packed:
            _header(member, packed)  # check the size before memory is allocated
        with archive.open(member) as packed:
            array = np.lib.format.read_array(packed, allow_pickle=False)
        return _Stored(path, 0, array.dtype, array.shape, "C", array)
    file.seek(member.header_offset)
    name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = member.header_offset + _LOCAL_HEADER.size + name + extra
    file.seek(start)
    shape, order, dtype = _header(member, file)
    offset = file.tell()
    if offset + math.prod(shape) * dtype.itemsize > archive.start_dir:
        raise ValueError(f"{member.filename} is not as long as its shape {shape} says")
    return _Stored(path, offset, dtype, shape, order)


def _header(
    member: zipfile.ZipInfo, file: IO[bytes]
) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """Read shape, order and dtype of an array, and check them against its length."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    if version not in _READ_HEADER:
        raise ValueError(f"{member.filename} has an unknown .npy version")
    shape, fortran, dtype = _READ_HEADER[version](file)
    if dtype not in _DTYPES:
        raise ValueError(f"{member.filename} holds {dtype}, not float32, float16 or bfloat16")
    if min(shape, default=0) < 0 or (
        file.tell() - start + math.prod(shape) * dtype.itemsize != member.file_size
    ):
        raise ValueError(f"{member.filename} is not as long as its shape {shape} says")
    return shape, "F" if fortran else "C", dtype


def _check_packed(archive: zipfile.ZipFile) -> None:
    """Refuse an archive that compresses better than weights can (a decompression bomb)."""
    packed = [m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
    unpacked, stored = sum(m.file_size for m in packed), sum(m.compress_size for m in packed)
    if unpacked > _SMALL and unpacked > _MOST_PACKED * stored:
        raise ValueError(f"its {stored} bytes unpack to {unpacked}, too many for weights")
