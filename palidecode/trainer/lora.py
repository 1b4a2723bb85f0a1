"""Low-rank adapters (LoRA; Hu et al. 2021) on the model's linear layers, and PEFT's files of them.

Our layers join some of transformers' (queries, keys and values; gate and up). Each of those gets
factors of its own, so that the file is what PEFT writes for its layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from palidecode.files import replacing
from palidecode.runtime.adapters import CONFIG, WEIGHTS
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.weights import parts

TARGETS = ("attention", "mlp", "projector", "vision")
"""Groups of layers that can have adapters: the decoder's two, and what is before it."""
_PEFT = "base_model.model."
_THEIRS = {
    "language.": "model.language_model.",
    "vision.": "model.vision_tower.",
    "projector.": "model.multi_modal_projector.linear.",
}


class LoraLinear(nn.Module):
    """A linear layer that is kept, plus the product of two small matrices for each of its outputs.

    Parameters
    ----------
    base : nn.Linear
    outputs : sequence of int
        Rows of the weight that each pair of factors belongs to, in order.
    rank : int
    scale : float
        Factor of the product: alpha / rank.
    """

    def __init__(self, base: nn.Linear, outputs: Sequence[int], rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        device = base.weight.device
        # As PEFT begins: A random, B zero, so that the model is the base's at first.
        self.down = nn.ParameterList(
            nn.Parameter(torch.empty(rank, base.in_features, device=device)) for _ in outputs
        )
        self.up = nn.ParameterList(
            nn.Parameter(torch.zeros(count, rank, device=device)) for count in outputs
        )
        for factor in self.down:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (…, inputs) to (…, outputs); the factors compute in float32."""
        wide = x.float()
        pairs = zip(self.down, self.up, strict=True)
        change = torch.cat([F.linear(F.linear(wide, down), up) for down, up in pairs], dim=-1)
        out: Tensor = self.base(x)
        return out + (change * self.scale).to(out.dtype)


class Adapted(NamedTuple):
    """A layer with adapters, and transformers' names of the layers that are joined in it."""

    names: tuple[str, ...]
    layer: LoraLinear


def add_adapters(
    model: PaliGemma, targets: Sequence[str], rank: int, alpha: float
) -> list[Adapted]:
    """Put adapters on the layers of some of `TARGETS`."""
    made = []
    for ours, part in parts(model.config).items():
        path, _, parameter = ours.rpartition(".")
        if parameter != "weight" or group_of(path) not in targets or path == "vision.patch":
            continue
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            continue
        outputs = [shape[0] for shape in part.shapes]
        parent, _, name = path.rpartition(".")
        adapted = LoraLinear(layer, outputs, rank, alpha / rank)
        setattr(model.get_submodule(parent), name, adapted)
        made.append(Adapted(tuple(map(_theirs, part.names)), adapted))
    return made


def group_of(path: str) -> str:
    """Return the target that a layer belongs to, or ``""``."""
    if path.startswith("language.layers."):
        return "attention" if ".attention." in path else "mlp" if ".mlp." in path else ""
    return path.partition(".")[0] if path.startswith(("vision", "projector")) else ""


def _theirs(name: str) -> str:
    """Return transformers' name of a layer, by our spelling of its weight's."""
    tower, rest = name.split(".", 1)
    return (_THEIRS[f"{tower}."] + rest).removesuffix("weight").removesuffix(".")


def factors(adapted: Sequence[Adapted]) -> dict[str, Tensor]:
    """Return the factors under PEFT's names."""
    found: dict[str, Tensor] = {}
    for names, layer in adapted:
        for name, down, up in zip(names, layer.down, layer.up, strict=True):
            found[f"{_PEFT}{name}.lora_A.weight"] = down.detach()
            found[f"{_PEFT}{name}.lora_B.weight"] = up.detach()
    return found


def write_adapter(
    folder: Path, adapted: Sequence[Adapted], base: str, rank: int, alpha: float
) -> None:
    """Write an adapter as PEFT does: its config and its weights.

    Parameters
    ----------
    folder : Path
    adapted : sequence of Adapted
        From `add_adapters`.
    base : str
        Path or hub name of the base model.
    rank, alpha
        As in `add_adapters`.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": [name for names, _ in adapted for name in names],
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    with replacing(folder / WEIGHTS, "wb") as file:
        found = factors(adapted).items()
        file.write(save({name: value.cpu().contiguous() for name, value in found}))
    with replacing(folder / CONFIG) as file:
        json.dump(config, file, indent=1)
