"""Options of models and of generating answers; without torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from palidecode.errors import InputError

Labels: TypeAlias = Literal["prompt", "free", "none"]
Over: TypeAlias = Literal["vocabulary", "allowed"]
Quantize: TypeAlias = Literal["int8", "int4"]
OnToken: TypeAlias = Callable[[int, int, float], None]


@dataclass(frozen=True)
class GrammarOptions:
    """Constraints on an answer.

    Attributes
    ----------
    labels : {"prompt", "free", "none"}
        One of the prompt's own names, any text, or no label at all (RefCOCO checkpoints).
    max_objects : int, optional
    repeats : bool
        Allow the same box with the same label twice; without it a box with a free label
        can't come again, whatever its label.
    max_label_tokens : int
        Of a free label.
    min_objects : int
        End an answer before so many objects only where no further one fits. PaliGemma 2's report
        (appendix C) detects so with a model that learned to label boxes without an object; see
        `Variation` of the trainer.
    """

    labels: Labels = "prompt"
    max_objects: int | None = None
    repeats: bool = False
    max_label_tokens: int = 16
    min_objects: int = 0

    def __post_init__(self) -> None:
        if self.labels not in ("prompt", "free", "none"):
            raise InputError(f"labels must be 'prompt', 'free' or 'none', got {self.labels!r}")
        if self.max_objects is not None and self.max_objects < 1:
            raise InputError(f"max_objects must be at least 1, got {self.max_objects}")
        if self.min_objects < 0:
            raise InputError(f"min_objects must be 0 or more, got {self.min_objects}")
        if self.max_objects is not None and self.min_objects > self.max_objects:
            raise InputError(
                f"min_objects must not be above max_objects, got {self.min_objects} and "
                f"{self.max_objects}"
            )
        if self.max_label_tokens < 1:
            raise InputError(f"max_label_tokens must be at least 1, got {self.max_label_tokens}")


@dataclass(frozen=True)
class GenerateOptions:
    """Options of generation.

    Attributes
    ----------
    max_new_tokens : int
        ``<eos>`` included.
    temperature : float
        0 takes the likeliest token; above 0 tokens are sampled.
    top_p : float
        Sample only from the likeliest tokens that make up this share of the probability.
    seed : int
        Every answer has its own random numbers, which depend on the pictures, the prompt and how
        often that is asked at a time.
    over : {"vocabulary", "allowed"}
        The tokens over which probabilities sum to 1: all, or those that the grammar allows.
        ``"allowed"`` computes only their rows of the output head. Its probabilities are never
        smaller, as the other tokens' mass is redistributed.
    loc_probabilities : bool
        Keep the distribution over the 1,024 bins of every loc token.
    top_logprobs : int
        Keep that many of the likeliest tokens in each token's place, and ``<eos>``.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    over: Over = "vocabulary"
    loc_probabilities: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")
        if self.top_logprobs < 0:
            raise InputError(f"top_logprobs must be 0 or more, got {self.top_logprobs}")
        if self.over not in ("vocabulary", "allowed"):
            raise InputError(f"over must be 'vocabulary' or 'allowed', got {self.over!r}")
