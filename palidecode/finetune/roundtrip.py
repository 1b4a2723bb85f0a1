"""Round-trip IoU: the upper bound left by quantising boxes and masks to tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from palidecode.codec.protocol import MaskCodec
from palidecode.detections import Detections
from palidecode.finetune.rows import EncodedImage
from palidecode.geometry.boxes import DEFAULT_DIVISOR, loc_to_xyxy, paired_iou
from palidecode.geometry.rle import Rle

OVERALL = "all classes"


@dataclass
class IouSums:
    """The number of objects of a class, and the sums (not means) of their IoU."""

    objects: int = 0
    masks: int = 0
    box_iou: float = 0.0
    mask_iou: float = 0.0

    def means(self) -> dict[str, float | None]:
        """Number of objects, mean box IoU, and mean mask IoU (None without masks) in [0, 1]."""
        return {
            "objects": self.objects,
            "box_iou": self.box_iou / self.objects if self.objects else None,
            "mask_iou": self.mask_iou / self.masks if self.masks else None,
        }


class RoundTrip:
    """Decodes encoded objects and compares them with the originals.

    Compares boxes in pixels, and masks at full resolution, pasted as `Detections.to_rle` does.
    Keeps only sums: `overall`, and `by_class` in order of appearance.
    """

    def __init__(self, codec: MaskCodec | None = None, divisor: int = DEFAULT_DIVISOR) -> None:
        self.by_class: dict[str, IouSums] = {}
        self.overall = IouSums()
        self._codec = codec
        self._divisor = divisor

    def add(self, encoded: Sequence[EncodedImage]) -> None:
        """Add the round trips of some images."""
        labels = [label for image in encoded for label in image.labels]
        if not labels:
            return
        truth = np.concatenate([image.xyxy for image in encoded])
        sizes = np.array([(image.row["width"], image.row["height"]) for image in encoded])
        index = np.repeat(np.arange(len(encoded)), [len(image.labels) for image in encoded])
        loc = np.concatenate([image.loc for image in encoded])
        xyxy = loc_to_xyxy(loc, sizes[index], divisor=self._divisor)
        masks = self._mask_ious(encoded, labels, xyxy, index, sizes)
        for label, box, mask in zip(labels, paired_iou(xyxy, truth).tolist(), masks, strict=True):
            for sums in (self.overall, self.by_class.setdefault(label, IouSums())):
                sums.objects += 1
                sums.box_iou += box
                if not math.isnan(mask):
                    sums.masks += 1
                    sums.mask_iou += mask

    def _mask_ious(
        self,
        encoded: Sequence[EncodedImage],
        labels: list[str],
        xyxy: npt.NDArray[np.float32],
        index: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
    ) -> list[float]:
        """Mask IoU of each object; NaN for detect."""
        codes = [image.codes for image in encoded if image.codes is not None and len(image.codes)]
        if self._codec is None or not codes:
            return [math.nan] * len(labels)
        decoded = Detections(
            xyxy=xyxy,
            labels=labels,
            scores=np.full(len(labels), np.nan, np.float32),
            image_index=index,
            sizes=sizes,
            codes=np.concatenate(codes),
            has_mask=np.ones(len(labels), np.bool_),
            codec=self._codec,
            codes_id=self._codec.id,
        )
        truth = [rle for image in encoded for rle in image.rles]
        return [_rle_iou(a, b) for a, b in zip(decoded.to_rle(), truth, strict=True)]

    def as_dict(self) -> dict[str, object]:
        """Convert to JSON values: ``overall``, and ``classes`` by name."""
        classes = {label: self.by_class[label].means() for label in sorted(self.by_class)}
        return {"overall": self.overall.means(), "classes": classes}

    def table(self) -> str:
        """Format one line per class, the most frequent first, and one for all classes."""
        ranked = sorted(self.by_class.items(), key=lambda item: (-item[1].objects, item[0]))
        rows = [*ranked, (OVERALL, self.overall)]
        width = max(len("class"), *(len(label) for label, _ in rows))
        lines = [f"{'class':<{width}}  objects  box IoU  mask IoU"]
        for label, sums in rows:
            means = sums.means()
            box, mask = (
                "—" if means[name] is None else f"{means[name]:.3f}"
                for name in ("box_iou", "mask_iou")
            )
            lines.append(f"{label:<{width}}  {sums.objects:>7}  {box:>7}  {mask:>8}")
        return "\n".join(lines)


def _rle_iou(a: Rle | None, b: Rle | None) -> float:
    if a is None or b is None:
        return math.nan
    return float(coco_mask.iou([a], [b], [0])[0, 0])
