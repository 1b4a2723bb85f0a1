"""Picture files of every kind that is read, and of others."""

from __future__ import annotations

import io
import random
import warnings
from functools import cache

import numpy as np
from PIL import Image

from palidecode.files import open_picture, picture_size
from palidecode.runtime.image import ImageConfig, to_pixels
from tests.fuzzing import Target, folder, refused, written
from tests.fuzzing.guard import watched
from tests.fuzzing.mutation import change_bytes, change_png

_SIDE = 16


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@cache
def _pictures() -> list[bytes]:
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [image.rotate(angle) for angle in (90, 180)]
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    deep = Image.fromarray(rng.integers(0, 65535, (9, 9), dtype=np.uint16))
    return [
        saved(image, "JPEG", exif=turned, quality=60),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "JPEG", progressive=True),
        saved(image, "PNG"),
        saved(palette, "PNG", transparency=1),
        saved(deep, "PNG"),
        saved(image, "PNG", save_all=True, append_images=frames),
        saved(palette, "GIF", save_all=True, append_images=frames, loop=0),
        saved(image, "WEBP", save_all=True, append_images=frames),
        saved(image.convert("RGBA"), "WEBP", lossless=True),
        saved(image, "BMP"),
        saved(deep, "TIFF"),
        saved(image.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        saved(image.convert("F"), "TIFF"),
        saved(Image.new("L", (1, 400)), "PNG"),
    ]


def change_picture(rng: random.Random, data: bytes) -> bytes:
    """By chunks where there are chunks."""
    return change_png(rng, data) if data.startswith(b"\x89PNG") else change_bytes(rng, data)


def run(data: bytes) -> None:
    """Its size and its pixels, or one line that says why not; nothing is written or run."""
    path = written("x.jpg", data)
    with warnings.catch_warnings(), watched(folder()):
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        refused(picture_size, path)
        said = refused(open_picture, path)
        if said is not None:
            assert "x.jpg" in said
            assert "\n" not in said
            return
        image = open_picture(path)
        assert image.mode == "RGB"
        assert image.size == picture_size(path)
        pixels = to_pixels([image], ImageConfig(_SIDE))
        assert pixels.shape == (1, 3, _SIDE, _SIDE)
        assert np.isfinite(pixels).all()


TARGETS = {"pictures": Target(run, _pictures, change_picture, 1200)}
