"""Training data of the tiny model: ``python -m training.model.data --scenes N -o DIR``.

Scenes are drawn large and resized to the model's input as the runtime does; boxes and masks are
those of the large picture. They are drawn once, into shards (numpy, no pickle), as drawing and
encoding cost as much as a training step. Each use of a scene draws a new prompt, and whether it
is mirrored.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from palidecode.codec import load_codec
from palidecode.codec.weights import DEMO_ID
from palidecode.finetune.encoding import encode_boxes
from palidecode.geometry.masks import shrink
from palidecode.vocab import SEG_PER_MASK
from training.scenes.draw import COLOR_NAMES, TRAIN_SEED, Scene, scene
from training.scenes.shapes import CLASSES

SIDE = 80  # of the model's input, in pixels
DRAWN = 224  # of the drawn scenes, in pixels
GRID = 40  # of the owner map, in cells
PER_SHARD = 1000


@dataclass(frozen=True)
class Shard:
    """Scenes in columns.

    Attributes
    ----------
    images : ndarray of uint8, shape (S, 80, 80, 3)
    owner : ndarray of uint8, shape (S, 40, 40)
        The object that covers most of a cell: 1, 2 … within the scene, 0 for the background.
    first : ndarray of int64, shape (S + 1,)
        The objects of scene i are rows ``first[i]:first[i + 1]`` of the following columns.
    label, color : ndarray of uint8, shape (N,)
        Indices in `CLASSES` and `COLOR_NAMES`.
    loc : ndarray of int16, shape (N, 4)
        Bins y1, x1, y2, x2.
    codes, mirrored : ndarray of uint8, shape (N, 16)
        Mask codes, and those of the mirrored mask.
    """

    images: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.uint8]
    first: npt.NDArray[np.int64]
    label: npt.NDArray[np.uint8]
    color: npt.NDArray[np.uint8]
    loc: npt.NDArray[np.int16]
    codes: npt.NDArray[np.uint8]
    mirrored: npt.NDArray[np.uint8]


def draw_shard(seed: int, start: int, count: int) -> dict[str, npt.NDArray[np.generic]]:
    """Draw `count` scenes of a seed from `start` on, as the columns of `Shard`."""
    codec = load_codec(DEMO_ID)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    owner = np.zeros((count, GRID, GRID), np.uint8)
    first, label, color, boxes = [0], [], [], []
    crops: list[npt.NDArray[np.float32]] = []
    for row in range(count):
        drawn = scene(seed, start + row, DRAWN)
        small = Image.fromarray(drawn.image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        images[row], owner[row] = np.asarray(small), _owners(drawn)
        for name, tone, box, mask in zip(
            drawn.labels, drawn.colors, drawn.boxes, drawn.masks, strict=True
        ):
            x1, y1, x2, y2 = box.astype(int).tolist()
            label.append(CLASSES.index(name))
            color.append(COLOR_NAMES.index(tone))
            boxes.append(box)
            crops.append(shrink(mask[y1:y2, x1:x2]))
        first.append(len(label))
    fields = np.stack(crops) if crops else np.zeros((0, 64, 64), np.float32)
    return {
        "images": images,
        "owner": owner,
        "first": np.array(first),
        "label": np.array(label, np.uint8),
        "color": np.array(color, np.uint8),
        "loc": encode_boxes(np.array(boxes).reshape(-1, 4), (DRAWN, DRAWN)).astype(np.int16),
        "codes": codec.encode(fields).reshape(-1, SEG_PER_MASK),
        "mirrored": codec.encode(np.ascontiguousarray(fields[:, :, ::-1])).reshape(-1, 16),
    }


def _owners(drawn: Scene) -> npt.NDArray[np.uint8]:
    """Map each cell to the object that covers it most, if that is more than half."""
    cover = [np.full((GRID, GRID), 1 / 2, np.float32)]
    for mask in drawn.masks:
        cover.append(
            cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
        )
    return np.stack(cover).argmax(0).astype(np.uint8)


def write_shards(folder: Path, seed: int, scenes: int, part: int = 0, parts: int = 1) -> None:
    """Draw the missing shards; process `part` of `parts` draws every `parts`-th one."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(part, -(-scenes // PER_SHARD), parts)
    for number in tqdm(numbers, desc=f"shards, part {part}", mininterval=5):
        path = folder / f"{seed}-{number:05d}.npz"
        if not path.exists():
            partial = path.with_suffix(f".part{part}")
            with partial.open("wb") as file:
                np.savez(file, **draw_shard(seed, number * PER_SHARD, PER_SHARD))  # type: ignore[arg-type]
            os.replace(partial, path)


def read_shard(path: Path) -> Shard:
    """Read one file of `write_shards`."""
    with np.load(path, allow_pickle=False) as file:
        return Shard(**{name: file[name] for name in Shard.__dataclass_fields__})


def main() -> None:
    """Draw shards."""
    parser = argparse.ArgumentParser(description="Draw the tiny model's training data.")
    parser.add_argument("--scenes", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=TRAIN_SEED)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    write_shards(args.output, args.seed, args.scenes, args.part, args.parts)


if __name__ == "__main__":
    main()
