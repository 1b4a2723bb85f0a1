"""Names of pictures, as a file of answers or a COCO file gives them."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

from PIL import Image

from palidecode.cli import main
from palidecode.coco.skips import SkippedRowsWarning
from tests.fuzzing import Target, folder
from tests.fuzzing.guard import watched
from tests.fuzzing.mutation import TEXTS, change_json
from tests.samples import answer

_SOUND = (
    "a.png",
    "sub/b.png",
    "sub/../a.png",
    "./a.png",
    "a.png/",
    "A.PNG",
    "e\u0301.png",
    "\xe9.png",
)
_LEADING = (
    "out/c.png",
    "loop/x.png",
    "/etc/hostname",
    "../c.png",
    "sub",
    "",
    "pipe.png",
    "x" * 250 + ".png",
)


@cache
def _pictures() -> Path:
    """A folder of pictures with links that lead out of it and round in circles."""
    place = folder() / "named"
    (place / "pictures" / "sub").mkdir(parents=True)
    for path in (place / "c.png", *(place / "pictures" / name for name in ("a.png", "sub/b.png"))):
        Image.new("RGB", (8, 6)).save(path)
    (place / "pictures" / "out").symlink_to(place)
    (place / "pictures" / "loop").symlink_to("loop")
    (place / "pictures" / "e\u0301.png").write_bytes((place / "c.png").read_bytes())
    (place / "pictures" / ("x" * 250 + ".png")).write_bytes((place / "c.png").read_bytes())
    return place


def _names() -> list[bytes]:
    parts = (_SOUND, _LEADING, TEXTS[:20], TEXTS[20:])
    return [json.dumps(part).encode() for part in parts]


def run(data: bytes) -> None:
    """Draw and decode: every written file is inside the output folder."""
    try:
        names = json.loads(data)
    except (ValueError, RecursionError):
        names = [data.decode("latin-1")]
    names = names if isinstance(names, list) else [names]
    place = _pictures()
    output = place / "output"
    output.mkdir(exist_ok=True)
    rows = [{"image": name, "width": 8, "height": 6, "output": answer("cat")} for name in names]
    (place / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = [{"id": n, "file_name": name, "width": 8, "height": 6} for n, name in enumerate(names)]
    dataset = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (place / "dataset.json").write_text(json.dumps(dataset))
    pictures = str(place / "pictures")
    drawing = ["--images", pictures, "-o", str(output)]
    for arguments in (
        ["draw", str(place / "answers.jsonl"), *drawing],
        ["draw", str(place / "dataset.json"), *drawing, "--json"],
        ["decode", str(place / "answers.jsonl"), "-o", str(output / "coco.json"), "--json"],
    ):
        # As strict about what can be printed as a terminal is.
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with (
            watched(output),
            redirect_stdout(out),
            redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", SkippedRowsWarning)
            assert main(arguments) in (0, 1, 2)


TARGETS = {"names": Target(run, _names, change_json, 100)}
