"""The demo's pictures: ``python -m training.scenes.demo``.

The first held-out scenes, drawn large, with their truth, into ``palidecode/demo/scenes``. None is
chosen: they are numbers 0 … 11.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from training.scenes.draw import HELD_OUT_SEED, write_scenes

FOLDER = Path(__file__).parents[2] / "palidecode" / "demo" / "scenes"
COUNT, SIZE, QUALITY = 12, 448, 90


def main() -> None:
    """Draw them; JPEG, because noise makes large PNGs."""
    dataset = write_scenes(FOLDER, HELD_OUT_SEED, COUNT, SIZE)
    for image in dataset["images"]:
        path = FOLDER / image["file_name"]
        image["file_name"] = path.with_suffix(".jpg").name
        with Image.open(path) as picture:
            picture.convert("RGB").save(path.with_suffix(".jpg"), "JPEG", quality=QUALITY)
        path.unlink()
    dataset["info"]["command"] = "python -m training.scenes.demo"
    text = json.dumps(dataset, separators=(",", ":"))
    (FOLDER / "instances.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
