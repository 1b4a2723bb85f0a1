"""Measure the mask codec: ``python -m training.codec.report --coco FILE --font FILE …``.

Prints the figures of the shipped weights. ``--export RUN`` first writes the weights of a
finished training run to ``vqvae_weights/`` (half precision), with a manifest of these figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import load_file

from palidecode.codec import MaskCodec, load_codec
from palidecode.codec.weights import (
    DEMO_ID,
    SHAPES,
    CodecWeights,
    content_hash,
    load_weights,
    save_safetensors,
    sha256_of,
    shipped_path,
)
from palidecode.geometry.masks import paste_big_vision, shrink
from palidecode.vocab import SEG_COUNT
from training.codec import masks

UNSEEN_SEED = 10_000_019  # no training run uses it
SYNTHETIC = 4_000
SIZES = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, 1 << 40))
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def iou(a: BoolArray, b: BoolArray) -> float:
    """IoU of two masks of the same shape; 1 if both are empty."""
    union = int((a | b).sum())
    return 1.0 if union == 0 else int((a & b).sum()) / union


def summary(values: FloatArray) -> dict[str, float | int]:
    """Number of masks, mean, and the quantile of the worst tenth."""
    return {
        "masks": len(values),
        "mean": round(float(values.mean()), 4),
        "worst_decile": round(float(np.quantile(values, 0.1)), 4),
    }


def at_64(codec: MaskCodec, crops: npt.NDArray[np.float32]) -> tuple[FloatArray, npt.NDArray[Any]]:
    """Round-trip IoU at 64×64 of each crop, and the codes."""
    codes = codec.encode(crops)
    fields = codec.decode(codes)
    pairs = zip(fields > 0, crops > 0.5, strict=True)
    return np.array([iou(made, truth) for made, truth in pairs]), codes


def at_full_size(fields: npt.NDArray[np.float32], items: list[masks.CocoMask]) -> FloatArray:
    """IoU in the object's own pixels, after pasting each field into its box."""
    ious = []
    for field, item in zip(fields, items, strict=True):
        height, width = item.mask.shape
        made = paste_big_vision(field, (0, 0, width, height), (width, height)).mask
        ious.append(iou(made, item.mask.astype(np.bool_)))
    return np.array(ious)


def codebook_use(codes: npt.NDArray[Any]) -> dict[str, float | int]:
    """Count the used codes (of 128) and the perplexity of their frequencies."""
    counts = np.bincount(codes.ravel().astype(np.int64), minlength=SEG_COUNT)
    share = counts[counts > 0] / counts.sum()
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    return {"used": int((counts > 0).sum()), "perplexity": round(perplexity, 1)}


def figures(codec: MaskCodec, coco: Path, fonts: list[str]) -> dict[str, Any]:
    """All figures on masks that training never saw."""
    items = masks.load_coco(coco, 1)
    crops = np.stack([shrink(item.mask) for item in items])
    real, real_codes = at_64(codec, crops)
    area = np.array([item.mask.sum() for item in items])
    stream = masks.stream(UNSEEN_SEED, masks.load_fonts(fonts), [])
    drawn = np.stack([next(stream) for _ in range(SYNTHETIC)])
    synthetic, drawn_codes = at_64(codec, drawn)
    full = at_full_size(codec.decode(real_codes), items)
    ceiling = at_full_size(2 * crops - 1, items)
    groups = {name: (area >= low) & (area < high) for name, low, high in SIZES}
    return {
        "real_held_out_64": summary(real),
        "real_held_out_64_by_size": {k: summary(real[v]) for k, v in groups.items()},
        "real_held_out_full_size": summary(full),
        "real_held_out_full_size_by_size": {k: summary(full[v]) for k, v in groups.items()},
        "ceiling_of_64x64_full_size": summary(ceiling),
        "ceiling_of_64x64_full_size_by_size": {k: summary(ceiling[v]) for k, v in groups.items()},
        "synthetic_unseen_64": summary(synthetic),
        "codebook_on_real": codebook_use(real_codes),
        "codebook_on_all": codebook_use(np.concatenate([real_codes, drawn_codes])),
    }


def export(run: Path, coco: Path, fonts: list[str], command: str) -> None:
    """Write the averaged weights of a run, and the manifest."""
    tensors = load_file(run / "state.safetensors")
    arrays = {name: tensors[f"average.{name}"] for name in SHAPES}
    exact = load_codec(CodecWeights(arrays, DEMO_ID), precision="float32")
    path = shipped_path()
    save_safetensors(arrays, path, np.float16)
    shipped = load_weights(path)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    sample = np.stack([shrink(item.mask) for item in masks.load_coco(coco, 1)])
    half = load_codec(shipped, precision="float32")
    codes = exact.encode(sample)
    manifest = {
        "id": DEMO_ID,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "content_sha256": content_hash(shipped.arrays),
        "made_by": "training/codec/train.py, then training/codec/report.py --export",
        "command": command,
        "seed": 0,
        "steps": int(tensors["step"]),
        "data": {
            "drawn": "training/codec/masks.py: polygons, ellipses, blobs, strokes, glyphs, icons",
            "fonts": "Font Awesome 4.7 (SIL OFL 1.1), Material Icons (Apache 2.0), DejaVu (free)",
            "real": "COCO val2014 masks of 50 images, every second of 100 by id; CC BY 4.0, "
            "COCO Consortium; the other 50 images are held out",
        },
        "float16": {
            "codes_changed": round(float((half.encode(sample) != codes).mean()), 6),
            "mask_pixels_changed": round(
                float(((half.decode(codes) > 0) != (exact.decode(codes) > 0)).mean()), 6
            ),
        },
        "figures": figures(half, coco, fonts),
        "curve": [
            {key: round(row[key], 4) for key in ("step", "loss", "iou", "worst_decile")}
            for row in log
            if row["step"] % 1000 == 0 or row is log[-1]
        ],
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (path.parent / "manifest.json").write_text(text + "\n", encoding="utf-8")


def picture(codec: MaskCodec, coco: Path, target: Path, columns: int = 12) -> None:
    """Draw held-out real masks, and below each its round trip with its IoU."""
    items = [item for item in masks.load_coco(coco, 1) if item.mask.sum() > 40**2]
    items = items[:: len(items) // columns][:columns]
    fields = codec.decode(codec.encode(np.stack([shrink(item.mask) for item in items])))
    ious = at_full_size(fields, items)
    side, gap, line = 108, 12, 26
    size = (gap + columns * (side + gap), 2 * (side + gap) + gap + line)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    letters = ImageFont.load_default(17)
    for column, (item, field) in enumerate(zip(items, fields, strict=True)):
        height, width = item.mask.shape
        made = paste_big_vision(field, (0, 0, width, height), (width, height)).mask
        scale = side / max(height, width)
        shown = max(1, round(width * scale)), max(1, round(height * scale))
        left = gap + column * (side + gap)
        for row, (mask, color) in enumerate(((item.mask > 0, "#20496b"), (made, "#d9483b"))):
            tile = Image.fromarray(mask).convert("L").resize(shown, Image.Resampling.BOX)
            x, y = left + (side - shown[0]) // 2, gap + row * (side + gap) + (side - shown[1]) // 2
            sheet.paste(color, (x, y, x + shown[0], y + shown[1]), tile)
        pen.text((left + side // 2, size[1] - line), f"{ious[column]:.2f}", "black", letters, "ma")
    sheet.save(target, optimize=True)


def main() -> None:
    """Print the figures, after an export if one is asked for."""
    parser = argparse.ArgumentParser(description="Figures of the shipped mask codec.")
    parser.add_argument("--coco", type=Path, required=True, help="COCO instances file")
    parser.add_argument("--font", action="append", required=True, help="a font file; repeatable")
    parser.add_argument("--export", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument("--command", default="", help="the training command, for the manifest")
    parser.add_argument("--picture", type=Path, help="masks before and after, as a PNG")
    args = parser.parse_args()
    if args.export:
        export(args.export, args.coco, args.font, args.command)
    if args.picture:
        picture(load_codec(DEMO_ID, precision="float32"), args.coco, args.picture)
    print(
        json.dumps(
            figures(load_codec(DEMO_ID, precision="float32"), args.coco, args.font), indent=1
        )
    )


if __name__ == "__main__":
    main()
