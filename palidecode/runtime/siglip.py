"""SigLIP's vision tower: an image to one vector per patch.

Pre-norm transformer with learned positions, tanh-GELU and a final LayerNorm; no class token
(source: SigLIP So400m/14 as PaliGemma's checkpoints hold it).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from palidecode.runtime.config import VisionConfig


class VisionAttention(nn.Module):
    """Full self-attention; queries, keys and values are one product."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, tokens, head size) each
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class VisionLayer(nn.Module):
    """Attention and MLP, each after a LayerNorm and with a residual connection."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attention = VisionAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))
        return out


class Siglip(nn.Module):
    """The whole tower.

    The patch embedding is a matrix product on unfolded patches: equal to the checkpoint's
    convolution, whose kernel and stride are the patch, and faster on a CPU.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Linear(3 * config.patch**2, config.width)
        self.position = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map images (B, 3, S, S) in [−1, 1] to features (B, tokens, width)."""
        x = self.patch(self._patches(pixels.to(self.position.dtype))) + self.position
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out

    def _patches(self, pixels: Tensor) -> Tensor:
        """Unfold (B, 3, S, S) to (B, tokens, 3·patch²): patches row by row, channels first."""
        side, patch = self.config.image_size, self.config.patch
        if pixels.shape[1:] != (3, side, side):
            raise ValueError(f"pixels must be (B, 3, {side}, {side}), got {tuple(pixels.shape)}")
        grid = side // patch
        cut = pixels[..., : grid * patch, : grid * patch]
        tiles = cut.reshape(-1, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(-1, grid * grid, 3 * patch * patch)
