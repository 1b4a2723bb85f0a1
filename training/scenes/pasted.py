"""Draw scenes with a class that the tiny model has never seen.

``python -m training.scenes.pasted --count 300 -o DIR`` pastes one or two arrows on each scene of
`training.scenes.draw`. The files are those of that module, with a seventeenth category.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from palidecode.errors import InputError
from palidecode.files import replacing
from training.scenes.draw import COLOR_NAMES, Mask, Scene, annotations_of, box_of, scene
from training.scenes.shapes import CLASSES, Item, Shape, paint, posed

NEW = "arrow"
ALL = (*CLASSES, NEW)
TRAIN_SEED, HELD_OUT_SEED = 41, 43  # none of the tiny model's own

_ARROW = [(-0.5, -0.13), (0.05, -0.13), (0.05, -0.36), (0.5, 0)]
SHAPE = Shape((np.array([*_ARROW, *((x, -y) for x, y in _ARROW[2::-1])], np.float32),))

_MOST = 2  # arrows in a picture
_SIDES = (0.15, 0.5)  # an arrow's longer side before it is rotated and stretched
_VISIBLE = 0.5  # least share that is inside the picture, and that stays of what is behind
_CONTRAST = 95.0  # least distance of an arrow's colour from what is behind, 0 to 441
_AREA = 0.007  # least share of the picture


def pasted(seed: int, index: int, size: int) -> Scene:
    """Draw a scene and paste arrows on it; the arguments are those of `scene`."""
    drawn = scene(seed, index, size)
    rng = np.random.default_rng([seed, index, 1])
    image = drawn.image.astype(np.float32)
    masks, colors = list(drawn.masks), list(drawn.colors)
    old = len(masks)
    wanted = int(rng.integers(1, _MOST + 1))
    while len(masks) < old + wanted:
        found = _placed(rng, image, masks)
        if found is not None:
            image, mask, color = found
            masks = [earlier & ~mask for earlier in masks] + [mask]
            colors.append(color)
        elif len(masks) > old:  # at least one
            break
    return Scene(
        np.clip(np.rint(image), 0, 255).astype(np.uint8),
        np.array([box_of(mask) for mask in masks], np.float32).reshape(-1, 4),
        masks,
        [*drawn.labels, *[NEW] * (len(masks) - old)],
        colors,
    )


def _placed(
    rng: np.random.Generator, image: np.ndarray, masks: list[Mask]
) -> tuple[np.ndarray, Mask, str] | None:
    """Paint one arrow where it and what is behind it stay visible; None after 24 attempts."""
    size = len(image)
    for _ in range(24):
        color = COLOR_NAMES[int(rng.integers(len(COLOR_NAMES)))]
        side = float(np.exp(rng.uniform(*np.log(_SIDES))))
        item, half = posed(rng, NEW, color, side, SHAPE)
        centre = rng.uniform(half * 0.7, 1 - half * 0.7).astype(np.float32)
        after = image.copy()
        mask = paint(after, _moved(item, centre))
        area = 0.3 * side**2 * size**2  # about that of a whole arrow
        if mask.sum() < max(_VISIBLE * area, _AREA * mask.size):
            continue
        if any((earlier & ~mask).sum() < _VISIBLE * earlier.sum() for earlier in masks):
            continue
        if np.linalg.norm(image[mask].mean(0) - item.rgb) >= _CONTRAST:
            return after, mask, color
    return None


def _moved(item: Item, centre: np.ndarray) -> Item:
    outline = tuple(ring + centre for ring in item.outline)
    return replace(item, outline=outline, details=tuple(ring + centre for ring in item.details))


def write_pasted(folder: Path, seed: int, count: int, size: int = 224) -> dict[str, Any]:
    """Write pictures and ``instances.json`` as `training.scenes.draw.write_scenes` does."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        drawn = pasted(seed, number, size)
        name = f"pasted_{number:06d}.png"
        buffer = io.BytesIO()
        Image.fromarray(drawn.image).save(buffer, "PNG")
        with replacing(folder / name, "wb") as file:
            file.write(buffer.getvalue())
        images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
        for annotation in annotations_of(drawn, ALL):
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **annotation})
    command = f"python -m training.scenes.pasted --seed {seed} --count {count} --size {size}"
    dataset = {
        "info": {"description": "palidecode scenes with arrows", "command": command},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for id_, name in enumerate(ALL, 1)],
    }
    with replacing(folder / "instances.json") as file:
        file.write(json.dumps(dataset, separators=(",", ":")) + "\n")
    return dataset


def main(argv: Sequence[str] | None = None) -> None:
    """Write a folder of pictures and their ground truth."""
    parser = argparse.ArgumentParser(prog="training.scenes.pasted", description=__doc__)
    parser.add_argument("--seed", type=int, default=TRAIN_SEED)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        dataset = write_pasted(options.output, options.seed, options.count, options.size)
    except InputError as error:
        parser.error(str(error))
    arrows = sum(a["category_id"] == len(ALL) for a in dataset["annotations"])
    print(f"{len(dataset['images'])} scenes with {arrows} arrows in {options.output}")


if __name__ == "__main__":
    main()
