"""Linear layers that are faster than `nn.Linear` on a CPU: packed bfloat16 and int8.

Decoding reads every weight once per token, so memory bandwidth limits its speed: half the
bytes, twice the tokens. ``benchmarks/results.md`` has the cost in accuracy. All kernels are
torch's own (oneDNN's). ONNX Runtime's engine has int4.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn

from palidecode.errors import InputError
from palidecode.runtime.options import Quantize

Finish: TypeAlias = Callable[[nn.Module], nn.Module]

FEW_ROWS = 4
"""Inputs are padded to this many rows: oneDNN reads weights a quarter faster than for one."""
_QUANTIZED_ROWS = 8192  # rows of a weight that are quantised together
_MANY_ROWS = 48  # from about here on, widening to float32 pays


def finisher(dtype: torch.dtype, device: torch.device, quantize: Quantize | None) -> Finish | None:
    """Choose the class that replaces each loaded `nn.Linear`; None keeps them."""
    if quantize is not None and device.type != "cpu":
        raise InputError(f"quantize={quantize!r} runs on the CPU only, not on {device.type}")
    if quantize == "int4":
        raise InputError(
            "quantize='int4' needs engine='onnx': leave dtype out and install 'palidecode[export]'"
        )
    if quantize == "int8":
        return Int8Linear
    one_dnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type == "cpu" and dtype == torch.bfloat16 and one_dnn:
        return PackedLinear if torch.ops.mkldnn._is_mkldnn_bf16_supported() else WideningLinear
    return None


class PackedLinear(nn.Module):
    """bfloat16 weights in oneDNN's layout: the same product, about twice as fast to read."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight, bias = _parameters(linear)
        self.out_features = weight.shape[0]
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            pad_rows(flat, FEW_ROWS), self._packed, self.bias, "none", [], ""
        )
        return out[: len(flat)].view(*x.shape[:-1], -1)


class WideningLinear(nn.Module):
    """bfloat16 weights for processors without bfloat16 products: x86 without AVX-512.

    torch's own product reads half of float32's bytes but computes at a fifth of its speed, which
    is good for a few rows. For more rows the weights are converted to float32 first.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight, bias = _parameters(linear)
        self.out_features = weight.shape[0]
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        if x.shape[:-1].numel() < _MANY_ROWS:
            return nn.functional.linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(x.float(), self.weight.float(), bias).to(x.dtype)


@cache
def int8_saturates() -> bool:
    """Check whether oneDNN's int8 product overflows for large numbers.

    Without AVX-VNNI or AVX-512 VNNI, x86 adds products in pairs in 16 bits, which hold
    255 · 127 once but not twice.
    """
    linear = nn.Linear(128, 32, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.ones(32, 128), requires_grad=False)
    product = Int8Linear(linear, split=False)(torch.ones(2 * FEW_ROWS, 128))
    return not torch.allclose(product, torch.full_like(product, 128.0), rtol=1e-4)


class Int8Linear(nn.Module):
    """int8 weights with a scale per output; inputs are quantised with a scale per token.

    `split` puts each input in two rows, of seven bits and of one, whose pairwise sums fit in 16
    bits: the result is the same. By default where `int8_saturates`.
    """

    def __init__(self, linear: nn.Module, split: bool | None = None) -> None:
        super().__init__()
        self._split = int8_saturates() if split is None else split
        weight, bias = _parameters(linear)
        self._scales = weight.abs().amax(1).float().clamp_min(1e-12) / 127
        quantized = torch.empty_like(weight, dtype=torch.int8)
        # In blocks: the whole head in float32 would take more memory than the model.
        for start in range(0, len(weight), _QUANTIZED_ROWS):
            rows = slice(start, start + _QUANTIZED_ROWS)
            quantized[rows] = (weight[rows].float() / self._scales[rows, None]).round_()
        self._packed: Tensor = torch.ops.onednn.qlinear_prepack(quantized, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out), in the dtype of `x`."""
        flat = x.reshape(-1, x.shape[-1])
        scale = flat.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / 127
        # The kernel takes unsigned inputs: 128 means 0.
        levels = (flat / scale + 128).round_().clamp_(0, 255).to(torch.uint8)
        if self._split:
            # 128 = 2 · 64: with a zero point of 64 in both halves, the sum's is 128.
            halves = self._product(torch.cat([levels >> 1, (levels & 1) + 64]), 64)
            out = 2 * halves[: len(flat)] + halves[len(flat) : 2 * len(flat)]
        else:
            out = self._product(levels, 128)[: len(flat)]
        out = out * scale
        out = out if self._bias is None else out + self._bias
        return out.view(*x.shape[:-1], -1).to(x.dtype)

    def _product(self, levels: Tensor, zero: int) -> Tensor:
        """Multiply unsigned inputs by the weights, in float32; returns `FEW_ROWS` rows or more."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            pad_rows(levels, FEW_ROWS), 1.0, zero, self._packed, self._scales, self._zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Add rows of zeros to (M, K) until it has `rows`."""
    return x if len(x) >= rows else nn.functional.pad(x, (0, 0, 0, rows - len(x)))


def head_for(weight: Tensor, finish: Finish | None) -> nn.Module | None:
    """Build the int8 output head of a quantised model; None if its weights serve as they are."""
    if finish is not Int8Linear:
        return None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return Int8Linear(linear)


def _parameters(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(linear, nn.Linear)
    bias = None if linear.bias is None else linear.bias.detach()
    return linear.weight.detach(), bias
