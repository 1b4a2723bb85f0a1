"""The weights that a training changes, and their float32 copies where the model is smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from palidecode.runtime.paligemma import PaliGemma
from palidecode.trainer.lora import group_of


class Weights:
    """The trained parameters of a model, and the float32 values that the optimizer changes.

    A bfloat16 number is too coarse to add a small step to it, so that parameters of another type
    than float32 have a float32 copy, which is rounded to the parameter after each step.

    Attributes
    ----------
    names : list of str
    values : list of nn.Parameter
        In float32.
    """

    def __init__(self, model: PaliGemma) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self._used = [parameter for _, parameter in trained]
        self.values = [
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self._used
        ]

    def count(self) -> int:
        """Return the number of trained numbers."""
        return sum(value.numel() for value in self.values)

    def collect(self) -> None:
        """Move the gradients to the float32 values."""
        for used, value in zip(self._used, self.values, strict=True):
            if used is not value and used.grad is not None:
                value.grad, used.grad = used.grad.float(), None

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the float32 values; 0 where a batch gave none."""
        for value in self.values:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        return [cast(Tensor, value.grad) for value in self.values]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the float32 values to the model's parameters, and drop the gradients."""
        for used, value in zip(self._used, self.values, strict=True):
            if used is not value:
                used.copy_(value)
            value.grad = None


def thaw(model: PaliGemma, targets: Sequence[str]) -> None:
    """Choose whole weights to train: the decoder's, and those of `targets` before it."""
    for name, parameter in model.named_parameters():
        decoder = name.startswith("language.")
        if decoder or group_of(name) in targets:
            # A copy: weights are mapped from a file.
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)


class Recomputed(nn.Module):
    """A layer whose inner values are computed again in the backward pass, not kept."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: object) -> Tensor:
        """Apply the layer."""
        if not torch.is_grad_enabled():
            return cast(Tensor, self.layer(*inputs))
        return cast(Tensor, checkpoint(self.layer, *inputs, use_reentrant=False))


def recompute_layers(model: PaliGemma, on: bool) -> None:
    """Wrap the layers of the decoder and the vision tower in `Recomputed`, or unwrap them."""
    for layers in (model.language.layers, model.vision.layers):
        for index, layer in enumerate(layers):
            plain = layer.layer if isinstance(layer, Recomputed) else layer
            layers[index] = Recomputed(plain) if on else plain
