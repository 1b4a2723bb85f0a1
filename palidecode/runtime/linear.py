"""Matrix products that are faster than `nn.Linear` on a CPU: packed bfloat16, int8, int4.

Decoding one answer reads every weight once per token, so its speed is that of memory: half
the bytes, twice the tokens. What quantising costs stands in ``benchmarks/results.md``.
All kernels are torch's own (oneDNN's packed bfloat16 and int8, and the int4 kernel).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from palidecode.errors import InputError

Quantize: TypeAlias = Literal["int8", "int4"]
Finish: TypeAlias = Callable[[nn.Module], nn.Module]

FEW_ROWS = 4
"""oneDNN reads weights a quarter faster for four rows than for one: fewer are filled up."""
INT4_GROUP = 128  # weights that share a scale and an offset
_ROWS_AT_ONCE = 8192  # of a weight that is being quantised
_INT4_ROWS = 16  # the kernel wants a multiple of this many outputs
_MANY_ROWS = 48  # from about here on widening is worth it
_LEVELS = 15  # of four bits, above the lowest


def finisher(dtype: torch.dtype, device: torch.device, quantize: Quantize | None) -> Finish | None:
    """What `load_weights` should make of each filled `nn.Linear`; None to leave them.

    Raises
    ------
    InputError
        For an unknown `quantize`, or one on another device than the CPU.
    """
    if quantize not in (None, "int8", "int4"):
        raise InputError(f"quantize must be None, 'int8' or 'int4', got {quantize!r}")
    if quantize is not None and device.type != "cpu":
        raise InputError(f"quantize={quantize!r} runs on the CPU only, not on {device.type}")
    if quantize == "int8":
        return Int8Linear
    if quantize == "int4":
        return _int4_where_it_fits
    one_dnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type == "cpu" and dtype == torch.bfloat16 and one_dnn:
        return PackedLinear if torch.ops.mkldnn._is_mkldnn_bf16_supported() else WideningLinear
    return None


class PackedLinear(nn.Module):
    """bfloat16 weights in oneDNN's own order: the same product, read about twice as fast."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight, bias = _parameters(linear)
        self.out_features = weight.shape[0]
        self.bias = bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        flat = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            fill_up(flat, FEW_ROWS), self._packed, self.bias, "none", [], ""
        )
        return out[: len(flat)].view(*x.shape[:-1], -1)


class WideningLinear(nn.Module):
    """bfloat16 weights on a processor that can't multiply them: x86 without AVX-512.

    torch's own product reads half of float32's bytes, but computes at a fifth of its speed: good
    for a few rows. For more the weights are made float32 on the way.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight, bias = _parameters(linear)
        self.out_features = weight.shape[0]
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if x.shape[:-1].numel() < _MANY_ROWS:
            return nn.functional.linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(x.float(), self.weight.float(), bias).to(x.dtype)


@cache
def int8_saturates() -> bool:
    """Whether oneDNN's int8 product is wrong where numbers are large.

    Before AVX-VNNI and AVX-512 VNNI, x86 adds products in pairs, in 16 bits that hold 255 · 127
    once but not twice.
    """
    linear = nn.Linear(128, 32, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.ones(32, 128), requires_grad=False)
    product = Int8Linear(linear, split=False)(torch.ones(2 * FEW_ROWS, 128))
    return not torch.allclose(product, torch.full_like(product, 128.0), rtol=1e-4)


class Int8Linear(nn.Module):
    """int8 weights with a scale per output; inputs are quantised as they come, a scale a token.

    Parameters
    ----------
    linear : nn.Linear
    split : bool, optional
        Inputs go in two rows of seven bits and one, which the sum of pairs can hold; by default
        where `int8_saturates`. The result is the same.
    """

    def __init__(self, linear: nn.Module, split: bool | None = None) -> None:
        super().__init__()
        self._split = int8_saturates() if split is None else split
        weight, bias = _parameters(linear)
        self._scales = weight.abs().amax(1).float().clamp_min(1e-12) / 127
        whole = torch.empty_like(weight, dtype=torch.int8)
        # Part by part: a head in float32 would take more memory than the model.
        for start in range(0, len(weight), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            whole[part] = (weight[part].float() / self._scales[part, None]).round_()
        self._packed: Any = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the dtype of `x`."""
        flat = x.reshape(-1, x.shape[-1])
        scale = flat.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / 127
        # The kernel takes unsigned inputs: 128 stands for 0.
        levels = (flat / scale + 128).round_().clamp_(0, 255).to(torch.uint8)
        if self._split:
            # 128 = 2 · 64: what is counted from 64 in both halves is counted from 128 in all.
            halves = self._product(torch.cat([levels >> 1, (levels & 1) + 64]), 64)
            out = 2 * halves[: len(flat)] + halves[len(flat) : 2 * len(flat)]
        else:
            out = self._product(levels, 128)[: len(flat)]
        out = out * scale
        out = out if self._bias is None else out + self._bias
        return out.view(*x.shape[:-1], -1).to(x.dtype)

    def _product(self, levels: Tensor, zero: int) -> Tensor:
        """Of unsigned inputs, in float32; at least `FEW_ROWS` rows."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            fill_up(levels, FEW_ROWS), 1.0, zero, self._packed, self._scales, self._zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out


class Int4Linear(nn.Module):
    """int4 weights, a scale and an offset for every 128 of a row.

    The kernel is made for few tokens: a long prompt is read more slowly than in bfloat16.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight, self.bias = _parameters(linear)
        self.out_features = weight.shape[0]
        groups = weight.float().view(len(weight), -1, INT4_GROUP)
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / _LEVELS).clamp_min(1e-8)
        levels = ((groups - low[..., None]) / scale[..., None]).round_().clamp_(0, _LEVELS)
        whole = levels.to(torch.int32).view(weight.shape)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
        # The kernel counts levels from −8.
        middle = low + scale * 8
        pairs = torch.stack((scale, middle), -1).transpose(0, 1).contiguous()
        self._scales = pairs.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the dtype of `x`."""
        flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            flat, self._packed, INT4_GROUP, self._scales
        )
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)


def fill_up(x: Tensor, rows: int) -> Tensor:
    """(M, K) with rows of zeros added, if it has fewer than `rows`."""
    return x if len(x) >= rows else nn.functional.pad(x, (0, 0, 0, rows - len(x)))


def head_for(embedding: Tensor, finish: Finish | None) -> nn.Module | None:
    """The output head apart from the embedding: int8 where the model is quantised, else none."""
    if finish is not Int8Linear and finish is not _int4_where_it_fits:
        return None
    linear = nn.Linear(embedding.shape[1], embedding.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(embedding, requires_grad=False)
    return Int8Linear(linear)


def _int4_where_it_fits(linear: nn.Module) -> nn.Module:
    """int8 where rows don't divide into groups, or outputs into the kernel's blocks."""
    weight, _ = _parameters(linear)
    fits = weight.shape[1] % INT4_GROUP == 0 and weight.shape[0] % _INT4_ROWS == 0
    return Int4Linear(linear) if fits else Int8Linear(linear)


def _parameters(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(linear, nn.Linear)
    bias = None if linear.bias is None else linear.bias.detach()
    return linear.weight.detach(), bias
