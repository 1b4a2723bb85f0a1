"""The key/value cache of the decoder, allocated once for a whole answer."""

from __future__ import annotations

import torch
from torch import Tensor

from palidecode.runtime.config import TextConfig


class KVCache:
    """Keys and values of up to `length` tokens for every row of a batch.

    Prefixes of different lengths are padded on the right, and answers follow in the same
    column for all rows. `position` holds the position of each column's token in its row, −1
    for padding. Only differences of positions matter (RoPE).

    Attributes
    ----------
    keys, values : Tensor, shape (layers, B, kv heads, length, head size)
    position : Tensor of int64, shape (B, length)
    used : int
        Columns in use.
    """

    def __init__(
        self, config: TextConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.layers, batch, config.kv_heads, length, config.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.position = torch.full((batch, length), -1, dtype=torch.int64, device=device)
        self.used = 0

    @property
    def length(self) -> int:
        """Number of columns, used and unused."""
        return self.keys.shape[3]

    def reserve(self, position: Tensor) -> None:
        """Reserve the next T columns for tokens at `position` (B, T); −1 is padding."""
        start = self.used
        self.advance(position.shape[1])
        self.position[:, start : self.used] = position

    def advance(self, tokens: int) -> None:
        """Count the next columns as used, without writing to them."""
        end = self.used + tokens
        if end > self.length:
            raise ValueError(f"the cache holds {self.length} tokens, {end} are needed")
        self.used = end

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values to the last reserved columns; return all."""
        start = self.used - k.shape[2]
        self.keys[layer, :, :, start : self.used] = k
        self.values[layer, :, :, start : self.used] = v
        return self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only these rows of the batch; the others have ended."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.position = self.position[rows]

    def join(self, other: KVCache, steps: int) -> None:
        """Append the rows of another cache, with room for `steps` more tokens.

        Columns move to the left in every row, so that padding doesn't grow with each join.
        """
        parts = (self, other)
        counts = [int((part.position >= 0).sum(1).max()) for part in parts]
        orders = [
            (part.position < 0).int().argsort(dim=1, stable=True)[:, :count]
            for part, count in zip(parts, counts, strict=True)
        ]
        used = max(counts)
        batch = len(self.position) + len(other.position)
        layers, _, heads, _, size = self.keys.shape
        keys = self.keys.new_zeros((layers, batch, heads, used + steps, size))
        values = torch.zeros_like(keys)
        position = self.position.new_full((batch, used + steps), -1)
        first = 0
        for part, order, count in zip(parts, orders, counts, strict=True):
            rows = slice(first, first + len(order))
            index = order[None, :, None, :, None].expand(layers, -1, heads, -1, size)
            keys[:, rows, :, :count] = part.keys.gather(3, index)
            values[:, rows, :, :count] = part.values.gather(3, index)
            position[rows, :count] = part.position.gather(1, order)
            first += len(order)
        self.keys, self.values, self.position, self.used = keys, values, position, used
