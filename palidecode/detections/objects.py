"""Detections of many images in columns, and their drawing.

Masks stay sixteen codes (or RLE) until pixels are asked for, and are then made in the crop of
their box, never in the whole image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from palidecode import drawing, interop
from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID, find_weights
from palidecode.detections import tables
from palidecode.detections.columns import ObjectColumns, Rows
from palidecode.errors import InputError, PalidecodeError, warn
from palidecode.files import Picture, inside, open_picture
from palidecode.geometry.masks import (
    DEFAULT_PASTE,
    DEFAULT_THRESHOLD,
    PASTES,
    MaskCrop,
    Paste,
    check_paste,
)
from palidecode.geometry.polygons import Holes, Polygons, exact_polygons, smooth_polygons
from palidecode.geometry.rle import Rle, crop_to_rle, rle_to_crop, rle_to_window
from palidecode.vocab import MASK_SIDE
from palidecode.wording import many

if TYPE_CHECKING:
    import fiftyone
    import pandas
    import supervision
    import torch
    from matplotlib.figure import Figure

Images: TypeAlias = str | os.PathLike[str] | Sequence[Picture]
"""The folder that holds the named pictures, or the pictures themselves, one per image."""

ColorBy: TypeAlias = Literal["class", "instance"]

_CHUNK = 512  # fields in memory at once: 8 MB
_KEPT = 512  # up to this number, fields are kept and not decoded again
_LISTED, _LISTED_HTML = 10, 20  # objects in a terminal and in a notebook
_THUMBNAILS, _THUMBNAIL = 4, 256  # pictures in a notebook, and their side in pixels
_TILE = 448  # side of a picture that `show` and `plot` draw
_EMPTY = "#eeeeee"  # a picture that isn't found


class CodecMismatchWarning(UserWarning):
    """Seg codes are decoded with weights they don't belong to: the masks are wrong."""


@dataclass(frozen=True, eq=False)
class Detections(ObjectColumns):
    """Objects of many images, one row per object.

    Attributes
    ----------
    xyxy : ndarray of float32, shape (N, 4)
        Boxes in pixels, as the model wrote them: some may be inverted or empty.
    labels : list of str, length N
        ``""`` for an object without a label.
    scores : ndarray of float32, shape (N,)
        NaN where unknown: PaliGemma's text carries none.
    image_index : ndarray of int64, shape (N,)
        Index into `sizes` of each row's image; ascending when made by `decode`.
    sizes : ndarray of int64, shape (B, 2)
        Width and height of every image, those without objects included.
    codes : ndarray of uint8, shape (N, 16)
        Mask codes; 0 where there are none.
    has_mask : ndarray of bool, shape (N,)
    rles : list of (Rle or None), optional
        Masks that did not come as codes (from a COCO file); they have precedence over codes.
    codec : MaskCodec, optional
        Decodes the codes; without it `load_codec()` is used when a mask is asked for.
    codes_id : str
        The weights the codes belong to: ``google-oid`` for Google's checkpoints and their
        fine-tunes. Other weights make other shapes of them, so a mismatch warns.
    issues : list of (int, ParseIssue)
        Parse issues, with the index of the image.
    names : list of str, length B
        File name of every image, in the order of `sizes`; ``""`` where unknown.
    image_ids : list of (int, str or None), length B
        Id of every image in a COCO file; None where unknown.

    Raises
    ------
    InputError
        If the shapes of the columns don't fit together.

    Examples
    --------
    >>> from palidecode import decode
    >>> cat, dog = (f"<loc0100><loc0200><loc0700><loc0800> {name}" for name in ("cat", "dog"))
    >>> found = decode([cat, dog], (64, 64), names=["a.jpg", "b.jpg"])
    >>> found[-1].labels, found.image("a.jpg").labels, found.filter(label="dog").labels
    (['dog'], ['cat'], ['dog'])
    >>> len(found + found), len(found[:1].sizes)
    (4, 2)
    """

    def filter(
        self,
        *,
        label: str | Sequence[str] | None = None,
        score: float | None = None,
        area: tuple[float, float] | None = None,
    ) -> Detections:
        """Select the objects that meet every condition; all images stay.

        Parameters
        ----------
        label : str or sequence of str, optional
            One of these labels.
        score : float, optional
            At least this score; an unknown one is below every minimum.
        area : tuple of 2 float, optional
            The smallest and the largest `area`, both included.
        """
        keep = np.ones(len(self), np.bool_)
        if label is not None:
            wanted = {label} if isinstance(label, str) else set(label)
            keep &= np.fromiter((name in wanted for name in self.labels), np.bool_, len(self))
        if score is not None:
            keep &= self.scores >= score
        if area is not None:
            low, high = area
            keep &= (self.area >= low) & (self.area <= high)
        return self.select(keep)

    @cached_property
    def area(self) -> npt.NDArray[np.float64]:
        """Square pixels of each object, shape (N,): of its mask, or of its box without one."""
        sides = np.maximum(self.xyxy[:, 2:].astype(np.float64) - self.xyxy[:, :2], 0)
        area: npt.NDArray[np.float64] = sides.prod(axis=1)
        if self.has_mask.any():
            for row, crop in enumerate(self.crops()):
                if crop is not None:
                    area[row] = crop.mask.sum()
        return area

    def fields(self, rows: Rows | None = None) -> npt.NDArray[np.float32]:
        """Decode the 64×64 fields of rows that have codes, by default of all those rows.

        Returns
        -------
        ndarray of float32, shape (M, 64, 64)

        Raises
        ------
        InputError
            If a row has no codes.
        """
        chosen = np.flatnonzero(self._coded()) if rows is None else self._numbers(rows)
        if not self._coded()[chosen].all():
            raise InputError("fields() was asked for rows that have no codes; see has_mask")
        if len(chosen) == 0:
            return np.zeros((0, MASK_SIDE, MASK_SIDE), np.float32)
        if self._coded().sum() > _KEPT:
            return self._use_codec().decode(self.codes[chosen])
        index = np.cumsum(self._coded())[chosen] - 1
        kept: npt.NDArray[np.float32] = self._every_field[index]
        return kept

    @cached_property
    def _every_field(self) -> npt.NDArray[np.float32]:
        """All fields, kept for small Detections: often both RLE and polygons are asked for."""
        return self._use_codec().decode(self.codes[self._coded()])

    def crops(
        self, *, threshold: float = DEFAULT_THRESHOLD, paste: Paste = DEFAULT_PASTE
    ) -> Iterator[MaskCrop | None]:
        """Paste each row's mask inside its box; None for a row without one.

        Works in chunks, so that memory doesn't grow with the number of rows. `threshold` and
        `paste` are those of `to_rle`.
        """
        paste_field = PASTES[check_paste(paste)]
        for rows, fields in self._chunks():
            made = iter(fields)
            for row in rows:
                rle = self.rles[row] if self.rles is not None else None
                if not self.has_mask[row]:
                    yield None
                elif rle is not None:
                    yield rle_to_crop(rle)
                else:
                    box, size = self.xyxy[row], self._size(row)
                    yield paste_field(next(made), box, size, threshold=threshold)

    def to_rle(
        self, *, threshold: float = DEFAULT_THRESHOLD, paste: Paste = DEFAULT_PASTE
    ) -> list[Rle | None]:
        """Convert masks to COCO's compressed RLE of the whole image.

        Parameters
        ----------
        threshold : float
            A pixel is mask where its field is above it.
        paste : {"subpixel", "big_vision"}
            Read the field at the pixels' centres inside the exact box, or truncate the box's
            corners, as big_vision's RefCOCO evaluator does: right for that protocol alone, as
            it moves masks half a pixel up and left. Masks given as RLE stay as they are.

        Returns
        -------
        list of dict or None
            ``{"size": [height, width], "counts": str}``; None for a row without a mask.
        """
        return [
            None if crop is None else self._given(row) or crop_to_rle(crop, self._size(row))
            for row, crop in enumerate(self.crops(threshold=threshold, paste=paste))
        ]

    def to_masks(
        self, *, threshold: float = DEFAULT_THRESHOLD, paste: Paste = DEFAULT_PASTE
    ) -> list[npt.NDArray[np.bool_] | None]:
        """Paint masks as whole images, (height, width) bool each; None for a row without one.

        Costs a whole image per object; `crops` and `to_rle` don't. `threshold` and `paste` are
        those of `to_rle`.
        """
        masks: list[npt.NDArray[np.bool_] | None] = []
        for row, crop in enumerate(self.crops(threshold=threshold, paste=paste)):
            if crop is None:
                masks.append(None)
                continue
            width, height = self._size(row)
            mask = np.zeros((height, width), np.bool_)
            _paint(mask, crop)
            masks.append(mask)
        return masks

    def to_polygons(
        self,
        kind: Literal["smooth", "exact"] = "smooth",
        *,
        threshold: float = DEFAULT_THRESHOLD,
        simplify: float = 0.0,
        min_area: float = 0.0,
        holes: Holes = "keep",
        paste: Paste = DEFAULT_PASTE,
    ) -> list[Polygons | None]:
        """Convert masks to rings of points in pixels; None for a row without a mask.

        Parameters
        ----------
        kind : {"smooth", "exact"}
            Sub-pixel rings from the field itself, or rings along pixel edges that rasterise
            to exactly the same mask. Masks given as RLE have no field and are always exact.
        threshold : float
            A pixel is mask where its field is above it.
        simplify : float
            Tolerance in pixels; 0 keeps all points.
        min_area : float
            Parts of fewer square pixels are dropped and counted.
        holes : {"keep", "keyhole", "drop"}
            As rings of their own, joined to the exterior by a cut, or filled.
        paste : {"subpixel", "big_vision"}
            For ``"exact"``: see `to_rle`. Smooth rings need no pixels.

        Raises
        ------
        InputError
            For an unknown `kind`, `holes` or `paste`, and negative tolerances.
        """
        check_paste(paste)
        if kind not in ("smooth", "exact"):
            raise InputError(f"kind must be 'smooth' or 'exact', got {kind!r}")
        every: list[Polygons | None] = [None] * len(self)
        smooth = self._coded() if kind == "smooth" else np.zeros(len(self), np.bool_)
        for part in _parts(np.flatnonzero(smooth)):
            rings = smooth_polygons(
                self.fields(part),
                self.xyxy[part],
                threshold=threshold,
                simplify=simplify,
                min_area=min_area,
                holes=holes,
            )
            for row, polygons in zip(part.tolist(), rings, strict=True):
                every[row] = polygons
        rest = self.select(self.has_mask & ~smooth)
        pasted = rest.crops(threshold=threshold, paste=paste)
        crops = [crop for crop in pasted if crop is not None]
        exact = exact_polygons(crops, simplify=simplify, min_area=min_area, holes=holes)
        for row, polygons in zip(
            np.flatnonzero(self.has_mask & ~smooth).tolist(), exact, strict=True
        ):
            every[row] = polygons
        return every

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one row per object, of JSON values.

        Returns
        -------
        list of dict
            ``image`` (name), ``image_id``, ``image_index``, ``label``, ``score`` (None where
            unknown), ``x1``, ``y1``, ``x2``, ``y2`` in pixels and ``has_mask``.
        """
        columns = self._columns()
        columns["score"] = [None if math.isnan(score) else score for score in self.scores.tolist()]
        return tables.records(columns)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows of `to_dict` as CSV with a header; an unknown score is empty.

        Raises
        ------
        InputError
            If the file can't be written.
        """
        tables.write_csv(self._columns(), path)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows of `to_dict` as a DataFrame (``pip install pandas``).

        Raises
        ------
        InputError
            If pandas isn't installed.
        """
        frame: pandas.DataFrame = interop.load("pandas").DataFrame(self._columns())
        return frame

    def _columns(self) -> dict[str, Sequence[Any] | npt.NDArray[Any]]:
        images = self.image_index.tolist()
        return {
            "image": [self.names[image] for image in images],
            "image_id": [self.image_ids[image] for image in images],
            "image_index": self.image_index,
            "label": self.labels,
            "score": self.scores,
            **{name: self.xyxy[:, side] for side, name in enumerate(("x1", "y1", "x2", "y2"))},
            "has_mask": self.has_mask,
        }

    def __repr__(self) -> str:
        return tables.as_text(self._title(), self._cells(_LISTED), len(self))

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with thumbnails of pictures that are found by name."""
        shown = []
        names = self.names[:_LISTED_HTML]
        for index in [n for n, name in enumerate(names) if os.path.isfile(name)][:_THUMBNAILS]:
            with suppress(PalidecodeError):  # a picture that can't be read has no thumbnail
                shown.append((self.names[index], self._drawn(index, None, _THUMBNAIL)))
        return tables.as_html(self._title(), self._cells(_LISTED_HTML), len(self), shown)

    def _title(self) -> str:
        masks = int(self.has_mask.sum())
        return (
            f"Detections: {many(len(self), 'object')} in "
            f"{many(len(self.sizes), 'image')}, {masks:,} with a mask, "
            f"{many(len(self.issues), 'issue')}"
        )

    def _cells(self, count: int) -> list[list[str]]:
        """Return the first objects as text, below the names of the columns."""
        part = self.select(slice(count))
        images = [self.names[image] or f"#{image}" for image in part.image_index.tolist()]
        scores = ["-" if math.isnan(s) else f"{s:.3f}" for s in part.scores.tolist()]
        boxes = [[f"{side:.1f}" for side in box] for box in part.xyxy.tolist()]
        masks = ["yes" if mask else "" for mask in part.has_mask.tolist()]
        rows = zip(images, part.labels, scores, boxes, masks, strict=True)
        head = ["image", "label", "score", "x1", "y1", "x2", "y2", "mask"]
        return [
            head,
            *([image, label, score, *box, mask] for image, label, score, box, mask in rows),
        ]

    def show(self, images: Images | None = None, limit: int = 16) -> None:
        """Show the first images with their objects, in a notebook or the desktop's viewer.

        Parameters
        ----------
        images : path, or sequence of pictures, optional
            The folder of the named pictures, or the pictures, one per image. By default the
            names are paths. A named picture that isn't found is an empty frame.
        limit : int
            Largest number of images.

        Raises
        ------
        InputError
            If a picture can't be read, or no program can show it.
        """
        drawn = [self._drawn(index, images, _TILE) for index in self._shown(images, limit)]
        interop.show_picture(drawing.sheet_of(drawn, _TILE))

    def plot(self, images: Images | None = None, limit: int = 16) -> Figure:
        """Plot the first images with their objects (``pip install matplotlib``); see `show`.

        Returns
        -------
        matplotlib.figure.Figure
        """
        shown = self._shown(images, limit)
        columns = min(4, max(1, len(shown)))
        rows = max(1, -(-len(shown) // columns))
        figure = interop.new_figure(3.2 * columns, 3.2 * rows)
        for axes in figure.subplots(rows, columns, squeeze=False).flat:
            axes.set_axis_off()
        for index, axes in zip(shown, figure.axes, strict=False):
            axes.imshow(self._drawn(index, images, _TILE))
            axes.set_title(drawing.one_line(self.names[index]), fontsize=8, parse_math=False)
        return figure

    def _shown(self, images: Images | None, limit: int) -> range:
        given = None if images is None or isinstance(images, (str, os.PathLike)) else len(images)
        if given not in (None, len(self.sizes)):
            raise InputError(
                f"pictures ({given}) must be as many as the images ({len(self.sizes)})"
            )
        return range(min(limit, len(self.sizes)))

    def _drawn(self, index: int, images: Images | None, side: int) -> Image.Image:
        """Draw one image so that it fits into a square of `side` pixels."""
        picture: Picture = self.names[index]
        if images is not None and not isinstance(images, (str, os.PathLike)):
            picture = images[index]
        elif images is not None:
            picture = inside(images, self.names[index])
        size = self._size_of(index)
        if isinstance(picture, (str, os.PathLike)) and not os.path.isfile(picture):
            scale = side / max(*size, 1)
            canvas = Image.new("RGB", [max(1, round(s * scale)) for s in size], _EMPTY)
        else:
            canvas = ImageOps.contain(open_picture(picture), (side, side))
        return draw(canvas, self, index=index) if min(size) > 0 else canvas

    def to_supervision(self, classes: Sequence[str] | None = None) -> list[supervision.Detections]:
        """Convert each image to a ``supervision.Detections`` (``pip install supervision``).

        ``class_id`` counts `classes` from 0, by default the labels in order of appearance;
        the label itself is in ``data["class_name"]``. ``confidence`` is None if no score is
        known. Masks are whole images, all background for objects without one.

        Raises
        ------
        InputError
            If supervision isn't installed, or a label is none of `classes`.
        """
        ids = interop.class_ids(self.labels, classes, 0)
        return [
            interop.to_supervision(part.xyxy, part.scores, part.labels, ids, part._stacked_masks())
            for part in self._images()
        ]

    def to_torchvision(
        self, classes: Sequence[str] | None = None, *, default_score: float = 1.0
    ) -> list[dict[str, torch.Tensor]]:
        """Convert each image to the dict of tensors that torchvision and torchmetrics take.

        ``boxes`` (N, 4) in pixels; ``labels`` (N,) count `classes` from 1, 0 being background;
        ``scores`` (N,), `default_score` where unknown; ``masks`` (N, H, W) bool, if any object
        of any image has one.

        Raises
        ------
        InputError
            If torch isn't installed, or a label is none of `classes`.
        """
        ids = interop.class_ids(self.labels, classes, 1)
        with_masks = bool(self.has_mask.any())
        targets = []
        for part in self._images():
            scores = np.where(np.isnan(part.scores), np.float32(default_score), part.scores)
            masks = part._stacked_masks(always=with_masks)
            targets.append(interop.to_torchvision(part.xyxy, scores, part.labels, ids, masks))
        return targets

    def to_fiftyone(self) -> list[fiftyone.Detections]:
        """Convert each image to a ``fiftyone.Detections`` (``pip install fiftyone``).

        Boxes are x, y, width, height in fractions of the image, clipped to it; inverted ones
        have no width or height. Masks are cropped to their box.

        Raises
        ------
        InputError
            If fiftyone isn't installed.
        """
        return [interop.to_fiftyone(part._fiftyone_fields()) for part in self._images()]

    def _fiftyone_fields(self) -> list[dict[str, object]]:
        return interop.fiftyone_fields(
            self.xyxy, self.scores, self.labels, self._size_of(0), self._masks_in_boxes()
        )

    def _masks_in_boxes(self) -> Iterator[npt.NDArray[np.bool_] | None]:
        """Yield the part of each mask inside its box."""
        for row, crop in enumerate(self.crops()):
            # A mask made of codes is inside its box; one of a COCO file may reach out of it.
            rle = self._given(row)
            if crop is None or rle is None:
                yield None if crop is None else crop.mask
            else:
                yield rle_to_window(rle, self.xyxy[row])

    def _stacked_masks(self, always: bool = False) -> npt.NDArray[np.bool_] | None:
        """Masks of one image, (N, H, W), all background for rows without; None without any."""
        if not (always or self.has_mask.any()):
            return None
        width, height = self._size_of(0)
        masks = np.zeros((len(self), height, width), np.bool_)
        for mask, crop in zip(masks, self.crops(), strict=True):
            if crop is not None:
                _paint(mask, crop)
        return masks

    def _chunks(self) -> Iterator[tuple[range, npt.NDArray[np.float32]]]:
        """Yield ranges of rows, each with the fields of those that have codes."""
        coded = self._coded()
        for start in range(0, len(self), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(self)))
            chosen = np.flatnonzero(coded[rows.start : rows.stop]) + start
            yield rows, self.fields(chosen)

    def _use_codec(self) -> MaskCodec:
        codec = self.codec
        if codec is None:
            codec = _default_codec()
        if codec.id != self.codes_id:
            hint = "run: palidecode weights fetch" if self.codes_id == GOOGLE_ID else "pass codec="
            warn(
                f"these seg codes belong to {self.codes_id!r} but are decoded with {codec.id!r}: "
                f"boxes are right, mask shapes are NOT; {hint}",
                CodecMismatchWarning,
            )
        return codec


def _paint(mask: npt.NDArray[np.bool_], crop: MaskCrop) -> None:
    height, width = crop.mask.shape
    mask[crop.y0 : crop.y0 + height, crop.x0 : crop.x0 + width] = crop.mask


def _parts(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


_loaded: dict[str, MaskCodec] = {}


def _default_codec() -> MaskCodec:
    """Return the codec of `load_codec()`, loaded once per weights file."""
    path = str(find_weights())
    if path not in _loaded:
        _loaded[path] = load_codec(path)
    return _loaded[path]


def draw(
    picture: Picture,
    detections: Detections,
    *,
    index: int = 0,
    alpha: float = 0.45,
    threshold: float = DEFAULT_THRESHOLD,
    labels: bool = True,
    boxes: bool = True,
    font: str | os.PathLike[str] | None = None,
    paste: Paste = DEFAULT_PASTE,
    line_width: int | None = None,
    color_by: ColorBy = "class",
) -> Image.Image:
    """Draw the objects of one image on a copy of its picture.

    Parameters
    ----------
    picture : path, PIL image or uint8 array
        Arrays have shape (H, W), (H, W, 3) or (H, W, 4). EXIF rotation is applied, alpha is laid
        on white.
    detections : Detections
    index : int
        Number of the image in `detections`.
    alpha : float
        Opacity of masks, in [0, 1]; 0 leaves outlines only.
    threshold : float
        A pixel is mask where its field is above it.
    labels, boxes : bool
        Draw labels (with the score, where known) and boxes.
    font : path, optional
        A TrueType font, for labels in scripts that Pillow's own font lacks.
    paste : {"subpixel", "big_vision"}
        Draw masks along their smooth outlines, or the pixels that big_vision's RefCOCO
        evaluator counts, half a pixel up and left; see `Detections.to_rle`.
    line_width : int, optional
        Of boxes and outlines, in pixels; by default 1/320 of the shorter side.
    color_by : {"class", "instance"}
        Give objects of one label the same colour, or each object its own.

    Returns
    -------
    PIL.Image.Image
        RGB, of the picture's size. Boxes are scaled if the picture was resized.

    Raises
    ------
    InputError
        For a picture or a font that can't be read, or an index without an image.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be in [0, 1], got {alpha}")
    if line_width is not None and line_width < 1:
        raise InputError(f"line_width must be at least 1, got {line_width}")
    if color_by not in get_args(ColorBy):
        raise InputError(f"color_by must be 'class' or 'instance', got {color_by!r}")
    part = detections.image(index)
    part = part.select(np.flatnonzero(~np.isnan(part.xyxy).any(axis=1)))
    # Large objects first, so that small ones stay visible.
    corners = part.xyxy.astype(np.float64)
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    part = part.select(np.argsort(-sides.prod(axis=1), kind="stable"))
    kind: Literal["smooth", "exact"] = "smooth" if check_paste(paste) == DEFAULT_PASTE else "exact"
    rows = zip(part.labels, part.scores.tolist(), strict=True)
    names = part.labels if color_by == "class" else [str(number) for number in range(len(part))]
    return drawing.draw_objects(
        picture,
        part._size_of(0),
        part.xyxy,
        [drawing.color_of(name) for name in names],
        [_rings(mask) for mask in part.to_polygons(kind, threshold=threshold, paste=paste)],
        [drawing.caption_of(*row) if labels else "" for row in rows],
        alpha=alpha,
        font=font,
        boxes=boxes,
        line_width=line_width,
    )


def _rings(mask: Polygons | None) -> list[npt.NDArray[np.float64]]:
    parts = () if mask is None else mask.parts
    return [ring for part in parts for ring in (part.exterior, *part.holes)]
