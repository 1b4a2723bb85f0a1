"""Fill the torch model with a checkpoint's tensors, and name them for saving."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from palidecode.runtime.adapters import AdaptedSource
from palidecode.runtime.config import PaliGemmaConfig
from palidecode.runtime.linear import Finish, head_for
from palidecode.runtime.paligemma import PaliGemma
from palidecode.runtime.weights import (
    Part,
    Source,
    check_names,
    older,
    parts,
)


def load_weights(
    source: Source,
    config: PaliGemmaConfig,
    dtype: torch.dtype,
    device: torch.device,
    finish: Finish | None = None,
    base: PaliGemma | None = None,
) -> PaliGemma:
    """Build the model on the meta device and fill it tensor by tensor.

    Parameters
    ----------
    source : Source
        With a `base` an `AdaptedSource` of it.
    config : PaliGemmaConfig
    dtype, device
        Of the model. Tensors that already match aren't copied; they stay mapped to the file.
    finish : callable, optional
        Called with every `nn.Linear` as soon as it is filled; the module it returns (packed
        or quantised) replaces it, so that at most one layer is in memory twice.
    base : PaliGemma, optional
        A model whose modules are taken where the source doesn't change them.
    """
    wanted = parts(config)
    check_names(source, wanted)
    with torch.device("meta"):
        model = PaliGemma(config)
    modules: dict[str, dict[str, Part]] = {}
    for name, part in wanted.items():
        path, _, parameter = name.rpartition(".")
        modules.setdefault(path, {})[parameter] = part
    changed = source.changed if isinstance(source, AdaptedSource) else frozenset()
    for path, parameters in modules.items():
        module = model.get_submodule(path)
        names = {name for part in parameters.values() for name in part.names}
        if base is not None and not names & changed:
            _share(model, path, parameters, base.get_submodule(path))
            continue
        for name, part in parameters.items():
            tensor = _build(source, part, dtype, device)
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))
        if finish is not None and isinstance(module, nn.Linear):
            _replace(model, path, finish(module))
    model.language.head = head_for(model.language.head_weight, finish)
    return model.eval()


def _share(model: PaliGemma, path: str, names: Iterable[str], module: nn.Module) -> None:
    """Take a module from another model: whole, or its own parameters where it has parts."""
    if not list(module.children()):
        _replace(model, path, module)
        return
    for name in names:
        setattr(model.get_submodule(path), name, getattr(module, name))


def _replace(model: PaliGemma, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _build(source: Source, part: Part, dtype: torch.dtype, device: torch.device) -> Tensor:
    if len(part.names) == 1:
        return _tensor(source, part.names[0]).to(device, dtype).reshape(part.shape)
    joined = torch.empty(part.shape, dtype=dtype, device=device)
    start = 0
    for name, shape in zip(part.names, part.shapes, strict=True):
        joined[start : start + shape[0]] = _tensor(source, name)
        start += shape[0]
    return joined


def _tensor(source: Source, name: str) -> Tensor:
    """Wrap a stored array, without a copy where the file is aligned."""
    array = source.read(name)
    if array.dtype == np.uint16:  # bfloat16, which numpy lacks
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def state_to_hf(model: PaliGemma) -> dict[str, Tensor]:
    """Return the model's parameters under transformers' names (older spelling), for saving."""
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for ours, part in parts(model.config).items():
        rows = state[ours].split([shape[0] for shape in part.shapes])
        for name, shape, piece in zip(part.names, part.shapes, rows, strict=True):
            tensors[older(name)] = piece.reshape(shape).contiguous()
    return tensors
