"""Objects of one image in the formats of other libraries.

None of these libraries is needed by the others, so each is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.errors import InputError
from palidecode.prompts import SEPARATOR, Task, asked_names, with_verb

if TYPE_CHECKING:
    import fiftyone
    import supervision
    import torch
    from matplotlib.figure import Figure
    from sahi.prediction import ObjectPrediction

Floats: TypeAlias = npt.NDArray[np.float32]
Masks: TypeAlias = npt.NDArray[np.bool_]
Pixels: TypeAlias = npt.NDArray[np.uint8]


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


class Found(Protocol):
    """Objects of one image; see `palidecode.Detections`."""

    @property
    def labels(self) -> list[str]: ...
    @property
    def xyxy(self) -> Floats: ...
    @property
    def scores(self) -> Floats: ...
    def image(self, index: int) -> Found: ...
    def to_polygons(
        self, kind: Literal["exact"], *, holes: Literal["keyhole"]
    ) -> Sequence[Rings | None]: ...


class Rings(Protocol):
    """A mask as polygons; see `palidecode.Polygons`."""

    def to_coco(self) -> list[list[float]]: ...


class Finder(Protocol):
    """A model that is built; see `palidecode.pipeline.PaliDecoder`."""

    @property
    def classes(self) -> Sequence[str]: ...
    def detect(self, images: Sequence[Pixels], prompt: str, /, *, batch_size: int) -> Found: ...
    def segment(self, images: Sequence[Pixels], prompt: str, /, *, batch_size: int) -> Found: ...


class SahiDetectionModel:
    """A model for SAHI's sliced inference (``pip install sahi``).

    Has what ``sahi.predict`` calls of a ``sahi.models.base.DetectionModel``: slices are asked
    about in batches, and boxes and masks shifted by SAHI. `PaliDecoder.detect` with ``tiles=``
    needs no SAHI.

    Parameters
    ----------
    decoder : PaliDecoder
    prompt : str, optional
        ``"cat ; dog"``; by default all classes that the model is known to find.
    task : {"detect", "segment"}
        Boxes, or masks too.
    confidence_threshold : float
        Objects below it are skipped; unknown scores count as 1.
    batch_size : int
        Slices that are asked about together, at most; ``get_sliced_prediction(batch_size=)``
        says how many SAHI gives.

    Examples
    --------
    >>> from palidecode.interop import SahiDetectionModel
    >>> from palidecode.pipeline import PaliDecoder
    >>> model = SahiDetectionModel(PaliDecoder.from_pretrained("demo"), "star ; circle")
    >>> model.category_mapping
    {'0': 'star', '1': 'circle'}
    """

    def __init__(
        self,
        decoder: Finder,
        prompt: str | None = None,
        *,
        task: Task = "detect",
        confidence_threshold: float = 0.0,
        batch_size: int = 8,
    ) -> None:
        self.model, self.task, self.batch_size = decoder, task, batch_size
        self.confidence_threshold = confidence_threshold
        if prompt is None and not decoder.classes:
            raise InputError(f"nothing to {task}: give a prompt, for instance 'cat ; dog'")
        self.prompt = with_verb(task, prompt or SEPARATOR.join(decoder.classes))
        asked = asked_names(self.prompt)
        self._ids = class_ids(() if asked is None else asked[1], None, 0)
        self.object_prediction_list_per_image: list[list[ObjectPrediction]] = []
        self._found: list[Found] = []

    @property
    def category_mapping(self) -> dict[str, str]:
        """Names by ids, in the order of the prompt; other labels that are found come behind."""
        return {str(number): name for name, number in self._ids.items()}

    @property
    def object_prediction_list(self) -> list[ObjectPrediction]:
        """The objects of the first image."""
        return next(iter(self.object_prediction_list_per_image), [])

    def perform_inference(self, image: Pixels) -> None:
        """Ask about one image."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: Sequence[Pixels]) -> None:
        """Ask about several images, uint8 (H, W, 3) each."""
        find = self.model.detect if self.task == "detect" else self.model.segment
        found = find(list(images), self.prompt, batch_size=self.batch_size)
        self._found = [found.image(index) for index in range(len(images))]

    def convert_original_predictions(
        self,
        shift_amount: Sequence[Sequence[int]] | Sequence[int] = (0, 0),
        full_shape: Sequence[Sequence[int]] | Sequence[int] | None = None,
    ) -> None:
        """Make SAHI's objects of what was found.

        Parameters
        ----------
        shift_amount : sequence of 2 int, or one for each image
            x and y of the slice in its picture.
        full_shape : sequence of 2 int, or one for each image, optional
            Height and width of the picture.
        """
        shifts = np.broadcast_to(np.asarray(shift_amount), (len(self._found), 2)).tolist()
        shapes: list[list[int] | None] = [None] * len(self._found)
        if full_shape is not None:
            shapes = np.broadcast_to(np.asarray(full_shape), (len(self._found), 2)).tolist()
        self.object_prediction_list_per_image = [
            self._predictions(found, shift, shape)
            for found, shift, shape in zip(self._found, shifts, shapes, strict=True)
        ]

    def _predictions(
        self, found: Found, shift: list[int], shape: list[int] | None
    ) -> list[ObjectPrediction]:
        make = load("sahi.prediction").ObjectPrediction
        masks = found.to_polygons("exact", holes="keyhole")
        made = []
        columns = (found.labels, found.xyxy.tolist(), found.scores.tolist(), masks)
        for label, box, score, mask in zip(*columns, strict=True):
            known = 1.0 if math.isnan(score) else score
            if known < self.confidence_threshold or box[2] <= box[0] or box[3] <= box[1]:
                continue
            number = self._ids.setdefault(label, len(self._ids))
            rings = None if mask is None else mask.to_coco()
            made.append(make(box, number, label, rings or None, known, shift, shape))
        return made


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
        package = name.partition(".")[0]
        raise InputError(f"this needs {package}: pip install {package} ({error})") from error


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
