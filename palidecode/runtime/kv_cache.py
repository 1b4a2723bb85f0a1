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
        end = self.used + position.shape[1]
        if end > self.length:
            raise ValueError(f"the cache holds {self.length} tokens, {end} are needed")
        self.position[:, self.used : end] = position
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
