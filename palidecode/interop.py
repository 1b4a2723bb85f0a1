"""Objects of one image in the formats of other libraries.

None of these libraries is needed by the others, so each is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.errors import InputError

if TYPE_CHECKING:
    import fiftyone
    import supervision
    import torch
    from matplotlib.figure import Figure

Floats: TypeAlias = npt.NDArray[np.float32]
Masks: TypeAlias = npt.NDArray[np.bool_]


def to_supervision(
    xyxy: Floats, scores: Floats, labels: Sequence[str], ids: Mapping[str, int], masks: Masks | None
) -> supervision.Detections:
    """Make a ``supervision.Detections``; `masks` have shape (N, H, W)."""
    made: supervision.Detections = load("supervision").Detections(
        xyxy=xyxy.copy(),
        mask=masks,
        confidence=None if np.isnan(scores).all() else scores.copy(),
        class_id=np.array([ids[label] for label in labels], np.int64),
        data={"class_name": np.array(labels, dtype=np.str_)},
    )
    return made


def to_torchvision(
    xyxy: Floats, scores: Floats, labels: Sequence[str], ids: Mapping[str, int], masks: Masks | None
) -> dict[str, torch.Tensor]:
    """Make the dict of tensors that torchvision and torchmetrics take; masks are (N, H, W)."""
    torch = load("torch")
    tensors = {
        "boxes": torch.from_numpy(xyxy.copy()),
        "labels": torch.tensor([ids[label] for label in labels], dtype=torch.int64),
        "scores": torch.from_numpy(scores),
    }
    if masks is not None:
        tensors["masks"] = torch.from_numpy(masks)
    return tensors


def to_fiftyone(fields: Iterable[Mapping[str, object]]) -> fiftyone.Detections:
    """Make a ``fiftyone.Detections`` of the fields of its detections; see `fiftyone_fields`."""
    fiftyone = load("fiftyone")
    return fiftyone.Detections(detections=[fiftyone.Detection(**row) for row in fields])


def fiftyone_fields(
    xyxy: Floats,
    scores: Floats,
    labels: Sequence[str],
    size: tuple[int, int],
    masks: Iterable[Masks | None],
) -> list[dict[str, object]]:
    """Return the fields of one image's FiftyOne detections.

    Parameters
    ----------
    xyxy : ndarray, shape (N, 4)
        In pixels; inverted and outside parts are clipped away.
    scores : ndarray, shape (N,)
        NaN where unknown.
    labels : sequence of N str
    size : tuple of 2 int
        Width and height of the image.
    masks : iterable of N (ndarray of bool, shape (h, w), or None)
        The part of each mask inside its box.

    Returns
    -------
    list of dict
        ``label``; ``bounding_box``: x, y, width, height in fractions of the image;
        ``confidence`` where the score is known; ``mask`` where there is one.
    """
    sides = np.tile(size, 2)
    corners = np.clip(xyxy.astype(np.float64), 0, sides) / sides
    boxes = np.concatenate([corners[:, :2], np.maximum(corners[:, 2:] - corners[:, :2], 0)], axis=1)
    rows: list[dict[str, object]] = []
    for label, box, score, mask in zip(labels, boxes.tolist(), scores.tolist(), masks, strict=True):
        fields: dict[str, object] = {"label": label, "bounding_box": box}
        if not math.isnan(score):
            fields["confidence"] = score
        if mask is not None and mask.size:
            fields["mask"] = np.ascontiguousarray(mask)
        rows.append(fields)
    return rows


def class_ids(labels: Iterable[str], classes: Sequence[str] | None, first: int) -> dict[str, int]:
    """Number the labels from `first`, in the order of `classes` or else of appearance."""
    known = dict.fromkeys(labels)
    ids = {name: number for number, name in enumerate(known if classes is None else classes, first)}
    unknown = sorted(set(known) - set(ids))
    if unknown:
        raise InputError(f"labels that are none of the classes: {', '.join(map(repr, unknown))}")
    return ids


def load(name: str) -> ModuleType:
    """Import a package that palidecode doesn't need; without it, name the way to get it.

    Raises
    ------
    InputError
        If it isn't installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this needs {name}: pip install {name} ({error})") from error


def in_notebook() -> bool:
    """Return True in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def show_picture(picture: Image.Image) -> None:
    """Show a picture in the notebook, or in the desktop's viewer.

    Raises
    ------
    InputError
        If no program can show it.
    """
    if in_notebook():
        load("IPython.display").display(picture)
    elif not load("PIL.ImageShow").show(picture):  # it imports IPython
        raise InputError("no program shows pictures here; plot().savefig(…) writes them to a file")


def new_figure(width: float, height: float) -> Figure:
    """Make a matplotlib figure of some inches; a notebook shows it where a cell returns it."""
    figures = load("matplotlib.figure")
    if not in_notebook():
        figure: Figure = figures.Figure(figsize=(width, height), layout="constrained")
        return figure
    pyplot = load("matplotlib.pyplot")  # sets notebooks up to show figures
    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    pyplot.close(figure)  # or the cell would show it twice
    return figure
