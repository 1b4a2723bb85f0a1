"""Detections of many images in columns; `decode` makes them, `draw` draws them.

Masks stay sixteen codes (or RLE) until pixels are asked for, and are then made in the crop of
their box, never in the whole image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from palidecode import interop
from palidecode.answers.assembler import ParseIssue
from palidecode.answers.batch import ParsedBatch, parse_batch
from palidecode.answers.parsing import Answer, Detokenize
from palidecode.codec import load_codec
from palidecode.codec.protocol import MaskCodec
from palidecode.codec.weights import GOOGLE_ID, find_weights
from palidecode.errors import InputError, warn
from palidecode.files import Picture
from palidecode.geometry.boxes import DEFAULT_DIVISOR, check_sizes, loc_to_xyxy
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
from palidecode.vocab import MASK_SIDE, PALIGEMMA, SEG_PER_MASK, Vocabulary

if TYPE_CHECKING:
    import fiftyone
    import supervision
    import torch

Rows: TypeAlias = npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | slice | Sequence[int]

_CHUNK = 512  # fields in memory at once: 8 MB
_KEPT = 512  # up to this number, fields are kept and not decoded again


class CodecMismatchWarning(UserWarning):
    """Seg codes are decoded with weights they don't belong to: the masks are wrong."""


@dataclass(frozen=True, eq=False)
class Detections:
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

    Raises
    ------
    InputError
        If the shapes of the columns don't fit together.
    """

    xyxy: npt.NDArray[np.float32]
    labels: list[str]
    scores: npt.NDArray[np.float32]
    image_index: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    codes: npt.NDArray[np.uint8]
    has_mask: npt.NDArray[np.bool_]
    rles: list[Rle | None] | None = None
    codec: MaskCodec | None = None
    codes_id: str = GOOGLE_ID
    issues: list[tuple[int, ParseIssue]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.labels)
        shapes = {
            "xyxy": (count, 4),
            "scores": (count,),
            "image_index": (count,),
            "codes": (count, SEG_PER_MASK),
            "has_mask": (count,),
        }
        for name, shape in shapes.items():
            given = getattr(self, name).shape
            if given != shape:
                raise InputError(f"{count} labels need {name} of shape {shape}, got {given}")
        if self.sizes.ndim != 2 or self.sizes.shape[1] != 2:
            raise InputError(f"sizes must have shape (B, 2), got {self.sizes.shape}")
        if self.rles is not None and len(self.rles) != count:
            raise InputError(f"{count} labels need as many rles, got {len(self.rles)}")
        if count and not (0 <= self.image_index.min() <= self.image_index.max() < len(self.sizes)):
            raise InputError(f"image_index must be in 0 … {len(self.sizes) - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"Detections({len(self)} objects in {len(self.sizes)} images, "
            f"{int(self.has_mask.sum())} with masks, {len(self.issues)} issues)"
        )

    def select(self, rows: Rows) -> Detections:
        """Select rows by index, boolean mask or slice; all images and issues stay."""
        keep = self._numbers(rows)
        index = keep.tolist()
        return replace(
            self,
            xyxy=self.xyxy[keep],
            labels=[self.labels[row] for row in index],
            scores=self.scores[keep],
            image_index=self.image_index[keep],
            codes=self.codes[keep],
            has_mask=self.has_mask[keep],
            rles=None if self.rles is None else [self.rles[row] for row in index],
        )

    def image(self, index: int) -> Detections:
        """Select one image: its rows and its issues."""
        if not 0 <= index < len(self.sizes):
            raise InputError(f"image {index} is not one of the {len(self.sizes)}")
        part = self.select(self.image_index == index)
        return replace(
            part,
            image_index=np.zeros(len(part), np.int64),
            sizes=self.sizes[index : index + 1],
            issues=[(0, issue) for image, issue in self.issues if image == index],
        )

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

    def _images(self) -> Iterator[Detections]:
        return (self.image(index) for index in range(len(self.sizes)))

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

    def _numbers(self, rows: Rows) -> npt.NDArray[np.int64]:
        chosen = rows if isinstance(rows, slice) else np.asarray(rows)
        if isinstance(chosen, np.ndarray) and chosen.size == 0:
            return np.zeros(0, np.int64)
        return np.arange(len(self))[chosen]

    def _chunks(self) -> Iterator[tuple[range, npt.NDArray[np.float32]]]:
        """Yield ranges of rows, each with the fields of those that have codes."""
        coded = self._coded()
        for start in range(0, len(self), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(self)))
            chosen = np.flatnonzero(coded[rows.start : rows.stop]) + start
            yield rows, self.fields(chosen)

    def _coded(self) -> npt.NDArray[np.bool_]:
        if self.rles is None:
            return self.has_mask
        return self.has_mask & np.fromiter((rle is None for rle in self.rles), np.bool_, len(self))

    def _given(self, row: int) -> Rle | None:
        return None if self.rles is None else self.rles[row]

    def _size(self, row: int) -> tuple[int, int]:
        return self._size_of(int(self.image_index[row]))

    def _size_of(self, image: int) -> tuple[int, int]:
        width, height = self.sizes[image].tolist()
        return width, height

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


def decode(
    answers: Answer | Sequence[Answer],
    sizes: npt.ArrayLike,
    codec: MaskCodec | None = None,
    divisor: int = DEFAULT_DIVISOR,
    *,
    scores: Sequence[Sequence[float] | None] | None = None,
    clip: bool = False,
    codes_id: str | None = None,
    strict: bool = False,
    vocabulary: Vocabulary = PALIGEMMA,
    detokenize: Detokenize | None = None,
) -> Detections:
    """Decode answers of a PaliGemma model to boxes in pixels, labels and masks.

    Parameters
    ----------
    answers : list of str, or of token ids (lists or arrays); or one str
        One per image.
    sizes : array_like of int, shape (B, 2) or (2,)
        Width and height of every image in pixels, or one pair for all.
    codec : MaskCodec, optional
        From `load_codec`. Without it the default weights are loaded when masks are asked for.
    divisor : {1024, 1023}
        Number of bins per side of the image; see `loc_to_xyxy`.
    scores : sequence of (sequence of float or None), optional
        One number for each box of each answer; None or NaN if unknown.
    clip : bool
        Keep the boxes inside the image.
    codes_id : str, optional
        Id of the weights that the codes belong to; by default those of the `codec` given, else
        ``google-oid``.
    strict : bool
        Raise on the first issue instead of listing it in ``issues``.
    vocabulary, detokenize
        For answers of token ids; see `palidecode.parse`.

    Returns
    -------
    Detections
        One row for each object that has a box, in the order of the answers.

    Raises
    ------
    InputError
        If the number of sizes or scores doesn't fit, or sizes aren't positive.
    ParseError
        With ``strict=True``.

    Examples
    --------
    >>> found = decode(["<loc0046><loc0538><loc0795><loc1022> cat"], sizes=[(640, 480)])
    >>> found.xyxy.tolist(), found.labels
    ([[336.25, 21.5625, 638.75, 372.65625]], ['cat'])
    """
    if isinstance(answers, str):
        answers = [answers]
    batch = parse_batch(
        answers,  # type: ignore[arg-type]
        strict=strict,
        vocabulary=vocabulary,
        detokenize=detokenize,
    )
    return place_objects(
        batch, len(answers), sizes, codec, divisor, scores=scores, clip=clip, codes_id=codes_id
    )


def place_objects(
    batch: ParsedBatch,
    count: int,
    sizes: npt.ArrayLike,
    codec: MaskCodec | None = None,
    divisor: int = DEFAULT_DIVISOR,
    *,
    scores: Sequence[Sequence[float] | None] | None = None,
    clip: bool = False,
    codes_id: str | None = None,
) -> Detections:
    """Place the parsed objects of `count` answers in their images; see `decode`."""
    per_image = _sizes_of(sizes, count)
    index = batch.answer_index
    return Detections(
        xyxy=loc_to_xyxy(batch.loc, per_image[index], divisor=divisor, clip=clip),
        labels=batch.labels,
        scores=_scores_of(scores, index, count),
        image_index=index,
        sizes=per_image,
        codes=batch.codes,
        has_mask=batch.has_mask,
        codec=codec,
        codes_id=codes_id or (codec.id if codec is not None else GOOGLE_ID),
        issues=batch.issues,
    )


def _sizes_of(sizes: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """Check sizes, and repeat a single one for every answer."""
    if count == 0:
        return np.zeros((0, 2), np.int64)
    checked = check_sizes(sizes, count)
    if (checked != np.rint(checked)).any():
        raise InputError("sizes must be whole numbers of pixels")
    return np.broadcast_to(checked, (count, 2)).astype(np.int64)


def _scores_of(
    scores: Sequence[Sequence[float] | None] | None, index: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float32]:
    out = np.full(len(index), np.nan, np.float32)
    if scores is None:
        return out
    if len(scores) != count:
        raise InputError(f"{count} answers need as many lists of scores, got {len(scores)}")
    for answer, values in enumerate(scores):
        if values is None:
            continue
        first, last = np.searchsorted(index, [answer, answer + 1])
        if len(values) != last - first:
            raise InputError(f"answer {answer} has {last - first} boxes but {len(values)} scores")
        out[first:last] = values
    return out


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

    Returns
    -------
    PIL.Image.Image
        RGB, of the picture's size. Boxes are scaled if the picture was resized.

    Raises
    ------
    InputError
        For a picture or a font that can't be read, or an index without an image.
    """
    from palidecode.drawing import caption_of, color_of, draw_objects  # decoding needs no fonts

    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be in [0, 1], got {alpha}")
    part = detections.image(index)
    # Large objects first, so that small ones stay visible.
    sides = np.maximum(part.xyxy[:, 2:] - part.xyxy[:, :2], 0)
    part = part.select(np.argsort(-sides.prod(axis=1), kind="stable"))
    kind: Literal["smooth", "exact"] = "smooth" if check_paste(paste) == DEFAULT_PASTE else "exact"
    captions = [caption_of(*row) for row in zip(part.labels, part.scores.tolist(), strict=True)]
    return draw_objects(
        picture,
        part._size_of(0),
        part.xyxy,
        [color_of(label) for label in part.labels],
        [_rings(mask) for mask in part.to_polygons(kind, threshold=threshold, paste=paste)],
        captions if labels else [""] * len(part),
        alpha=alpha,
        font=font,
        boxes=boxes,
    )


def _rings(mask: Polygons | None) -> list[npt.NDArray[np.float64]]:
    parts = () if mask is None else mask.parts
    return [ring for part in parts for ring in (part.exterior, *part.holes)]
