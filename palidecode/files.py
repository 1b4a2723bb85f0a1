"""Reading pictures and JSON safely, and writing files atomically."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import re
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import count, takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from palidecode.errors import InputError

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

Picture = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.floating]
"""A file, an image, or an array (H, W), (H, W, 3) or (H, W, 4)."""


@dataclass(frozen=True)
class PictureBytes:
    """The content of a picture's file; `name` is for messages."""

    data: bytes
    name: str


PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".gif", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Endings of the pictures in a folder; their content decides the format."""

_ENDINGS = (
    "json jsonl csv tsv txt md xml yaml yml toml html htm pdf parquet arrow feather avro orc npy "
    "npz pkl pickle p h5 hdf5 mat xls xlsx ods sqlite db tfrecord record safetensors onnx pt pth "
    "bin zip tar gz bz2 xz zst 7z svg"
)
FORMATS = frozenset((*PICTURES, *(f".{ending}" for ending in _ENDINGS.split())))
"""Endings that promise a format; others are part of a name."""

# Formats that Pillow may open. Excludes EPS, which Pillow runs through Ghostscript, and forty
# rare formats.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_SIDE = 1_000_000  # of a picture; a larger side is a typing error, not a picture
MAX_PIXELS = 1 << 29  # of a picture: COCO's RLE counts them in 32 bits
_LONGEST_NAME = 255  # bytes, in every usual file system

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors of a disk that takes no file at all."""
STDOUT = "-"
CREATE = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
"""Flags of `os.open`."""
KEPT = "finished work is kept: free some space and run the same command again"

_ORIENTATION = 0x0112
_TIFF_SIDES = (0x0100, 0x0101)
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` only when everything is written.

    Creates missing folders. If writing fails, an earlier file at `path` stays unchanged. Links
    are followed; ``-`` is the standard output, which is written through, as devices and pipes
    are.
    """
    # Escape lone surrogates, as in file names that are not UTF-8, the way JSON does.
    how = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
    if writes_through(path):
        with _written_through(path, mode, how) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise InputError(f"{path}: is a folder; name a file to write")
        target.parent.mkdir(parents=True, exist_ok=True)
        aside, number, lock = _open_aside(target)
        try:
            with open(number, mode, **how) as file:  # type: ignore[call-overload]
                yield file
            os.replace(aside, target)
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise
        finally:
            if lock is not None:
                os.close(lock)
    except OSError as error:
        raise InputError(f"{target}: can't be written: {error.strerror or error}") from error


def writes_through(path: str | os.PathLike[str]) -> bool:
    """Return True for what can't be replaced: ``-`` (standard output), devices and pipes."""
    if os.fspath(path) == STDOUT:
        return True
    try:
        kind = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


@contextmanager
def _written_through(
    path: str | os.PathLike[str], mode: str, how: Mapping[str, str]
) -> Iterator[IO[Any]]:
    try:
        if os.fspath(path) == STDOUT:
            if sys.stdout is None:
                raise OSError(errno.EBADF, "it is closed")
            yield sys.stdout.buffer if "b" in mode else sys.stdout
            sys.stdout.flush()
            return
        with open(path, mode, **how) as file:  # type: ignore[call-overload]
            yield file
    except OSError as error:
        name = "the standard output" if os.fspath(path) == STDOUT else path
        raise InputError(f"{name} can't be written: {error.strerror or error}") from error


def refuse_overwriting(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuse outputs that are an input, or a picture in a folder of the inputs."""
    given = [Path(os.path.realpath(path)) for path in inputs if os.path.exists(path)]
    for output in outputs:
        target = Path(os.path.realpath(output))
        if writes_through(output) or not target.is_file():
            continue
        picture = target.suffix.lower() in PICTURES
        for path in given:
            if target == path or (picture and path.is_dir() and target.is_relative_to(path)):
                raise InputError(f"{output}: is an input and would be overwritten; name another")


def check_ending(path: str | os.PathLike[str], written: Collection[str]) -> None:
    """Refuse an output with the ending of a format that isn't written there.

    Parameters
    ----------
    path : path
        A folder that exists, a pipe and a device may have any name.
    written : collection of str
        Endings of the formats that are; none for a folder.

    Raises
    ------
    InputError
        Naming the endings that can be given.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS or ending in written or os.path.isdir(path) or writes_through(path):
        return
    instead = f"{', '.join(written)} or no ending" if written else "the name of a folder"
    raise InputError(f"{path}: {ending} isn't written here; use {instead}")


def take_lock(number: int, path: Path) -> bool:
    """Lock an open file until it is closed; False where the file system has no locks.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.
    FileNotFoundError
        If the file is no longer the one at `path`.
    """
    held = fcntl is not None
    try:
        if held:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        held = False
    if not os.path.samestat(os.fstat(number), os.stat(path)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return held


def _open_aside(target: Path) -> tuple[Path, int, int | None]:
    """Create the unfinished file beside `target`: its path, its number, and that of its lock.

    It is locked as long as its process lives, so an unlocked one is a killed run's and is
    deleted. Without locks it is left where it is, and the next name is taken.
    """
    for path in takewhile(os.path.lexists, _asides(target)):
        with suppress(OSError):
            left = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if take_lock(left, path):
                    path.unlink()
            finally:
                os.close(left)
    for path in _asides(target):
        with suppress(FileExistsError):
            number = os.open(path, CREATE | os.O_EXCL, 0o666)
            try:
                held = take_lock(number, path)
            except (BlockingIOError, FileNotFoundError):  # taken for a leftover meanwhile
                os.close(number)
            else:
                # The file is closed before it is renamed; the lock is kept until after that.
                return path, number, os.dup(number) if held else None
    raise AssertionError("the names don't end")


def _asides(target: Path) -> Iterator[Path]:
    """Yield names of an unfinished file: ``.coco.json.HOST.part``, ``.coco.json.HOST.2.part`` …

    The machine is part of it: some network file systems lock within one machine only.
    """
    host = re.sub("[^A-Za-z0-9-]", "-", platform.node())[:60]
    for number in count(1):
        end = f".{host}.part" if number == 1 else f".{host}.{number}.part"
        name = os.fsencode(target.name)
        if len(name) <= _LONGEST_NAME < len(name) + len(end) + 1:
            # The longest possible name leaves no room for a suffix.
            yield target.with_name(f".{hashlib.sha256(name).hexdigest()}{end}")
        else:
            yield target.with_name(f".{target.name}{end}")


def disk_is_full(error: InputError) -> bool:
    """Return True for a failed write after which no other file could be written either."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL


def unwritten(path: Path, error: OSError) -> InputError:
    """The error for a failed write; finished work is kept."""
    return InputError(f"{path}: can't be written: {error.strerror or error}; {KEPT}")


def regular(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file to read, which is opened only after this.

    Raises
    ------
    OSError
        For folders, and for pipes and devices, which may be waited for without end.
    """
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind):
        what = "folder" if stat.S_ISDIR(kind) else "pipe or device; save it as a file first"
        raise _NotAFileError(errno.EINVAL, f"is a {what}", path)
    return Path(path)


class _NotAFileError(OSError):
    def __str__(self) -> str:
        return str(self.strerror)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file, with or without a byte order mark.

    An `InputError` names the file and the position.
    """
    try:
        return json.loads(regular(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read: {reason_of(error)}") from error
    except RecursionError as error:
        raise InputError(f"{path}: JSON is nested too deeply") from error
    except ValueError as error:  # also a number of more digits than Python reads
        raise InputError(f"{path}: not JSON: {error}") from error


def data_folder(package: str) -> Path:
    """Return the folder of a package's data, which must be files for other libraries to read."""
    folder = Path(str(resources.files(package)))
    if not folder.is_dir():
        raise InputError(
            f"{folder}: data in an archive can't be read; unpack it, or install palidecode with pip"
        )
    return folder


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """Resolve the file `name` in `folder`, which it must not leave."""
    base = Path(folder).resolve()
    try:
        path = (base / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{name!r}: not a usable file name: {reason_of(error)}") from error
    if not path.is_relative_to(base):
        raise InputError(f"{name!r} leads out of the folder {folder}")
    return path


def png_names(names: Iterable[str]) -> dict[str, str]:
    """Name the drawn copies of pictures: ``a.jpg`` becomes ``a.png``.

    Names that would collide keep their endings: ``a.jpg.png``, ``a.webp.png``.
    """
    short = {name: f"{os.path.splitext(name)[0]}.png" for name in names}
    often = Counter(short.values())
    often.update(f"{name}.png" for name in short if os.path.splitext(name)[1])
    return {name: new if often[new] == 1 else f"{name}.png" for name, new in short.items()}


def whole_png(path: Path) -> bool:
    """Return True for a PNG whose checksums fit: a power cut leaves empty and cut files."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()
    except Exception:  # damaged pictures make Pillow raise a dozen kinds
        return False
    return True


def picture_size(path: str | os.PathLike[str], data: bytes | None = None) -> tuple[int, int]:
    """Read a picture's width and height, EXIF rotation applied, from its header.

    If `data` holds the file's content, `path` is only used in messages.
    """
    with _opened(path, data) as image:
        width, height = image.size
        if image.format == "TIFF":
            # Pillow may have swapped these sides already, but not the tag that says so.
            tags = cast("TiffImageFile", image).tag_v2
            width, height = (int(tags[tag]) for tag in _TIFF_SIDES)
        if image.getexif().get(_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        return width, height


def open_picture(picture: Picture) -> Image.Image:
    """Open a picture as RGB, EXIF rotation applied, alpha composited on white.

    Idempotent.
    """
    check_picture(picture)
    if isinstance(picture, np.ndarray):
        return _rgb(_from_array(picture))
    if isinstance(picture, Image.Image):
        # Pillow reads lazily: the file may turn out to be truncated here.
        with _named_errors(str(getattr(picture, "filename", "") or "an image in memory")):
            return _rgb(picture)
    with _opened(picture) as image:
        return _rgb(image)


def as_sent(picture: Picture | PictureBytes) -> tuple[bytes, str, tuple[int, int]]:
    """Return a picture for another program: the bytes of a file, their MIME type, and its size.

    A JPEG, PNG or WebP file in 8 bits that any program reads as `open_picture` does stays as it
    is. Others become a PNG of what `open_picture` sees: other formats, 16 bits, an EXIF
    rotation, transparency, several pictures in a file, CMYK.

    Raises
    ------
    InputError
        If it can't be read.
    """
    if isinstance(picture, PictureBytes):
        name, data = picture.name, picture.data
    elif isinstance(picture, str | os.PathLike):
        check_picture(picture)
        name, data = os.fsdecode(picture), None
    else:
        opened = open_picture(picture)
        return _as_png(opened), "image/png", opened.size
    with _opened(name, data) as image:
        mime, opened = _plain_mime(image), _rgb(image)
        if mime is not None:
            return data or regular(name).read_bytes(), mime, opened.size
    return _as_png(opened), "image/png", opened.size


def _plain_mime(image: Image.Image) -> str | None:
    """Return the MIME type of a file that every program reads alike; None for others."""
    plain = image.format in ("JPEG", "PNG", "WEBP") and image.mode in ("RGB", "L")
    one = getattr(image, "n_frames", 1) == 1
    upright = image.getexif().get(_ORIENTATION, 1) == 1
    if not (plain and one and upright) or "transparency" in image.info:
        return None
    return Image.MIME[str(image.format)]


def _as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def check_picture(picture: object) -> None:
    """Refuse what can't be a picture whatever is in it: other types, arrays and addresses."""
    if isinstance(picture, np.ndarray):
        _check_array(picture)
    elif isinstance(picture, str) and picture.lower().startswith(("http://", "https://")):
        raise InputError(f"{picture}: download it first; a picture is a file, not an address")
    elif not isinstance(picture, Image.Image | str | os.PathLike):
        kind = type(picture).__name__
        raise InputError(
            f"a picture is a path, a PIL image or an array (H, W), (H, W, 3) or (H, W, 4), not "
            f"{kind}; for a tensor: tensor.permute(1, 2, 0).numpy()"
        )


def picture_name(picture: Picture) -> str:
    """Return the path of a picture, or of the file that an image was opened from, or ``""``."""
    if isinstance(picture, np.ndarray):
        return ""
    if isinstance(picture, Image.Image):
        picture = getattr(picture, "filename", "")
    return os.fsdecode(picture)


def open_encoded(data: bytes, name: str) -> Image.Image:
    """Open a picture from the bytes of its file, as `open_picture`; `name` is for messages."""
    with _opened(name, data) as image:
        return _rgb(image)


def check_size(size: object) -> tuple[int, int]:
    """Check a width and a height: positive whole numbers, at most `MAX_PIXELS` pixels."""
    sides = list(size) if isinstance(size, (list, tuple, np.ndarray)) else []
    sides = [side.item() if isinstance(side, np.generic) else side for side in sides]
    sides = [int(side) if isinstance(side, float) and side.is_integer() else side for side in sides]
    whole = len(sides) == 2 and all(type(side) is int for side in sides)
    if not whole or not all(0 < side <= MAX_SIDE for side in sides):
        raise InputError(f"a size must be a width and a height in pixels, both ≥ 1, got {size!r}")
    width, height = sides
    if width * height > MAX_PIXELS:
        raise InputError(f"{width}×{height} is more than a mask's {MAX_PIXELS} pixels")
    return width, height


def _check_array(array: npt.NDArray[np.generic]) -> None:
    colours = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not colours or not array.size:
        raise InputError(
            f"a picture array must be (H, W), (H, W, 3) or (H, W, 4), got {array.shape}"
        )
    if array.dtype == np.uint8:
        return
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"a picture array must be uint8, or floats in [0, 1], got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high <= 1:
        raise InputError(f"a picture array of floats must be in [0, 1], got {low:g} … {high:g}")


def _from_array(array: npt.NDArray[np.generic]) -> Image.Image:
    """Convert a checked array: uint8, or floats in [0, 1], which are scaled."""
    if array.dtype != np.uint8:
        array = np.rint(np.asarray(array, np.float64) * 255).astype(np.uint8)
    return Image.fromarray(array)


def _rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layered = upright.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return _bare(Image.alpha_composite(white, layered).convert("RGB"))
    if upright.mode == "F":
        return Image.fromarray(_grey(np.asarray(upright))).convert("RGB")
    if upright.mode.startswith("I;16") or upright.mode == "I":
        # Pillow would clip 16 bits to 8 instead of scaling them.
        upright = upright.convert("F").point(lambda value: value / 257).convert("L")
    return _bare(upright.convert("RGB"))


def _grey(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Convert floats to grey levels: those in [0, 1] are scaled, as of arrays, others in [0, 255].

    Raises
    ------
    InputError
        For other numbers, whose black and white aren't known.
    """
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 255:
        raise InputError(
            f"a picture of floats must be in [0, 1] or [0, 255], got {low:g} … {high:g}; scale it"
        )
    scaled: npt.NDArray[np.uint8] = np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    return scaled


def _bare(image: Image.Image) -> Image.Image:
    """Drop the metadata: damaged EXIF is ignored in a file but raises in an image in memory."""
    image.info.clear()
    return image


@contextmanager
def _opened(path: str | os.PathLike[str], data: bytes | None = None) -> Iterator[Image.Image]:
    with _named_errors(path):
        source = regular(path) if data is None else io.BytesIO(data)
        with Image.open(source, formats=_known_formats()) as image:
            yield image


@cache
def _known_formats() -> tuple[str, ...]:
    """List the `_FORMATS` that this Pillow supports."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def _named_errors(name: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any error inside into one `InputError` that names the picture."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns about pictures of 89 to 179 million pixels.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name}: too many pixels for a picture ({error}); raise PIL.Image.MAX_IMAGE_PIXELS "
            "if you trust it"
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such picture") from error
    except Exception as error:  # damaged pictures make Pillow raise a dozen kinds
        raise InputError(f"{name}: can't be read as a picture: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return the reason of an error in one line, without Python's words around it."""
    inner = getattr(error, "reason", None)  # of a failed download
    if isinstance(inner, Exception):
        error = inner
    return getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else "empty"
