"""Draw the demo's pictures: ``python -m training.scenes.demo``.

Writes held-out scenes 0 … 11, drawn large, and their ground truth to ``palidecode/demo/scenes``.
"""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from training.scenes.draw import HELD_OUT_SEED, write_scenes

FOLDER = Path(__file__).parents[2] / "palidecode" / "demo" / "scenes"
COUNT, SIZE, QUALITY = 12, 448, 90


def main() -> None:
    """Write the scenes as JPEG, as noise makes PNGs large."""
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
