"""The engine in ONNX Runtime, on a CPU and without torch: float32, int8 and int4."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime import OrtValue

from palidecode.cores import cores
from palidecode.errors import WeightsError
from palidecode.runtime.adapters import AdaptedSource
from palidecode.runtime.config import PaliGemmaConfig, TextConfig
from palidecode.runtime.engine import Ids, Logits
from palidecode.runtime.onnx_cache import OnnxCache
from palidecode.runtime.onnx_weights import EMBEDDING, HEAD, Array, Precision, onnx_weights
from palidecode.runtime.quantizing import Quantized

Floats = npt.NDArray[np.float32]

_PAUSE = 0.05  # seconds
_HIDDEN = np.float32(-1e30)  # added to the logits of tokens that a token doesn't see


class OnnxEngine:
    """Runs the graphs of `onnx_graphs`; see `Engine`.

    Parameters
    ----------
    config : PaliGemmaConfig
    precision : {"float32", "int8", "int4"}
    graphs : mapping of str to bytes
        From `build_graphs`, or the files of an exported folder.
    arrays : mapping of str to ndarray
        From `onnx_weights`; mapped arrays stay mapped.
    threads : int, optional
        By default one for each core available to this process.
    """

    def __init__(
        self,
        config: PaliGemmaConfig,
        precision: Precision,
        graphs: Mapping[str, bytes],
        arrays: Mapping[str, Array],
        threads: int | None = None,
    ) -> None:
        self.config, self._precision = config, precision
        self.name = f"onnxruntime, {precision}, cpu"
        self._graphs, self._arrays = graphs, arrays
        self._threads = threads or cores()
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def encode_image(self, pixels: Floats) -> list[Floats]:
        """Encode pixels; see `Engine.encode_image`."""
        return list(self.session("vision").run(None, {"pixels": pixels})[0])

    def join(self, features: Sequence[Floats]) -> Floats:
        """Join the image tokens of several pictures; see `Engine.join`."""
        return np.concatenate(features)

    def start(
        self,
        features: Sequence[Floats],
        prompts: Sequence[Sequence[int]],
        length: int,
        head: Ids | None,
    ) -> OnnxBatch:
        """Begin a batch of answers; see `Engine.start`."""
        return OnnxBatch(self, features, prompts, head)

    def adapted(self, source: AdaptedSource, config: PaliGemmaConfig) -> OnnxEngine:
        """Return this model with an adapter; see `Engine.adapted`."""
        changed = dict(onnx_weights(source, config, self._precision, source.changed))
        arrays = {**self._arrays, **changed}
        return OnnxEngine(config, self._precision, self._graphs, arrays, self._threads)

    def embed(self, ids: Ids) -> Floats:
        """Embed ids (…) as (…, width), scaled by √width as Gemma's text is."""
        width = self.config.text.width
        rows = self.rows(EMBEDDING, ids.ravel()) * np.float32(width**0.5)
        return rows.reshape(*ids.shape, width)

    def logits(self, hidden: Floats, rows: Floats | None) -> Logits:
        """Compute the logits of hidden states (…, width): of `rows` of the head, or of all."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits: Logits
        if rows is None:
            logits = self.session("head").run(None, {"hidden": flat})[0]
        else:
            logits = flat @ rows.T
        logits = logits.reshape(*hidden.shape[:-1], -1)
        cap = self.config.text.final_softcap
        return logits if cap is None else np.tanh(logits / np.float32(cap)) * np.float32(cap)

    def _table(self, name: str) -> str:
        """Name of the table that a head or an embedding uses: a tied head has the embedding's."""
        return EMBEDDING if name == HEAD and self.config.text.tied_head else name

    def rows(self, name: str, ids: Ids) -> Floats:
        """Rows of the embedding or the head, (R, width)."""
        table = self._table(name)
        if f"{table}.weight" in self._arrays:
            rows: Floats = self._arrays[f"{table}.weight"][ids]
            return rows
        levels, scales = (self._arrays[f"{table}.{part}"] for part in ("levels", "scales"))
        return Quantized(8, levels, scales, None).rows(ids, self.config.text.width)

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """Start the session of a graph on its first use.

        Raises
        ------
        WeightsError
            If ONNX Runtime refuses the graph or its weights.
        """
        if graph not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = self._threads
            # Threads that spin between runs take the cores of whatever runs next.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            arrays = dict(self._of(graph))
            values = [OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
            options.add_external_initializers(list(arrays), values)
            try:
                with dropping_pages(arrays.values()):
                    self._sessions[graph] = onnxruntime.InferenceSession(
                        self._graphs[graph], options, providers=["CPUExecutionProvider"]
                    )
            except Exception as error:  # onnxruntime's exceptions share no other base
                raise WeightsError(f"onnxruntime can't start {graph}.onnx: {error}") from error
        return self._sessions[graph]

    def _of(self, graph: str) -> Mapping[str, Array]:
        """Weights of one graph, by the names it has for them."""
        if graph == "head":
            table = f"{self._table(HEAD)}."
            found = ((name, array) for name, array in self._arrays.items())
            return {
                f"{HEAD}.{name.removeprefix(table)}": array
                for name, array in found
                if name.startswith(table)
            }
        rooms = ("vision.", "projector.") if graph == "vision" else ("language.",)
        tables = (f"{EMBEDDING}.", f"{HEAD}.")
        return {
            name: array
            for name, array in self._arrays.items()
            if name.startswith(rooms) and not name.startswith(tables)
        }


@contextmanager
def dropping_pages(arrays: Iterable[Array]) -> Iterator[None]:
    """Take the pages of mapped files out of this process, again and again until the block ends.

    A session reads and copies all its weights when it starts, and most of them aren't read again.
    Without this they would be in memory twice. Pages come back when they are read.
    """
    maps = _maps_of(arrays)
    ended = threading.Event()

    def drop() -> None:
        while not ended.wait(_PAUSE):
            for mapped in maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for mapped in maps:
            mapped.madvise(mmap.MADV_DONTNEED)


def _maps_of(arrays: Iterable[Array]) -> list[mmap.mmap]:
    """List the mapped files that hold the arrays; none on Windows, which has no `madvise`."""
    maps: dict[int, mmap.mmap] = {}
    for array in arrays:
        base: object = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            maps[id(base)] = base
    return list(maps.values())


class OnnxBatch:
    """A batch of answers in progress; see `Batch`."""

    def __init__(
        self,
        engine: OnnxEngine,
        features: Sequence[Floats],
        prompts: Sequence[Sequence[int]],
        head: Ids | None,
    ) -> None:
        self._engine = engine
        self._rows: Floats | None = None
        self.use_head(head)
        config = engine.config
        layers = range(config.text.layers)
        self._names = [f"{kind}.{layer}" for layer in layers for kind in ("keys", "values")]
        images = len(features[0])
        self._prefix = np.array([images + len(prompt) for prompt in prompts], np.int64)
        padded = np.full((len(prompts), int(self._prefix.max()) - images), config.pad, np.int64)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt
        self._embeddings = np.concatenate([np.stack(features), engine.embed(padded)], axis=1)

    def prefill(self) -> Logits:
        """Read pictures and prompts; see `Batch.prefill`."""
        text = self._engine.config.text
        column = np.arange(self._embeddings.shape[1])
        position = np.where(column < self._prefix[:, None], column, -1)
        empty = np.zeros((len(position), text.kv_heads, 0, text.head_size), np.float32)
        cache = OnnxCache(self._names, self._prefix, [empty] * len(self._names))
        last = self._prefix[:, None] - 1
        logits, prefixes = self._read(
            self._embeddings, position, position, self._prefix, last, cache.feeds()
        )
        self._cache = OnnxCache(self._names, self._prefix, [one.numpy() for one in prefixes])
        del self._embeddings
        return logits[:, 0]

    def step(self, tokens: Ids) -> Logits:
        """Read the next tokens of every row; see `Batch.step`."""
        cache = self._cache
        read = np.zeros((len(cache.lengths), tokens.shape[1]), np.int64)
        read[cache.slots] = tokens
        column = np.arange(tokens.shape[1])
        position = (cache.lengths + cache.read)[:, None] + column
        known = np.concatenate([cache.known, position], axis=1)
        every = np.broadcast_to(column, read.shape)
        embeddings = self._engine.embed(read)
        logits, answers = self._read(
            embeddings, position, known, cache.lengths, every, cache.feeds()
        )
        cache.grow(position, answers)
        return logits[cache.slots]

    def keep_rows(self, rows: Ids) -> None:
        """Keep only these rows; see `Batch.keep_rows`."""
        self._cache.keep_rows(rows)

    def join(self, other: OnnxBatch, steps: int) -> None:
        """Append the rows of another batch; see `Batch.join`."""
        self._cache.join(other._cache)

    def use_head(self, head: Ids | None) -> None:
        """Compute other tokens' logits from now on; see `Batch.use_head`."""
        self._rows = None if head is None else self._engine.rows(HEAD, head)

    def _read(
        self,
        embeddings: Floats,
        own: Ids,
        known: Ids,
        prefix: Ids,
        pick: Ids,
        cache: Mapping[str, OrtValue],
    ) -> tuple[Logits, list[OrtValue]]:
        """Read tokens at positions `own` of the `known` ones; `prefix` of each row come first.

        Return the logits after those that each row picks, and the cache with the new tokens.
        """
        text = self._engine.config.text
        mask, sliding = attention_masks(own, known, prefix, text)
        feeds = {"embeddings": embeddings, "mask": mask, "pick": pick[:, :, None]}
        feeds["cos"], feeds["sin"] = rotation(own, text)
        if sliding is not None:
            feeds["sliding"] = sliding
        given = {name: OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        session = self._engine.session("decoder")
        hidden, *answers = session.run_with_ort_values(["hidden", *self._names], {**given, **cache})
        return self._engine.logits(hidden.numpy(), self._rows), answers


def rotation(position: Ids, text: TextConfig) -> tuple[Floats, Floats]:
    """Cosines and sines of the rotary embedding at positions (B, T), (B, 1, T, head size / 2)."""
    even = np.arange(0, text.head_size, 2, dtype=np.float32)
    frequency = np.float32(1) / np.float32(text.rope_base) ** (even / np.float32(text.head_size))
    angle = position[:, None, :, None].astype(np.float32) * frequency
    return np.cos(angle), np.sin(angle)


def attention_masks(
    own: Ids, known: Ids, prefix: Ids, text: TextConfig
) -> tuple[Floats, Floats | None]:
    """Masks (B, 1, T, S) over the S known tokens, for full and, if there are any, sliding layers.

    The rules are those of `Gemma`: the prefix attends to itself in both directions, whatever
    the window; padding attends to padding, as a row that attends to nothing has no softmax.
    """
    mine, other = own[:, :, None], known[:, None, :]
    both = (mine < prefix[:, None, None]) & (other < prefix[:, None, None])
    real = (other >= 0) | (mine < 0)
    full = real & ((other <= mine) | (both & (mine >= 0)))
    if text.sliding_window is None:
        return _added(full), None
    return _added(full), _added(full & (both | (mine - other < text.sliding_window)))


def _added(visible: npt.NDArray[np.bool_]) -> Floats:
    return np.where(visible, np.float32(0), _HIDDEN)[:, None]
