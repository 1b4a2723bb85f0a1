"""The gallery of a report: selects pictures, shrinks them and prepares their overlays."""

from __future__ import annotations

import base64
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import contourpy
import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode.coco.mask_reading import as_rle
from palidecode.coco.reading import ImageRow
from palidecode.errors import InputError
from palidecode.evaluation.coco.matches import KINDS
from palidecode.evaluation.coco.result import CocoEvaluation
from palidecode.evaluation.coco.tables import Table
from palidecode.files import inside, open_picture
from palidecode.geometry.masks import MaskCrop
from palidecode.geometry.rle import rle_to_crop
from palidecode.wording import many

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_PICTURES = 600
"""Most pictures in a gallery."""

MOST_DRAWN = 100
"""Most objects, and most predictions, drawn on one picture: the largest and the best scored."""

MOST_BYTES = 20_000_000
"""Most bytes of small copies and outlines in all galleries of a page."""

SIDE = 320
"""Longest side of a small copy, in pixels; also of the canvas that shapes are drawn on."""

_SHARPER = 640
_FEW = 60  # pictures, whose copies may be sharper

_OF_EACH = 3  # pictures for each class and kind of error, if there are as many
_EXAMPLES = 5
_FINE = 16  # canvas pixels; narrower masks are traced at full size
_TOLERANCE = 0.4  # canvas pixels by which an outline may deviate


class Thumbnails:
    """Small copies of a folder's pictures as WebP, each encoded once; or none.

    Without `beside`, `encoded` holds them in base64. With it, they are files in this folder, and
    `encoded` holds their paths relative to the folder's parent.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        side: int = SIDE,
        beside: Path | None = None,
    ) -> None:
        self.folder, self.side, self.beside = folder, side, beside
        self.encoded: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.other_size: list[str] = []
        self._known: dict[str, tuple[int, tuple[int, int]] | None] = {}

    def of(self, image: ImageRow) -> tuple[int, tuple[int, int]] | None:
        """Index of an image's copy in `encoded`, and the picture's size; None without a picture."""
        name = image.file_name
        if self.folder is None or not name:
            return None
        if name not in self._known:
            try:
                picture = open_picture(inside(self.folder, name))
            except InputError as error:
                self.unreadable[name] = str(error)
                self._known[name] = None
                return None
            if image.width and picture.size != (image.width, image.height):
                self.other_size.append(name)
            self._known[name] = len(self.encoded), picture.size
            self.encoded.append(self._kept(_webp(picture, self.side)))
        return self._known[name]

    def _kept(self, webp: bytes) -> str:
        if self.beside is None:
            return base64.b64encode(webp).decode("ascii")
        path = self.beside / f"{len(self.encoded)}.webp"
        try:  # not `files.replacing`: ten thousand syncs to the disk take minutes
            self.beside.mkdir(parents=True, exist_ok=True)
            path.write_bytes(webp)
        except OSError as error:
            raise InputError(f"{path}: can't be written: {error.strerror or error}") from error
        return f"{self.beside.name}/{path.name}"

    def notices(self) -> list[str]:
        """Notices about missing and unusual pictures."""
        notices = []
        for names, text in (
            (list(self.unreadable.values()), "could not be read: shown as blank canvases"),
            (self.other_size, "of another size than their file says: boxes are stretched"),
        ):
            if names:
                more = "" if len(names) <= _EXAMPLES else ", …"
                notices.append(
                    f"{many(len(names), 'picture')} {text} ({', '.join(names[:_EXAMPLES])}{more})"
                )
        return notices


def copy_side(pictures: int) -> int:
    """Return the side of small copies on a page with so many pictures."""
    return _SHARPER if pictures <= _FEW else SIDE


def _webp(picture: Image.Image, side: int) -> bytes:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=72, method=2)
    return out.getvalue()


@dataclass(frozen=True)
class Gallery:
    """Pictures of one evaluation, the worst first.

    Attributes
    ----------
    pictures : list of dict
        The format that the page's script reads; see `_picture`.
    notices : list of str
        Notices about pictures and objects that are not shown.
    """

    pictures: list[dict[str, object]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def gallery(result: CocoEvaluation, thumbnails: Thumbnails, bytes_left: int) -> Gallery:
    """Prepare the pictures to show, the worst first, in at most `bytes_left`."""
    shown, skipped, used, clipped = {}, 0, 0, 0
    truths = by_image(result.scene.truths.image, result.images)
    predictions = by_image(result.predicted.image, result.images)
    wanted = choose(result)
    for index in wanted:
        if used > bytes_left:
            skipped += 1
            continue
        before = len(thumbnails.encoded)
        picture, missing = _picture(result, index, truths[index], predictions[index], thumbnails)
        clipped += missing
        used += len(json.dumps(picture)) + sum(map(len, thumbnails.encoded[before:]))
        shown[index] = picture
    order = [index for index in _worst_first(result) if index in shown]
    total = result.images
    notices = []
    if len(wanted) < total or skipped:
        notices.append(
            f"here: {len(shown):,} of {many(total, 'picture')}: the worst by F1, and the worst "
            "cases of as many classes and kinds of error as fit. The numbers count all pictures."
        )
    if clipped:
        what = many(clipped, "object or prediction", "objects and predictions")
        notices.append(
            f"not drawn: {what}; a picture shows the "
            f"{MOST_DRAWN} largest objects and {MOST_DRAWN} best scored predictions."
        )
    return Gallery([shown[index] for index in order], notices)


def choose(result: CocoEvaluation, most: int = MOST_PICTURES) -> list[int]:
    """Choose the indices of the images to show, the most important first.

    Half are the worst by F1. Then every class and kind of error gets its worst cases, so that
    every filter has matches, and the next worst images fill the rest.
    """
    worst = _worst_first(result)
    chosen = dict.fromkeys(worst[: most if len(worst) <= most else most // 2])
    if len(worst) > most:
        cases = _cases(result)
        of: dict[int, set[tuple[int, str]]] = {index: set() for index in worst}
        for index, category, kind in cases:
            of[index].add((category, kind))
        has = Counter(pair for index in chosen for pair in of[index])
        for wanted in range(1, _OF_EACH + 1):
            for index, category, kind in cases:
                if has[category, kind] < wanted and index not in chosen:
                    chosen[index] = None
                    has.update(of[index])
        for index in worst:
            chosen.setdefault(index)
    return list(chosen)[:most]


def _worst_first(result: CocoEvaluation) -> list[int]:
    index_of = {image.id: index for index, image in enumerate(result.scene.images)}
    return [index_of[row["image_id"]] for row in result.image_rows]


def _cases(result: CocoEvaluation) -> list[tuple[int, int, str]]:
    """Image, category and kind of every prediction and missed object, the worst first."""
    predictions, matches, truths = result.predicted, result.matches, result.scene.truths
    score = np.where(np.isnan(predictions.score), 1.0, predictions.score)
    badness = np.where(matches.kind == "ok", 1 + matches.iou, -score)
    rows = np.argsort(badness, kind="stable")
    lost = np.flatnonzero(matches.missed)
    lost = lost[np.argsort(-truths.area[lost], kind="stable")]
    cases = zip(
        predictions.image[rows].tolist(),
        predictions.category[rows].tolist(),
        matches.kind[rows].tolist(),
        strict=True,
    )
    missed = zip(truths.image[lost].tolist(), truths.category[lost].tolist(), strict=True)
    # Missed objects first: each class has few, and other cases would crowd them out.
    return [*((image, category, "missed") for image, category in missed), *cases]


def by_image(of: Ints, count: int) -> list[Ints]:
    """Return the rows of each of `count` images; `of` is the index of each row's image."""
    order = np.argsort(of, kind="stable")
    return np.split(order, np.searchsorted(of[order], np.arange(1, count)))


def _picture(
    result: CocoEvaluation, index: int, objects: Ints, rows: Ints, thumbnails: Thumbnails
) -> tuple[dict[str, object], int]:
    """One picture in the script's format, and the number of its boxes that aren't drawn.

    ``name``, ``thumb`` (index among the small copies or None), ``width``, ``height`` (of the
    canvas), ``f1``, ``right``, ``wrong``, ``missed``; ``truths``: lists of class, state (0
    detected, 1 missed, 2 crowd), x, y, width, height, outline; ``predictions``: class, kind, score,
    IoU, index in ``truths`` or -1, x, y, width, height, outline.
    """
    image, matches = result.scene.images[index], result.matches
    truths, predictions = result.scene.truths, result.predicted
    objects_drawn, rows_drawn = largest(truths, objects), best_rows(predictions, rows)
    thumb = thumbnails.of(image)
    size = canvas(image, thumb, truths.box[objects_drawn], predictions.box[rows_drawn])
    scale = SIDE / max(size)
    index_of = {row: number for number, row in enumerate(objects_drawn.tolist())}
    state = np.where(truths.crowd, 2, matches.missed.astype(np.int64))
    counts = Counter(matches.kind[rows].tolist())
    right, lost = counts["ok"], int(matches.missed[objects].sum())
    wrong = len(rows) - right - counts["ignored"]
    total = 2 * right + wrong + lost
    picture: dict[str, object] = {
        "name": image.file_name or f"image {image.id}",
        "thumb": None if thumb is None else thumb[0],
        "width": round(size[0] * scale, 1),
        "height": max(1.0, round(size[1] * scale, 1)),
        "f1": round(2 * right / total, 4) if total else None,
        "right": right,
        "wrong": wrong,
        "missed": lost,
        "truths": [
            [int(truths.category[row]), int(state[row]), *shape]
            for row, shape in zip(
                objects_drawn.tolist(), shapes(truths, objects_drawn, image, scale), strict=True
            )
        ],
        "predictions": prediction_rows(result, rows_drawn, image, scale, index_of),
    }
    return picture, len(objects) + len(rows) - len(objects_drawn) - len(rows_drawn)


def best_rows(table: Table, rows: Ints) -> Ints:
    """Return the rows to draw: the best scored, and those without a score first."""
    score = np.where(np.isnan(table.score[rows]), 1.0, table.score[rows])
    return rows[np.argsort(-score, kind="stable")][:MOST_DRAWN]


def prediction_rows(
    result: CocoEvaluation,
    rows: Ints,
    image: ImageRow,
    scale: float,
    index_of: Mapping[int, int],
) -> list[list[object]]:
    """List class, kind, score, IoU, index in ``truths``, and shape; `index_of` maps their rows."""
    table, matches = result.predicted, result.matches
    return [
        [
            int(table.category[row]),
            KINDS.index(str(matches.kind[row])),
            None if np.isnan(table.score[row]) else round(float(table.score[row]), 4),
            round(float(matches.iou[row]), 4),
            index_of.get(int(matches.truth[row]), -1),
            *shape,
        ]
        for row, shape in zip(rows.tolist(), shapes(table, rows, image, scale), strict=True)
    ]


def largest(table: Table, rows: Ints) -> Ints:
    """Return the objects to draw: the largest."""
    return rows[np.argsort(-table.area[rows], kind="stable")][:MOST_DRAWN]


def canvas(
    image: ImageRow, thumb: tuple[int, tuple[int, int]] | None, *boxes: Floats
) -> tuple[float, float]:
    """The picture's size or, if it is unknown, the extent of the boxes."""
    if image.width > 0 and image.height > 0:
        return image.width, image.height
    if thumb is not None:
        return thumb[1]
    ends = np.concatenate([box[:, :2] + box[:, 2:] for box in boxes])
    width, height = ends.max(axis=0, initial=1.0).tolist()
    return width, height


def shapes(table: Table, rows: Ints, image: ImageRow, scale: float) -> list[list[object]]:
    """List x, y, width, height and outline of each row, in canvas pixels."""
    boxes = np.round(table.box[rows] * scale, 1).tolist()
    if table.masks is None or not image.width:
        return [[*box, None] for box in boxes]
    size = int(image.width), int(image.height)
    masks = [table.masks[row] for row in rows.tolist()]
    return [
        [*box, None if mask is None else outline(rle_to_crop(as_rle(mask, *size)), scale)]
        for box, mask in zip(boxes, masks, strict=True)
    ]


def outline(crop: MaskCrop, scale: float) -> str:
    """Trace a mask as an SVG path for the even-odd fill rule, no finer than the canvas.

    `scale` is the number of canvas pixels per picture pixel.
    """
    if not crop.mask.any():
        return ""
    height, width = crop.mask.shape
    field = crop.mask.astype(np.float32)
    if scale < 1 and min(height, width) * scale >= _FINE:
        small = round(width * scale), round(height * scale)
        field = np.asarray(cv2.resize(field, small, interpolation=cv2.INTER_AREA), np.float32)
    # The 0.5 level follows pixel edges and cuts straight across stairs.
    step = np.array([width, height]) / field.shape[::-1]
    tolerance = max(_TOLERANCE, 0.6 * scale)
    rings = contourpy.contour_generator(z=np.pad(field, 1)).lines(0.5)
    return "".join(
        _path((np.array([crop.x0, crop.y0]) + (np.asarray(ring) - 0.5) * step) * scale, tolerance)
        for ring in rings
    )


def _path(ring: Floats, tolerance: float) -> str:
    points = cv2.approxPolyDP(ring[:-1].astype(np.float32)[:, None], tolerance, True)[:, 0]
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points.round(1).astype(float).tolist()) + "Z"
