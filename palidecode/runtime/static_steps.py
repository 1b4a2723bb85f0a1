"""Steps of decoding whose shapes and addresses repeat, so that a GPU replays them as one graph.

A step of one token is hundreds of small kernels. Launching them one by one takes the host longer
than the GPU computes; a CUDA graph launches all of them with one call.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor

from palidecode.errors import warn
from palidecode.runtime.config import TextConfig
from palidecode.runtime.kv_cache import KVCache
from palidecode.runtime.paligemma import PaliGemma

_COLUMNS = 64  # lengths of caches are rounded up to a multiple of this
_ROWS = 8  # batches above this are rounded up to a multiple, smaller ones to a power of two
_MOST_TOKENS = 8  # longer steps aren't worth a graph
_MOST_GRAPHS = 64  # kept at a time


class FixedCache(KVCache):
    """A cache in which `column`, shape (T,), says where the next T tokens are written.

    All columns count as used: those without a token are padding, which no token sees.
    """

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        self.keys, self.values, self.position = keys, values, position
        self.used = position.shape[1]
        self.column = position.new_zeros(0)

    def reserve(self, position: Tensor) -> None:
        """Write the positions of the next tokens (B, T) to their columns."""
        self.position.index_copy_(1, self.column, position)

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values to their columns; return all."""
        keys, values = self.keys[layer], self.values[layer]
        return keys.index_copy_(2, self.column, k), values.index_copy_(2, self.column, v)


class StaticSteps(threading.local):
    """Reads the next tokens of a batch, as `PaliGemma.step` does, in few different shapes.

    Rows and columns are rounded up. One block of memory holds the cache of one batch at a time:
    the cache of the batch that is read moves in, and the one before moves out. Each thread has
    its own.

    Parameters
    ----------
    model : PaliGemma
    capture : bool
        Replay CUDA graphs; without it the same tensors are computed kernel by kernel.
    """

    def __init__(self, model: PaliGemma, capture: bool) -> None:
        self._model, self._capture = model, capture
        self._usable = True
        self._block: tuple[Tensor, Tensor, Tensor] | None = None  # keys, values, positions
        self._caches: dict[tuple[int, int], FixedCache] = {}
        self._steps: dict[tuple[int, int, int], _Step] = {}
        self._owner: weakref.ref[KVCache] | None = None
        self._lent: Tensor | None = None  # the owner's keys
        self._recorder: _Recorder | None = None

    def read(self, tokens: Tensor, position: Tensor, length: Tensor, cache: KVCache) -> Tensor:
        """Read tokens (B, T); see `PaliGemma.step`."""
        if not self._usable or tokens.shape[1] > _MOST_TOKENS:
            return self._model.step(tokens, position, length, cache)
        try:
            step = self._prepare(tokens, cache)
        except torch.OutOfMemoryError as error:
            self._give_up(error)
            return self._model.step(tokens, position, length, cache)
        column = cache.used
        cache.advance(tokens.shape[1])
        hidden = step.run(tokens, position, length, column)
        if self._capture and not step.captured:
            try:
                if self._recorder is None:
                    self._recorder = _Recorder(tokens.device)
                step.capture(self._recorder)
            except RuntimeError as error:
                self._give_up(error)
        return hidden

    def _give_up(self, error: RuntimeError) -> None:
        """Compute kernel by kernel from now on."""
        reason = str(error).strip().partition("\n")[0]
        warn(f"CUDA graphs can't be used, so decoding is slower: {reason}", RuntimeWarning)
        self._usable = False
        self._clear()

    def _clear(self) -> None:
        """Forget the block and all graphs, which hold its addresses."""
        self._steps.clear()
        self._caches.clear()
        self._block = self._recorder = None

    def _prepare(self, tokens: Tensor, cache: KVCache) -> _Step:
        """Return the step for these shapes, with the cache moved in."""
        batch, count = tokens.shape
        rows, columns = _round_rows(batch), -(-cache.length // _COLUMNS) * _COLUMNS
        fixed = self._cache_of(rows, columns)
        self._move_in(cache, fixed)
        key = rows, columns, count
        step = self._steps.pop(key, None)
        if step is None:
            if len(self._steps) == _MOST_GRAPHS:
                del self._steps[next(iter(self._steps))]
            step = _Step(self._model, fixed, count)
        self._steps[key] = step  # the last one used comes last
        return step

    def _cache_of(self, rows: int, columns: int) -> FixedCache:
        """Return a view of the block, which grows if it is too small."""
        config: TextConfig = self._model.config.text
        shape = (config.layers, rows, config.kv_heads, columns, config.head_size)
        if self._block is None or rows * columns > self._block[2].numel():
            self._move_out()
            self._clear()
            weight = self._model.language.embed.weight
            keys = weight.new_zeros(shape).view(-1)
            position = torch.zeros(rows * columns, dtype=torch.int64, device=weight.device)
            self._block = keys, torch.zeros_like(keys), position
        if (rows, columns) not in self._caches:
            keys, values, position = self._block
            count = keys.numel() // position.numel() * rows * columns
            self._caches[rows, columns] = FixedCache(
                keys[:count].view(shape),
                values[:count].view(shape),
                position[: rows * columns].view(rows, columns),
            )
        return self._caches[rows, columns]

    def _move_in(self, cache: KVCache, fixed: FixedCache) -> None:
        """Make a cache a view of the block."""
        if cache.keys is self._lent:
            return
        self._move_out()
        rows, used = cache.position.shape[0], cache.used
        fixed.values.zero_()  # what padding holds is multiplied by 0, and must be finite
        fixed.position.fill_(-1)
        for name in ("keys", "values"):
            inside = getattr(fixed, name)[:, :rows, :, : cache.length]
            inside[..., :used, :] = getattr(cache, name)[..., :used, :]
            setattr(cache, name, inside)
        fixed.position[:rows, :used] = cache.position[:, :used]
        cache.position = fixed.position[:rows, : cache.length]
        self._owner, self._lent = weakref.ref(cache), cache.keys

    def _move_out(self) -> None:
        """Give the cache that is a view of the block its own memory."""
        owner = None if self._owner is None else self._owner()
        if owner is not None and owner.keys is self._lent:
            owner.keys, owner.values = owner.keys.clone(), owner.values.clone()
            owner.position = owner.position.clone()
        self._owner = self._lent = None


class _Recorder:
    """The stream and the memory that all graphs share; only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()


class _Step:
    """A step of `count` tokens in each row of a cache, with inputs and output of its own."""

    def __init__(self, model: PaliGemma, cache: FixedCache, count: int) -> None:
        self._model, self._cache = model, cache
        rows, device = len(cache.position), cache.position.device
        self._tokens = torch.zeros((rows, count), dtype=torch.int64, device=device)
        self._position, self._length = torch.zeros_like(self._tokens), self._tokens[:, 0].clone()
        self._first = torch.arange(count, device=device)
        self._column = self._first.clone()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._hidden: Tensor | None = None

    @property
    def captured(self) -> bool:
        """True if `run` replays a graph."""
        return self._graph is not None

    def run(self, tokens: Tensor, position: Tensor, length: Tensor, column: int) -> Tensor:
        """Compute the hidden states (B, T, width) of tokens that go to columns from `column` on."""
        rows = len(tokens)
        self._tokens[:rows], self._position[:rows], self._length[:rows] = tokens, position, length
        torch.add(self._first, column, out=self._column)
        if self._graph is None:
            return self._compute()[:rows]
        self._graph.replay()
        assert self._hidden is not None
        return self._hidden[:rows].clone()

    def capture(self, recorder: _Recorder) -> None:
        """Record what `_compute` launches; nothing is computed."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(recorder.device),
            torch.cuda.graph(graph, recorder.pool, recorder.stream, "thread_local"),
        ):
            hidden = self._compute()
        self._graph, self._hidden = graph, hidden

    def _compute(self) -> Tensor:
        self._cache.column = self._column
        return self._model.step(self._tokens, self._position, self._length, self._cache)


def _round_rows(rows: int) -> int:
    """Number of rows that are computed for a batch."""
    return 1 << (rows - 1).bit_length() if rows <= _ROWS else -(-rows // _ROWS) * _ROWS
