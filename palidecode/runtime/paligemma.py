"""PaliGemma: vision tower, projector and decoder in one model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.gemma import Gemma
from palidecode.runtime.kv_cache import KVCache
from palidecode.runtime.siglip import Siglip


@dataclass(frozen=True)
class Prefix:
    """The decoder's first input, padded on the right.

    Attributes
    ----------
    embeddings : Tensor, shape (B, T, width)
        Image features, then ``<bos>``, prompt and newline.
    position : Tensor of int64, shape (B, T)
        0, 1, 2 …; −1 is padding.
    length : Tensor of int64, shape (B,)
    """

    embeddings: Tensor
    position: Tensor
    length: Tensor


class PaliGemma(nn.Module):
    """The whole model; `palidecode.runtime.weights.load_weights` fills it."""

    def __init__(self, config: PaliGemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = Siglip(config.vision)
        self.projector = nn.Linear(config.vision.width, config.text.width)
        self.language = Gemma(config.text)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode images (B, 3, S, S) in [−1, 1] as image tokens (B, tokens, text width)."""
        features: Tensor = self.projector(self.vision(pixels))
        return features

    def embed_prefix(self, features: Tensor, prompts: Tensor, lengths: Tensor) -> Prefix:
        """Join image tokens (B, tokens, width) and prompts to the input of `prefill`.

        `prompts` (B, T) are ``<bos>``, prompt and newline, padded on the right to `lengths` (B,).
        """
        text = self.language.embed_tokens(prompts)
        embeddings = torch.cat((features.to(text.dtype), text), dim=1)
        length = lengths + features.shape[1]
        column = torch.arange(embeddings.shape[1], device=embeddings.device)
        position = torch.where(column < length[:, None], column, -1)
        return Prefix(embeddings, position, length)

    def prefill(self, prefix: Prefix, cache: KVCache) -> Tensor:
        """Read the prefix; return the hidden state of each row's last token, (B, width)."""
        shortest = int(prefix.length.min())
        width = prefix.embeddings.shape[1]
        hidden = self.language(
            prefix.embeddings, prefix.position, prefix.length, cache, last=width - shortest + 1
        )
        row = torch.arange(len(hidden), device=hidden.device)
        last: Tensor = hidden[row, prefix.length - shortest]
        return last

    def step(self, tokens: Tensor, position: Tensor, length: Tensor, cache: KVCache) -> Tensor:
        """Read tokens (B, T) at `position` (B, T); return their hidden states, (B, T, width).

        `length` (B,) is that of each row's prefix.
        """
        hidden: Tensor = self.language(self.language.embed_tokens(tokens), position, length, cache)
        return hidden

    def forward(self, pixels: Tensor, ids: Tensor, prefix: Tensor, lengths: Tensor) -> Tensor:
        """Compute logits (B, T, vocabulary) of prompts and answers in one pass, as training does.

        `ids` (B, T) are ``<bos>``, prompt, newline and answer, padded on the right to `lengths`
        (B,). The first `prefix` (B,) of them, up to the newline, attend to each other in both
        directions.
        """
        whole = self.embed_prefix(self.encode_image(pixels), ids, lengths)
        tokens = self.config.vision.tokens
        hidden = self.language(whole.embeddings, whole.position, prefix + tokens)
        return self.language.logits(hidden[:, tokens:])
