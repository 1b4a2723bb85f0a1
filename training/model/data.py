"""Training data of the tiny model: ``python -m training.model.data --scenes N -o DIR``.

Scenes are drawn large and resized to the model's input as the runtime does; boxes and masks are
those of the large picture. One in five is a part of its picture around an object, as in a second
look. They are drawn once, into shards (numpy, no pickle), together with questions about them
(`training.model.questions`).
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
from palidecode.runtime.tokenizer import Tokenizer
from palidecode.vocab import SEG_PER_MASK
from training.model.questions import Words, questions
from training.model.tokenizer import build
from training.scenes.draw import COLOR_NAMES, MOST, TRAIN_SEED, Scene, box_of, scene
from training.scenes.shapes import CLASSES

SIDE = 112  # of the model's input, in pixels
DRAWN = 224  # of the drawn scenes, in pixels
GRID = 56  # of the owner map, in cells
PER_SHARD = 500
CLOSER = 0.2  # share of the pictures that are a part around an object
_MARGIN = (0.2, 1.0)  # of such a part at each side, in sides of the object's box
_VISIBLE, _AREA = 0.4, 0.007  # least share of an object in that part, and of the part


@dataclass(frozen=True)
class Shard:
    """Scenes in columns; those of objects are padded with 0 to five objects a scene.

    Attributes
    ----------
    images : ndarray of uint8, shape (S, 112, 112, 3)
    owner : ndarray of uint8, shape (S, 56, 56)
        The object that covers most of a cell: 1, 2 … within the scene, 0 for the background.
    count : ndarray of int64, shape (S,)
        Objects of each scene.
    label, color : ndarray of uint8, shape (S, 5)
        Indices in `CLASSES` and `COLOR_NAMES`.
    loc : ndarray of int16, shape (S, 5, 4)
        Bins y1, x1, y2, x2.
    codes, mirrored : ndarray of uint8, shape (S, 5, 16)
        Mask codes, and those of the mirrored mask.
    ids, prefix, lengths, asked : ndarray, shape (S, Q, …)
        `training.model.questions.questions` of each scene.
    """

    images: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.uint8]
    count: npt.NDArray[np.int64]
    label: npt.NDArray[np.uint8]
    color: npt.NDArray[np.uint8]
    loc: npt.NDArray[np.int16]
    codes: npt.NDArray[np.uint8]
    mirrored: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.int16]
    prefix: npt.NDArray[np.int16]
    lengths: npt.NDArray[np.int16]
    asked: npt.NDArray[np.bool_]


def draw_shard(seed: int, start: int, count: int) -> dict[str, npt.NDArray[np.generic]]:
    """Draw `count` scenes of a seed from `start` on, as the columns of `Shard`."""
    codec, words = load_codec(DEMO_ID, threads=1), Words(Tokenizer(build()))
    scenes, crops = [], []
    for index in range(start, start + count):
        drawn = picture(seed, index)
        scenes.append(drawn)
        for box, mask in zip(drawn.boxes, drawn.masks, strict=True):
            x1, y1, x2, y2 = box.astype(int).tolist()
            crops.append(shrink(mask[y1:y2, x1:x2]))
    fields = np.stack(crops)
    codes = codec.encode(fields).reshape(-1, SEG_PER_MASK)
    mirrored = codec.encode(np.ascontiguousarray(fields[:, :, ::-1])).reshape(-1, SEG_PER_MASK)
    rows, first = [], 0
    for index, drawn in enumerate(scenes, start):
        part = slice(first, first + len(drawn.labels))
        first = part.stop
        rng = np.random.default_rng([seed, index, 2])
        rows.append(_row(drawn, codes[part], mirrored[part], rng, words))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def picture(seed: int, index: int) -> Scene:
    """Draw a scene; one in five is then the part around one of its objects."""
    drawn = scene(seed, index, DRAWN)
    rng = np.random.default_rng([seed, index, 1])
    return closer(drawn, rng) if rng.random() < CLOSER else drawn


def closer(drawn: Scene, rng: np.random.Generator) -> Scene:
    """Cut out the part around an object; it needn't be a square.

    Objects that are mostly outside it, or tiny in it, become background.
    """
    height, width = drawn.image.shape[:2]
    x1, y1, x2, y2 = drawn.boxes[rng.integers(len(drawn.boxes))].tolist()
    left, right = rng.uniform(*_MARGIN, 2) * (x2 - x1)
    above, below = rng.uniform(*_MARGIN, 2) * (y2 - y1)
    rows = slice(max(0, round(y1 - above)), min(height, round(y2 + below)))
    columns = slice(max(0, round(x1 - left)), min(width, round(x2 + right)))
    masks = [np.ascontiguousarray(mask[rows, columns]) for mask in drawn.masks]
    kept = [
        number
        for number, (mask, whole) in enumerate(zip(masks, drawn.masks, strict=True))
        if mask.sum() >= max(_VISIBLE * whole.sum(), _AREA * mask.size)
    ]
    return Scene(
        drawn.image[rows, columns],
        np.array([box_of(masks[number]) for number in kept], np.float32).reshape(-1, 4),
        [masks[number] for number in kept],
        [drawn.labels[number] for number in kept],
        [drawn.colors[number] for number in kept],
    )


def _row(
    drawn: Scene,
    codes: npt.NDArray[np.uint8],
    mirrored: npt.NDArray[np.uint8],
    rng: np.random.Generator,
    words: Words,
) -> dict[str, npt.NDArray[np.generic]]:
    """One row of each column of `Shard`."""
    height, width = drawn.image.shape[:2]
    small = Image.fromarray(drawn.image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    loc = encode_boxes(drawn.boxes, (width, height))
    label = np.array([CLASSES.index(name) for name in drawn.labels], np.uint8)
    color = np.array([COLOR_NAMES.index(name) for name in drawn.colors], np.uint8)
    objects = {"label": label, "color": color, "loc": loc, "codes": codes, "mirrored": mirrored}
    missing = MOST - len(label)
    return {
        "images": np.asarray(small),
        "owner": _owners(drawn),
        "count": np.array(len(label)),
        **{
            name: np.pad(value, ((0, missing), *(((0, 0),) * (value.ndim - 1))))
            for name, value in objects.items()
        },
        **questions(drawn, loc.astype(np.int64), (codes, mirrored), rng, words),
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
