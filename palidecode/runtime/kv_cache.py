"""Keys and values of what the decoder has read, allocated once for a whole answer."""

from __future__ import annotations

import torch
from torch import Tensor

from palidecode.runtime.config import TextConfig


class KVCache:
    """Room for `length` tokens of every row of a batch.

    Rows have prefixes of different lengths: prefixes are padded on the right, answers follow
    in the same column for all rows, and `position` says for each column which place of its
    row it holds, −1 for padding. Only differences of positions matter (RoPE).

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
        """How many columns there are."""
        return self.keys.shape[3]

    def reserve(self, position: Tensor) -> None:
        """Take the next columns for tokens at `position` (B, T); −1 is padding."""
        end = self.used + position.shape[1]
        if end > self.length:
            raise ValueError(f"the cache holds {self.length} tokens, {end} are needed")
        self.position[:, self.used : end] = position
        self.used = end

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values into the columns reserved last; give all."""
        start = self.used - k.shape[2]
        self.keys[layer, :, :, start : self.used] = k
        self.values[layer, :, :, start : self.used] = v
        return self.keys[layer, :, :, : self.used], self.values[layer, :, :, : self.used]

    def keep_rows(self, rows: Tensor) -> None:
        """Drop the rows of a batch whose answers have ended."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.position = self.position[rows]

    @staticmethod
    def bytes_needed(config: TextConfig, batch: int, length: int, item: int) -> int:
        """Memory of a cache of `item` bytes per number."""
        return 2 * config.layers * batch * config.kv_heads * length * config.head_size * item
