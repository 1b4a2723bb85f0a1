"""The VQ-VAE of PaliGemma's seg tokens in torch: encoder and decoder, trainable.

Sixteen codes of a 128-row codebook encode the 64×64 mask of an object's box. Layers and
parameters are named as in the public ``vae-oid.npz``, so its arrays load as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from palidecode.vocab import MASK_SIDE, SEG_COUNT, SEG_GRID

CODE_WIDTH = 512
_WIDTH = 128


class ResidualBlock(nn.Module):
    """3×3, ReLU, 3×3, ReLU, 1×1, plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the block's output to x (N, width, H, W)."""
        out: torch.Tensor = x + self.net(x)
        return out


class Quantizer(nn.Module):
    """The codebook: 128 rows of 512."""

    _embedding: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_embedding", torch.randn(SEG_COUNT, CODE_WIDTH))


class Reconstruction(NamedTuple):
    """Output of a forward pass: fields (N, 1, 64, 64), codes (N, 16), latents (N·16, 512)."""

    fields: torch.Tensor
    codes: torch.Tensor
    latents: torch.Tensor


class MaskVQVAE(nn.Module):
    """Encoder, codebook and decoder of the mask codec.

    Fields are roughly in [-1, 1] and a pixel is mask where its field is above 0; there is
    no tanh at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for inner, outer in ((1, 16), (16, 32), (32, 64), (64, _WIDTH)):
            steps += [nn.Conv2d(inner, outer, 4, stride=2, padding=1), nn.ReLU()]
        steps += [ResidualBlock(_WIDTH), ResidualBlock(_WIDTH), nn.Conv2d(_WIDTH, CODE_WIDTH, 1)]
        self.encoder = nn.Sequential(*steps)
        self._vq_vae = Quantizer()
        steps = [nn.Conv2d(CODE_WIDTH, _WIDTH, 1), nn.ReLU()]
        steps += [ResidualBlock(_WIDTH), ResidualBlock(_WIDTH)]
        for inner, outer in ((_WIDTH, _WIDTH), (_WIDTH, 64), (64, 32), (32, 16)):
            steps += [nn.ConvTranspose2d(inner, outer, 4, stride=2, padding=1), nn.ReLU()]
        steps += [nn.Conv2d(16, 1, 1)]
        self.decoder = nn.Sequential(*steps)

    @property
    def codebook(self) -> torch.Tensor:
        """Codebook rows, shape (128, 512)."""
        return self._vq_vae._embedding

    def latents(self, masks: torch.Tensor) -> torch.Tensor:
        """Encode masks (N, 64, 64) in [0, 1] as latents (N·16, 512), the 4×4 grid row by row."""
        z = self.encoder((2 * (masks - 0.5)).unsqueeze(1))
        flat: torch.Tensor = z.permute(0, 2, 3, 1).reshape(-1, CODE_WIDTH)
        return flat

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Find the codebook rows (M,) nearest to latents (M, 512) by squared L2."""
        rows = self.codebook.to(latents.dtype)
        # |latent|² is the same for every codebook row and doesn't change the order.
        return (rows.square().sum(1) - 2 * latents @ rows.T).argmin(1)

    def encode(self, masks: torch.Tensor) -> torch.Tensor:
        """Encode masks (N, 64, 64) in [0, 1] as codes (N, 16) int64."""
        return self.nearest(self.latents(masks)).reshape(-1, SEG_GRID * SEG_GRID)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Decode codes (N, 16) to fields (N, 64, 64)."""
        return self.fields(functional.embedding(codes.long(), self.codebook)).squeeze(1)

    def fields(self, rows: torch.Tensor) -> torch.Tensor:
        """Decode codebook rows (N, 16, 512) to fields (N, 1, 64, 64)."""
        grid = rows.reshape(-1, SEG_GRID, SEG_GRID, CODE_WIDTH).permute(0, 3, 1, 2)
        out: torch.Tensor = self.decoder(grid)
        assert out.shape[-1] == MASK_SIDE
        return out

    def forward(self, masks: torch.Tensor) -> Reconstruction:
        """Encode and decode with straight-through gradients: the decoder's reach the encoder."""
        latents = self.latents(masks)
        codes = self.nearest(latents.detach())
        rows = functional.embedding(codes, self.codebook.to(latents.dtype))
        straight = latents + (rows - latents).detach()
        fields = self.fields(straight.reshape(len(masks), -1, CODE_WIDTH))
        return Reconstruction(fields, codes.reshape(len(masks), -1), latents)
