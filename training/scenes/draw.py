"""Draw pictures with exact ground truth: ``python -m training.scenes.draw --count 32 -o DIR``.

Scenes have one to five objects of sixteen classes in nine colours on varied backgrounds. Seed
and index determine a scene, in units of the picture's side, so that the same scene can be drawn
small for training and large for people.

The splits are seeds: `TRAIN_SEED` for training, `VALIDATION_SEED` for choices, `HELD_OUT_SEED`
for reported numbers only. Seed and index go into numpy's `SeedSequence` together, so that no
scene of one seed appears under another.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from palidecode.errors import InputError
from palidecode.files import replacing
from training.scenes.backgrounds import Painter, background
from training.scenes.shapes import CLASSES, COLORS, Item, fill, paint, posed

TRAIN_SEED = 1
VALIDATION_SEED = 2
HELD_OUT_SEED = 3

COLOR_NAMES = tuple(COLORS)
SMALLEST = 48  # pixels; in smaller pictures an object may have no pixel
MOST = 5

_GRID = 64  # side of the raster for trying positions
_COUNTS = (0.22, 0.24, 0.24, 0.18, 0.12)  # shares of scenes with 1, 2, … 5 objects
_SIDES = (0.15, 0.60)  # an object's longer side before it is rotated and stretched
_VISIBLE = 0.4  # least share of an object that is inside the picture and not occluded
_INSIDE = 0.5  # least share of an object inside the picture
_AREA = 0.007  # least share of the picture that an object covers visibly
_CONTRAST = 95.0  # least distance of an object's colour from its background's, 0 to 441

Task = Literal["detect", "segment"]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """A picture and its objects, the nearest last.

    Attributes
    ----------
    image : (size, size, 3) uint8 array
        RGB.
    boxes : (N, 4) float32 array
        xyxy in pixels, tight around the visible pixels.
    masks : list of (size, size) bool array
        The visible pixels; no two masks share one.
    labels, colors : list of str
        Class and colour name of each object.
    """

    image: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    masks: list[Mask]
    labels: list[str]
    colors: list[str]


@dataclass(frozen=True)
class Prompt:
    """A prompt about a scene and its answer.

    Attributes
    ----------
    text : str
        ``detect a ; b`` or ``segment a ; b``.
    phrases : tuple of str
        The prompt's phrases, in order.
    answers : tuple of tuple of int
        For each phrase the numbers of the objects it names, which may be none. No object
        answers two phrases.
    """

    text: str
    phrases: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]

    def objects(self) -> list[tuple[int, str]]:
        """List the objects asked for, with their labels in the answer, in the prompt's order."""
        return [
            (number, phrase)
            for phrase, numbers in zip(self.phrases, self.answers, strict=True)
            for number in numbers
        ]


def scene(seed: int, index: int, size: int) -> Scene:
    """Draw scene number `index` of a seed, `size` pixels wide and high.

    Raises
    ------
    InputError
        If `size` is below 48 pixels, or seed or index below 0.
    """
    if size < SMALLEST:
        raise InputError(f"a scene needs {SMALLEST} pixels a side, got {size}")
    if seed < 0 or index < 0:
        raise InputError(f"seed and index start at 0, got {seed} and {index}")
    rng = np.random.default_rng([seed, index])
    painter = background(rng)
    items = _arrange(rng, painter)
    image = np.ascontiguousarray(painter(size))
    masks: list[Mask] = []
    for item in items:
        mask = paint(image, item)
        for earlier in masks:
            np.logical_and(earlier, ~mask, out=earlier)
        masks.append(mask)
    return Scene(
        np.clip(np.rint(image), 0, 255).astype(np.uint8),
        np.array([box_of(mask) for mask in masks], np.float32).reshape(-1, 4),
        masks,
        [item.label for item in items],
        [item.color for item in items],
    )


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Return the tight box of a mask, xyxy."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return left, top, left + width, top + height


def _arrange(rng: np.random.Generator, painter: Painter) -> list[Item]:
    """Choose the objects and a position for each; larger ones are mostly behind."""
    count = 1 + int(rng.choice(MOST, p=_COUNTS))
    longest = _SIDES[1] if count < 3 else 0.45
    sides = np.exp(rng.uniform(np.log(_SIDES[0]), np.log(longest), count))
    if rng.random() < 0.7:
        sides = -np.sort(-sides)
    behind = painter(_GRID)
    apart = rng.random() < 0.5
    items: list[Item] = []
    placed: list[tuple[Mask, float]] = []
    for side in sides:
        label = CLASSES[int(rng.integers(len(CLASSES)))]
        if items and rng.random() < 0.2:
            label = items[int(rng.integers(len(items)))].label
        item = _placed(rng, label, float(side), behind, placed, apart)
        while item is None and not items:  # no scene is empty
            item = _placed(rng, label, float(side), behind, placed, apart)
        if item is not None:
            items.append(item)
    return items


def _placed(
    rng: np.random.Generator,
    label: str,
    side: float,
    behind: npt.NDArray[np.float32],
    placed: list[tuple[Mask, float]],
    apart: bool,
) -> Item | None:
    """Place an object so that it and those behind it stay visible; None after 24 attempts.

    `placed` holds visible pixels and whole area of the objects so far, and is updated, as is
    `behind`.
    """
    color = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))]
    item, half = posed(rng, label, color, side)
    for attempt in range(24):
        if attempt % 4 == 3:  # try another colour and a smaller size
            color = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))]
            side = max(_SIDES[0], side * 0.8)
            item, half = posed(rng, label, color, side)
        room = half if rng.random() < 0.8 else half * 0.3
        center = rng.uniform(np.minimum(room, 0.5), np.maximum(1 - room, 0.5)).astype(np.float32)
        outline = tuple(ring + center for ring in item.outline)
        canvas = np.zeros((2 * _GRID, 2 * _GRID), np.uint8)
        fill(canvas, outline, _GRID, (-_GRID // 2, -_GRID // 2))
        whole = cv2.countNonZero(canvas)
        quarter = _GRID // 2
        mask = canvas[quarter : quarter + _GRID, quarter : quarter + _GRID] > 0
        if not _fits(mask, whole, placed, apart):
            continue
        if np.linalg.norm(behind[mask].mean(0) - item.rgb) < _CONTRAST:
            continue
        for number, (earlier, area) in enumerate(placed):
            placed[number] = (earlier & ~mask, area)
        behind[mask] = item.rgb
        placed.append((mask, whole))
        details = tuple(ring + center for ring in item.details)
        return Item(**{**vars(item), "outline": outline, "details": details})
    return None


def _fits(mask: Mask, whole: float, placed: list[tuple[Mask, float]], apart: bool) -> bool:
    seen = np.count_nonzero(mask)
    if seen < _INSIDE * whole or seen < _AREA * mask.size:
        return False
    for earlier, area in placed:
        before = np.count_nonzero(earlier)
        left = np.count_nonzero(earlier & ~mask)
        if left < _VISIBLE * area or left < _AREA * mask.size:
            return False
        if apart and before - left > 0.04 * min(area, whole):
            return False
    return True


def all_classes_prompt(truth: Scene, task: Task = "detect") -> Prompt:
    """Make the prompt that asks for every class, in the order of `CLASSES`."""
    return _prompt(truth, task, [(label, None) for label in CLASSES])


def one_phrase_prompt(truth: Scene, rng: np.random.Generator, task: Task) -> Prompt:
    """Make a prompt of one phrase: a colour (``detect red``), a class, or a class in a colour.

    A colour alone asks for every object that has it. Without such prompts a model may never
    learn colours.
    """
    number = int(rng.integers(len(truth.labels))) if truth.labels else None
    label = CLASSES[int(rng.integers(len(CLASSES)))]
    color = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))]
    kind = int(rng.integers(3))
    if number is not None and (kind == 2 or rng.random() < 0.65):
        label = truth.labels[number]
        color = truth.colors[number] if rng.random() < (0.5 if kind == 2 else 1) else color
    if kind == 0:
        numbers = tuple(n for n, tone in enumerate(truth.colors) if tone == color)
        return Prompt(f"{task} {color}", (color,), (numbers,))
    return _prompt(truth, task, [(label, None if kind == 1 else color)])


def prompt_for(truth: Scene, rng: np.random.Generator, task: Task) -> Prompt:
    """Make a random prompt about a scene, as people write them.

    It names some of the scene's classes and, mostly, an absent one. Six of ten name colours,
    also colours that the class doesn't have in the scene: with fewer, a model learns to ignore
    colours. No class is named both with and without a colour.
    """
    if rng.random() < 0.08:
        order = rng.permutation(len(CLASSES))[: int(rng.integers(6, len(CLASSES) + 1))]
        return _prompt(truth, task, [(CLASSES[number], None) for number in order])
    colored = rng.random() < 0.6
    present = sorted(set(truth.labels))
    rng.shuffle(present)
    asked: list[tuple[str, str | None]] = []
    least = 0 if rng.random() < 0.06 else 1
    for label in present[: int(rng.integers(least, len(present) + 1)) if present else 0]:
        asked += _colored(truth, rng, label) if colored else [(label, None)]
    for _ in range(int(rng.choice(4, p=(0.35, 0.35, 0.2, 0.1)))):
        asked.append(_absent(truth, rng, colored))
    if not asked:
        asked.append(_absent(truth, rng, colored))
    asked = list(dict.fromkeys(asked))
    return _prompt(truth, task, [asked[number] for number in rng.permutation(len(asked))])


def _colored(truth: Scene, rng: np.random.Generator, label: str) -> list[tuple[str, str | None]]:
    """Name a class of the scene in a colour it has, in a random one, in both, or without."""
    if rng.random() < 0.15:
        return [(label, None)]
    objects = zip(truth.labels, truth.colors, strict=True)
    present = sorted({color for name, color in objects if name == label})
    right = (label, present[int(rng.integers(len(present)))])
    other = (label, COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))])
    kind = rng.random()
    if kind < 0.35:
        return [other]
    return [right] if kind < 0.65 else [right, other]


def _absent(truth: Scene, rng: np.random.Generator, colored: bool) -> tuple[str, str | None]:
    rest = [label for label in CLASSES if label not in truth.labels]
    color = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))] if colored else None
    return rest[int(rng.integers(len(rest)))], color if rng.random() < 0.7 else None


def _prompt(truth: Scene, task: Task, asked: Sequence[tuple[str, str | None]]) -> Prompt:
    objects = list(zip(truth.labels, truth.colors, strict=True))
    phrases = tuple(f"{color} {label}" if color else label for label, color in asked)
    answers = tuple(
        tuple(
            number
            for number, (label, color) in enumerate(objects)
            if label == wanted and tone in (None, color)
        )
        for wanted, tone in asked
    )
    return Prompt(f"{task} {' ; '.join(phrases)}", phrases, answers)


def write_scenes(folder: Path, seed: int, count: int, size: int, first: int = 0) -> dict[str, Any]:
    """Write scenes as PNGs, and their ground truth as ``instances.json`` (compressed RLE).

    Returns
    -------
    dict
        The COCO dataset; its annotations also have ``color``.
    """
    images, annotations = [], []
    for number in range(first, first + count):
        drawn = scene(seed, number, size)
        name = f"scene_{number:06d}.png"
        buffer = io.BytesIO()
        Image.fromarray(drawn.image).save(buffer, "PNG")
        with replacing(folder / name, "wb") as file:
            file.write(buffer.getvalue())
        images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
        for annotation in annotations_of(drawn):
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **annotation})
    dataset = {
        "info": {
            "description": "palidecode scenes",
            "seed": seed,
            "first": first,
            "command": f"python -m training.scenes.draw --seed {seed} --count {count} "
            f"--first {first} --size {size}",
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for id_, name in enumerate(CLASSES, 1)],
    }
    with replacing(folder / "instances.json") as file:
        file.write(json.dumps(dataset, separators=(",", ":")) + "\n")
    return dataset


def annotations_of(drawn: Scene, classes: Sequence[str] = CLASSES) -> Iterator[dict[str, Any]]:
    """Yield COCO's annotations of a scene, without ids."""
    for label, color, box, mask in zip(
        drawn.labels, drawn.colors, drawn.boxes.tolist(), drawn.masks, strict=True
    ):
        rle = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        yield {
            "category_id": classes.index(label) + 1,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": int(mask.sum()),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            "iscrowd": 0,
            "color": color,
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Write a folder of pictures and their ground truth."""
    parser = argparse.ArgumentParser(prog="training.scenes.draw", description=__doc__)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="index of the first scene")
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        dataset = write_scenes(
            options.output, options.seed, options.count, options.size, options.first
        )
    except InputError as error:
        parser.error(str(error))
    print(
        f"{len(dataset['images'])} scenes with {len(dataset['annotations'])} objects in "
        f"{options.output}"
    )


if __name__ == "__main__":
    main()
