"""The protocol of an engine: what computes a model's logits. Everything else is numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from palidecode.runtime.adapters import AdaptedSource
from palidecode.runtime.config import PaliGemmaConfig

Logits: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int64]
Features: TypeAlias = Any
"""Image tokens of one picture, (tokens, width), in the engine's own kind of array."""


class Batch(Protocol):
    """A batch of answers in progress, and the cache of what was read."""

    def prefill(self) -> Logits:
        """Read pictures and prompts; return the logits of each row's first token, (B, R)."""
        ...

    def step(self, tokens: Ids) -> Logits:
        """Read the next T tokens of every row, (B, T); return the logits after each, (B, T, R)."""
        ...

    def keep_rows(self, rows: Ids) -> None:
        """Keep only these rows of the batch; the others have ended.

        A row that is named twice is continued twice.
        """
        ...

    def join(self, other: Self, steps: int) -> None:
        """Append the rows of another batch after its `prefill`; it is used up.

        `steps` is the number of tokens that the longest row will still read.
        """
        ...

    def use_head(self, head: Ids | None) -> None:
        """Compute other tokens' logits from now on; see `Engine.start`."""
        ...


class Engine(Protocol):
    """A model that is loaded; see `PaliDecoder.engine`."""

    @property
    def config(self) -> PaliGemmaConfig:
        """Shapes and constants of the model."""
        ...

    @property
    def name(self) -> str:
        """Library, precision and device, for people: ``torch, bfloat16, cpu``."""
        ...

    def encode_image(self, pixels: npt.NDArray[np.float32]) -> list[Features]:
        """Encode pixels (B, 3, S, S), see `to_pixels`, as the image tokens of each picture."""
        ...

    def join(self, features: Sequence[Features]) -> Features:
        """Join the image tokens of several pictures that one prompt is about."""
        ...

    def start(
        self,
        features: Sequence[Features],
        prompts: Sequence[Sequence[int]],
        length: int,
        head: Ids | None,
    ) -> Batch:
        """Begin a batch of answers.

        Parameters
        ----------
        features : sequence of B image tokens
            From `encode_image` or `join`; of as many pictures in every row.
        prompts : sequence of B lists of int
            ``<bos>``, prompt, newline.
        length : int
            Tokens that the cache must hold for each row.
        head : ndarray of int64, shape (R,), optional
            The token ids whose logits are wanted; by default the whole vocabulary.
        """
        ...

    def adapted(self, source: AdaptedSource, config: PaliGemmaConfig) -> Self:
        """Return this model with an adapter; it shares the weights that the adapter leaves."""
        ...
