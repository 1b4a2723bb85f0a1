"""The engine in torch: CUDA, MPS and CPU; bfloat16, float16, float32 and int8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from palidecode.runtime.adapters import AdaptedSource
from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.engine import Ids, Logits
from palidecode.runtime.kv_cache import KVCache
from palidecode.runtime.linear import finisher
from palidecode.runtime.options import Quantize
from palidecode.runtime.paligemma import PaliGemma, Prefix
from palidecode.runtime.static_steps import StaticSteps
from palidecode.runtime.torch_weights import load_weights


class TorchEngine:
    """Runs a `PaliGemma` module; see `Engine`.

    Parameters
    ----------
    model : PaliGemma
    quantize : {"int8"}, optional
        How its weights are stored.
    static : bool, optional
        Decode with `StaticSteps`; by default on CUDA.
    """

    def __init__(
        self, model: PaliGemma, quantize: Quantize | None = None, static: bool | None = None
    ) -> None:
        self.model, self._quantize, self._static = model, quantize, static
        kind = model.vision.position
        cuda = kind.device.type == "cuda"
        self._steps = StaticSteps(model, cuda) if (cuda if static is None else static) else None
        precision = quantize or str(kind.dtype).removeprefix("torch.")
        self.name = f"torch, {precision}, {kind.device}"

    @property
    def config(self) -> PaliGemmaConfig:
        """Shapes and constants of the model."""
        return self.model.config

    @torch.inference_mode()
    def encode_image(self, pixels: npt.NDArray[np.float32]) -> list[Tensor]:
        """Encode pixels; see `Engine.encode_image`."""
        batch = torch.from_numpy(pixels).to(self.model.vision.position.device)
        return list(self.model.encode_image(batch))

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """Join the image tokens of several pictures; see `Engine.join`."""
        return torch.cat(tuple(features))

    def start(
        self,
        features: Sequence[Tensor],
        prompts: Sequence[Sequence[int]],
        length: int,
        head: Ids | None,
    ) -> TorchBatch:
        """Begin a batch of answers; see `Engine.start`."""
        return TorchBatch(self.model, features, prompts, length, head, self._steps)

    def adapted(self, source: AdaptedSource, config: PaliGemmaConfig) -> TorchEngine:
        """Return this model with an adapter; see `Engine.adapted`."""
        kind = self.model.vision.position
        finish = finisher(kind.dtype, kind.device, self._quantize)
        model = load_weights(source, config, kind.dtype, kind.device, finish, self.model)
        return TorchEngine(model, self._quantize, self._static)


class TorchBatch:
    """A batch of answers in progress; see `Batch`."""

    @torch.inference_mode()
    def __init__(
        self,
        model: PaliGemma,
        features: Sequence[Tensor],
        prompts: Sequence[Sequence[int]],
        length: int,
        head: Ids | None,
        steps: StaticSteps | None = None,
    ) -> None:
        self._model = model
        self._step = model.step if steps is None else steps.read
        images = torch.stack(tuple(features))
        device = images.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        padded = torch.full((len(prompts), int(lengths.max())), model.config.pad, device=device)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self._prefix: Prefix | None = model.embed_prefix(images, padded, lengths)
        dtype = self._prefix.embeddings.dtype
        self._cache = KVCache(model.config.text, len(prompts), length, dtype, device)
        self._length = self._prefix.length
        self._read_tokens = torch.zeros_like(self._length)  # of each answer
        self._rows: Tensor | None = None
        self.use_head(head)

    @torch.inference_mode()
    def prefill(self) -> Logits:
        """Read pictures and prompts; see `Batch.prefill`."""
        prefix, self._prefix = self._prefix, None
        assert prefix is not None, "a batch is prefilled once"
        return self._logits(self._model.prefill(prefix, self._cache))

    @torch.inference_mode()
    def step(self, tokens: Ids) -> Logits:
        """Read the next tokens of every row; see `Batch.step`."""
        given = torch.from_numpy(tokens).to(self._length.device)
        column = torch.arange(tokens.shape[1], device=given.device)
        position = (self._length + self._read_tokens)[:, None] + column
        self._read_tokens = self._read_tokens + len(column)
        return self._logits(self._step(given, position, self._length, self._cache))

    @torch.inference_mode()
    def keep_rows(self, rows: Ids) -> None:
        """Keep only these rows; see `Batch.keep_rows`."""
        keep = torch.from_numpy(rows).to(self._length.device)
        self._cache.keep_rows(keep)
        self._length, self._read_tokens = self._length[keep], self._read_tokens[keep]

    @torch.inference_mode()
    def join(self, other: TorchBatch, steps: int) -> None:
        """Append the rows of another batch; see `Batch.join`."""
        self._cache.join(other._cache, steps)
        self._length = torch.cat((self._length, other._length))
        self._read_tokens = torch.cat((self._read_tokens, other._read_tokens))

    @torch.inference_mode()
    def use_head(self, head: Ids | None) -> None:
        """Compute other tokens' logits from now on; see `Batch.use_head`."""
        weight = self._model.language.head_weight
        self._rows = None if head is None else weight[torch.from_numpy(head).to(weight.device)]

    def _logits(self, hidden: Tensor) -> Logits:
        logits: Logits = self._model.language.logits(hidden, self._rows).cpu().numpy()
        return logits
