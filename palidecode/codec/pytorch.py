"""The mask codec in torch, on CPU or GPU, in float32 or bfloat16."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from palidecode.codec.network import MaskVQVAE
from palidecode.codec.onnx import fold_codebook
from palidecode.codec.protocol import check_codes, check_masks
from palidecode.codec.weights import CodecWeights
from palidecode.vocab import MASK_SIDE, SEG_GRID, SEG_PER_MASK

_CPU_CHUNK = 64
_GPU_CHUNK = 1024


class TorchCodec:
    """Encodes and decodes with torch, in chunks.

    Parameters
    ----------
    weights : CodecWeights
    device : str
        A torch device.
    threads : int, optional
        Set for the whole process.
    bfloat16 : bool
        Decode in bfloat16: about twice as fast on CPUs that have it, and few pixels change
        (``benchmarks/results.md`` has the share). Encoding stays in float32, as rounding a
        latent can change its code.
    """

    def __init__(
        self,
        weights: CodecWeights,
        device: str = "cpu",
        threads: int | None = None,
        *,
        bfloat16: bool = False,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.id = weights.id
        self._device = torch.device(device)
        self._chunk = _CPU_CHUNK if self._device.type == "cpu" else _GPU_CHUNK
        network = MaskVQVAE()
        network.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.arrays.items()})
        network.requires_grad_(False)
        self._network = network.to(self._device).eval()
        kind = torch.bfloat16 if bfloat16 else torch.float32
        # The table replaces the first convolution and its ReLU.
        self._layers = MaskVQVAE().decoder[2:]
        self._layers.load_state_dict(network.decoder[2:].state_dict())
        self._layers.requires_grad_(False)
        self._layers.to(self._device, kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._table = torch.from_numpy(fold_codebook(weights.arrays)).to(self._device, kind)

    @torch.inference_mode()
    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Decode codes (N, 16) to fields (N, 64, 64) float32; see `MaskCodec.decode`."""
        checked = torch.from_numpy(check_codes(codes)).reshape(-1, SEG_GRID, SEG_GRID)
        fields = np.empty((len(checked), MASK_SIDE, MASK_SIDE), np.float32)
        out = torch.from_numpy(fields)
        for start in range(0, len(checked), self._chunk):
            part = slice(start, start + self._chunk)
            # (n, 4, 4, 128) permuted to (n, 128, 4, 4) is channels_last already.
            grid = self._table[checked[part].to(self._device)].permute(0, 3, 1, 2)
            out[part].copy_(self._layers(grid).squeeze(1))
        return fields

    @torch.inference_mode()
    def encode(self, masks: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Encode masks (N, 64, 64) in [0, 1] as codes (N, 16) uint8; see `MaskCodec.encode`."""
        checked = torch.from_numpy(check_masks(masks))
        codes = np.empty((len(checked), SEG_PER_MASK), np.uint8)
        for start in range(0, len(checked), self._chunk):
            part = slice(start, start + self._chunk)
            codes[part] = self._network.encode(checked[part].to(self._device)).cpu().numpy()
        return codes
