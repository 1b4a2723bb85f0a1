"""Detections in the formats of other libraries, one object or dict per image.

None of these libraries is needed by the others, so each is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from palidecode.errors import InputError
from palidecode.geometry.rle import rle_to_window

if TYPE_CHECKING:
    from palidecode.detections import Detections


def to_supervision(detections: Detections, classes: Sequence[str] | None) -> list[Any]:
    """See `Detections.to_supervision`."""
    supervision = _import("supervision")
    ids = _class_ids(detections, classes, 0)
    return [
        supervision.Detections(
            xyxy=part.xyxy.copy(),
            mask=_stack(part),
            confidence=None if np.isnan(part.scores).all() else part.scores.copy(),
            class_id=np.array([ids[label] for label in part.labels], np.int64),
            data={"class_name": np.array(part.labels, dtype=np.str_)},
        )
        for part in _images(detections)
    ]


def to_torchvision(
    detections: Detections, classes: Sequence[str] | None, default_score: float
) -> list[dict[str, Any]]:
    """See `Detections.to_torchvision`."""
    torch = _import("torch")
    ids = _class_ids(detections, classes, 1)
    found = []
    for part in _images(detections):
        scores = np.where(np.isnan(part.scores), np.float32(default_score), part.scores)
        tensors = {
            "boxes": torch.from_numpy(part.xyxy.copy()),
            "labels": torch.tensor([ids[label] for label in part.labels], dtype=torch.int64),
            "scores": torch.from_numpy(scores),
        }
        if detections.has_mask.any():
            width, height = part.sizes[0].tolist()
            masks = _stack(part)
            empty = np.zeros((len(part), height, width), np.bool_)
            tensors["masks"] = torch.from_numpy(empty if masks is None else masks)
        found.append(tensors)
    return found


def to_fiftyone(detections: Detections) -> list[Any]:
    """See `Detections.to_fiftyone`."""
    fiftyone = _import("fiftyone")
    return [
        fiftyone.Detections(detections=[fiftyone.Detection(**row) for row in fiftyone_fields(part)])
        for part in _images(detections)
    ]


def fiftyone_fields(image: Detections) -> list[dict[str, Any]]:
    """The fields of one image's FiftyOne detections.

    Returns
    -------
    list of dict
        ``label``; ``bounding_box``: x, y, width, height in fractions of the image;
        ``confidence`` where the score is known; ``mask``: bool (h, w), the part of the mask
        inside the box, where there is one.
    """
    sides = np.tile(image.sizes[0], 2)
    corners = np.clip(image.xyxy.astype(np.float64), 0, sides) / sides
    boxes = np.concatenate([corners[:, :2], np.maximum(corners[:, 2:] - corners[:, :2], 0)], axis=1)
    rows: list[dict[str, Any]] = []
    for row, crop in enumerate(image.crops()):
        fields: dict[str, Any] = {"label": image.labels[row], "bounding_box": boxes[row].tolist()}
        if not math.isnan(image.scores[row]):
            fields["confidence"] = float(image.scores[row])
        if crop is not None:
            # A mask made of codes lies in its box; one of a COCO file may reach out of it.
            rle = None if image.rles is None else image.rles[row]
            mask = crop.mask if rle is None else rle_to_window(rle, image.xyxy[row])
            if mask.size:
                fields["mask"] = np.ascontiguousarray(mask)
        rows.append(fields)
    return rows


def _images(detections: Detections) -> list[Detections]:
    return [detections.image(index) for index in range(len(detections.sizes))]


def _stack(image: Detections) -> npt.NDArray[np.bool_] | None:
    """The masks of one image, (N, H, W); all background where a row has none; None without any."""
    if not image.has_mask.any():
        return None
    width, height = image.sizes[0].tolist()
    masks = np.zeros((len(image), height, width), np.bool_)
    for row, crop in enumerate(image.crops()):
        if crop is not None:
            h, w = crop.mask.shape
            masks[row, crop.y0 : crop.y0 + h, crop.x0 : crop.x0 + w] = crop.mask
    return masks


def _class_ids(
    detections: Detections, classes: Sequence[str] | None, first: int
) -> Mapping[str, int]:
    """Each label's number; by default in the order in which labels appear."""
    names = dict.fromkeys(detections.labels) if classes is None else classes
    ids = {name: number for number, name in enumerate(names, first)}
    unknown = sorted(set(detections.labels) - set(ids))
    if unknown:
        raise InputError(f"labels that are none of the classes: {', '.join(map(repr, unknown))}")
    return ids


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this needs {name}: pip install {name} ({error})") from error
