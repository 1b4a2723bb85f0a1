"""The settings of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from palidecode.errors import InputError
from palidecode.pipeline.checkpoint import DTYPES
from palidecode.trainer.lora import TARGETS
from palidecode.trainer.variation import Variation

_LORA_RATE, _FULL_RATE = 2e-4, 1e-5


@dataclass(frozen=True)
class Settings:
    """The settings of a training; plain values only.

    Attributes
    ----------
    epochs : float
        Times that each row is seen; `steps`, where it is given, goes first.
    steps : int, optional
    batch_size, accumulate : int
        Rows that are computed together, and batches that make one step.
    rate : float, optional
        Peak of the learning rate; by default 2e-4 for adapters and 1e-5 for whole weights.
    warmup : float
        Share of the steps over which the rate rises; it then falls to 0 as a cosine.
    rank, alpha : int, float
        Of the adapters; alpha is by default twice the rank.
    targets : tuple of str
        Groups of layers with adapters: attention, mlp, projector, vision. With `full`, those
        beside the decoder that are trained, too.
    full : bool
        Train the decoder's weights themselves.
    dtype : {"bfloat16", "float32"}
    soft_loc : float
        See `answer_loss`; for small models.
    recompute : bool
        Keep no values inside of layers: less memory, a third more time.
    longest : int
        Tokens of prompt and answer; longer rows are left out.
    clip : float
        Limit of the gradient's norm.
    decay : float
        Weight decay.
    evaluate_every, save_every : int
        Steps between two evaluations, and two checkpoints.
    flip, crop, order, noise, noise_token
        See `Variation`.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    rate: float | None = None
    warmup: float = 0.03
    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ("attention", "mlp")
    full: bool = False
    dtype: str = "float32"
    soft_loc: float = 0.0
    recompute: bool = False
    longest: int = 512
    clip: float = 1.0
    decay: float = 0.0
    seed: int = 0
    evaluate_every: int = 200
    save_every: int = 200
    flip: bool = False
    crop: float | None = None
    order: str = "given"
    noise: int = 0
    noise_token: str = Variation.noise_token

    def __post_init__(self) -> None:
        above = ("batch_size", "accumulate", "rank", "longest", "evaluate_every", "save_every")
        for name in above:
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}")
        for name in ("epochs", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("rate", "alpha"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0, got {value}")
        for name in ("soft_loc", "decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or above, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be from 0 up to 1, got {self.warmup}")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise InputError(f"targets must be some of {', '.join(TARGETS)}, got {unknown}")
        if self.dtype not in DTYPES[:2]:
            raise InputError(f"dtype must be one of {', '.join(DTYPES[:2])}, got {self.dtype!r}")
        _ = self.variation  # which checks its own values

    @property
    def peak(self) -> float:
        """The peak of the learning rate."""
        return self.rate or (_FULL_RATE if self.full else _LORA_RATE)

    @property
    def variation(self) -> Variation:
        """The ways in which rows vary."""
        return Variation(self.flip, self.crop, self.order, self.noise, self.noise_token)

    @property
    def weight(self) -> float:
        """The alpha of the adapters."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def total(self, rows: int, processes: int = 1) -> int:
        """Return the number of steps for a number of rows, in some processes."""
        if self.steps is not None:
            return self.steps
        return max(
            1, math.ceil(self.epochs * rows / (self.batch_size * self.accumulate * processes))
        )

    def rate_at(self, step: int, total: int) -> float:
        """Return the learning rate of a step, from 0."""
        rising = max(1, round(self.warmup * total))
        if step < rising:
            return self.peak * (step + 1) / rising
        done = (step - rising) / max(1, total - rising)
        return self.peak * (1 + math.cos(math.pi * done)) / 2
