"""Gemma and Gemma 2: the decoder that reads image and prompt and writes the answer.

The config says which: Gemma 2 has norms after attention and MLP, soft caps on attention and
final logits, and a sliding window on every second layer (source: the two reports and
transformers' implementation, against which the tests compare).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from palidecode.runtime.config import TextConfig
from palidecode.runtime.kv_cache import KVCache
from palidecode.runtime.linear import pad_rows


class RMSNorm(nn.Module):
    """Root-mean-square norm; the weight is stored as its difference from 1."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = 1.0 + self.weight.float()
        return F.rms_norm(x.float(), scale.shape, scale, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention over the cache."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        inner = (config.heads + 2 * config.kv_heads) * config.head_size
        self.qkv = nn.Linear(config.width, inner, bias=False)
        self.out = nn.Linear(config.heads * config.head_size, config.width, bias=False)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor, cache: KVCache | None, layer: int, last: int
    ) -> Tensor:
        """Attend from every token, or from the `last` ones only; all are stored in the cache."""
        c = self.config
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, c.heads + 2 * c.kv_heads, c.head_size)
        qk, v = qkv.transpose(1, 2).split([c.heads + c.kv_heads, c.kv_heads], dim=1)
        qk = rope.rotate(qk)
        q, k = qk[:, : c.heads, -last if last else 0 :], qk[:, c.heads :]
        if cache is not None:
            k, v = cache.store(layer, k, v)
        mixed = self._attend(q, k, v, mask[:, -last:] if last else mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, q.shape[2], -1))
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q (B, heads, T, H), k and v (B, kv heads, S, H), mask (B, T, S) → (B, heads, T, H)."""
        c = self.config
        scale = float(c.query_scale**-0.5)
        batch, heads, tokens, size = q.shape
        group = heads // c.kv_heads
        if c.attention_softcap is None and tokens > 1:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask[:, None], scale=scale, enable_gqa=group > 1
            )
        # Queries that share a key head are stacked, so that each key head needs one product.
        stacked = q.reshape(batch, c.kv_heads, group * tokens, size)
        logits = (stacked @ k.transpose(2, 3)).view(batch, c.kv_heads, group, tokens, -1) * scale
        if c.attention_softcap is not None:
            logits = torch.tanh(logits / c.attention_softcap) * c.attention_softcap
        logits = torch.where(mask[:, None, None], logits, torch.finfo(logits.dtype).min)
        weights = logits.softmax(-1, dtype=torch.float32).to(q.dtype)
        mixed = weights.view(batch, c.kv_heads, group * tokens, -1) @ v
        return mixed.view(batch, heads, tokens, size)


class MLP(nn.Module):
    """Gated MLP with tanh-GELU; gate and up are one product."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.gelu(gate, approximate="tanh") * up)
        return out


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = MLP(config)
        post = config.post_norms
        self.attention_post = RMSNorm(config.width, config.eps) if post else nn.Identity()
        self.mlp_post = RMSNorm(config.width, config.eps) if post else nn.Identity()

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor, cache: KVCache | None, layer: int, last: int = 0
    ) -> Tensor:
        """Map x (B, T, width) to (B, T or last, width); mask (B, T, S) is True where visible."""
        mixed = self.attention(self.attention_norm(x), rope, mask, cache, layer, last)
        x = (x[:, -last:] if last else x) + self.attention_post(mixed)
        out: Tensor = x + self.mlp_post(self.mlp(self.mlp_norm(x)))
        return out


class Rope:
    """Rotary position embedding: cosines and sines of T tokens, (B, 1, T, head size / 2)."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self.cos, self.sin = cos, sin

    @classmethod
    def at(cls, position: Tensor, config: TextConfig, dtype: torch.dtype) -> Rope:
        """Build the embedding of tokens at `position` (B, T)."""
        even = torch.arange(0, config.head_size, 2, device=position.device, dtype=torch.float32)
        frequency = 1.0 / config.rope_base ** (even / config.head_size)
        angle = position[:, None, :, None].float() * frequency
        return cls(angle.cos().to(dtype), angle.sin().to(dtype))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the two halves of each head of x (B, heads, T, head size)."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-1)


class Gemma(nn.Module):
    """The decoder, from embeddings to logits."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.own_head: nn.Parameter | None = None  # the head's weights, if it isn't tied
        if not config.tied_head:
            self.own_head = nn.Parameter(torch.empty(config.vocabulary, config.width))
        self.head: nn.Module | None = None  # the head quantised, if it is

    @property
    def head_weight(self) -> Tensor:
        """Weights of the output head, (vocabulary, width): by default the embedding's."""
        return self.embed.weight if self.own_head is None else self.own_head

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, width), scaled by √width as Gemma's text is."""
        embedded: Tensor = self.embed(ids)
        return embedded * torch.tensor(self.config.width**0.5, dtype=embedded.dtype)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        prefix: Tensor,
        cache: KVCache | None = None,
        last: int = 0,
    ) -> Tensor:
        """Compute the hidden states (B, T, width) after the final norm of `x`, of the same shape.

        `position` (B, T) is each token's position in its row, −1 for padding; `prefix` (B,) the
        length of each row's prefix (image, ``<bos>``, prompt, newline), whose tokens attend to
        each other in both directions; what follows is causal. With `last` above 0, the last layer
        computes only that many last tokens.
        """
        if cache is not None:
            cache.reserve(position)
        known = position if cache is None else cache.position[:, : cache.used]
        rope = Rope.at(position, self.config, x.dtype)
        full, sliding = self._masks(position, known, prefix)
        for index, layer in enumerate(self.layers):
            mask = full if self.config.window_of(index) is None else sliding
            final = index == len(self.layers) - 1
            x = layer(x, rope, mask, cache, index, last if final else 0)
        out: Tensor = self.norm(x)
        return out

    def _masks(self, position: Tensor, known: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Attention masks (B, T, S) over the S known tokens, for full and for sliding layers.

        As in transformers, the window limits causal attention only; within the prefix all
        tokens attend to all, however far apart.
        """
        own, other = position[:, :, None], known[:, None, :]
        both = (own < prefix[:, None, None]) & (other < prefix[:, None, None])
        # Padding attends to padding: a row that attends to nothing has no softmax.
        real = (other >= 0) | (own < 0)
        full = real & ((other <= own) | (both & (own >= 0)))
        if self.config.sliding_window is None:
            return full, full
        return full, full & (both | (own - other < self.config.sliding_window))

    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute float32 logits of hidden states (…, width); `rows` are of `head_weight`."""
        if rows is None and self.head is not None:
            logits: Tensor = self.head(hidden).float()
        else:
            weight = self.head_weight if rows is None else rows
            flat = hidden.reshape(-1, hidden.shape[-1])
            # A CPU reads bfloat16 weights faster for two rows than for one.
            padded = pad_rows(flat, 2) if flat.dtype == torch.bfloat16 else flat
            logits = F.linear(padded, weight)[: len(flat)].float()
            logits = logits.view(*hidden.shape[:-1], -1)
        cap = self.config.final_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap
